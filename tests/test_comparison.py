"""The comparison with float64: right results pass, and a fault of any kind is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from astroco_fast import Layout
from astroco_fast.comparison import Comparison, Results, results, zero_filler
from astroco_fast.reference.sublayers import Convolution

LAYOUT = Layout.packed(torch.tensor([5, 0, 3]), 5, capacity=11)
REAL = LAYOUT.valid
assert REAL is not None
WIDTH = 8
WEIGHT, BIAS = "the gradient of pointwise_out.weight", "the gradient of pointwise_out.bias"


def runs(dtype: torch.dtype = torch.float32) -> tuple[Results, Results, Results]:
    """A convolution (with buffers) in training: its results in float64, in `dtype`, and in `dtype` as a backend's."""
    assert REAL is not None
    torch.manual_seed(0)
    module = Convolution(WIDTH, 3, 0.0)
    x = torch.randn(LAYOUT.rows, WIDTH).masked_fill(~REAL[:, None], 0).requires_grad_()
    upstream = [torch.randn(LAYOUT.rows, WIDTH).masked_fill(~REAL[:, None], 0)]

    def run(to: torch.dtype) -> Results:
        found = results(lambda module, x: module(x, LAYOUT), module, [x], upstream, to)
        return zero_filler(found, REAL)

    return run(torch.float64), run(dtype), run(dtype)


def off(exact: Results, plain: Results, fused: Results) -> dict[str, str]:
    comparison = Comparison()
    comparison.add(exact, plain, fused)
    return comparison.off()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_results_pass(dtype: torch.dtype) -> None:
    exact, plain, fused = runs(dtype)
    assert not off(exact, plain, fused)
    # Results that are rounded otherwise, and off by as much as plain PyTorch's, are right too.
    assert not off(exact, plain, {name: (2 * exact[name] - plain[name]).to(value) for name, value in plain.items()})


def test_every_result_is_compared() -> None:
    exact, _, _ = runs()
    module = Convolution(WIDTH, 3, 0.0)
    parameters = {f"the gradient of {name}" for name, _ in module.named_parameters()}
    buffers = {"batch_norm.running_mean", "batch_norm.running_var"}
    assert exact.keys() == {"output 0", "the gradient of input 0"} | parameters | buffers


def one_element(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def changed(value: Tensor) -> Tensor:
        value = value.clone()
        value.view(-1)[0] = change(value.view(-1)[0])
        return value

    return changed


def filler_set(value: Tensor) -> Tensor:
    assert REAL is not None
    return value.masked_fill(~REAL[:, None], 1e-3)


# By kind of fault: the wrong result, the change that makes it wrong, and the message.
FAULTS: dict[str, tuple[str, Callable[[Tensor], Any], str]] = {
    "one value": ("output 0", one_element(lambda x: x + 1e-2), "is off by 0.01"),
    "one gradient's value": (WEIGHT, one_element(lambda x: x + 1e-2), "is off by 0.01"),
    "a factor": ("the gradient of input 0", lambda x: 1.01 * x, "is off by"),
    "a factor of a small gradient": (BIAS, lambda x: 1.01 * x, "is off by"),
    "the wrong sign": ("the gradient of depthwise", torch.neg, "is off by"),
    "transposed": (WEIGHT, lambda x: x.t().contiguous(), "is off by"),
    "rows in another order": ("output 0", lambda x: x.roll(1, 0), "is off by"),
    "one NaN": ("output 0", one_element(lambda x: x * float("nan")), "is not finite"),
    "one infinity": (WEIGHT, one_element(lambda x: x + float("inf")), "is not finite"),
    "a zero gradient": (WEIGHT, torch.zeros_like, "is off by"),
    "a zero gradient of a vector": ("the gradient of norm_out.bias", torch.zeros_like, "is off by"),
    "a missing gradient": (BIAS, lambda x: None, "is missing"),
    "a missing output": ("output 0", lambda x: None, "is missing"),
    "a missing buffer": ("batch_norm.running_var", lambda x: None, "is missing"),
    "another shape": (BIAS, lambda x: x[:1], "is of shape (1,), not (8,)"),
    "an axis more": (BIAS, lambda x: x[None], "is of shape (1, 8), not (8,)"),
    "another dtype": ("output 0", torch.Tensor.double, "is torch.float64, not torch.float32"),
    "half precision": ("output 0", torch.Tensor.half, "is torch.float16, not torch.float32"),
    "a stale buffer": ("batch_norm.running_mean", torch.zeros_like, "is off by"),
    "a biased variance": ("batch_norm.running_var", lambda x: 0.9 + (x - 0.9) * 7 / 8, "is off by"),
    "filler rows": ("output 0", filler_set, "is off by 0.001"),
    "filler rows of a gradient": ("the gradient of input 0", filler_set, "is off by 0.001"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_result_is_refused(fault: str) -> None:
    name, change, told = FAULTS[fault]
    exact, plain, fused = runs()
    fused[name] = change(fused[name])
    found = off(exact, plain, {key: value for key, value in fused.items() if value is not None})
    assert found.keys() == {name}
    assert told in found[name]


def test_a_result_that_the_reference_has_not_is_refused() -> None:
    exact, plain, fused = runs()
    fused["output 1"] = torch.zeros(1)
    assert off(exact, plain, fused) == {"output 1": "is not among the reference's results"}


def test_nothing_passes_where_plain_torch_is_not_finite() -> None:
    exact, plain, fused = runs()
    plain["output 0"] = torch.full_like(plain["output 0"], float("nan"))
    assert "cannot be judged" in off(exact, plain, fused)["output 0"]


def test_errors_count_by_their_largest_over_all_draws() -> None:
    def draw(plain: float, fused: float) -> tuple[Results, Results, Results]:
        exact, *others = ({"output 0": torch.tensor([error])} for error in (0.0, plain, fused))
        return {"output 0": exact["output 0"].double()}, others[0], others[1]

    comparison = Comparison()
    comparison.add(*draw(0.0, 2e-6))  # plain PyTorch is exact by luck
    assert comparison.off()
    comparison.add(*draw(1e-6, 1e-6))
    assert not comparison.off()
    comparison.add(*draw(1e-6, 9e-6))
    assert comparison.off()


def test_a_fault_of_one_draw_is_not_forgotten() -> None:
    comparison = Comparison()
    exact, plain, fused = runs()
    comparison.add(exact, plain, {**fused, BIAS: fused[BIAS][:1]})
    comparison.add(exact, plain, fused)
    assert comparison.off().keys() == {BIAS}


def test_outputs_precede_gradients_in_the_report() -> None:
    exact, plain, fused = runs()
    wrong = {name: 2 * value for name, value in fused.items() if name != WEIGHT}
    assert next(iter(off(exact, plain, wrong))) == "output 0"


def test_a_gradient_that_autograd_does_not_reach_is_missing() -> None:
    module = nn.Linear(3, 3)
    found = results(
        lambda m, x: x @ m.weight.detach().t() + m.bias, module, [torch.ones(2, 3)], [torch.ones(2, 3)], torch.float32
    )
    assert found.keys() == {"output 0", "the gradient of bias"}


def test_the_callers_module_and_inputs_stay_as_they_are() -> None:
    module, x = Convolution(WIDTH, 3, 0.0), torch.randn(LAYOUT.rows, WIDTH, requires_grad=True)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    results(lambda module, x: module(x, LAYOUT), module, [x], [torch.ones_like(x)], torch.float64)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
