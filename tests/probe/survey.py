"""A small labelled survey and a tiny untrained model, for the tests of the probe."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

import astroco_fast as af
from astroco_fast.data.curves import CurveBatch
from tests.data.curve_factory import as_nested, make_batch

CLASSES = ("EW", "LPV", "RRab")
STARS_A_CLASS, POINTS = 14, 12
FEW = ("--sizes", "[4, 6]", "--validation", "3", "--test", "4", "--folds", "2", "--seeds", "2", "--head.epochs", "5")


def tiny_model() -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo.from_preset("tiny", width=16, heads=2, layers=1, window=8, kernel=4).eval()


def survey() -> CurveBatch:
    """Light curves of noise, whose amplitude differs by class; their ids are star-0, star-1, ...; classes alternate."""
    batch = make_batch(STARS_A_CLASS * len(CLASSES), lengths=[POINTS] * STARS_A_CLASS * len(CLASSES))
    batch.label = np.array([CLASSES[i % len(CLASSES)] for i in range(len(batch))], dtype=object)
    scale = np.repeat([0.1 * 5 ** (i % len(CLASSES)) for i in range(len(batch))], POINTS)
    batch.mag = ((batch.mag - 15) * scale + 15).astype(np.float32)
    return batch


def table(batch: CurveBatch | None = None) -> pa.Table:
    return as_nested(survey() if batch is None else batch)
