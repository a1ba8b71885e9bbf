"""Dropout's draws have the right share, are independent of one another and of the tiling, and return in backward."""

import math

import pytest
import torch

from astroco_fast import Layout, ops
from astroco_fast.kernels.triton.dropout import dropout_mask
from astroco_fast.kernels.triton.residual_norm import residual_norm, residual_norm_backward
from tests.kernels.conftest import DEVICE

ROWS, WIDTH = 96, 276


def scale_of(backend: str, seed: int, salt: int, p: float = 0.5, width: int = WIDTH) -> torch.Tensor:
    device = DEVICE if backend == "triton" else torch.device("cpu")
    layout = Layout.padded(torch.tensor([ROWS], device=device), ROWS)
    layout.scratch["seed"] = torch.tensor([seed], device=device)
    return ops.BACKENDS[backend].dropout_mask(layout, salt, p, width)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p: float, fused: str) -> None:
    scale = scale_of(fused, 7, 3, p)
    survivors = scale > 0
    deviation = math.sqrt(p * (1 - p) / survivors.numel())
    assert abs(survivors.float().mean().item() - (1 - p)) < 5 * deviation
    torch.testing.assert_close(scale[survivors], torch.full_like(scale[survivors], 1 / (1 - p)))
    # Every row and every channel drops about the same share.
    for axis, n in ((0, ROWS), (1, WIDTH)):
        assert (survivors.float().mean(axis) - (1 - p)).abs().max() < 6 * math.sqrt(p * (1 - p) / n)


def test_draws_are_independent(fused: str) -> None:
    """Another seed or salt, and neighbouring rows and channels, agree in half of the draws, as fair coins do."""

    def kept(seed: int, salt: int) -> torch.Tensor:
        return scale_of(fused, seed, salt) > 0

    one = kept(7, 3)
    others = [kept(8, 3), kept(7, 4), one.roll(1, 0), one.roll(1, 1), one.roll(4, 1), kept(2**61, 3)]
    for other in others:
        agreement = (one == other).float().mean().item()
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(one.numel())
    assert torch.equal(one, kept(7, 3))


def test_a_channel_is_drawn_alike_at_any_width(fused: str) -> None:
    assert torch.equal(scale_of(fused, 7, 3)[:, :64], scale_of(fused, 7, 3, width=64))


def test_backward_drops_what_forward_dropped(triton: str, device: torch.device) -> None:
    rows, width, p = 33, 64, 0.4
    seed = torch.tensor([11], device=device)
    o, x = torch.randn(rows, width, device=device), torch.zeros(rows, width, device=device)
    zero, one = torch.zeros(width, device=device), torch.ones(width, device=device)
    end = torch.ones(rows, dtype=torch.int32, device=device)
    _, normal, rstd = residual_norm(o, zero, x, one, zero, end, seed, 2, p, 1e-5)
    _, do, _ = residual_norm_backward(torch.randn_like(x), normal, rstd, one, end, seed, 2, p, o.dtype)
    assert torch.equal(do != 0, dropout_mask(seed, 2, p, rows, width) != 0)
