"""Matrix products between rows and half rows."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from astroco_fast.kernels.tensors import pitch
from astroco_fast.kernels.triton import launch
from astroco_fast.kernels.triton.linear import linear, rows_with_ones
from astroco_fast.kernels.triton.linear_onto import linear_onto
from astroco_fast.kernels.triton.linear_residual_norm import linear_residual_norm
from astroco_fast.kernels.triton.whole_rows import holds, shares

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = 139  # more than one row tile of each kernel, and no multiple of any
SHAPES = [(64, 64), (276, 288), (20, 104), (250, 40), (384, 96)]  # channels of rows, columns of half rows


def half(rows: int, columns: int, dtype: torch.dtype, device: torch.device, used: tuple[int, int]) -> Tensor:
    """Random numbers (rows, columns), zero beyond the first `used`, scaled so that products are of order 1."""
    made = torch.zeros(rows, columns, device=device, dtype=dtype)
    made[: used[0], : used[1]] = torch.randn(used, device=device) * used[1] ** -0.5
    return made


def ends(device: torch.device) -> Tensor:
    """`Segments.end` for rows that are all real but four."""
    end = torch.full((ROWS,), ROWS, dtype=torch.int32, device=device)
    end[40:43] = 0
    end[-1] = 0
    return end


def poisoned(x: Tensor, end: Tensor) -> Tensor:
    return x.masked_fill((end == 0)[:, None], float("nan"))


def assert_exact(got: Tensor, exact: Tensor, end: Tensor, other: Tensor | None = None) -> None:
    """Within two roundings of the largest result, or twice the error of an `other` result."""
    exact = exact.masked_fill((end == 0)[:, None], 0)

    def error(found: Tensor) -> float:
        return (found.double() - exact).masked_fill((end == 0)[:, None], 0).abs().max().item()

    rounding = torch.finfo(got.dtype).eps * max(1.0, exact.abs().max().item())
    assert not got[end == 0].any()
    assert error(got) <= 2 * max(rounding, 0.0 if other is None else error(other))


def truncated(left: Tensor, right: Tensor) -> Tensor:
    """left @ right as tensor cores that cut off their sums compute it: 8 products at a time onto a float32 sum."""

    def cut(x: Tensor) -> Tensor:
        near = x.float()
        beyond = near.double().abs() > x.abs()
        return torch.where(beyond, torch.nextafter(near, torch.zeros_like(near)), near)

    total = torch.zeros(left.shape[0], right.shape[1], device=left.device)
    for start in range(0, left.shape[1], 8):
        k = slice(start, start + 8)
        total = cut(total.double() + left[:, k].double() @ right[k].double())
    return total


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tilings of its own")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "columns"), [(64, 192), (276, 288), (20, 104), (96, 72)])
def test_blocks_that_hold_rows(
    width: int, columns: int, dtype: torch.dtype, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_architecture", launch.ARCHITECTURES["sm_90"])
    assert holds(torch.empty(0, dtype=dtype), width)
    test_linear(width, columns, dtype, triton, device)  # each program has one column tile
    monkeypatch.setattr(launch, "_architecture", replace(launch.ARCHITECTURES["sm_90"], multiprocessors=1))
    test_linear(width, columns, dtype, triton, device)
    for parts in (1, 3):
        test_linear_onto(width, columns, parts, dtype, triton, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tilings of its own")
@pytest.mark.parametrize(
    ("width", "columns", "behind"),
    [
        *((64, 72, rows) for rows in (0, 1, 31, 63, 64, 65, 127, 128, 129, 256, 257, 513, -1, -255, -600)),
        *((256, 40, rows) for rows in (1, 300)),
        *((276, 136, rows) for rows in (1, 127, 129)),
    ],
)
def test_rows_behind_whole_waves(
    width: int, columns: int, behind: int, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three programs share so many rows behind three row tiles of 256, column tile by column tile."""
    monkeypatch.setattr(launch, "_architecture", replace(launch.ARCHITECTURES["sm_90"], multiprocessors=3))
    torch.manual_seed(width + behind)
    rows = 3 * 256 + behind
    end, x = torch.randint(0, 3, (rows,), dtype=torch.int32), torch.randn(rows, width)
    w, b = half(columns, pitch(width), torch.bfloat16, device, (columns, width)), torch.randn(columns)
    exact = x.bfloat16().double() @ w[:, :width].double().t() + b.double()
    for ends in (end, torch.zeros_like(end)):
        y, ones = linear(poisoned(x, ends), w, b, ends, True)
        assert_exact(y, exact, ends)
        assert torch.equal(ones, rows_with_ones(poisoned(x, ends), ends, torch.bfloat16))


@pytest.mark.parametrize(
    ("tiles", "units", "multiprocessors", "shared"),
    [
        (0, 3, 4, (0, 0, 0, 0)),
        (1, 1, 4, (1, 1, 0, 0)),
        (1, 24, 132, (24, 0, 24, 1)),
        (25, 24, 132, (100, 0, 600, 6)),  # not 120 programs of 5 units, some of them of two tiles
        (25, 14, 132, (117, 0, 350, 3)),
        (4, 2, 3, (3, 2, 2, 1)),
        (132, 24, 132, (132, 24, 0, 0)),
        (200, 24, 132, (132, 24, 1632, 13)),
        (400, 14, 132, (132, 42, 56, 1)),
    ],
)
def test_shares(tiles: int, units: int, multiprocessors: int, shared: tuple[int, ...]) -> None:
    with launch.recording(print, replace(launch.ARCHITECTURES["sm_90"], multiprocessors=multiprocessors)):
        programs, own, left_over, each = found = shares(tiles, units, torch.device("cpu"))
    assert found == shared
    assert programs * own + left_over == tiles * units
    assert programs * each >= left_over


