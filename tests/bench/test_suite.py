"""The benchmark suite itself: the cases it runs, its refusal of wrong results, its counts of work."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from astroco_fast import ops, presets, selfcheck
from bench.cases import ENCODE, TRAIN, Case, cases, in_default, make_batch, window_lengths
from bench.checking import WrongResultError, check_embeddings, check_gradients, check_step
from bench.measuring import interleave, step_memory
from bench.one_op import OpProvider, check_op
from bench.providers import (
    ASTROMER,
    BASELINE,
    Compiled,
    Eager,
    EagerSdpa,
    Onnx,
    Ours,
    Padded,
    build,
    by_name,
    padded_inputs,
    providers,
)
from bench.work import model_work
from tests.fake_backends import Fake

CPU = torch.device("cpu")
LENGTH = 20
aten = torch.ops.aten


def tiny(task=ENCODE, kind="full", batch=4):
    case = Case("tiny", task, batch, kind)
    return case, make_batch(case, CPU, LENGTH)


@pytest.mark.parametrize("batch", [1, 32, 256])
def test_ragged_windows_are_half_padding(batch):
    lengths = window_lengths(batch, "ragged")
    assert lengths.sum() == batch * 100
    assert 1 <= lengths.min() <= lengths.max() <= 200


def test_default_suite_omits_slow_cases():
    large = Case("L", TRAIN, 256, "full")
    assert not any(in_default(large, kind) for kind in ("eager", "compiled", "ours"))
    assert [case for case in cases() if in_default(case, "compiled")] == [Case("S", ENCODE, 32, "full")]
    assert {case.batch for case in cases() if in_default(case, "ours")} == {1, 32, 256}
    steps = [case for case in cases() if case.training]
    kinds = ("ours", "eager", "ours fp32", "onnx")
    training = {(kind, case.preset) for kind in kinds for case in steps if in_default(case, kind)}
    assert training == {("ours", "S"), ("ours", "L")}


def test_names_are_distinct_and_found():
    names = [provider.name for provider in (BASELINE, *providers())]
    assert len(set(names)) == len(names)
    assert by_name("Astromer v2, eager fp32") == Eager("fp32", ASTROMER)


@pytest.mark.parametrize("kind", ["full", "ragged"])
def test_padded_windows_mean_the_same(kind):
    """The compiled and exported model computes the reference's embeddings."""
    case, batch = tiny(kind=kind)
    inputs = padded_inputs(batch)
    with torch.no_grad():
        padded = Padded(build("tiny", CPU, False, None, reference=True), batch.full)(*inputs)
    torch.testing.assert_close(padded, Eager("fp32").make(case, batch).call())
    assert (inputs[3] is None) == (kind == "full")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "ragged"])
def test_onnx(kind):
    """The exported graph runs and computes the right embeddings."""
    provider = Onnx("fp32")
    if (reason := provider.unavailable(CPU)) is not None:
        pytest.skip(reason)
    case, batch = tiny(kind=kind)
    assert check_embeddings(provider, case, batch, provider.make(case, batch).call()) < 1e-5


RIGHT = [Eager("bf16"), Eager("fp32"), Eager("bf16", ASTROMER), EagerSdpa("bf16"), EagerSdpa("fp32")]


@pytest.mark.parametrize("provider", RIGHT, ids=lambda p: p.name)
def test_right_provider_passes(provider):
    check_step(provider, tiny(TRAIN, "ragged")[0], CPU)
    case, batch = tiny(kind="ragged")
    check_embeddings(provider, case, batch, provider.make(case, batch).call())


@pytest.mark.parametrize("kind", ["full", "ragged"])
def test_sdpa_runs_pytorchs_fused_attention(kind, monkeypatch):
    case, batch = tiny(kind=kind)
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **b: calls.append(1) or fused(*a, **b)
    )
    EagerSdpa("fp32").make(case, batch).call()
    assert len(calls) == presets.preset("tiny").config.layers
    assert {"eager + SDPA bf16", "compiled + SDPA bf16"} <= {provider.name for provider in providers()}


def test_providers_of_ours_on_this_machine():
    here = [p for p in providers() if isinstance(p, Ours) and p.unavailable(CPU) is None]
    assert {p.backend for p in here} == {
        name
        for name, backend in ops.BACKENDS.items()
        if name != "reference"
        and any(backend.unsupported(op, CPU, p.dtype, True) is None for op in ops.OPS for p in here)
    }


class Wrong(Eager):
    """The reference with one slightly wrong layer."""

    def make(self, case, batch, dropout=None):
        run = super().make(case, batch, dropout)
        with torch.no_grad():
            run.parameters["blocks.0.attention.qkv.weight"].mul_(1.3)
        return run


def test_wrong_embeddings_are_refused():
    case, batch = tiny()
    with pytest.raises(WrongResultError, match="relative error"):
        check_embeddings(Wrong("fp32"), case, batch, Wrong("fp32").make(case, batch).call())
    with pytest.raises(WrongResultError, match="not finite"):
        check_embeddings(Wrong("fp32"), case, batch, torch.full((4, 64), torch.nan))


