"""What kernels read of a layout, against PyTorch's ops, to the element."""

import pytest
import torch
from torch import Tensor

from astroco_fast import Layout

pytest.importorskip("triton")

from astroco_fast.kernels.triton.segments import rows_and_tiles, segments
from bench.roofline.subject import segments_of


def tiles_of(offsets: Tensor, rows: int, kinds: int) -> Tensor:
    """The tiles of runs of rows; with two kinds of runs, each window's is followed by one of the rows after it."""
    begin, sizes = offsets[:-1], offsets[1:] - offsets[:-1]
    if kinds > 1:  # windows first
        begin, sizes = (part.view(-1, kinds).t().reshape(-1) for part in (begin, sizes))
    sizes = (sizes + 15).bitwise_and(-16)
    ends = sizes.cumsum(0, dtype=torch.int32)
    at = torch.arange(0, rows // 16 * 16 + 16 * sizes.shape[0], 16, dtype=torch.int32, device=offsets.device)
    run = torch.searchsorted(ends, at, right=True, out_int32=True).clamp_(max=sizes.shape[0] - 1)
    return ((begin + sizes - ends)[run] + at).masked_fill(at >= ends[-1:], -1)


def bounds_of(layout: Layout) -> tuple[Tensor, Tensor]:
    """Where the windows of rows begin and end."""
    lengths, row = layout.lengths, torch.arange(layout.rows, device=layout.lengths.device)
    if layout.index is None:
        window, after = row // layout.length, (row // layout.length + 1) * layout.length
        start = layout.length * torch.arange(layout.batch, device=row.device)
    else:
        window = torch.searchsorted(lengths.cumsum(0), row, right=True)
        start, after = lengths.cumsum(0) - lengths, torch.full_like(row, layout.rows)
    window = window.clamp(max=layout.batch - 1)
    real = torch.ones_like(row, dtype=torch.bool) if layout.valid is None else layout.valid
    first, end = torch.where(real, start[window], after), torch.where(real, (start + lengths)[window], 0)
    return first.int(), end.int()


def few(windows: int, most: int) -> list[int]:
    return torch.randint(most + 1, (windows,), generator=torch.Generator().manual_seed(0)).tolist()


CASES = {
    "ragged": (few(40, 70), 70, 3),
    "empty windows": ([0, 31, 0, 0, 33, 1, 16, 0, 32, 0], 40, 3),
    "all empty": ([0, 0, 0], 9, 5),
    "full": ([48, 48, 48], 48, 0),
    "one window": ([200], 200, 0),
    "one point": ([1], 1, 0),
    "long filler": ([5, 0, 33], 40, 5000),
    "3,000 windows": (few(3000, 2), 2, 20),
}


@pytest.mark.parametrize("kind", ["packed", "padded", "on_device"])
@pytest.mark.parametrize("case", CASES)
def test_rows_and_tiles(case: str, kind: str, triton: str, device: torch.device) -> None:
    given, length, filler = CASES[case]
    lengths, rows = torch.tensor(given), sum(given) + filler
    if kind == "padded":
        layout = Layout.padded(lengths[:1500].to(device), length)  # two runs a window
    elif kind == "packed":
        layout = Layout.packed(lengths, length, device, rows)
    else:
        layout = Layout.on_device(lengths.to(device), length, rows, max(filler, 1))
    assert layout.full == (kind == "packed" and case in ("full", "one window", "one point"))
    found, (first, end) = segments(layout), bounds_of(layout)
    assert torch.equal(found.first, first)
    assert torch.equal(found.end, end)
    tiles = tiles_of(found.offsets, layout.rows, 2 if kind == "padded" else 1)
    assert torch.equal(found.tiles, tiles)
    assert {part.dtype for part in found if isinstance(part, Tensor)} == {torch.int32}


@pytest.mark.parametrize("case", ["ragged", "empty windows", "full"])
def test_what_the_roofline_model_takes_for_them(case: str, triton: str, device: torch.device) -> None:
    given, length, _ = CASES[case]
    modelled = segments_of(Layout.packed(torch.tensor(given), length))
    found = segments(Layout.packed(torch.tensor(given), length, device))._asdict()
    assert modelled.keys() == found.keys() - {"longest"}
    for name, content in modelled.items():
        assert found[name].tolist() == content.view("int32").tolist(), name


def test_a_batch_without_windows(triton: str, device: torch.device) -> None:
    none = torch.zeros(1, dtype=torch.int32, device=device)
    assert [part.shape[0] for part in rows_and_tiles(none, 0, 0, 2)] == [0, 0, 0]


def test_sizes_may_be_symbols(triton: str, device: torch.device) -> None:
    def of_padded(lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = segments(Layout.padded(lengths, 20))
        return found.first, found.end, found.tiles

    compiled = torch.compile(of_padded, backend="aot_eager", dynamic=True, fullgraph=True)
    for given in ([20, 0, 7], [1, 18, 20, 3, 3]):
        lengths = torch.tensor(given, device=device)
        for got, expected in zip(compiled(lengths), of_padded(lengths), strict=True):
            assert torch.equal(got, expected)
