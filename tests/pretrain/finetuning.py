"""A small labelled store and the command that fine-tunes on it, for child processes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import astroco_fast as af
from astroco_fast.data.convert import convert
from astroco_fast.finetune import main
from tests.data.curve_factory import make_batch

CLASSES = ("EW", "LPV", "RRab")


def finetune(argv: Sequence[str], accident: tuple[Callable[..., None], tuple[Any, ...]] | None = None) -> int:
    """Run `astroco finetune ARGV` after preparing an accident of `tests.pretrain.patches`."""
    if accident is not None:
        plan, args = accident
        plan(*args)
    return main(argv)


def labelled_store(path: Path, stars: int = 120) -> Path:
    """A store of noise whose amplitude differs by class; the first light curve comes twice."""
    batch = make_batch(stars, lengths=[10 + i % 30 for i in range(stars)])
    batch.label = np.array([CLASSES[i % 3] for i in range(stars)], dtype=object)
    scale = np.repeat([0.1 * 4 ** (i % 3) for i in range(stars)], batch.lengths)
    batch.mag = ((batch.mag - 15) * scale + 15).astype(np.float32)
    for values in (batch.time, batch.mag, batch.err):
        values[batch.offsets[30] : batch.offsets[31]] = values[batch.offsets[0] : batch.offsets[1]]
    convert(batch, path)
    return path


def tiny_model(folder: Path) -> Path:
    torch.manual_seed(0)
    settings = {"width": 16, "heads": 2, "layers": 2, "window": 24, "kernel": 4}
    af.AstroCo.from_preset("tiny", **settings).save_pretrained(folder)
    return folder
