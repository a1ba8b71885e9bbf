"""What the host launches for an encode and for a training step, op by op and by CUDA graphs; counted, needs no GPU.

    python -m bench.host_launches

Every op that reaches PyTorch's dispatcher and does more than reserve or view memory counts as one launch, an op of this
project as the kernels that it launches, a copy from the host as one, and the replay of a graph as one. The kernels are
recorded and not run, on tensors of the CPU that count as a GPU's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import astroco_fast as af
from astroco_fast import capture, selfcheck
from astroco_fast.data.training import DeviceBatch
from astroco_fast.finetune.classes import BalancedCrossEntropy
from astroco_fast.finetune.model import Finetuned
from astroco_fast.kernels import triton as triton_backend
from astroco_fast.kernels.triton.launch import ARCHITECTURES, recording
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.loop import accumulate, update
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step import Outcome, Requests, Trainer
from astroco_fast.reference import layout
from bench.fake_graphs import FakeCuda
from bench.roofline.counting import ALLOCATIONS

ARCHITECTURE = ARCHITECTURES["sm_90"]
LENGTHS, SIZE = (20, 7, 13), 20


class Launches(TorchDispatchMode):
    """A mode that counts launches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def record(self, *_: Any) -> None:
        """Takes the launch of a kernel of this project."""
        self.count += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.count
        out = func(*args, **(kwargs or {}))
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        nothing = func in ALLOCATIONS or func.namespace == "profiler" or views
        if self.count == before and not nothing:  # none of our kernels was recorded meanwhile
            self.count += 1
        return out


@contextlib.contextmanager
def standing_in(device: FakeCuda) -> Iterator[None]:
    """A context in which tensors of the CPU count as a GPU's, and graphs as those of `device`."""
    before = triton_backend.interpreting, selfcheck.enabled, capture.driver, capture.enabled, capture.watched
    upload = layout._upload
    triton_backend.interpreting, selfcheck.enabled, capture.driver = True, False, device
    capture.watched = lambda: False  # the counting itself is a mode that watches
    layout._upload = lambda values, _: values.clone()  # a copy from the host, as on a GPU
    try:
        with af.backend("triton"), torch.no_grad():
            yield
    finally:
        triton_backend.interpreting, selfcheck.enabled, capture.driver, capture.enabled, capture.watched = before
        layout._upload = upload


def _encode(preset: str) -> Callable[[int], None]:
    model = af.AstroCo.from_preset(preset).eval()
    points = torch.randn(3, len(LENGTHS), SIZE)
    return lambda _: model(*points, centered=True, lengths=torch.tensor(LENGTHS))


def encode_launches(preset: str) -> tuple[int, int]:
    """The launches of an encode in inference: op by op, and by a graph."""
    device, encode, counts = FakeCuda(computes=False), _encode(preset), []
    with standing_in(device):
        for capture.enabled in (False, True):
            launches = Launches()
            with recording(launches.record, ARCHITECTURE):
                for number in range(2):  # prepares weights, captures
                    encode(number)
                launches.count, device.launches = 0, []
                with launches:
                    encode(2)
            counts.append(launches.count + device.launches.count("replay"))
    return counts[0], counts[1]


def _step(preset: str, fine_tuning: bool = False) -> Callable[[int], None]:
    """A training step, of the given number from 0, of one micro-batch in bf16, from its points on the device on."""
    torch.manual_seed(0)
    points = torch.randn(3, len(LENGTHS), SIZE)
    role = torch.randint(0, 4, (len(LENGTHS), SIZE)).to(torch.uint8)
    batch = DeviceBatch(*points, points[1], role, torch.tensor(LENGTHS), torch.arange(len(LENGTHS)))
    config = TrainConfig(learning_rate=1e-3, warmup_steps=0, precision="bf16", loss="batch")
    model: Any = af.AstroCo.from_preset(preset)
    objective = None
    if fine_tuning:
        model, objective = Finetuned(model, ["a", "b", "c"]), BalancedCrossEntropy(np.arange(3), np.ones(3))
    trainer = Trainer(model, config, Ranks(0, 1, torch.device("cpu")), 0, objective)

    def step(number: int) -> None:
        with torch.enable_grad():
            outcome = accumulate(trainer, [batch], number, Requests(), lambda: False)
            # The kernels have computed nothing, so that the loss may be any number.
            update(trainer, replace(cast(Outcome, outcome), loss=1.0, grad_norm=1.0), number)

    return step


def step_launches(preset: str, fine_tuning: bool = False) -> tuple[int, int]:
    """The launches of a training step: op by op, and by graphs.

    Fine-tuning is that of all blocks, to tell three classes. The step's results are read back by one copy, which on the
    CPU is none.
    """
    device, counts = FakeCuda(computes=False), []
    with standing_in(device):
        for capture.enabled in (False, True):
            step, launches = _step(preset, fine_tuning), Launches()
            with recording(launches.record, ARCHITECTURE):
                for number in range(6):
                    launches.count, device.launches = 0, []
                    with launches if number == 5 else contextlib.nullcontext():
                        step(number)
            counts.append(launches.count + device.launches.count("replay") + 1)
    return counts[0], counts[1]


def replay_seconds(preset: str, training: bool, rounds: int = 30) -> float:
    """The median processor time of an encode or a training step by graphs on the host, without a GPU's driver."""
    spent = []
    with standing_in(FakeCuda(computes=False)), recording(lambda *_: None, ARCHITECTURE):
        capture.enabled = True
        step = _step(preset) if training else _encode(preset)
        for number in range(rounds):
            before = time.thread_time()
            step(number)
            spent.append(time.thread_time() - before)
    return sorted(spent[6:])[len(spent[6:]) // 2]


def main() -> None:
    """Print a table in Markdown."""
    print("| preset | what | launches, op by op | by graphs | processor time by graphs |\n|---|---|---:|---:|---:|")
    for preset in ("S", "L"):
        encode, train = (f"{1e3 * replay_seconds(preset, training):.2f} ms" for training in (False, True))
        rows = {
            "encode": (*encode_launches(preset), encode),
            "pretraining step": (*step_launches(preset), train),
            "fine-tuning step": (*step_launches(preset, fine_tuning=True), ""),
        }
        for what, found in rows.items():
            print(f"| {preset} | {what} | {found[0]} | {found[1]} | {found[2]} |")


if __name__ == "__main__":
    main()
