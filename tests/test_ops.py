"""The choice of the backend that runs each op, and the checks of an op's inputs."""

import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.utils import prune

import astroco_fast as af
from astroco_fast import Layout, ops, selfcheck
from astroco_fast.errors import UserError
from astroco_fast.kernels import triton as triton_backend
from tests.fake_backends import Fake, backends, raising, sound
from tests.pretrain.processes import on_ranks
from tests.windows import make_windows

CPU, F32 = torch.device("cpu"), torch.float32


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Add a backend that runs only the feed-forward, in float32 evaluation; return the list of its calls."""
    calls: list[str] = []

    def refusal(op: str, device: torch.device, dtype: torch.dtype, training: bool, module: Any) -> str | None:
        return "inference only" if training else None if dtype == F32 else f"no {dtype}"

    def feed_forward(*arguments: Any) -> Any:
        calls.append("feed_forward")
        return sound("feed_forward")(*arguments)

    picky = Fake("picky", refusal=refusal, feed_forward=feed_forward)
    monkeypatch.setattr(ops, "BACKENDS", backends(picky))
    monkeypatch.setattr(selfcheck, "enabled", False)
    yield calls
    af.set_backend(None)


def test_best_backend_per_op_and_reasons(picky: list[str]) -> None:
    assert ops.select("feed_forward", CPU, F32, False) == ("picky", {})
    assert ops.select("attention", CPU, F32, False) == ("reference", {"picky": "no kernels for attention"})
    assert ops.select("feed_forward", CPU, F32, True) == ("reference", {"picky": "inference only"})


def test_model_runs_ops_on_the_selected_backend(picky: list[str]) -> None:
    model = af.AstroCo.from_preset("tiny").eval()
    w = make_windows([5], 5)
    arguments = (w.time, w.mag, w.err)
    expected = model(*arguments)
    assert picky == ["feed_forward"] * 2
    with af.backend("reference"):
        got = model(*arguments)
    assert torch.equal(got.embedding, expected.embedding)
    assert len(picky) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the dtype of the computation decides
        model(*arguments)
    assert len(picky) == 2
    model.train()(*arguments)
    assert len(picky) == 2


def test_callers_choice_and_its_scope(picky: list[str]) -> None:
    af.set_backend("reference")
    assert ops.select("feed_forward", CPU, F32, False).backend == "reference"
    with af.backend("picky"):
        assert ops.select("feed_forward", CPU, F32, False).backend == "picky"
        assert ops.select("attention", CPU, F32, False).backend == "reference"
    assert ops.select("feed_forward", CPU, F32, False).backend == "reference"


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(UserError, match="no backend 'cuda'; there are: triton, cpu, reference"):
        af.set_backend("cuda")
    with pytest.raises(UserError, match="no backend 'x'"), af.backend("x"):
        pass


def test_every_op_has_a_reference() -> None:
    assert set(ops.BACKENDS["reference"].ops) == set(ops.OPS)
    for op in ops.OPS:
        assert callable(getattr(ops, op))
        assert callable(ops.BACKENDS["reference"].function(op))


@pytest.mark.parametrize("name", ops.BACKENDS)
def test_a_backend_has_the_ops_that_it_registers(name: str) -> None:
    if name == "triton":
        pytest.importorskip("triton")
    for op in ops.BACKENDS[name].ops:
        assert callable(ops.BACKENDS[name].function(op))


LAYOUT = Layout.packed(torch.tensor([5, 2]), 5, capacity=9)


def block(dtype: torch.dtype = F32) -> Any:
    return af.AstroCo.from_preset("tiny", width=8, heads=2).to(dtype).blocks[0]


def loss_argument(name: str, value: Any) -> dict[str, Any]:
    right = {"prediction": torch.zeros(2, 5), "target": torch.zeros(2, 5), "role": torch.zeros(2, 5, dtype=torch.long)}
    return {**right, name: value}


def embed_argument(name: str, value: Any) -> dict[str, Any]:
    right = {name: torch.zeros(9) for name in ("time", "mag", "err")}
    return {**right, "hidden": None, name: value}


BAD_CALLS: dict[str, tuple[Any, str]] = {
    "rows": (
        lambda: ops.attention(block().attention, torch.zeros(8, 8), LAYOUT),
        r"attention: x must be \(N, D\) = \(9, 8\), float32, on cpu, got \(8, 8\), float32, on cpu",
    ),
    "width": (
        lambda: ops.convolution(block().convolution, torch.zeros(9, 12), LAYOUT),
        r"convolution: x must be \(N, D\) = \(9, 8\), .* got \(9, 12\)",
    ),
    "dtype": (
        lambda: ops.feed_forward(block().feed_forward, torch.zeros(9, 8, dtype=torch.bfloat16), LAYOUT),
        "feed_forward: x must be .* float32, on cpu, got .* bfloat16",
    ),
    "dtype of parameters": (
        lambda: ops.feed_forward(block(torch.float64).feed_forward, torch.zeros(9, 8), LAYOUT),
        "feed_forward: x must be .* float64, on cpu, got .* float32",
    ),
    "device": (
        lambda: ops.attention(block().attention, torch.zeros(9, 8, device="meta"), LAYOUT),
        "attention: x must be .* on cpu, got .* on meta",
    ),
    "layout": (
        lambda: ops.attention(
            block().attention, torch.zeros(9, 8), Layout.packed(torch.tensor([5, 2]), 5, "meta", capacity=9)
        ),
        "attention: layout must be on cpu, got one on meta",
    ),
    "taps": (
        lambda: ops.convolution(with_taps(torch.zeros(4, 8)), torch.zeros(9, 8), LAYOUT),
        r"convolution: depthwise must be \(D, K\) = \(8, K\), K at least 1, got \(4, 8\)",
    ),
    "no taps": (
        lambda: ops.convolution(with_taps(torch.zeros(8, 0)), torch.zeros(9, 8), LAYOUT),
        "convolution: depthwise must be .* K at least 1",
    ),
    "points": (
        lambda: ops.input_embed(small().input_embed, **embed_argument("mag", torch.zeros(9, 1)), layout=LAYOUT),
        r"input_embed: mag must be \(N,\) = \(9,\), float32, on cpu, got \(9, 1\)",
    ),
    "precise time": (
        lambda: ops.input_embed(
            small().input_embed, **embed_argument("time", torch.zeros(9, dtype=torch.float64)), layout=LAYOUT
        ),
        "input_embed: time must be .* float32, .* got .* float64",
    ),
    "hidden": (
        lambda: ops.input_embed(small().input_embed, **embed_argument("hidden", torch.zeros(9)), layout=LAYOUT),
        "input_embed: hidden must be .* bool, .* got .* float32",
    ),
    "a state": (
        lambda: ops.mix_pool(small().mix_pool, [torch.zeros(9, 8), torch.zeros(9, 4), torch.zeros(9, 8)], LAYOUT),
        r"mix_pool: states\[1\] must be \(N, D\) = \(9, 8\), .* got \(9, 4\)",
    ),
    "few states": (
        lambda: ops.mix_pool(small().mix_pool, [torch.zeros(9, 8)] * 2, LAYOUT),
        "mix_pool: states must be 3, one for each weight of the mix, got 2",
    ),
    "many states": (
        lambda: ops.mix_pool(small().mix_pool, [torch.zeros(9, 8)] * 4, LAYOUT),
        "mix_pool: states must be 3, one for each weight of the mix, got 4",
    ),
    "no states": (
        lambda: ops.mix_pool(small().mix_pool, [], LAYOUT),
        r"mix_pool: states must be rows \(N, D\), got none",
    ),
    "prediction": (
        lambda: ops.masked_loss(**loss_argument("prediction", torch.zeros(2, 5, 1))),
        r"masked_loss: prediction must be \(B, T\), floating point, got \(2, 5, 1\)",
    ),
    "target": (
        lambda: ops.masked_loss(**loss_argument("target", torch.zeros(2, 4))),
        r"masked_loss: target must be \(B, T\) = \(2, 5\), .* got \(2, 4\)",
    ),
    "whole target": (
        lambda: ops.masked_loss(**loss_argument("target", torch.zeros(2, 5, dtype=torch.long))),
        "masked_loss: target must be floating point",
    ),
    "role": (
        lambda: ops.masked_loss(**loss_argument("role", torch.zeros(2, 5))),
        "masked_loss: role must hold whole numbers, got .* float32",
    ),
}


def test_no_state_is_kept_for_the_mix() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def states() -> Iterator[torch.Tensor]:
        for _ in range(4):
            assert sum(state() is not None for state in made) <= 1  # the last state, until the next is computed
            x = torch.zeros(9, 8)
            made.append(weakref.ref(x))
            yield x
            del x

    with torch.no_grad():
        ops.mix_pool(af.AstroCo.from_preset("tiny", width=8, layers=3).mix_pool, states(), LAYOUT)
    assert len(made) == 4


def small() -> af.AstroCo:
    return af.AstroCo.from_preset("tiny", width=8, heads=2)


def with_taps(taps: torch.Tensor) -> Any:
    convolution = block().convolution
    convolution.depthwise = torch.nn.Parameter(taps)
    return convolution


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_one_clear_error_before_any_backend_sees_it(case: str, picky: list[str]) -> None:
    call, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        call()
    assert picky == []


def configured(op: str, **overrides: Any) -> Any:
    model = af.AstroCo.from_preset("tiny", **overrides)
    return getattr(model if op in ("input_embed", "mix_pool") else model.blocks[0], op)


class LowRank(torch.nn.Linear):
    """A Linear as adapters replace it."""


def adapted() -> Any:
    module = configured("feed_forward")
    module.w_val = LowRank(64, 256)
    return module


def altered(op: str, change: Callable[[Any], Any]) -> tuple[str, Callable[[], Any]]:
    """An op, and a function that builds a module of it and changes that in place."""

    def make() -> Any:
        module = configured(op)
        change(module)
        return module

    return op, make


def transpose(module: Any) -> None:
    """Transpose a weight in memory, as `load_state_dict(assign=True)` leaves one that was saved transposed."""
    state = {name: value.t().contiguous().t() for name, value in module.state_dict().items() if value.dim() == 2}
    module.load_state_dict(state, strict=False, assign=True)


def heads_pruned(module: Any) -> None:
    """Remove one head of two. The reference still runs the module, since it computes a head's size from the weights."""
    width = module.norm.weight.shape[0]
    module.heads //= 2
    module.qkv, module.out = torch.nn.Linear(width, 3 * width // 2), torch.nn.Linear(width // 2, width)


def resized(part: str, *sizes: int) -> Callable[[Any], None]:
    """A function that replaces a part with a Linear of another size."""
    return lambda module: setattr(module, part, torch.nn.Linear(*sizes))


class Marked(torch.Tensor):
    """A subclass of Tensor, as quantised tensors and shards of tensors are."""


def marked(module: Any) -> None:
    module.out.weight = torch.nn.Parameter(module.out.weight.detach().as_subclass(Marked))


def taken_out(module: Any) -> None:
    """Replace a parameter by a view, as wrappers do that own the parameters themselves."""
    weight = module.out.weight.detach()
    del module.out.weight
    module.out.weight = weight


def watch(*arguments: Any) -> None:
    """A hook that changes nothing, as one that captures activations."""


UNFIT = {
    "plain feed-forward": ("feed_forward", lambda: configured("feed_forward", gate=False), "no kernels for PlainFeed"),
    "no mix": ("mix_pool", lambda: configured("mix_pool", mix=False), "no kernels for LastLayer"),
    "another part": ("feed_forward", adapted, "FeedForward with a LowRank in it"),
    "narrow": ("attention", lambda: configured("attention", width=16), "width 16: kernels take"),
    "wide": ("feed_forward", lambda: configured("feed_forward", width=1024), "width 1024: kernels take"),
    "wide heads": ("attention", lambda: configured("attention", width=512, heads=1), "head size 512"),
    "one tap": ("convolution", lambda: configured("convolution", kernel=1), "1 taps: kernels take 2 to 128"),
    "many taps": ("convolution", lambda: configured("convolution", kernel=129), "129 taps"),
    "half parameters": ("attention", lambda: configured("attention").half(), "parameters in float16"),
    "one half part": (*altered("feed_forward", lambda m: m.w_out.half()), "parameters in float16"),
    "precise statistics": (*altered("convolution", lambda m: m.batch_norm.double()), "parameters in float64"),
    "precise running mean": (
        *altered("convolution", lambda m: setattr(m.batch_norm, "running_mean", torch.zeros(64).double())),
        "no kernels for buffers in float64",
    ),
    "half logits": (*altered("mix_pool", lambda m: m.half()), "parameters in float16"),
    "half photometry": (*altered("input_embed", lambda m: m.photometry.bfloat16()), "parameters in bfloat16"),
    "pruned heads": (*altered("attention", heads_pruned), "Linear with weight of shape (96, 64)"),
    "heads that do not divide": (*altered("attention", lambda m: setattr(m, "heads", 5)), "not a multiple of 5 heads"),
    "narrow output": (*altered("attention", resized("out", 32, 64)), "Linear with weight of shape (64, 32)"),
    "narrow hidden": (*altered("feed_forward", resized("w_gate", 64, 64)), "Linear with weight of shape (64, 64)"),
    "part of an expansion": (
        *altered("feed_forward", resized("w_val", 64, 65)),
        "Linear with weight of shape (65, 64)",
    ),
    "more photometry": (*altered("input_embed", resized("photometry", 3, 32)), "Linear with weight of shape (32, 3)"),
    "long norm": (
        *altered("convolution", lambda m: setattr(m.norm_in, "weight", torch.nn.Parameter(torch.ones(68)))),
        "LayerNorm with weight of shape (68,)",
    ),
    "short bias": (
        *altered("attention", lambda m: setattr(m.out, "bias", torch.nn.Parameter(torch.ones(1)))),
        "Linear with bias of shape (1,)",
    ),
    "short statistics": (
        *altered("convolution", lambda m: setattr(m.batch_norm, "running_var", torch.ones(1))),
        "MaskedBatchNorm1d with running_var of shape (1,)",
    ),
    "few channels": (
        *altered("convolution", lambda m: setattr(m, "depthwise", torch.nn.Parameter(torch.ones(32, 7)))),
        "32 channels to convolve",
    ),
    "a subclass of tensors": (*altered("attention", marked), "parameters of type Marked"),
    "no parameters of its own": (*altered("attention", taken_out), "Linear without weight"),
    "two devices": (*altered("attention", lambda m: m.out.to("meta")), "parameters on both cpu and meta"),
    "two devices of buffers": (
        *altered("convolution", lambda m: setattr(m.batch_norm, "running_mean", torch.zeros(64, device="meta"))),
        "buffers on both cpu and meta",
    ),
    "another device": (*altered("mix_pool", lambda m: m.to("meta")), "no kernels on cpu for parameters on meta"),
    "transposed": (*altered("attention", transpose), "parameters that are not contiguous"),
    "transposed taps": (*altered("convolution", transpose), "parameters that are not contiguous"),
    "without a bias": (*altered("attention", lambda m: m.qkv.register_parameter("bias", None)), "Linear without bias"),
    "pruned": (
        *altered("feed_forward", lambda m: prune.l1_unstructured(m.w_out, "weight", 0.5)),
        "Linear with hooks",
    ),
    "hook on a part": (*altered("convolution", lambda m: m.norm_in.register_forward_hook(watch)), "with hooks"),
    "hook on the module": (*altered("mix_pool", lambda m: m.register_forward_hook(watch)), "LayerMix with hooks"),
    "hook before": (*altered("attention", lambda m: m.out.register_forward_pre_hook(watch)), "with hooks"),
    "hook in backward": (*altered("attention", lambda m: m.out.register_full_backward_hook(watch)), "with hooks"),
    "hook before backward": (
        *altered("attention", lambda m: m.register_full_backward_pre_hook(watch)),
        "Attention with hooks",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_triton_leaves_what_it_has_no_kernels_for(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "interpreting", True)
    monkeypatch.setattr(triton_backend, "_installed", True)
    op, make, reason = UNFIT[case]
    selection = ops.select(op, CPU, F32, True, make())
    assert selection.backend == "reference"
    assert reason in selection.reasons["triton"]
    assert ops.select(op, CPU, F32, True, configured(op)).backend == "triton"
    assert ops.select(op, CPU, F32, True).backend == "triton"
    assert ops.select(op, CPU, torch.float64, True).reasons["triton"] == "no kernels for float64"


def test_without_triton_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_installed", False)
    reasons = ops.select("attention", torch.device("cuda"), F32, True).reasons
    assert reasons["triton"] == "triton is not installed; pip install 'astroco_fast[triton]'"


def gathering(ran: list[str]) -> Callable[..., torch.Tensor]:
    """A fused convolution that records its runs, and synchronises BatchNorm by another collective than reference."""

    def convolution(module: Any, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        if module.batch_norm.group is not None:
            ran.append("fused")
        if module.batch_norm.group is not None and module.training:
            dist.all_gather([torch.empty(3) for _ in range(dist.get_world_size())], torch.zeros(3))
        return sound("convolution")(module, x, layout)

    return convolution


def convolve_on_a_rank(folder: Path, wrong: int | None) -> tuple[list[str], dict[str, str]]:
    """Take two steps with a backend that is wrong on one rank only; return its runs, and the reasons against it."""
    os.environ["ASTROCO_CACHE"] = str(folder / os.environ["RANK"])  # as on machines with different GPUs
    dist.init_process_group("gloo")
    ran: list[str] = []
    convolution = raising("convolution") if dist.get_rank() == wrong else gathering(ran)
    ops.BACKENDS = backends(Fake("fused", convolution=convolution))
    selfcheck.LENGTHS = selfcheck.CPU_LENGTHS = (9, 0, 5, 1)
    module, x = block().train().convolution, torch.randn(9, 8)
    module.batch_norm.group = dist.group.WORLD
    for _ in range(2):
        ops.convolution(module, x, LAYOUT).sum().backward()
    if dist.get_rank() == 0:  # evaluation is no collective
        ops.convolution(module.eval(), x, LAYOUT)
    where = selfcheck.configuration("convolution", module, 8)
    reasons = ops.select("convolution", CPU, F32, True, module.train(), where).reasons
    dist.destroy_process_group()
    return ran, reasons


@pytest.mark.parametrize("wrong", [None, 1])
def test_ranks_that_synchronise_batchnorm_run_the_same_backend(wrong: int | None, tmp_path: Path) -> None:
    ended = on_ranks(2, convolve_on_a_rank, tmp_path, wrong, tmp_path=tmp_path)
    assert [rank.code for rank in ended] == [0, 0], ended[0].err + ended[1].err
    (ran, reasons), (_, other_reasons) = (rank.value for rank in ended)
    if wrong is None:
        assert ran == ["fused"] * 3
        assert reasons == other_reasons == {}
    else:
        assert ran == ["fused"]  # the evaluation
        assert "another rank" in reasons["fused"]
        assert "no such instruction" in other_reasons["fused"]


def test_autocast_does_not_hide_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: list[torch.dtype] = []

    def refusal(op: str, device: torch.device, dtype: torch.dtype, training: bool, module: Any) -> str:
        dtypes.append(dtype)
        return "not written"

    monkeypatch.setattr(ops, "BACKENDS", backends(Fake("fussy", refusal, attention=sound("attention"))))
    x = torch.zeros(9, 8, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ops.attention(block(torch.float64).attention, x, LAYOUT)
    assert dtypes == [torch.float64]
