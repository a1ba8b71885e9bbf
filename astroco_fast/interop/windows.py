"""The encoder's states of one light curve's windows, which both stand-ins are made of."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from astroco_fast.data.clean import CleanConfig, clean
from astroco_fast.data.sources import open_source
from astroco_fast.errors import UserError
from astroco_fast.pretrained import PretrainedEncoder


class States(NamedTuple):
    """The states (W, T, D) float32 of W windows, zero at padding, and their numbers of points (W,)."""

    sequence: NDArray[np.float32]
    lengths: NDArray[np.int64]


def good_points(curve: Any, what: str) -> NDArray[np.float64]:
    """The good points (L, 3) of a light curve, sorted by time, as `model.embed` cleans it.

    Args:
        curve: (L, 3) time (days), magnitude, uncertainty.
        what: names the light curve in messages.

    Raises:
        UserError: it is no light curve, or has no good point.
    """
    points = np.asarray(curve, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise UserError(f"{what}: (L, 3) numbers are needed (time, magnitude, uncertainty), not {points.shape}")
    kept: Counter[str] = Counter()
    for raw in open_source([points]).batches():
        batch, reasons = clean(raw, CleanConfig(min_points=1))
        kept.update(reasons)
        if len(batch):
            return np.column_stack([batch.time, batch.mag, batch.err])
    raise UserError(f"{what}: has no good point ({', '.join(kept) or 'it is empty'})")


def window_states(model: PretrainedEncoder, points: NDArray[np.float64], size: int, batch_size: int = 256) -> States:
    """The states of consecutive windows of a light curve.

    Args:
        model: an encoder of the time view, in evaluation mode.
        points: (L, 3) good points in the order of time.
        size: T, points of a window.
        batch_size: windows in a forward pass.

    Raises:
        UserError: the model sees folded light curves, whose windows are not consecutive points.
    """
    if model.views != "time":
        raise UserError(f"a model of the view {model.views} has no states in the order of time; take time-small, say")
    count = -(-len(points) // size)
    lengths = np.minimum(size, len(points) - size * np.arange(count))
    padded = np.concatenate([points, np.repeat(points[-1:], count * size - len(points), axis=0)])
    time, mag, err = (torch.from_numpy(padded[:, k].reshape(count, size).copy()) for k in range(3))
    device = next(model.parameters()).device
    found = []
    with torch.inference_mode():
        for first in range(0, count, batch_size):
            at = slice(first, first + batch_size)
            inputs = [values[at].to(device) for values in (time, mag, err)]
            found.append(model(*inputs, lengths=torch.from_numpy(lengths[at])).sequence.float().cpu().numpy())
    return States(np.concatenate(found), lengths)
