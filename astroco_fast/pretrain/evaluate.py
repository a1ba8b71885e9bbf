"""RMSE and R2 over the whole validation split, by role.

Sums are taken over all windows of the split and all ranks, in float64, before any ratio: no average of averages.

R2 = 1 - SS_res / SS_tot. SS_tot is the sum of squared deviations from each window's mean over its probed points; that
mean is over all probed points, for every role. The trivial answer, for comparison, is the window's mean, which is zero
since windows are centred.

A survey's quoted uncertainty follows from the measured magnitude, noise included, so that a model that sees the
uncertainty of a hidden point is told part of its magnitude. Such a model is evaluated a second time, with the
uncertainty of hidden points replaced by the median of the window's other points.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from astroco_fast import ops
from astroco_fast.data.batches import Batch
from astroco_fast.data.masking import HIDDEN
from astroco_fast.data.training import TrainingData, upload
from astroco_fast.pretrain.step import Trainer
from astroco_fast.reference.loss import ROLES

GROUPS = ("all", *ROLES)
RESIDUAL, TOTAL, TRIVIAL, POINTS = range(4)  # rows of the table of sums; a column for each of GROUPS
WITHOUT_ERR = "hidden_without_err"  # a further column, for a model that sees the uncertainty of hidden points


def evaluate(trainer: Trainer, data: TrainingData, stop: Callable[[], bool]) -> dict[str, Any] | None:
    """Evaluate `trainer.evaluated` on the validation split.

    Args:
        trainer: the model.
        data: the run's windows.
        stop: whether this rank was asked to stop; called between batches.

    Returns:
        The metrics, the same on every rank; None if stopped. They are rmse, r2 and trivial_rmse over all probed points,
        the same with _hidden, _random and _unchanged appended, for a model that sees the uncertainty of hidden points
        also with _hidden_without_err, and the number of windows. A figure over no points is None.
    """
    ranks, model = trainer.ranks, trainer.evaluated.eval()
    sees_err = "uncertainty" not in getattr(model.config, "hide", ("uncertainty",))
    groups = (*GROUPS, WITHOUT_ERR) if sees_err else GROUPS
    table = np.zeros((4, len(groups)))
    with data.evaluation() as batches, torch.inference_mode():
        for batch in batches:
            if ranks.any(stop()):
                return None
            residual = _squared_error(trainer, batch)
            columns = np.vstack([[residual.sum(), *residual], target_sums(batch)])
            if sees_err:
                hidden = columns[:, GROUPS.index("hidden")].copy()
                hidden[RESIDUAL] = _squared_error(trainer, without_err(batch))[HIDDEN - 1]
                columns = np.column_stack([columns, hidden])
            table += columns
    reduced = ranks.sum(torch.from_numpy(table).to(ranks.device)).cpu().numpy()
    return {**metrics(reduced, groups), "windows": len(data.validation)}


def _squared_error(trainer: Trainer, batch: Batch) -> NDArray[np.float64]:
    """The sum of squared errors over a batch, by role, (3,)."""
    on_device = upload(batch, trainer.ranks.device)
    positional, keywords = on_device.inputs()
    with trainer.autocast():
        prediction = trainer.evaluated(*positional, **keywords).reconstruction
    squared, _ = ops.masked_loss(prediction, on_device.target, on_device.role)
    return np.asarray(squared.double().sum(0).cpu().numpy())


def without_err(batch: Batch) -> Batch:
    """The batch with the uncertainty of hidden points replaced by the median of their window's other real points."""
    real = np.arange(batch.err.shape[1]) < batch.lengths[:, None]
    hidden = batch.role == HIDDEN
    shown = np.ma.masked_array(batch.err, ~real | hidden)
    typical = np.ma.median(shown, axis=1).filled(0.0).astype(np.float32)
    return replace(batch, err=np.where(hidden, typical[:, None], batch.err))


def target_sums(batch: Batch) -> NDArray[np.float64]:
    """Sums that need no model, (3, 4) float64: SS_tot, sum of squares and number of points, for each of `GROUPS`."""
    target = batch.target.astype(np.float64)
    probed = batch.role > 0
    mean = np.where(probed, target, 0.0).sum(1) / np.maximum(probed.sum(1), 1)
    deviation = np.square(target - mean[:, None])
    columns = []
    for member in (probed, *(batch.role == code for code in range(1, len(GROUPS)))):
        columns.append([deviation[member].sum(), np.square(target[member]).sum(), member.sum()])
    return np.array(columns).T


def metrics(table: NDArray[np.float64], groups: Sequence[str] = GROUPS) -> dict[str, float | None]:
    """The metrics, from the table of sums, (4, G), of these G groups."""
    found: dict[str, float | None] = {}
    for column, group in enumerate(groups):
        residual, total, trivial, points = table[:, column].tolist()
        suffix = "" if group == "all" else f"_{group}"
        found[f"rmse{suffix}"] = (residual / points) ** 0.5 if points else None
        found[f"r2{suffix}"] = 1 - residual / total if total else None
        found[f"trivial_rmse{suffix}"] = (trivial / points) ** 0.5 if points else None
    return found
