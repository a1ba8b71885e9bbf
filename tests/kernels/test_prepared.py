"""Prepared weights are never stale."""

import ctypes
import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import astroco_fast as af
from astroco_fast.kernels.prepared import cast, forget, prepared, recheck
from tests.windows import make_windows


def halved(module: nn.Linear) -> torch.Tensor:
    with torch.no_grad():
        return prepared(module, "half", (module.weight,), lambda: cast(torch.bfloat16, [(module.weight, (32, 32))])[0])


def step(**options: bool) -> Callable[[nn.Linear], None]:
    def change(module: nn.Linear) -> None:
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, **options)
        module(torch.ones(4, 20)).sum().backward()
        optimizer.step()

    return change


def in_place(module: nn.Linear) -> None:
    with torch.no_grad():
        module.weight.mul_(3)


CHANGES: dict[str, Callable[[nn.Linear], object]] = {
    "fused optimiser": step(fused=True),  # writes without a new version of the parameter
    "foreach optimiser": step(foreach=True),
    "in place": in_place,
    "another tensor": lambda module: setattr(module, "weight", nn.Parameter(torch.randn(16, 20))),
    "load_state_dict": lambda module: module.load_state_dict(nn.Linear(20, 16).state_dict()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_prepared_anew(change: str) -> None:
    module = nn.Linear(20, 16)
    before = halved(module)
    assert halved(module) is before  # cached
    CHANGES[change](module)
    assert torch.equal(halved(module)[:16, :20], module.weight.detach().bfloat16())
    assert not torch.equal(before[:16, :20], module.weight.detach().bfloat16())


def test_another_tensor_in_the_same_place_is_seen() -> None:
    module = nn.Linear(276, 276)
    for value in range(20):  # freed memory is sooner or later allocated again
        module.weight = None  # type: ignore[assignment]
        module.weight = nn.Parameter(torch.full((276, 276), float(value)))
        with torch.no_grad():
            made = prepared(module, "copy", (module.weight,), module.weight.clone)
        assert made[0, 0] == value


def test_replaced_parameter_is_seen() -> None:
    module, old = nn.Linear(20, 16), nn.Parameter(torch.zeros(16, 20))
    module.weight = old
    halved(module)
    module.weight = nn.Parameter(torch.ones(16, 20))
    assert halved(module)[0, 0] == 1


def write_data(module: nn.Linear) -> None:
    module.weight.data.copy_(torch.randn(16, 20))


def average(module: nn.Linear) -> None:
    module.weight.data.mul_(0.999).add_(torch.randn(16, 20), alpha=0.001)


def write_alias(module: nn.Linear) -> None:
    module.weight.detach().numpy()[:] = 3


def broadcast(module: nn.Linear) -> None:
    """A write by C++ that raises no version, as collectives and other processes write to shared memory."""
    address, size = module.weight.data_ptr(), module.weight.numel()
    (ctypes.c_float * size).from_address(address)[:] = [2.0] * size


def mask(module: nn.Linear) -> None:
    module.weight.data[:, ::3] = 0


UNCOUNTED = {write.__name__: write for write in (write_data, average, write_alias, broadcast, mask)}


@pytest.mark.parametrize("write", UNCOUNTED)
def test_a_write_that_pytorch_does_not_count_is_seen(write: str) -> None:
    module = nn.Linear(20, 16)
    version, before = module.weight._version, halved(module)
    UNCOUNTED[write](module)
    assert module.weight._version == version
    assert halved(module) is not before
    assert torch.equal(halved(module)[:16, :20], module.weight.detach().bfloat16())


def doubt(module: nn.Module) -> None:
    recheck([module])


@pytest.mark.parametrize("notice", [forget, doubt, lambda _: forget()])
def test_announced_change_outside_the_sample_is_seen(notice: Callable[[nn.Module], None]) -> None:
    module, other = nn.Linear(200, 160), nn.Linear(20, 16)
    kept = halved(other)
    with torch.no_grad():
        halve = functools.partial(prepared, module, "half", (module.weight,), module.weight.bfloat16)
        before = halve()
        module.weight.data[0, 1] = 1e6
        assert halve() is before  # one number of 32,000
        notice(module)
        after = halve()
        assert torch.equal(after, module.weight.bfloat16())
        module.weight.data[[2, 3]] = module.weight.data[[3, 2]]  # the same numbers in another order
        assert halve() is after
        notice(module)
        after = halve()
        assert torch.equal(after, module.weight.bfloat16())
        doubt(module)
        assert halve() is after  # nothing has changed
    assert (halved(other) is kept) == (notice in (forget, doubt))


def test_settings_are_compared() -> None:
    norm, made = nn.BatchNorm1d(4), []
    for eps in (1e-5, 1e-5, 0.1):
        norm.eps = eps
        with torch.no_grad():
            prepared(norm, "scale", (norm.weight,), lambda: made.append(norm.eps), (norm.eps,))
    assert made == [1e-5, 0.1]


def test_padding_is_zero_and_the_rest_is_cast() -> None:
    module = nn.Linear(20, 16)
    weight = halved(module)
    assert weight.dtype == torch.bfloat16
    assert weight.shape == (32, 32)
    assert weight[16:].abs().sum() == 0
    assert weight[:, 20:].abs().sum() == 0


def test_nothing_is_kept_while_gradients_are_wanted() -> None:
    module, made = nn.Linear(20, 16), []
    for _ in range(2):
        prepared(module, "count", (module.weight,), lambda: made.append(torch.is_grad_enabled()))
    assert made == [False, False]


def test_prepared_weights_of_frozen_and_trained_modules() -> None:
    module = nn.Linear(20, 16).requires_grad_(False)
    made = [prepared(module, "copy", (module.weight,), module.weight.clone) for _ in range(2)]
    assert made[0] is made[1]
    in_place(module)
    assert prepared(module, "copy", (module.weight,), module.weight.clone) is not made[0]


def test_inference_tensors_are_prepared_anew() -> None:
    with torch.inference_mode():
        module = nn.Linear(20, 16)
        halved(module)
        module.weight.mul_(3)  # they have no version
        assert torch.equal(halved(module)[:16, :20], module.weight.bfloat16())


def write_all(model: af.AstroCo) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.mul_(1.1)


def write_statistics(model: af.AstroCo) -> None:
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data.add_(0.1)


def change_eps(model: af.AstroCo) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 0.1


def write_a_number(model: af.AstroCo) -> None:
    model.blocks[0].feed_forward.w_val.weight.data[0, 1] = 50.0
    model.eval()


@pytest.mark.parametrize("change", [write_all, write_statistics, change_eps, write_a_number])
def test_an_encoder_computes_with_its_present_weights(change: Callable[[af.AstroCo], None]) -> None:
    torch.manual_seed(0)
    model = af.AstroCo.from_preset("tiny", layers=1).eval()
    w = make_windows([20, 9], 20)
    with torch.no_grad():
        before = model(w.time, w.mag, w.err, w.mask)
        change(model)
        after = model(w.time, w.mag, w.err, w.mask)
        with af.backend("reference"):
            expected = model(w.time, w.mag, w.err, w.mask)
    assert (before.sequence - expected.sequence).abs().max() > 1e-3
    torch.testing.assert_close(after.sequence, expected.sequence, rtol=1e-4, atol=1e-4)


def test_each_stream_of_a_gpu_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream could read what another one has not written yet; a fake tells which stream is current."""
    from astroco_fast.kernels import prepared as cache

    module, current = nn.Linear(20, 16), [1]
    monkeypatch.setattr(cache, "_stream", lambda sources: current[0])
    first = halved(module)
    current[0] = 2
    second = halved(module)
    assert second is not first
    assert halved(module) is second
    current[0] = 1
    assert halved(module) is first
    in_place(module)
    assert halved(module) is not first
    forget(module)
    assert not cache._cache.get(module)
