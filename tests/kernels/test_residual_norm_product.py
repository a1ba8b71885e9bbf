"""A sublayer's end with its product in one kernel, forward and backward, against separate kernels."""

import pytest
import torch
from torch.nn import functional as F


@pytest.mark.parametrize(
    ("width", "rows", "p", "silu"),
    [(64, 45, 0.0, False), (100, 130, 0.3, True), (256, 45, 0.1, True), (64, 0, 0.1, True)],
)
def test_one_kernel_is_several(
    width: int, rows: int, p: float, silu: bool, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, whose rounding hides no error; rows that are not real hold NaN."""
    from astroco_fast.kernels.triton.batch_norm import batch_norm_silu
    from astroco_fast.kernels.triton.residual_norm import residual_norm, residual_norm_backward
    from astroco_fast.kernels.triton.residual_norm_product import product_residual_norm, residual_norm_product_backward

    torch.manual_seed(width)
    pad = -width % 32
    real = torch.arange(rows, device=device) % 43 < 41
    end, seed = real.int(), torch.tensor([5], device=device) if p else None
    x, dy = torch.randn(2, rows, width, device=device)
    b, gain, shift = torch.randn(3, width, device=device)
    s = F.pad(torch.randn(rows, width, device=device), (0, pad))
    w = F.pad(torch.randn(width, width, device=device) / width**0.5, (0, pad, 0, pad))
    x[~real] = dy[~real] = s[~real] = torch.nan
    norm = (torch.rand(4, width + pad, device=device), *torch.randn(2, width, device=device)) if silu else (None,) * 3

    forward = (s, *norm, w, b, x, gain, shift, end, seed, 3, p, 1e-5)
    y, normal, rstd = found = product_residual_norm(*forward)
    o = (batch_norm_silu(s, *norm, end) if silu else s) @ w.t()
    for got, alone in zip(found, residual_norm(o, b, x, gain, shift, end, seed, 3, p, 1e-5), strict=True):
        torch.testing.assert_close(got[real], alone[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normal[real, :width] * gain + shift, y[real], atol=1e-5, rtol=1e-5)
    for rows_without in (y, normal):
        assert not rows_without[~real].any()
    assert not normal[:, width:].any()

    given = (dy, normal, rstd, gain, end, seed, 3, p)
    dz, do, partial = residual_norm_backward(*given, torch.float32)
    got_dz, got_do, ds, sums = residual_norm_product_backward(*given, w)
    assert torch.equal(got_dz, dz)
    assert torch.equal(got_do, do)
    torch.testing.assert_close(sums.sum(0), partial.sum(0), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ds.double(), do.double() @ w.double(), atol=1e-4, rtol=1e-5)
    assert not ds[~real].any()
    monkeypatch.undo()  # because opcheck would take poisoned outputs for mutated ones
    monkeypatch.setattr("astroco_fast.kernels.triton.interpreting", True)
    torch.library.opcheck(product_residual_norm, forward, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(residual_norm_product_backward, (*given, w), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [64, 276])
def test_the_kept_sum_is_within_half_a_step(width: int, dtype: torch.dtype, triton: str, device: torch.device) -> None:
    """A step is the 32767th part of a row's largest value: rows are constant, of one large value, and random."""
    from astroco_fast.kernels.triton.residual_norm import residual_norm

    torch.manual_seed(0)
    rows = 40
    x, gain, shift = (torch.randn(shape, device=device) for shape in ((rows, width), (width,), (width,)))
    x[0] = 3.0
    x[1, 5] = 1e4
    o, b = torch.zeros(rows, width + -width % 32, dtype=dtype, device=device), torch.zeros(width, device=device)
    end = torch.ones(rows, dtype=torch.int32, device=device)
    _, normal, spread = residual_norm(o, b, x, gain, shift, end, None, 0, 0.0, 1e-5)
    assert normal.dtype == torch.int16
    z = x.double()
    exact = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    off = (normal[:, :width] * spread[:, 1:].double() - exact).abs().amax(1)
    assert (off <= exact.abs().amax(1) / 65534 + 1e-5).all()
