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
    from astroco_fast.kernels.tensors import pitch
    from astroco_fast.kernels.triton.segments import segments

    torch.manual_seed(taps + length)
    counts = torch.tensor(lengths)
    layout = Layout.packed(counts, length, device) if packed else Layout.padded(counts.to(device), length)
    weight = torch.randn(WIDTH, taps, device=device)
    prepared = torch.zeros(taps, pitch(WIDTH), device=device)
    prepared[:, :WIDTH] = weight.t()
    return layout, segments(layout), half_rows(layout), weight, prepared


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


@pytest.mark.parametrize(("taps", "length", "packed"), SHAPES)
def test_forward(taps: int, length: int, packed: bool, triton: str, device: torch.device) -> None:
    from astroco_fast.kernels.triton.depthwise import depthwise_silu, depthwise_statistics

    layout, rows, u, weight, prepared = ready(taps, [length, 0, 1, (length + 1) // 2], length, packed, device)
    exact = convolved(u[:, :WIDTH].double(), weight.double(), layout)
    c, count, partial = depthwise_statistics(u, prepared, rows.first, rows.end)
    assert_rows(c, exact)
    real = harness.real_rows(layout)
    for i, n in enumerate(count.tolist()):
        tile = slice(i * TILE, (i + 1) * TILE)
        here = c[tile][real[tile]].double()
        assert n == here.shape[0]
        mean = here.mean(0) if n else torch.zeros(c.shape[1], device=device, dtype=torch.float64)
        torch.testing.assert_close(partial[i, :2].double().sum(0), mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(partial[i, 2].double(), (here - mean).square().sum(0), rtol=1e-4, atol=1e-5)

    shift = torch.zeros(prepared.shape[1], device=device)
    shift[:WIDTH].normal_()
    s = depthwise_silu(u, prepared, shift, rows.first, rows.end)
    assert_rows(s, torch.nn.functional.silu(exact + shift[:WIDTH]) * real[:, None])


@pytest.mark.parametrize(("lengths", "length"), [([0, 3], 3), ([0, 2, 2], 2)])
def test_a_short_tile_that_begins_with_an_empty_window(
    lengths: list[int], length: int, triton: str, device: torch.device
) -> None:
    """The last row of a run of eight may be missing, which must not pass for a row of the empty window."""
    from astroco_fast.kernels.triton.depthwise import depthwise_input_gradient

    layout, rows, u, weight, prepared = ready(2, lengths, length, False, device)
    upstream = u[:, :WIDTH].double().nan_to_num(0).requires_grad_()
    convolved(upstream, weight.double(), layout).backward(half := half_rows(layout)[:, :WIDTH].double().nan_to_num(0))
    given = torch.zeros_like(u)
    given[:, :WIDTH] = half
    assert_rows(depthwise_input_gradient(given, prepared, rows.first, rows.end), upstream.grad)


@pytest.mark.parametrize(("taps", "length", "packed"), SHAPES)
def test_gradients(taps: int, length: int, packed: bool, triton: str, device: torch.device) -> None:
    from astroco_fast.kernels.triton.depthwise import depthwise_input_gradient
    from astroco_fast.kernels.triton.depthwise_taps import depthwise_tap_gradient

    layout, rows, u, weight, prepared = ready(taps, [length, 0, 1, (length + 1) // 2], length, packed, device)
    upstream = half_rows(layout)
    source = u[:, :WIDTH].double().nan_to_num(0).requires_grad_()
    exact = weight.double().requires_grad_()
    convolved(source, exact, layout).backward(upstream[:, :WIDTH].double().nan_to_num(0))
    du = depthwise_input_gradient(upstream, prepared, rows.first, rows.end)
    assert_rows(du, source.grad)
    partial = depthwise_tap_gradient(upstream, u, prepared, rows.first, rows.end, WIDTH)
    torch.testing.assert_close(partial.sum(0).double(), exact.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("lengths", "length", "packed", "sweeps"),
    [
        ([199, 0, 201, 200], 201, True, 3),  # cut within windows
        ([60, 7, 70], 70, True, 1),
        ([0, 0, 3, 0, 9, 1, 0], 9, False, 2),
        ([31, 32, 33, 1], 33, False, 128),  # a sweep for every 32 rows
        ([0, 0], 31, False, 2),
        ([1], 1, True, 128),
    ],
)
def test_taps_gradient_follows_windows(
    lengths: list[int], length: int, packed: bool, sweeps: int, triton: str, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from astroco_fast.kernels.triton import depthwise_taps

    monkeypatch.setattr(depthwise_taps, "SWEEPS", sweeps)
    layout, rows, u, weight, prepared = ready(32, lengths, length, packed, device)
    upstream = half_rows(layout)
    exact = weight.double().requires_grad_()
    convolved(u[:, :WIDTH].double(), exact, layout).backward(upstream[:, :WIDTH].double().nan_to_num(0))
    partial = depthwise_taps.depthwise_tap_gradient(upstream, u, prepared, rows.first, rows.end, WIDTH)
    assert partial.shape[0] == min(sweeps, -(-layout.rows // 32))
    torch.testing.assert_close(partial.sum(0).double(), exact.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["packed", "padded", "on_device"])
def test_windows_can_be_followed_row_by_row(kind: str) -> None:
    from astroco_fast.kernels.triton.segments import segments

    counts = torch.tensor([0, 3, 0, 0, 5, 1, 0])
    layout = {
        "packed": lambda: Layout.packed(counts, 5, capacity=12),
        "padded": lambda: Layout.padded(counts, 5),
        "on_device": lambda: Layout.on_device(counts, 5, rows=12, filler=3),
    }[kind]()
    rows, real, at = segments(layout), [], 0
    while at < layout.rows:
        first, end = int(rows.first[at]), int(rows.end[at])
        if end:
            assert first == at < end
            real += range(at, end)
        at = max(end, first)
    assert at == layout.rows
    assert real == harness.real_rows(layout).nonzero().flatten().tolist()


def test_half_precision_statistics_are_of_what_is_stored(triton: str, device: torch.device) -> None:
    from astroco_fast.kernels.triton.depthwise import depthwise_statistics

    _, rows, u, _, prepared = ready(5, [40], 40, False, device)
    c, count, partial = depthwise_statistics(u.bfloat16(), prepared, rows.first, rows.end)
    assert c.dtype == torch.bfloat16
    assert count.tolist() == [40.0]
    torch.testing.assert_close(partial[0, 0].double(), c.double().mean(0), rtol=1e-5, atol=1e-6)
