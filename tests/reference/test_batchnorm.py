"""Masked BatchNorm, compared with torch's own BatchNorm over the real rows alone."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from astroco_fast.reference.batchnorm import MaskedBatchNorm1d, frozen_statistics, statistics_frozen

WIDTH = 6


def pair() -> tuple[MaskedBatchNorm1d, nn.BatchNorm1d]:
    plain = nn.BatchNorm1d(WIDTH, dtype=torch.float64)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    masked = MaskedBatchNorm1d(WIDTH, dtype=torch.float64)
    masked.load_state_dict(plain.state_dict())
    return masked, plain


def rows_with_padding(rows: int = 40) -> tuple[Tensor, Tensor]:
    valid = torch.rand(rows) < 0.6
    x = 100 + torch.randn(rows, WIDTH, dtype=torch.float64)  # a large mean: E[x^2] - E[x]^2 would lose digits
    return x.masked_fill(~valid[:, None], float("nan")), valid


def test_training_equals_batchnorm_over_real_rows() -> None:
    masked, plain = pair()
    for _ in range(3):
        x, valid = rows_with_padding()
        real = x[valid].clone().requires_grad_()
        x.requires_grad_()
        expected, got = plain(real), masked(x, valid)[valid]
        torch.testing.assert_close(got, expected)
        weights = torch.randn_like(expected)
        (expected * weights).sum().backward()
        (got * weights).sum().backward()
        torch.testing.assert_close(x.grad[valid], real.grad)
        assert (x.grad[~valid] == 0).all()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(masked.state_dict()[key], value)
    torch.testing.assert_close(masked.weight.grad, plain.weight.grad)


def test_evaluation_uses_running_statistics() -> None:
    masked, plain = pair()
    x, valid = rows_with_padding()
    plain(x[valid]), masked(x, valid)
    masked.eval(), plain.eval()
    torch.testing.assert_close(masked(x, valid)[valid], plain(x[valid]))


@pytest.mark.parametrize("real", [0, 1])
def test_hardly_any_real_row_gives_no_nan(real: int) -> None:
    masked, _ = pair()
    before = {key: value.clone() for key, value in masked.state_dict().items()}
    x = torch.full((4, WIDTH), float("nan"), dtype=torch.float64)
    x[:real] = 5.0
    out = masked(x, torch.arange(4) < real)
    assert out.isfinite().all()
    assert masked.running_var.isfinite().all()
    if real == 0:
        assert torch.equal(masked.running_mean, before["running_mean"])
        assert torch.equal(masked.running_var, before["running_var"])
    else:
        torch.testing.assert_close(masked.running_mean, 0.9 * before["running_mean"] + 0.1 * 5.0)


def test_half_precision_rows_get_float32_statistics() -> None:
    masked = MaskedBatchNorm1d(WIDTH)
    out = masked(torch.randn(1000, WIDTH).bfloat16() + 50)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(WIDTH), rtol=1e-3, atol=1e-3)


def test_threads_that_repeat_passes_at_once_leave_nothing_frozen() -> None:
    """Two threads repeat passes at once in backward on two GPUs, for example."""
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        repeats = [(pool, contextlib.ExitStack()) for pool in (one, other)]
        for pool, stack in repeats:
            pool.submit(stack.enter_context, frozen_statistics()).result()
        assert not statistics_frozen()  # a first pass in a third thread counts
        for pool, stack in repeats:
            assert pool.submit(statistics_frozen).result()
            pool.submit(stack.close).result()
            assert not pool.submit(statistics_frozen).result()
    assert not statistics_frozen()


def test_a_traced_pass_knows_whether_it_is_a_repetition() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def traced(x: Tensor) -> Tensor:
        return x + statistics_frozen()

    assert traced(torch.zeros(1)) == 0
    with frozen_statistics():
        assert traced(torch.zeros(1)) == 1
    assert traced(torch.zeros(1)) == 0
