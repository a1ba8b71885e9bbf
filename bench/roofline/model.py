"""Every implementation, batch and pass, counted, and the time that data sheets allow for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from astroco_fast.kernels.triton.launch import ARCHITECTURES
from astroco_fast.reference.config import AstroCoConfig
from bench.roofline import inductor
from bench.roofline.counting import Counts
from bench.roofline.subject import DTYPES, count, window_lengths

EAGER, INDUCTOR, OURS = "eager", "inductor", "astroco_fast"
Run = Callable[[int], dict[str, Counts]]  # counts a model of so many layers, by pass
FULL, HALF = "full", "half-padded"
INFERENCE, FORWARD, BACKWARD, STEP = "inference", "forward", "backward", "training step"


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet, dense, without sparsity.

    Attributes:
        name: of the GPU.
        architecture: as compilers call it.
        half, single: operations per second in half precision on tensor cores, in float32 without them.
        bandwidth: bytes per second of its memory.
    """

    name: str
    architecture: str
    half: float
    single: float
    bandwidth: float

    def bound(self, counts: Counts) -> float:
        """Seconds that these ops take at least: each as long as its arithmetic or its bytes, whichever is longer.

        Nothing is added for launches.
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
        implementation: `EAGER`, `INDUCTOR` or `OURS`.
        batch: `FULL` or `HALF`.
        name: of the pass.
        architectures: whose tilings were counted; bytes agree to 1 %, and are the first one's.
        launches: of the whole model.
        block: launches of one block more.
        read, written: bytes.
        flops: operations.
        kept: bytes kept for backward.
        bound: milliseconds, by device.
        ops: launches and bytes by op, most bytes first; empty for what is extrapolated.
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


def rows(
    config: AstroCoConfig, batch: int, length: int, dtype: str, devices: Iterable[Device], with_inductor: bool = True
) -> list[Row]:
    """Count everything.

    Args:
        config: of the model.
        batch, length: B, T.
        dtype: autocast's, a key of `DTYPES`.
        devices: to give bounds for.
        with_inductor: its schedule too, for full windows; it takes minutes.
    """
    compute, layers = DTYPES[dtype], config.layers
    by_architecture: dict[str, list[Device]] = {}
    for device in devices:
        by_architecture.setdefault(device.architecture, []).append(device)
    everywhere = [device for some in by_architecture.values() for device in some]
    found: list[Row] = []
    for kind in (FULL, HALF):
        lengths = window_lengths(batch, length, kind == HALF)

        def run(backend: str, architecture: str, lengths: Tensor = lengths) -> Run:
            return lambda n: count(
                backend, replace(config, layers=n), lengths, length, compute, ARCHITECTURES[architecture]
            )

        found += _rows(EAGER, kind, everywhere, layers, run("reference", everywhere[0].architecture))
        if with_inductor and kind == FULL:
            found += _inductor_rows(config, lengths, length, compute, everywhere)
        ours: list[Row] = []
        for architecture, some in by_architecture.items():
            _join(ours, _rows(OURS, kind, some, layers, run("triton", architecture)))
        found += ours
    return found


def _inductor_rows(
    config: AstroCoConfig, lengths: Tensor, length: int, dtype: torch.dtype, devices: list[Device]
) -> list[Row]:
    def run(layers: int) -> dict[str, Counts]:
        return inductor.count(replace(config, layers=layers), lengths, length, dtype)

    try:
        return _rows(INDUCTOR, FULL, devices, config.layers, run, extrapolated=True)
    except Exception as error:  # torch's internals differ from version to version
        warnings.warn(f"Inductor is left out, torch {torch.__version__}: {error}", RuntimeWarning, stacklevel=2)
        return []


def _rows(
    implementation: str,
    kind: str,
    devices: list[Device],
    layers: int,
    run: Run,
    extrapolated: bool = False,
) -> list[Row]:
    """The passes of one implementation.

    Args:
        devices: to give bounds for.
        layers: of the model.
        run: counts a model of so many layers.
        extrapolated: from models of 2 and 3 layers; else the whole model is counted.
    """
    architectures = tuple(dict.fromkeys(device.architecture for device in devices))
    two, three = run(2), run(3)
    whole = {2: two, 3: three}.get(layers) or (three if extrapolated else run(layers))
    found = []
    for name in (INFERENCE, FORWARD, BACKWARD, STEP):
        a, b = (_pass(counts, name) for counts in (two, three))
        block = b.launches - a.launches
        if not extrapolated:
            row = _row(implementation, kind, name, architectures, _pass(whole, name), block, devices)
        else:
            low, high = (_row(implementation, kind, name, architectures, c, block, devices) for c in (a, b))
            row = _extrapolate(low, high, layers - 2)
        found.append(row)
    return found


def _pass(counts: dict[str, Counts], name: str) -> Counts:
    return counts[FORWARD] + counts[BACKWARD] if name == STEP else counts[name]


def _row(
    implementation: str,
    kind: str,
    name: str,
    architectures: tuple[str, ...],
    counts: Counts,
    block: int,
    devices: list[Device],
) -> Row:
    by_op: dict[str, tuple[int, int]] = {}
    for op in counts.ops:
        launches, size = by_op.get(op.name, (0, 0))
        by_op[op.name] = launches + op.launches, size + op.bytes
    return Row(
        implementation,
        kind,
        name,
        architectures,
        counts.launches,
        block,
        counts.read,
        counts.written,
        counts.flops,
        counts.kept,
        {device.name: 1e3 * device.bound(counts) for device in devices},
        dict(sorted(by_op.items(), key=lambda item: -item[1][1])),
    )


def _extrapolate(low: Row, high: Row, blocks: int) -> Row:
    """`low` and as many blocks as given more, each what `high` has more than `low`."""

    def line(a: float, b: float) -> float:
        return a + blocks * (b - a)

    return replace(
        low,
        **{
            key: line(getattr(low, key), getattr(high, key)) for key in ("launches", "read", "written", "flops", "kept")
        },
        bound={device: line(low.bound[device], high.bound[device]) for device in low.bound},
        ops={},
    )


def _join(found: list[Row], fresh: list[Row]) -> None:
    """Add rows; where other tilings make no difference to speak of, to the row that is there."""
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
    """A limit, and where we are. Met at or below it."""

    text: str
    limit: float
    value: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit


def bars(found: list[Row]) -> list[Bar]:
    """What this project asks of its kernels; of several tilings the worst counts."""

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
