"""Layouts: windows to rows and back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from astroco_fast import Layout

LENGTHS = torch.tensor([5, 0, 3, 7])


@pytest.fixture(params=["padded", "packed", "snug", "capacity"])
def layout(request: pytest.FixtureRequest) -> Layout:
    if request.param == "padded":
        return Layout.padded(LENGTHS, 7)
    return Layout.packed(LENGTHS, 7, capacity={"packed": None, "snug": 15, "capacity": 19}[request.param])


def real_positions() -> torch.Tensor:
    return torch.arange(7) < LENGTHS[:, None]


def test_windows_survive_the_way_in_and_out(layout: Layout) -> None:
    windows = torch.randn(4, 7, 3)
    expected = windows * real_positions()[..., None]
    assert torch.equal(layout.pad(layout.unpad(windows)), expected)
    assert torch.equal(layout.leave(layout.enter(windows)), expected)


def test_filler_rows_never_reach_a_window(layout: Layout) -> None:
    rows = torch.full((layout.rows, 2), float("nan"))
    valid = torch.ones(layout.rows, dtype=torch.bool) if layout.valid is None else layout.valid
    rows[valid] = 1.0
    assert valid.sum() == LENGTHS.sum()
    assert torch.equal(layout.pad(rows), real_positions()[..., None].float().expand(4, 7, 2))
    assert torch.equal(layout.leave(rows), layout.pad(rows))


def test_gradients_of_pad_and_unpad(layout: Layout) -> None:
    rows = torch.randn(layout.rows, 2, dtype=torch.float64, requires_grad=True)
    windows = torch.randn(4, 7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layout.pad, rows)
    assert torch.autograd.gradcheck(layout.unpad, windows)
    layout.pad(rows).sum().backward()  # an expanded, stride-0 gradient
    assert rows.grad is not None
    assert rows.grad.sum() == 2 * LENGTHS.sum()


def test_row_counts_are_known_on_the_host() -> None:
    assert Layout.padded(LENGTHS, 7).rows == 28
    assert Layout.packed(LENGTHS, 7, capacity=15).rows == 15
    assert Layout.packed(LENGTHS, 7, capacity=19).rows == 19
    assert Layout.packed(LENGTHS, 7).rows == 28  # never more than all positions


def test_shapes_repeat_from_batch_to_batch() -> None:
    rows = {Layout.packed(torch.randint(1, 201, (32,)), 200).rows for _ in range(100)}
    assert len(rows) < 30
    assert all(n % 128 == 0 for n in rows)
    assert Layout.packed(torch.tensor([100, 100]), 200).rows == 256


def test_a_full_batch_is_known_as_such() -> None:
    assert Layout.packed(torch.tensor([7, 7]), 7).full


@pytest.mark.parametrize(
    ("mask", "rows"),
    [
        ("1101", [0, 1, 3]),  # a hole
        ("0011", [2, 3]),  # padding on the left
        ("1100", [0, 1]),
        ("0000", []),
        ("1111", [0, 1, 2, 3]),
    ],
)
def test_a_mask_with_holes_is_closed_up_and_restored(mask: str, rows: list[int]) -> None:
    bits = torch.tensor([[c == "1" for c in mask]])
    values = torch.tensor([[10.0, 11.0, 12.0, 13.0]])
    layout = Layout.from_mask(bits)
    inside = layout.enter(values)
    assert inside.tolist() == [10.0 + r for r in rows] + [0.0] * (layout.rows - len(rows))
    assert layout.pad(inside)[0, : len(rows)].tolist() == inside[: len(rows)].tolist()
    assert torch.equal(layout.leave(inside), values * bits)


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"), [([8], None, "0..7"), ([-1], None, "0..7"), ([5], 4, "capacity 4")]
)
def test_impossible_lengths_are_refused(lengths: list[int], capacity: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout.packed(torch.tensor(lengths), 7, capacity=capacity)


def test_a_captured_graph_refuses_lengths_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="make the layout before capturing"):
        Layout.packed(LENGTHS, 7, "cuda")


def test_a_full_batch_copies_nothing_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astroco_fast.reference.layout._upload", None)
    layout = Layout.packed(torch.tensor([7, 7]), 7, "meta")
    assert layout.full
    assert (layout.lengths.device.type, layout.lengths.dtype) == ("meta", torch.int64)


@pytest.mark.parametrize("lengths", [[2.7, 1.0], [True, False], [2 + 0j, 1]])
@pytest.mark.parametrize("make", [Layout.packed, Layout.padded])
def test_lengths_that_are_no_integers_are_refused(make: Callable[..., Layout], lengths: list[Any]) -> None:
    with pytest.raises(ValueError, match="lengths must be integers"):
        make(torch.tensor(lengths), 5)
