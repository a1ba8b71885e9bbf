"""The backward pass of a sublayer's end that includes its product, against the one that leaves it to the library."""

import pytest
import torch
from torch.nn import functional as F


@pytest.mark.parametrize(
    ("width", "columns", "rows", "p"), [(64, 64, 45, 0.0), (100, 40, 130, 0.3), (256, 256, 45, 0.1), (64, 64, 0, 0.1)]
)
def test_one_kernel_is_two(
    width: int, columns: int, rows: int, p: float, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, whose rounding hides no error; rows that are not real hold NaN."""
    from astroco_fast.kernels.triton.residual_norm import residual_norm, residual_norm_backward
    from astroco_fast.kernels.triton.residual_norm_product import residual_norm_product_backward

    torch.manual_seed(width)
    pad = -width % 32
    real = torch.arange(rows, device=device) % 43 < 41
    end, seed = real.int(), torch.tensor([5], device=device) if p else None
    x, dy = torch.randn(2, rows, width, device=device)
    b, gain, shift = torch.randn(3, width, device=device)
    o = F.pad(torch.randn(rows, width, device=device), (0, pad))
    w = F.pad(torch.randn(width, columns, device=device), (0, 0, 0, pad))
    x[~real] = dy[~real] = o[~real] = torch.nan
    _, mean, rstd = residual_norm(o, b, x, gain, shift, end, seed, 3, p, 1e-5)

    given = (dy, o, b, x, gain, end, seed, 3, p, mean, rstd)
    dz, do, partial = residual_norm_backward(*given)
    got_dz, got_do, ds, sums = residual_norm_product_backward(*given, w)
    assert torch.equal(got_dz, dz)
    assert torch.equal(got_do, do)
    torch.testing.assert_close(sums.sum(0), partial.sum(0), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ds.double(), do.double() @ w.double(), atol=1e-4, rtol=1e-5)
    assert not ds[~real].any()
    monkeypatch.undo()  # because opcheck would take poisoned outputs for mutated ones
    monkeypatch.setattr("astroco_fast.kernels.triton.interpreting", True)
    torch.library.opcheck(residual_norm_product_backward, (*given, w), test_utils=("test_schema", "test_faketensor"))