def onto(dtype: torch.dtype, width: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d, W, base and `end` of `linear_onto`."""
    torch.manual_seed(width)
    base = torch.randn(ROWS, width, device=device)
    d = torch.randn(ROWS, columns, device=device).to(dtype)
    return d, half(columns, pitch(width), dtype, device, (columns, width)), base, ends(device)


def test_truncation_is_tolerated_and_a_lost_product_is_not() -> None:
    """The tolerance of `test_linear_onto`."""
    d, w, base, end = onto(torch.bfloat16, 276, 288, torch.device("cpu"))
    exact = base.double() + d.double() @ w[:, :276].double()
    got = (base + truncated(d, w[:, :276])).masked_fill((end == 0)[:, None], 0)
    assert_exact(got, exact, end, got)
    with pytest.raises(AssertionError):
        assert_exact(got, exact, end)
    lost = got - (d[:, 287:].double() @ w[287:, :276].double()).float().masked_fill((end == 0)[:, None], 0)
    with pytest.raises(AssertionError):
        assert_exact(lost, exact, end, got)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "columns"), SHAPES)
def test_linear(width: int, columns: int, dtype: torch.dtype, triton: str, device: torch.device) -> None:
    torch.manual_seed(width)
    end, x, b = ends(device), torch.randn(ROWS, width, device=device), torch.randn(columns - 4, device=device)
    w = half(columns, pitch(width), dtype, device, (columns, width))
    y, ones = linear(poisoned(x, end), w, b, end, True)
    assert torch.equal(linear(poisoned(x, end), w, b, end, False)[0], y)
    assert y.dtype == dtype
    assert torch.equal(ones, rows_with_ones(poisoned(x, end), end, dtype)[: len(ones)])
    assert len(ones) == (ROWS if holds(w, width) else 0)
    x = x.to(dtype).double()
    assert_exact(y, x @ w[:, :width].double().t() + F.pad(b.double(), (0, 4)), end)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("width", "columns"), SHAPES)
def test_linear_onto(
    width: int, columns: int, parts: int, dtype: torch.dtype, triton: str, device: torch.device
) -> None:
    d, w, base, end = onto(dtype, width, parts * columns, device)
    given = [part.contiguous() for part in poisoned(d, end).chunk(parts, 1)]
    y = linear_onto(poisoned(base, end), given, w, end)
    other = base + truncated(d, w[:, :width]) if dtype != torch.float32 else None  # what tensor cores may do
    assert_exact(y, base.double() + d.double() @ w[:, :width].double(), end, other)
    dterm, weights = torch.randn_like(base), torch.tensor([0.0, 0.5], device=device)
    joined = linear_onto(poisoned(base, end), given, w, end, poisoned(dterm, end), weights, 1)
    torch.testing.assert_close(joined, y + 0.5 * dterm.masked_fill((end == 0)[:, None], 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "columns"), SHAPES)
def test_linear_residual_norm(width: int, columns: int, dtype: torch.dtype, triton: str, device: torch.device) -> None:
    torch.manual_seed(width)
    end, x = ends(device), 3 + torch.randn(ROWS, width, device=device)
    a = torch.randn(ROWS, columns, device=device).to(dtype)
    w = half(pitch(width), columns, dtype, device, (width, columns))
    b, gain, shift = torch.randn(3, width, device=device)
    y = linear_residual_norm(poisoned(a, end), w, b, poisoned(x, end), gain, shift, end, 1e-5)
    total = x.double() + a.double() @ w[:width].double().t() + b.double()
    exact = F.layer_norm(total, (width,), gain.double(), shift.double(), 1e-5)
    torch.testing.assert_close(y.double(), exact.masked_fill((end == 0)[:, None], 0), rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [20, 63, 64, 276])
def test_rows_with_ones(width: int, dtype: torch.dtype, triton: str, device: torch.device) -> None:
    end, x = ends(device), torch.randn(ROWS, width, device=device)
    y = rows_with_ones(poisoned(x, end), end, dtype)
    assert y.shape == (ROWS, 16 * (width // 16 + 1))
    expected = F.pad(torch.cat([x, x.new_ones(ROWS, 1)], 1), (0, y.shape[1] - width - 1))
    assert torch.equal(y, expected.masked_fill((end == 0)[:, None], 0).to(dtype))


def test_no_rows(triton: str, device: torch.device) -> None:
    end, x = torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, 64, device=device)
    w, v = torch.randn(64, 64, device=device), torch.randn(64, device=device)
    assert [found.shape for found in linear(x, w, v, end, True)] == [(0, 64), (0, 80)]
    assert linear_onto(x, [x], w, end).shape == (0, 64)
    assert linear_residual_norm(x, w, v, x, v, v, end, 1e-5).shape == (0, 64)
    assert rows_with_ones(x, end, torch.bfloat16).shape == (0, 80)


def test_schemas(triton: str, device: torch.device) -> None:
    """The schema, and the shapes and strides without data, on which `torch.compile` relies, are right."""
    end, x = ends(device), torch.randn(ROWS, 64, device=device)
    w, v = torch.randn(64, 64, device=device), torch.randn(64, device=device)
    for op, args in (
        (linear, (x, w, v, end, True)),
        (linear_onto, (x, [x], w, end)),
        (linear_onto, (x, [x, x, x], torch.randn(192, 64, device=device), end)),
        (linear_onto, (x, [x], w, end, x, v, 3)),
        (linear_residual_norm, (x, w, v, x, v, v, end, 1e-5)),
        (rows_with_ones, (x, end, torch.bfloat16)),
    ):
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))
