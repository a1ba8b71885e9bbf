"""The self-check: right kernels pass; the op of a wrong kernel runs on the reference, with one warning."""

import copy
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import astroco_fast as af
from astroco_fast import ops, selfcheck, verdicts
from tests.fake_backends import FAULTS, Fake, backends, every_op, raising, sound, wrong_numbers
from tests.windows import make_windows

CPU, F32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16


def small_model(**overrides: Any) -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo.from_preset("tiny", width=8, heads=2, kernel=4, dropout=0.0, **overrides)


def use(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    monkeypatch.setattr(ops, "BACKENDS", backends(Fake("fused", **functions)))


def everything(model: af.AstroCo) -> list[Tensor]:
    """A model's outputs, loss and gradients, on the chosen backends."""
    model = copy.deepcopy(model)
    w = make_windows([6, 3, 0], 6)
    out = model(w.time, w.mag, w.err, w.mask, hidden=w.hidden)
    sums, counts = ops.masked_loss(out.reconstruction, torch.ones_like(out.reconstruction), w.hidden.long())
    (sums.sum() + out.embedding.square().sum()).backward()
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*out, sums, counts, *gradients, *buffers]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
def test_right_kernels_pass_and_are_checked_once(
    dtype: torch.dtype, fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    use(monkeypatch, **every_op())
    checks = count_checks(monkeypatch)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=dtype, enabled=dtype == BF16):
        warnings.simplefilter("error")
        everything(model)
        assert sorted(checks) == sorted(ops.OPS)  # two blocks need one check
        everything(model.eval())
    assert len(checks) == len(ops.OPS)
    (table,) = json.loads(fresh_selfcheck.read_text()).values()
    assert set(table.values()) == {""}


