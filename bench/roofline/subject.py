"""The passes that are counted: inference, and forward and backward of a training step, on tensors without data.

The tensors are fake CPU tensors, since autocast needs a device that this build of torch has. Where torch behaves
differently on GPUs, that behaviour replaces the CPU's: softmax is computed in float32 under autocast, dropout is one
kernel, and the project's own code takes its GPU path.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

import astroco_fast as af
from astroco_fast import ops, selfcheck
from astroco_fast.kernels import triton as triton_backend
from astroco_fast.kernels.triton import tensors
from astroco_fast.kernels.triton.launch import ARCHITECTURES, Architecture, recording
from astroco_fast.kernels.triton.segments import segments
from astroco_fast.reference.astroco import ReferenceAstroCo
from astroco_fast.reference.layout import Layout
from bench.roofline.counting import Counts, Traffic
from bench.roofline.flops import LAUNCHES, counter
from bench.sdpa import with_sdpa

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Batch(NamedTuple):
    """A batch without data.

    Attributes:
        points: time, magnitude and uncertainty, (B, T) each.
        hidden, target, role: (B, T) each, in the form of a training step.
        layout: packed.
        pairs: the sum over windows of the squared number of real points.
        segments: the content of what kernels read of the layout, (n,) uint32, by the names of their arguments.
    """

    points: tuple[Tensor, Tensor, Tensor]
    hidden: Tensor
    target: Tensor
    role: Tensor
    layout: Layout
    pairs: int
    segments: dict[str, np.ndarray]


def window_lengths(batch: int, length: int, padded: bool) -> Tensor:
    """(B,) numbers of real points: all of T, or from almost none to almost T, half of all on average."""
    if not padded:
        return torch.full((batch,), length)
    return ((torch.arange(batch) + 0.5) * length / batch).round().long()


def make_batch(lengths: Tensor, length: int, mode: FakeTensorMode) -> Batch:
    """A batch of windows of these lengths; its layout is computed on real numbers before it loses its data."""
    layout = Layout.packed(lengths, length)
    known = segments_of(layout)
    fields = {name: value for name, value in vars(layout).items() if isinstance(value, Tensor)}
    layout = replace(layout, **{name: mode.from_tensor(value) for name, value in fields.items()}, scratch={})
    shape, pairs = (len(lengths), length), int((lengths**2).sum())
    with mode:
        points = (torch.empty(shape), torch.empty(shape), torch.empty(shape))
        hidden, role = torch.empty(shape, dtype=torch.bool), torch.empty(shape, dtype=torch.int8)
        return Batch(points, hidden, torch.empty(shape), role, layout, pairs, known)


def segments_of(layout: Layout) -> dict[str, np.ndarray]:
    """The content of a packed layout's `Segments`, (n,) uint32 by name; NumPy does here what a kernel does there."""
    with recording(lambda *_: None, ARCHITECTURES["sm_90"]):
        found = {name: value.numpy() for name, value in segments(layout)._asdict().items() if isinstance(value, Tensor)}
    begin, stop = found["offsets"][:-1], found["offsets"][1:]
    real, sizes = np.arange(len(begin)) < layout.batch, stop - begin
    found["first"] = np.repeat(np.where(real, begin, layout.rows), sizes)
    found["end"] = np.repeat(np.where(real, stop, 0), sizes)
    tiles = np.concatenate([np.arange(*run, 16) for run in zip(begin, stop, strict=True)])
    found["tiles"] = np.pad(tiles, (0, len(found["tiles"]) - len(tiles)), constant_values=-1)
    return {name: content.astype(np.int32).view(np.uint32) for name, content in found.items()}


class _GpuRules(TorchFunctionMode):
    """torch's behaviour on CUDA where it differs from that on a CPU and matters here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is Tensor.softmax and torch.is_autocast_enabled("cpu"):
            return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


@contextlib.contextmanager
def standing_in(backend: str) -> Iterator[None]:
    """A context in which `backend` runs on CPU tensors as if they were on a GPU."""
    before = triton_backend.interpreting, tensors.modelled, selfcheck.enabled
    triton_backend.interpreting, tensors.modelled, selfcheck.enabled = True, True, False
    try:
        with af.backend(backend), _GpuRules(), warnings.catch_warnings():
            # The kernels' cache of prepared weights asks for addresses, which these tensors lack.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield
    finally:
        triton_backend.interpreting, tensors.modelled, selfcheck.enabled = before


def count(
    backend: str, config: Any, lengths: Tensor, length: int, dtype: torch.dtype, architecture: Architecture,
    sdpa: bool = False,
) -> dict[str, Counts]:  # fmt: skip
    """The counts of a model on a batch, by pass.

    Args:
        backend: "reference" (plain PyTorch, eager) or "triton".
        config: the model's.
        lengths: (B,) numbers of real points of the windows.
        length: positions of a window (T).
        dtype: the one that autocast computes in; float32: no autocast.
        architecture: the architecture whose tilings the backend's kernels take.
        sdpa: whether the reference has PyTorch's fused attention.
    """
    mode = FakeTensorMode()
    batch = make_batch(lengths, length, mode)
    with mode:
        model = (ReferenceAstroCo if backend == "reference" else af.AstroCo)(config)
        if sdpa:
            with_sdpa(model)
        model._layout = lambda *_: replace(batch.layout, scratch={})  # type: ignore[method-assign]

        def traffic() -> Traffic:
            return Traffic(
                counter(batch.pairs), LAUNCHES, architecture, [*model.parameters(), *model.buffers()], batch.segments
            )

        def autocast() -> torch.autocast:
            return torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)

        # Recording also covers what an op decides before its first kernel.
        with standing_in(backend), recording(_no_launch, architecture):
            for op in ops.OPS:  # an op that the backend cannot run would be counted as plain PyTorch
                chosen = ops.select(op, torch.device("cpu"), dtype, True)
                if chosen.backend != backend:
                    raise RuntimeError(f"{op} would not run on {backend}: {chosen.reasons}")
            inference = _inference(model, batch, autocast, traffic)
            return {"inference": inference, **_training(model, batch, autocast, traffic)}


def _no_launch(*_: Any) -> None:
    raise AssertionError("a kernel was launched outside of an op")


def _inference(model: nn.Module, batch: Batch, autocast: Any, traffic: Any) -> Counts:
    model.eval()
    with torch.no_grad():
        with autocast():  # prepares the weights, which is not done for every batch
            model(*batch.points, centered=True)
        with autocast(), traffic() as seen:
            model(*batch.points, centered=True)
    return seen.counts


def _training(model: nn.Module, batch: Batch, autocast: Any, traffic: Any) -> dict[str, Counts]:
    """Forward and backward of a training step, without the optimiser."""
    model.train()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with autocast(), traffic() as forward:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(*batch.points, hidden=batch.hidden, centered=True)
            squared, _ = ops.masked_loss(out.reconstruction, batch.target, batch.role)
            loss = squared.sum()
        forward.keep(saved)
    with traffic() as backward:
        loss.backward()
    return {"forward": forward.counts, "backward": backward.counts}
