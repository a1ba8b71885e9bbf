"""Prepared weights are never stale."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from astroco_fast.kernels.prepared import cast, forget, prepared


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
def test_a_change_is_seen(change: str) -> None:
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


def test_a_tensor_beside_the_old_one_is_seen() -> None:
    module, old = nn.Linear(20, 16), nn.Parameter(torch.zeros(16, 20))
    module.weight = old
    halved(module)
    module.weight = nn.Parameter(torch.ones(16, 20))
    assert halved(module)[0, 0] == 1


def test_what_nobody_saw_can_be_told() -> None:
    module = nn.Linear(20, 16)
    before = halved(module)
    module.weight.data.mul_(3)
    assert halved(module) is before
    forget()
    assert torch.equal(halved(module)[:16, :20], module.weight.detach().bfloat16())


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


def test_what_is_frozen_is_kept_beside_what_is_trained() -> None:
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
