"""Every kernel's registration: the schema and the fake's shapes are right in the model's calls."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import astroco_fast as af
from astroco_fast import ops
from tests.kernels.test_model import shortened, windows


class Calls(TorchDispatchMode):
    """All ops that were called with their arguments, in order, and the last arguments of every kernel op."""

    def __init__(self) -> None:
        super().__init__()
        self.every: list[tuple[Any, tuple]] = []
        self.arguments: dict[Any, tuple[tuple, dict]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.every.append((func, args))
        if func.namespace == "astroco_fast":
            self.arguments[func] = (args, kwargs or {})
        return func(*args, **(kwargs or {}))


def test_schema_and_fake_of_every_kernel(fused: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from astroco_fast.kernels import library

    inputs = windows(device)
    role = inputs[4].long()
    with af.backend(fused), Calls() as calls:
        for training in (True, False):
            model = shortened("tiny", layers=1).to(device).train(training)
            with torch.set_grad_enabled(training), torch.autocast(device.type, torch.bfloat16):
                out = model(*inputs[:4], hidden=inputs[4])
                if training:
                    squared, _ = ops.masked_loss(out.reconstruction, inputs[1].nan_to_num(), role)
                    squared.sum().backward()
    called = {op.name().partition("::")[2] for op in calls.arguments}
    mine = {name for name in library.functions if name.startswith("cpu_") == (fused == "cpu")}
    # Only tests write out dropout's masks; PyTorch has the fused float32 attention on GPUs only; captured graphs have
    # fetch and deliver; the last four run on sm_90, and their own tests do what this one does.
    assert called >= mine - {
        "dropout_mask", "cpu_dropout_mask", "efficient_attention_backward", "fetch", "deliver", "gated_linear_onto",
        "product_residual_norm", "residual_norm_product_backward", "feed_forward_training",
    }  # fmt: skip
    monkeypatch.undo()  # because opcheck would take poisoned outputs for mutated ones
    monkeypatch.setattr("astroco_fast.kernels.triton.interpreting", True)
    for op, (args, kwargs) in calls.arguments.items():
        torch.library.opcheck(op, args, kwargs, test_utils=("test_schema", "test_faketensor"))