def test_wrong_gradients_are_refused():
    case, _ = tiny(TRAIN)
    with pytest.raises(WrongResultError, match="gradient"):
        check_step(Wrong("fp32"), case, CPU)


@pytest.mark.parametrize("change", [lambda g: g.flip(0), lambda g: g * 1.1, lambda g: g * torch.nan])
def test_a_small_gradient_counts_too(change):
    """A bias's gradient, a thousandth of the whole, is checked; one that is zero except for rounding is not."""
    torch.manual_seed(0)
    right = {"weight": torch.randn(64, 64), "bias": 1e-2 * torch.randn(64), "key": 1e-8 * torch.randn(64)}
    assert check_gradients("x", right | {"key": torch.randn(64) * 1e-8}, right) == pytest.approx(0, abs=1e-9)
    with pytest.raises(WrongResultError, match="gradient of bias"):
        check_gradients("x", right | {"bias": change(right["bias"])}, right)


@pytest.mark.parametrize("op", ops.OPS)
def test_op_is_checked(op, monkeypatch):
    """The reference passes; a backend whose result is off does not."""
    case = Case("tiny", TRAIN, 2, "ragged")
    batch = make_batch(case, CPU)
    check_op(op, OpProvider("reference", "bf16"), case, batch)

    def wrong(*args):
        result = ops.BACKENDS["reference"].function(op)(*args)
        first, *rest = result if isinstance(result, tuple) else (result,)
        return (first * 1.2, *rest) if rest else first * 1.2

    monkeypatch.setattr(selfcheck, "enabled", False)
    monkeypatch.setattr(ops, "BACKENDS", {**ops.BACKENDS, "wrong": Fake("wrong", **{op: wrong})})
    with pytest.raises(WrongResultError, match=f"{op}: output 0 is off by"):
        check_op(op, OpProvider("wrong", "bf16"), case, batch)


class _Benchmark:
    """A stand-in for pytest-benchmark's fixture."""

    def pedantic(self, target, setup, rounds):
        for _ in range(rounds):
            setup()
            target()


def test_rounds_alternate(monkeypatch):
    """After the estimates, each round of the provider follows one of the baseline; there are at least three."""
    monkeypatch.setattr("bench.measuring.READING", 0.0)
    calls = []
    timing = interleave(_Benchmark(), lambda: calls.append("own"), lambda: calls.append("baseline"), CPU, budget=0.0)
    assert calls[-6:] == ["baseline", "own"] * 3
    assert len(timing.own) == len(timing.baseline) == 3
    assert timing.ratio == timing.baseline_median / timing.median
    assert timing.beside_ratio is None


def test_rivals_rounds_alternate_with_ours(monkeypatch):
    """Each rival's round has one of ours beside it, since a quotient of two ratios varies with the machine's speed."""
    monkeypatch.setattr("bench.measuring.READING", 0.0)
    calls = []
    own, baseline, beside = (lambda name=name: calls.append(name) for name in ("own", "baseline", "beside"))
    timing = interleave(_Benchmark(), own, baseline, CPU, budget=0.0, beside=beside)
    assert calls[-9:] == ["beside", "baseline", "own"] * 3
    assert len(timing.beside) == 3
    assert timing.beside_ratio == timing.median / sorted(timing.beside)[1]


@pytest.mark.parametrize("preset", ["tiny", ASTROMER])
@pytest.mark.parametrize("training", [False, True])
def test_operations_are_those_counted_by_torch(preset, training):
    """Full windows; inputs have no gradients, and torch's formula for a convolution's gradient ignores groups."""
    batch = make_batch(Case(preset, TRAIN if training else ENCODE, 2, "full"), CPU, 200)
    model = build(preset, CPU, training, 0.0, reference=True)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        out = model(batch.time, batch.mag, batch.err, hidden=batch.hidden, centered=True, lengths=batch.lengths)
        if training:
            out.reconstruction.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    if aten.convolution_backward in counts:
        counts[aten.convolution_backward] = 2 * counts[aten.convolution]
    work = model_work(presets.preset(preset).config, batch.lengths, training)
    assert work.flops == pytest.approx(sum(counts.values()), rel=0.05)


def test_ragged_windows_are_less_work():
    """Half the points take less than half the operations, since attention grows with their square."""
    config = presets.preset("S").config
    full, ragged = (model_work(config, window_lengths(32, kind), False) for kind in ("full", "ragged"))
    assert 0.4 < ragged.flops / full.flops < 0.5
    assert 0.4 < ragged.bytes / full.bytes < 0.6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_step():
    """More windows need more memory, and at least the memory that a block keeps for the backward pass."""
    small, large = (step_memory("eager fp32", Case("tiny", TRAIN, batch, "full")) for batch in (8, 64))
    assert 4 * 64 * 200 * 64 * 10 < large < 10**9
    assert small < large / 2


def test_compiled_is_a_rival():
    assert Compiled("bf16").role == "rival"
    assert not Onnx("fp32").runs(Case("S", TRAIN, 32, "full"))
