"""The depthwise convolution's kernels against a sum written out in float64."""

import pytest
import torch
from torch import Tensor

from astroco_fast import Layout
from tests.kernels import harness

pytest.importorskip("triton")

WIDTH = 44  # a pitch of 64: 20 columns that must stay zero
TILE = 64  # rows of a tile at this pitch


def ready(taps: int, lengths: list[int], length: int, packed: bool, device: torch.device) -> tuple:
    """(layout, segments, half rows u, taps (D, K), its prepared copy (K, P)); u is NaN at rows that are not real."""
    from astroco_fast.kernels.triton.segments import segments

    torch.manual_seed(taps + length)
    counts = torch.tensor(lengths)
    layout = Layout.packed(counts, length, device) if packed else Layout.padded(counts.to(device), length)
    weight = torch.randn(WIDTH, taps, device=device)
    return layout, segments(layout), half_rows(layout), weight, bands_of(weight, torch.float32)


def bands_of(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The taps (D, K) as kernels read them."""
    from astroco_fast.kernels.triton.convolution_weights import convolution_weights

    width = weight.shape[0]
    none = weight.new_zeros(2 * width, width)
    return convolution_weights(none, none[:width], weight, dtype)[1]


def half_rows(layout: Layout) -> Tensor:
    from astroco_fast.kernels.tensors import pitch

    real = harness.real_rows(layout)[:, None]
    u = torch.zeros(layout.rows, pitch(WIDTH), device=real.device)
    u[:, :WIDTH] = torch.randn(layout.rows, WIDTH, device=real.device)
    return u.masked_fill(~real, float("nan"))


def convolved(u: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """y[t] = sum_k w[k] u[t + k - K/2], (N, D), window by window, as the definition says."""
    taps = weight.shape[1]
    windows = layout.pad(u.nan_to_num(0))
    padded = torch.nn.functional.pad(windows, (0, 0, taps // 2, taps - 1 - taps // 2))
    total = sum(padded[:, k : k + layout.length] * weight[:, k] for k in range(taps))
    return layout.unpad(total.masked_fill(~layout.positions[:, :, None], 0))


def assert_rows(got: Tensor, expected: Tensor) -> None:
    """Assert that `got` is equal to `expected` within float32's rounding, and zero in the pitch."""
    torch.testing.assert_close(got[:, :WIDTH].double(), expected, rtol=1e-5, atol=2e-5)
    assert (got[:, WIDTH:] == 0).all()


SHAPES = [(2, 31, True), (5, 33, False), (32, 1, True), (32, 33, False), (32, 70, True), (128, 33, True)]


@pytest.mark.parametrize("blocks", [1, 2, 81])
@pytest.mark.parametrize(("taps", "length", "packed"), SHAPES)
def test_forward(
    taps: int, length: int, packed: bool, blocks: int, triton: str, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from astroco_fast.kernels.tensors import cdiv
    from astroco_fast.kernels.triton import depthwise

    monkeypatch.setattr(depthwise, "blocks_of", lambda *given: min(blocks, cdiv(given[1].shape[0], 16)))
    layout, rows, u, weight, bands = ready(taps, 5 * [length, 0, 1, (length + 1) // 2], length, packed, device)
    exact = convolved(u[:, :WIDTH].double(), weight.double(), layout)
    c, count, partial = depthwise.depthwise_statistics(u, bands[0], rows.tiles, rows.first, rows.end, taps)
    assert_rows(c, exact)
    real = harness.real_rows(layout)
    share = cdiv(cdiv(rows.tiles.shape[0], 16), count.shape[0]) * 16
    for i, (n, tiles) in enumerate(zip(count.tolist(), rows.tiles.split(share), strict=False)):
        tiles = tiles[(tiles >= 0) & (rows.end[tiles] > 0)]
        here = (tiles[:, None] + torch.arange(16, device=device)).flatten()
        here = c[here[here < rows.end[tiles].repeat_interleave(16)]].double()
        assert n == here.shape[0]
        mean = here.mean(0) if n else torch.zeros(c.shape[1], device=device, dtype=torch.float64)
        torch.testing.assert_close(partial[i, :2].double().sum(0), mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(partial[i, 2].double(), (here - mean).square().sum(0), rtol=1e-4, atol=1e-4)
    assert count.sum() == real.sum()

    scale, shift = torch.zeros(2, u.shape[1], device=device)
    scale[:WIDTH].normal_()
    shift[:WIDTH].normal_()
    s = depthwise.depthwise_silu(u, bands[0], scale, shift, rows.tiles, rows.first, rows.end, taps)
    assert_rows(s, torch.nn.functional.silu(exact * scale[:WIDTH] + shift[:WIDTH]) * real[:, None])


@pytest.mark.parametrize(("taps", "length", "packed"), SHAPES)
def test_gradients(taps: int, length: int, packed: bool, triton: str, device: torch.device) -> None:
    from astroco_fast.kernels.triton.depthwise import depthwise_input_gradient
    from astroco_fast.kernels.triton.depthwise_taps import depthwise_tap_gradient

    layout, rows, u, weight, bands = ready(taps, [length, 0, 1, (length + 1) // 2], length, packed, device)
    upstream = half_rows(layout)
    source = u[:, :WIDTH].double().nan_to_num(0).requires_grad_()
    exact = weight.double().requires_grad_()
    convolved(source, exact, layout).backward(upstream[:, :WIDTH].double().nan_to_num(0))
    du = depthwise_input_gradient(upstream, bands[1], rows.tiles, rows.first, rows.end, taps)
    assert_rows(du, source.grad)
    partial = depthwise_tap_gradient(upstream, u, rows.tiles, rows.first, rows.end, WIDTH, taps)
    torch.testing.assert_close(partial.sum(0).double(), exact.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("lengths", "length", "packed", "blocks"),
    [
        ([199, 0, 201, 200], 201, True, 3),
        ([60, 7, 70], 70, True, 1),
        ([0, 0, 3, 0, 9, 1, 0], 9, False, 2),
        (5 * [31, 32, 33, 1], 33, False, 128),
        ([0, 0], 31, False, 2),
        ([1], 1, True, 128),
    ],
)
def test_taps_gradient_follows_windows(
    lengths: list[int], length: int, packed: bool, blocks: int, triton: str, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from astroco_fast.kernels.triton import depthwise_taps

    monkeypatch.setattr(depthwise_taps, "blocks_of", lambda *given: min(blocks, -(-given[1].shape[0] // 16)))
    layout, rows, u, weight, _ = ready(32, lengths, length, packed, device)
    upstream = half_rows(layout)
    exact = weight.double().requires_grad_()
    convolved(u[:, :WIDTH].double(), exact, layout).backward(upstream[:, :WIDTH].double().nan_to_num(0))
    partial = depthwise_taps.depthwise_tap_gradient(upstream, u, rows.tiles, rows.first, rows.end, WIDTH, 32)
    torch.testing.assert_close(partial.sum(0).double(), exact.grad, rtol=1e-5, atol=1e-4)


KINDS = {
    "packed": lambda counts, length: Layout.packed(counts, length, counts.device, int(counts.sum()) + 3),
    "padded": Layout.padded,
    "on_device": lambda counts, length: Layout.on_device(counts, length, rows=int(counts.sum()) + 3, filler=3),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [[0, 31, 0, 0, 33, 1, 16, 0, 32], [0, 0], [200]])
def test_tiles_have_each_row_once_and_those_of_windows_first(
    counts: list[int], kind: str, triton: str, device: torch.device
) -> None:
    from astroco_fast.kernels.triton.segments import segments

    layout = KINDS[kind](torch.tensor(counts, device=device), 200)
    rows = segments(layout)
    tiles = rows.tiles[: int((rows.tiles >= 0).sum())].tolist()
    assert (rows.tiles[len(tiles) :] == -1).all()
    covered: list[int] = []
    for at in tiles:
        first, end = int(rows.first[at]), int(rows.end[at])
        assert end == 0 or (at - first) % 16 == 0
        covered += range(at, min(at + 16, end or first))
    real = harness.real_rows(layout).nonzero().flatten().tolist()
    assert covered[: len(real)] == real
    assert sorted(covered) == list(range(layout.rows))


@pytest.mark.parametrize("kind", KINDS)
def test_windows_can_be_followed_row_by_row(kind: str, triton: str, device: torch.device) -> None:
    from astroco_fast.kernels.triton.segments import segments

    layout = KINDS[kind](torch.tensor([0, 3, 0, 0, 5, 1, 0], device=device), 5)
    rows, real, at = segments(layout), [], 0
    while at < layout.rows:
        first, end = int(rows.first[at]), int(rows.end[at])
        if end:
            assert first == at < end
            real += range(at, end)
        at = max(end, first)
    assert at == layout.rows
    assert real == harness.real_rows(layout).nonzero().flatten().tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype, triton: str, device: torch.device) -> None:
    """As PyTorch's convolution under autocast: taps in half precision, and statistics of what is stored."""
    from astroco_fast.kernels.triton.depthwise import depthwise_statistics

    layout, rows, u, weight, _ = ready(32, [40, 199], 200, False, device)
    u, bands = u.to(dtype), bands_of(weight, dtype)
    c, count, partial = depthwise_statistics(u, bands[0], rows.tiles, rows.first, rows.end, 32)
    assert c.dtype == dtype
    assert count.sum() == 239
    exact = convolved(u[:, :WIDTH].double(), weight.to(dtype).double(), layout)
    torch.testing.assert_close(c[:, :WIDTH].double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    mean = (partial[:, :2].double().sum(1) * count[:, None]).sum(0) / 239
    torch.testing.assert_close(mean, c[harness.real_rows(layout)].double().mean(0), rtol=1e-5, atol=1e-6)
