"""The whole encoder on a backend's ops against the reference: outputs and every parameter's gradient."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from astroco_fast import AstroCo
from tests.kernels import harness
from tests.windows import make_windows

LENGTHS, SIZE = [20, 0, 5], 20


def shortened(preset: str, **overrides: Any) -> AstroCo:
    """A preset with two blocks by default, and random parameters where initialisation has ones and zeros."""
    torch.manual_seed(0)
    model = AstroCo.from_preset(preset, **{"layers": 2, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def windows(device: torch.device, seed: int = 0) -> Sequence[Tensor]:
    """time, mag and err (float32, with NaN in the padding), mask and hidden."""
    w = make_windows(LENGTHS, SIZE, seed)
    values = ((w.time - 58000).float(), (w.mag - 17).float(), w.err.float(), w.mask, w.hidden)
    return [value.to(device) for value in values]


def call(model: nn.Module, time: Tensor, mag: Tensor, err: Tensor, mask: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    return tuple(model(time, mag, err, mask, hidden=hidden))


# The interpreter's default is preset tiny, because it takes half a minute for S; the slow tests cover all.
DEFAULT = (("triton", "tiny", torch.bfloat16), ("cpu", "S", torch.bfloat16))
OTHERS = set(product(("triton", "cpu"), ("tiny", "S", "L"), (torch.float32, torch.bfloat16))) - {*DEFAULT}


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize(
    ("fused", "preset", "dtype"),
    [*DEFAULT, *(pytest.param(*other, marks=pytest.mark.slow) for other in sorted(OTHERS, key=str))],
    indirect=["fused"],
)
def test_model(preset: str, dtype: torch.dtype, mode: str, fused: str, device: torch.device) -> None:
    model = shortened(preset, dropout=0.0).to(device).train(mode == "training")
    width, batch = model.config.width, len(LENGTHS)

    def draw(seed: int) -> harness.Draw:
        up = [torch.randn(shape, device=device) for shape in ((batch, SIZE, width), (batch, width), (batch, SIZE))]
        gradients = up if mode == "training" else None
        return harness.variants(call, model, windows(device, seed), gradients, dtype, fused)

    harness.check(lambda number: (draw(number), None))


def test_every_dropout_draws_its_own() -> None:
    salts = [module.salt for module in shortened("S").modules() if isinstance(module, nn.Dropout)]
    assert len(set(salts)) == len(salts) == 6
