"""Cases that the encoder is measured in: preset, task, batch, and kind of windows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from astroco_fast.data.masking import HIDDEN, draw_roles

LENGTH = 200
PRESETS, BATCHES, KINDS = ("S", "L"), (1, 32, 256), ("full", "ragged")
ENCODE, TRAIN = "encode", "training step"


class Case(NamedTuple):
    """One group of figures.

    Attributes:
        preset: name of the encoder's preset.
        task: `ENCODE`, which gives the embeddings, or `TRAIN`: forward with dropout, loss at probed points, backward.
        batch: number of windows (B), of `LENGTH` positions each.
        kind: "full", or "ragged": half of all positions are padding.
    """

    preset: str
    task: str
    batch: int
    kind: str

    @property
    def training(self) -> bool:
        return self.task == TRAIN

    @property
    def group(self) -> str:
        return f"{self.preset} {self.task}, batch {self.batch}, {self.kind} windows"


class Batch(NamedTuple):
    """Centred windows in a loader's form; zero at padding.

    Attributes:
        time, mag, err: (B, T) float32.
        hidden: (B, T) bool; None: nothing is hidden (encode).
        role: (B, T) uint8, roles of `astroco_fast.data.masking`.
        lengths: (B,) int64 on the CPU.
    """

    time: Tensor
    mag: Tensor
    err: Tensor
    hidden: Tensor | None
    role: Tensor
    lengths: Tensor

    @property
    def full(self) -> bool:
        return bool((self.lengths == self.time.shape[1]).all())

    def windows(self, chosen: slice) -> Batch:
        """The batch of the chosen windows."""
        return Batch(*(None if values is None else values[chosen].contiguous() for values in self))


def cases() -> list[Case]:
    """All cases, the cheapest batch first."""
    return [Case(p, task, b, kind) for task in (ENCODE, TRAIN) for p in PRESETS for b in BATCHES for kind in KINDS]


def in_default(case: Case, rival: str, model: str = "AstroCo") -> bool:
    """Whether a provider is measured without `--full`.

    Args:
        case: to be measured.
        rival: the provider's kind: eager, compiled (either also with "+ SDPA"), onnx, ours, ours fp32 or ours int8.
        model: the model that it runs.
    """
    usual = case.batch == 32 and case.kind == "full"
    if model != "AstroCo":  # windows/s of another model, at the usual batch
        return rival == "eager" and usual
    if rival == "compiled + SDPA":
        return False
    if rival == "compiled":  # compiling takes half a minute to minutes a model
        return case == Case("S", ENCODE, 32, "full")
    if rival == "onnx" and case.kind == "ragged":  # it computes the padding too, which takes long
        return False
    if case.training:  # all rounds alternate with eager bf16 anyway; a step of L in fp32 takes 6 s
        return rival == "ours" and (usual or (case.preset == "S" and case.batch == 32))
    if case.batch == 256:  # eager needs 8 s a batch of L in bf16, 16 s in fp32
        return rival in ("ours", "ours int8") and case.kind == "full"
    if case.kind == "ragged":
        return case.batch == 32 and rival == "ours"
    return case.batch == 32 or rival not in ("ours fp32", "ours int8")


def window_lengths(batch: int, kind: str, length: int = LENGTH) -> Tensor:
    """(B,) int64 numbers of real points: all, or from almost none to almost all in random order, half on average."""
    if kind == "full":
        return torch.full((batch,), length)
    even = ((torch.arange(batch) + 0.5) * length / batch).round().long().clamp(1, length - 1)
    return even[torch.randperm(batch, generator=torch.Generator().manual_seed(0))]


def make_batch(case: Case, device: torch.device, length: int = LENGTH) -> Batch:
    """Random windows for a case, with the masks of pretraining if it is a training step."""
    draw = torch.Generator().manual_seed(0)
    lengths = window_lengths(case.batch, case.kind, length)
    real = torch.arange(length) < lengths[:, None]
    shape = (case.batch, length)
    time = (torch.rand(shape, generator=draw) * 3000).sort(1).values - 1500
    mag, err = torch.randn(shape, generator=draw) * 0.3, torch.rand(shape, generator=draw) * 0.1
    role = torch.from_numpy(draw_roles(lengths.numpy(), np.arange(case.batch), length, seed=0, epoch=1).role)
    points = [(values * real).to(device) for values in (time, mag, err)]
    hidden = (role == HIDDEN).to(device) if case.training else None
    return Batch(*points, hidden, role.to(device), lengths)
