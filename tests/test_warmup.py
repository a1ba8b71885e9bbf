"""Warming up: everything that a run needs is compiled and checked, and the caller's state stays as it is."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import astroco_fast as af
from astroco_fast import ops, selfcheck
from astroco_fast.kernels import triton as triton_backend
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d
from tests.fake_backends import Fake, backends, every_op

BF16, F32 = torch.bfloat16, torch.float32


def small(**overrides: Any) -> af.AstroCo:
    return af.AstroCo.from_preset("tiny", **{"width": 8, "heads": 2, "kernel": 4, "window": 6, **overrides})


@pytest.mark.parametrize("training", [False, True, None])
def test_the_caller_is_left_as_it_was(training: bool | None) -> None:
    model = small()
    out = model(*torch.randn(3, 2, 6))
    out.embedding.sum().backward()
    before, gradients = copy.deepcopy(model.state_dict()), [copy.deepcopy(p.grad) for p in model.parameters()]
    state = torch.get_rng_state()
    assert 0 < af.warmup(model, batch_size=3, training=training) < 60
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("dtype", [None, BF16])
@pytest.mark.parametrize("training", [False, True])
def test_all_ops_that_a_run_needs_are_checked_beforehand(
    training: bool, dtype: torch.dtype | None, fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "BACKENDS", backends(Fake("fused", **every_op())))
    model = small()
    af.warmup(model, batch_size=4, dtype=dtype, training=training)
    checked = {(key.op, key.dtype) for key in selfcheck._verdicts}
    in_dtype = F32 if dtype is None else dtype
    assert checked == {(op, in_dtype) for op in ops.OPS if training or op != "masked_loss"}

    monkeypatch.setattr(selfcheck, "_check", None)  # from here on, a check would fail
    points, hidden = torch.randn(3, 5, 6), torch.rand(5, 6) < 0.5
    with torch.autocast("cpu", dtype=dtype or BF16, enabled=dtype is not None):
        with torch.no_grad():
            model.eval()(*points)
        if training:
            out = model.train()(*points, hidden=hidden)
            ops.masked_loss(out.reconstruction, points[1], hidden.long())


def test_a_frozen_model_and_ablations() -> None:
    for overrides in ({"convolution": False}, {"gate": False}, {"mix": False}):
        af.warmup(small(**overrides), batch_size=2, length=3)
    af.warmup(small().requires_grad_(False), batch_size=2, training=True)


def test_no_other_process_is_waited_for(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = small()
        group = dist.new_group([0])
        for module in model.modules():
            if isinstance(module, MaskedBatchNorm1d):
                module.group = group
        dist.all_reduce, all_reduce = None, dist.all_reduce
        try:
            af.warmup(torch.nn.parallel.DistributedDataParallel(model), batch_size=2, training=True)
        finally:
            dist.all_reduce = all_reduce
        assert all(m.group is group for m in model.modules() if isinstance(m, MaskedBatchNorm1d))
    finally:
        dist.destroy_process_group()


class FeedForwardAlone(triton_backend.Triton):
    """Triton's backend with a single op."""

    ops = ("feed_forward",)


def test_warmup_runs_real_kernels(fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter runs one op only, because the others are too slow in it."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    monkeypatch.setattr(triton_backend, "interpreting", True)
    monkeypatch.setitem(ops.BACKENDS, "triton", FeedForwardAlone())
    af.warmup(small(width=64, layers=1), batch_size=2, dtype=None, training=True)
    (table,) = json.loads(fresh_selfcheck.read_text()).values()
    assert table == {"feed_forward float32 width=64 expansion=4": ""}