def count_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Start counting; return the list of checked ops, with one entry for each check."""
    checks: list[str] = []
    check = selfcheck._check

    def counted(backend: Any, op: str, *rest: Any) -> Any:
        checks.append(op)
        return check(backend, op, *rest)

    monkeypatch.setattr(selfcheck, "_check", counted)
    return checks


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("op", ops.OPS)
def test_a_wrong_kernel_leaves_its_op_to_the_reference(
    op: str, fault: str, fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (op, fault) == ("masked_loss", "leaking"):
        pytest.skip("the reference itself does not leak")
    model = small_model()
    with af.backend("reference"):
        expected = everything(model)
    ran: list[str] = []
    functions = {name: noting(name, ran, sound(name)) for name in ops.OPS}
    functions[op] = noting(op, ran, FAULTS[fault](op))
    use(monkeypatch, **functions)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        everything(model)
        selfcheck._verdicts.clear()
        ran.clear()
        got = everything(model)  # as in a second process: verdicts come from the file, and only the model runs
    assert len(told) == 1
    assert f"{op} runs in plain PyTorch" in str(told[0].message)
    assert "astroco doctor" in str(told[0].message)
    assert set(ran) == set(ops.OPS) - {op}
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def noting(op: str, ran: list[str], function: Any) -> Any:
    def run(*arguments: Any) -> Any:
        ran.append(op)
        return function(*arguments)

    return run


def test_the_warning_names_the_reason_and_only_the_wrong_dtype_falls_back(
    fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_wrong(module: Any, x: Tensor, layout: Any) -> Tensor:
        out = sound("attention")(module, x, layout)
        return out if not torch.is_autocast_enabled("cpu") else out + 1

    use(monkeypatch, attention=half_wrong)
    block = small_model().blocks[0]
    layout = af.Layout.packed(torch.tensor([4]), 4)
    x = torch.randn(4, 8)
    expected = pytest.warns(RuntimeWarning, match=r"attention bfloat16 width=8 heads=2 \(output 0 is off by 1")
    with expected, torch.autocast("cpu", dtype=BF16):
        ops.attention(block.attention, x, layout)
    where = (("width", 8), ("heads", 2))
    assert ops.select("attention", CPU, F32, False, block.attention, where).backend == "fused"
    selection = ops.select("attention", CPU, BF16, False, block.attention, where)
    assert selection.backend == "reference"
    assert "output 0 is off by 1" in selection.reasons["fused"]


def test_a_mode_that_is_not_supported_is_not_checked(fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(op: str, device: Any, dtype: Any, training: bool, module: Any) -> str | None:
        return "inference only" if training else None

    def inference(module: Any, x: Tensor, layout: Any) -> Tensor:
        assert not module.training
        return sound("attention")(module, x, layout)

    use(monkeypatch, refusal=refusal, attention=inference)
    assert selfcheck.rerun(ops.BACKENDS["fused"], "attention", CPU, F32, (("width", 8), ("heads", 2))) is None


def test_dropout_is_checked_by_the_draws_that_a_backend_tells(
    fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dropout_mask(layout: af.Layout, salt: int, p: float, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(salt)
        return (torch.rand(layout.rows, width, generator=generator) >= p) / (1 - p)

    class Given(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    def feed_forward(module: Any, x: Tensor, layout: af.Layout, salt: int | None = None) -> Tensor:
        if not module.training:
            return sound("feed_forward")(module, x, layout)
        given = Given()
        given.scale = dropout_mask(layout, module.dropout.salt if salt is None else salt, module.dropout.p, x.shape[1])
        dropout, module.dropout = module.dropout, given
        try:
            return sound("feed_forward")(module, x, layout)
        finally:
            module.dropout = dropout

    where = (("width", 8), ("expansion", 2))
    use(monkeypatch, feed_forward=feed_forward, dropout_mask=dropout_mask)
    assert selfcheck.rerun(ops.BACKENDS["fused"], "feed_forward", CPU, F32, where) is None
    use(monkeypatch, feed_forward=lambda *a: feed_forward(*a, salt=99), dropout_mask=dropout_mask)
    reason = selfcheck.rerun(ops.BACKENDS["fused"], "feed_forward", CPU, F32, where)
    assert reason is not None
    assert "in training" in reason


def test_the_caller_is_left_as_it_was(fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    use(monkeypatch, **every_op())
    w = make_windows([5, 3], 5)
    state = torch.get_rng_state()
    parameters = {key: value.clone() for key, value in model.state_dict().items()}
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=BF16)):
        selfcheck._verdicts.clear()
        fresh_selfcheck.unlink(missing_ok=True)
        with context, warnings.catch_warnings():
            warnings.simplefilter("error")
            model.eval()(w.time, w.mag, w.err, w.mask)
        assert len(selfcheck._verdicts) == len(ops.OPS) - 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, parameters[key]) for key, value in model.state_dict().items())


def test_it_runs_before_a_compiled_model_does(fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model().eval()
    w = make_windows([5, 3], 5)
    expected = model(w.time, w.mag, w.err, w.mask)
    use(monkeypatch, **{**every_op(), "attention": wrong_numbers("attention")})
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.warns(RuntimeWarning, match="attention runs in plain PyTorch"), torch.no_grad():
        got = compiled(w.time, w.mag, w.err, w.mask)
    assert {key.op: reason is None for key, reason in selfcheck._verdicts.items()} == {
        op: op != "attention" for op in ops.OPS if op != "masked_loss"
    }
    torch.testing.assert_close(got.embedding, expected.embedding, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_tensors_without_data_are_not_checked(
    device: str, fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    use(monkeypatch, attention=raising("attention"))
    assert (
        selfcheck.failure(ops.BACKENDS["fused"], "attention", torch.device(device), F32, (("width", 8), ("heads", 2)))
        is None
    )
    assert not selfcheck._verdicts


def test_nothing_runs_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capturing in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        assert selfcheck.may_run(torch.device("cuda", 0)) != capturing


def test_it_can_be_switched_off(fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "enabled", False)
    use(monkeypatch, attention=raising("attention"))
    with pytest.raises(RuntimeError, match="no such instruction"):
        everything(small_model())
    assert not fresh_selfcheck.exists()


def test_the_reference_is_not_checked(fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = count_checks(monkeypatch)
    everything(small_model())
    assert not checks


def check_attention() -> str | None:
    return selfcheck.failure(ops.BACKENDS["fused"], "attention", CPU, F32, (("width", 8), ("heads", 2)))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"a": 1}', '{"a": {"b": 2}}', b"\xff\xfe"], ids=lambda text: repr(text)
)
def test_a_broken_file_is_made_anew(content: Any, fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, attention=sound("attention"))
    fresh_selfcheck.parent.mkdir()
    fresh_selfcheck.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert check_attention() is None
    selfcheck._verdicts.clear()
    checks = count_checks(monkeypatch)
    assert check_attention() is None
    assert not checks


def test_without_a_folder_to_write_to_nothing_is_kept(
    fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, attention=sound("attention"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASTROCO_CACHE", str(tmp_path / "file" / "cache"))
    checks = count_checks(monkeypatch)
    assert check_attention() is None
    assert check_attention() is None
    assert len(checks) == 1
    monkeypatch.delenv("ASTROCO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(verdicts.Path, "home", raising("home"))
    assert verdicts.cache_file() is None
    selfcheck._verdicts.clear()
    assert check_attention() is None
    assert len(checks) == 2


def test_location_of_the_verdicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ASTROCO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert verdicts.cache_file() == tmp_path / "astroco_fast" / "selfcheck.json"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_many_processes_write_at_once(fresh_selfcheck: Path) -> None:
    def key(width: int) -> verdicts.Key:
        return verdicts.Key("fused", "attention", CPU, F32, (("width", width),))

    backend, children = Fake("fused"), []
    for process in range(4):
        if (child := os.fork()) == 0:
            try:
                for width in range(20):
                    verdicts.store(key(width), backend, None)
                    assert verdicts.stored(key(process), backend) in ("", None)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert [path.name for path in fresh_selfcheck.parent.iterdir()] == ["selfcheck.json"]
    assert verdicts.stored(key(19), backend) == ""


def test_verdicts_of_other_environments_stay_and_do_not_count(
    fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, attention=sound("attention"))
    checks = count_checks(monkeypatch)
    for version in ("1.0", "1.1", "1.0"):
        monkeypatch.setattr(torch, "__version__", version)
        selfcheck._verdicts.clear()
        assert check_attention() is None
    assert len(checks) == 2
    assert len(json.loads(fresh_selfcheck.read_text())) == 2


PASSING = [
    torch.OutOfMemoryError("full"),
    OSError("disk full"),
    RuntimeError("Failed to find C compiler"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("HIP error: an illegal memory access was encountered"),
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError)("the device is gone"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_transient_errors_are_not_cached(
    error: Exception, fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attention(*arguments: Any) -> Any:
        raise error

    use(monkeypatch, attention=attention)
    with pytest.warns(RuntimeWarning, match=re.escape(str(error))):
        assert check_attention() is not None
    assert not fresh_selfcheck.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_attention() is not None


def test_an_earlier_error_is_raised_to_its_owner(fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU reports errors late; they must not be blamed on an op that is checked meanwhile."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    earlier = RuntimeError("CUDA error: device-side assert triggered")

    def synchronize(device: Any) -> None:
        raise earlier

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    use(monkeypatch, attention=sound("attention"))
    checks = count_checks(monkeypatch)
    with pytest.raises(RuntimeError) as raised:
        selfcheck.failure(
            ops.BACKENDS["fused"], "attention", torch.device("cuda", 0), F32, (("width", 8), ("heads", 2))
        )
    assert raised.value is earlier
    assert not checks
    assert not selfcheck._verdicts
    assert not fresh_selfcheck.exists()


@pytest.mark.parametrize(("errors", "passes"), [((2e-6, 1e-6), True), ((2e-6, 9e-6), False)])
def test_plain_torch_that_is_exact_by_luck_does_not_fail_an_op(
    errors: tuple[float, float], passes: bool, fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = iter([(0.0, errors[0]), (1e-6, errors[1]), (1e-6, errors[1])])

    def runs(*arguments: Any) -> Any:
        plain, fused = next(draws)
        return tuple({"output 0": torch.tensor([error], dtype=torch.float64)} for error in (0.0, plain, fused))

    monkeypatch.setattr(selfcheck, "_runs", runs)
    monkeypatch.setattr(selfcheck, "MODES", selfcheck.MODES[:1])
    use(monkeypatch, attention=sound("attention"))
    assert (
        selfcheck.rerun(ops.BACKENDS["fused"], "attention", CPU, F32, (("width", 8), ("heads", 2))) is None
    ) == passes


KERNEL_FAULTS = {
    "fails to launch": ("residual_norm", lambda *given: raising("residual_norm"), "RuntimeError: no such instruction"),
    "wrong numbers": (
        "residual_norm",
        lambda run: lambda *given: [1.01 * t for t in run(*given)],
        "output 0 is off by",
    ),
    "wrong backward": (
        "residual_norm_backward",
        lambda run: lambda *given: [1.01 * t for t in run(*given)],
        "the gradient of .* is off by .* in training",
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_a_wrong_kernel_of_triton(fault: str, fresh_selfcheck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from astroco_fast.kernels import triton as triton_backend
    from astroco_fast.kernels.triton import residual_norm_product as sublayer_end

    kernel, spoil, reason = KERNEL_FAULTS[fault]
    monkeypatch.setattr(triton_backend, "interpreting", True)
    monkeypatch.setattr(sublayer_end, kernel, spoil(getattr(sublayer_end, kernel)))
    module = af.AstroCo.from_preset("tiny", dropout=0.0).blocks[0].feed_forward
    layout = af.Layout.packed(torch.tensor([5, 2]), 5)

    def results() -> list[Tensor]:
        x = torch.linspace(-1, 1, layout.rows * 64).view(layout.rows, 64).requires_grad_()
        out = ops.feed_forward(module, x, layout)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]

    with pytest.warns(RuntimeWarning, match=f"feed_forward runs in plain PyTorch: .*{reason}") as told:
        got = results()
    assert len(told) == 1
    with af.backend("reference"):
        expected = results()
    assert all(map(torch.equal, got, expected))
