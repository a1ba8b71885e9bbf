"""Sums over the rows of several tensors in one launch."""

import pytest
import torch

pytest.importorskip("triton")

from astroco_fast.kernels.triton.column_sums import column_sums, summed

SHAPES = [(1, 3, 20), (133, 2, 33), (0, 5), (300, 64)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_sums(count: int, triton: str, device: torch.device) -> None:
    torch.manual_seed(0)
    partials = [torch.randn(shape, device=device) for shape in SHAPES[:count]]
    found = summed(*partials)
    assert len(found) == count
    for got, partial in zip(found, partials, strict=True):
        assert got.shape == partial.shape[1:]
        torch.testing.assert_close(got.double(), partial.double().sum(0), rtol=1e-6, atol=1e-5)


def test_schema(triton: str, device: torch.device) -> None:
    partials = [torch.randn(shape, device=device) for shape in SHAPES]
    torch.library.opcheck(column_sums, (partials,), test_utils=("test_schema", "test_faketensor"))
