"""Counts of every implementation, batch and pass, the time that data sheets allow for them, and our limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from astroco_fast.kernels.triton.launch import ARCHITECTURES
from astroco_fast.reference.config import AstroCoConfig
from bench.roofline.counting import Counts
from bench.roofline.subject import DTYPES, count, window_lengths

EAGER, OURS = "eager", "astroco_fast"
FULL, HALF = "full", "half-padded"
INFERENCE, FORWARD, BACKWARD, STEP = "inference", "forward", "backward", "training step"


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet: dense figures, without structured sparsity.

    Attributes:
        name: of the GPU.
        architecture: the compiler's name for it, such as sm_90.
        half: operations a second in half precision, on tensor cores.
        single: operations a second in float32, without tensor cores.
        bandwidth: bytes a second to and from its memory.
    """

    name: str
    architecture: str
    half: float
    single: float
    bandwidth: float

    def bound(self, counts: Counts) -> float:
        """The least time, in seconds, that these ops take one after another.

        An op takes as long as its arithmetic or its memory traffic, whichever is longer; a launch costs nothing.
        """
        return sum(
            max(op.flops / (self.half if op.dtype.itemsize == 2 else self.single), op.bytes / self.bandwidth)
            for op in counts.ops
        )


DEVICES = {
    device.name: device
    for device in (
        Device("A100", "sm_80", 312e12, 19.5e12, 2.04e12),
        Device("H100", "sm_90", 989e12, 67e12, 3.35e12),
        Device("H200", "sm_90", 989e12, 67e12, 4.8e12),
    )
}


@dataclass(frozen=True)
class Row:
    """One pass of one implementation on one batch.

    Attributes:
        implementation: `EAGER` or `OURS`.
        batch: `FULL` or `HALF`.
        name: of the pass.
        architectures: those whose tilings give these counts. Their bytes agree within 1 %; the first one's are given.
        launches: of the whole model.
        block: launches that one more block adds.
        read, written: bytes.
        flops: floating-point operations.
        kept: bytes of activations kept for the backward pass.
        bound: the least time in milliseconds, by device.
        ops: (launches, bytes) by op, the op with the most bytes first.
    """

    implementation: str
    batch: str
    name: str
    architectures: tuple[str, ...]
    launches: int
    block: int
    read: int
    written: int
    flops: float
    kept: int
    bound: dict[str, float]
    ops: dict[str, tuple[int, int]]

    @property
    def bytes(self) -> int:
        return self.read + self.written


def rows(config: AstroCoConfig, batch: int, length: int, dtype: str, devices: Iterable[Device]) -> list[Row]:
    """Count both implementations on full and on half-padded windows.

    Args:
        config: of the model.
        batch: windows (B).
        length: positions of a window (T).
        dtype: the one that autocast computes in, a key of `DTYPES`.
        devices: GPUs to give bounds for.
    """
    by_architecture: dict[str, list[Device]] = {}
    for device in devices:
        by_architecture.setdefault(device.architecture, []).append(device)
    everywhere = [device for some in by_architecture.values() for device in some]
    found: list[Row] = []
    for kind in (FULL, HALF):
        lengths = window_lengths(batch, length, kind == HALF)

        def run(backend: str, architecture: str, layers: int, lengths: Tensor = lengths) -> dict[str, Counts]:
            changed = replace(config, layers=layers)
            return count(backend, changed, lengths, length, DTYPES[dtype], ARCHITECTURES[architecture])

        def eager(layers: int) -> dict[str, Counts]:  # plain PyTorch has no tilings
            return run("reference", everywhere[0].architecture, layers)

        found += _passes(EAGER, kind, everywhere, config.layers, eager)
        ours: list[Row] = []
        for architecture, some in by_architecture.items():

            def fused(layers: int, architecture: str = architecture) -> dict[str, Counts]:
                return run("triton", architecture, layers)

            _join(ours, _passes(OURS, kind, some, config.layers, fused))
        found += ours
    return found


def _passes(
    implementation: str, kind: str, devices: list[Device], layers: int, run: Callable[[int], dict[str, Counts]]
) -> list[Row]:
    """A row for each pass; `run` counts a model of so many layers, by pass."""
    one, two = run(1), run(2)
    whole = {1: one, 2: two}.get(layers) or run(layers)
    found = []
    for name in (INFERENCE, FORWARD, BACKWARD, STEP):
        counts = _pass(whole, name)
        by_op: dict[str, tuple[int, int]] = {}
        for op in counts.ops:
            launches, size = by_op.get(op.name, (0, 0))
            by_op[op.name] = launches + op.launches, size + op.bytes
        found.append(
            Row(
                implementation=implementation,
                batch=kind,
                name=name,
                architectures=tuple(dict.fromkeys(device.architecture for device in devices)),
                launches=counts.launches,
                block=_pass(two, name).launches - _pass(one, name).launches,
                read=counts.read,
                written=counts.written,
                flops=counts.flops,
                kept=counts.kept,
                bound={device.name: 1e3 * device.bound(counts) for device in devices},
                ops=dict(sorted(by_op.items(), key=lambda item: -item[1][1])),
            )
        )
    return found


def _pass(counts: dict[str, Counts], name: str) -> Counts:
    return counts[FORWARD] + counts[BACKWARD] if name == STEP else counts[name]


def _join(found: list[Row], fresh: list[Row]) -> None:
    """Add rows; a row whose architecture counts as another one's does is merged into that one's row."""
    for row in fresh:
        for place, old in enumerate(found):
            same = (old.name, old.launches, old.block) == (row.name, row.launches, row.block)
            if same and abs(old.bytes - row.bytes) < 0.01 * old.bytes:
                architectures = old.architectures + row.architectures
                found[place] = replace(old, architectures=architectures, bound={**old.bound, **row.bound})
                break
        else:
            found.append(row)


@dataclass
class Bar:
    """A limit and the modelled value, which meets it at or below it."""

    text: str
    limit: float
    value: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit


def bars(found: list[Row]) -> list[Bar]:
    """The limits that this project sets its kernels; where tilings differ, the worst counts."""

    def worst(name: str, measure: str, implementation: str = OURS, kind: str = FULL) -> float:
        chosen = [row for row in found if (row.implementation, row.batch, row.name) == (implementation, kind, name)]
        return max(getattr(row, measure) for row in chosen)

    def ratio(name: str, measure: str) -> float:
        return worst(name, measure) / worst(name, measure, EAGER)

    def halved(name: str) -> float:
        return worst(name, "bytes", kind=HALF) / worst(name, "bytes")

    return [
        Bar("inference: bytes, of eager's", 1 / 3, ratio(INFERENCE, "bytes")),
        Bar("training step: bytes, of eager's", 1 / 2, ratio(STEP, "bytes")),
        Bar("inference: launches a block", 14, worst(INFERENCE, "block")),
        Bar("training, forward: launches a block", 18, worst(FORWARD, "block")),
        Bar("training, backward: launches a block", 36, worst(BACKWARD, "block")),
        Bar("activations kept for backward, of eager's", 1 / 3, ratio(FORWARD, "kept")),
        Bar("inference: bytes of the half-padded batch, of the full one's", 0.6, halved(INFERENCE)),
        Bar("training step: bytes of the half-padded batch, of the full one's", 0.6, halved(STEP)),
    ]
