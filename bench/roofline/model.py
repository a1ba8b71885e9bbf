"""Every implementation, batch and pass, counted, and the time that data sheets allow for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from astroco_fast import presets
from astroco_fast.kernels.triton.launch import ARCHITECTURES
from bench.roofline.counting import Counts
from bench.roofline.subject import DTYPES, count, window_lengths

EAGER, OURS = "eager", "astroco_fast"
IMPLEMENTATIONS = {EAGER: "reference", OURS: "triton"}
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


@dataclass
class Row:
    """One pass of one implementation on one batch.

    Attributes:
        implementation: one of `IMPLEMENTATIONS`, or Inductor.
        batch: `FULL` or `HALF`.
        name: of the pass.
        architectures: whose tilings were counted; they agree.
        counts: of the whole model.
        block: launches that one block more makes.
        bound: milliseconds, by device.
    """

    implementation: str
    batch: str
    name: str
    architectures: tuple[str, ...]
    counts: Counts
    block: int
    bound: dict[str, float]


def rows(preset: str, batch: int, length: int, dtype: str, devices: Iterable[Device]) -> list[Row]:
    """Count everything.

    Args:
        preset: of an AstroCo.
        batch, length: B, T.
        dtype: autocast's, a key of `DTYPES`.
        devices: to give bounds for.
    """
    devices = list(devices)
    found = []
    for kind in (FULL, HALF):
        lengths = window_lengths(batch, length, kind == HALF)
        for implementation in IMPLEMENTATIONS:
            found += _of(implementation, kind, preset, lengths, length, DTYPES[dtype], devices)
    return found


def _of(
    implementation: str,
    kind: str,
    preset: str,
    lengths: Tensor,
    length: int,
    dtype: torch.dtype,
    devices: list[Device],
) -> list[Row]:
    """One implementation on one batch, once for each set of tilings that makes a difference."""
    layers = presets.preset(preset).config.layers
    found: list[Row] = []
    for architecture in dict.fromkeys(device.architecture for device in devices):
        if implementation == EAGER and found:  # knows no tilings
            for row in found:
                row.architectures += (architecture,)
            continue
        # One block more, in small models: launches do not depend on which block it is.
        whole, two, three = (
            count(
                IMPLEMENTATIONS[implementation],
                presets.configure(preset, {"layers": n}),
                lengths,
                length,
                dtype,
                ARCHITECTURES[architecture],
            )
            for n in (layers, 2, 3)
        )
        for passes in (whole, two, three):
            passes[STEP] = passes[FORWARD] + passes[BACKWARD]
        for name, counts in whole.items():
            like = next((row for row in found if row.name == name and row.counts == counts), None)
            if like is not None:
                like.architectures += (architecture,)
                continue
            block = three[name].launches - two[name].launches
            found.append(Row(implementation, kind, name, (architecture,), counts, block, {}))
    for row in found:
        row.bound = {d.name: 1e3 * d.bound(row.counts) for d in devices if d.architecture in row.architectures}
    return found


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
        chosen = [r for r in found if (r.implementation, r.batch, r.name) == (implementation, kind, name)]
        return max(row.block if measure == "block" else getattr(row.counts, measure) for row in chosen)

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
