"""How rows of activations map to windows.

Activations inside the encoder are rows, (N, D). A `Layout` maps each row to a window and a position in it:

- padded: N = B*T, one row for every position, real or not;
- packed: one row for every real point only, window after window, so that padding costs nothing. N is rounded up to a
  capacity, so that shapes repeat; the rows beyond the real points are filler, which takes no part in any result.

A row is *real* if it holds a point. The others are padding (padded layout) or filler (packed layout).

In both, a window's real points are its first positions. `enter` brings a mask with holes, or with padding on the left,
to that form, and `leave` undoes it, so that padding may stand anywhere in the caller's windows.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Gather (size, ...) to (n, ...): row i comes from `index[i]`.

    The gradient is a copy, because indices are distinct (`_scatter`); plain indexing would accumulate, which is slow.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, index: Tensor) -> Tensor:
        return rows.index_select(0, index)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.size = inputs[0].shape[0]

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (index,) = ctx.saved_tensors
        return _scatter(grad, index, ctx.size), None

    @staticmethod
    def jvp(ctx, rows, _):  # type: ignore[no-untyped-def]
        (index,) = ctx.saved_tensors
        return rows.index_select(0, index)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    if torch.jit.is_tracing():  # which cannot record such a function
        return rows.index_select(0, index)
    return _Gather.apply(rows, index)


def _scatter(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """Scatter (n, ...) to (size, ...): row i goes to `index[i]`, the other rows are zero.

    Indices are distinct, except for those of filler rows that all go to one spare row, which nobody reads.
    """
    zeros = rows.new_zeros((size, *rows.shape[1:]))
    # A compiler allocates once either way. In eager mode the copy of the zeros would cost a percent of a forward pass.
    return zeros.index_copy(0, index, rows) if in_graph() else zeros.index_copy_(0, index, rows)


# A packed N is rounded up to a multiple of this, at the price of about 1 % more rows, so that shapes repeat. Libraries
# cache something for every shape they meet: with a new N in every batch, oneDNN's cache grew by gigabytes in an hour.
ROW_MULTIPLE = 128


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows of one batch. Make it with `padded`, `packed`, `from_mask` or `on_device`.

    Attributes:
        batch: B, the number of windows.
        length: T, the number of positions in a window.
        lengths: (B,) int64, the real points of each window, on the activations' device.
        rows: N, the number of rows.
        index: (n,) int64, packed only: the flat position b*T + t of each real row. None: row r is position r.
        source: (n,) int64: the flat position of each row in the caller's tensors. It differs from `index` where the
            caller's mask has holes.
        positions: (B, T) bool, True at positions that hold real points.
        valid: (N,) bool, True at rows that are real points; None: all rows are (known on the host).
        full: whether every row is a real point and every position has one (known on the host).
        filler: an upper bound of the number of filler rows where only the device knows it; the indices of all N rows
            are then in `index` and `source`, those of filler rows being B*T, a position that there is not. None: the
            host knows it.
        scratch: tensors that backends derive from the layout; they live as long as the batch.
    """

    batch: int
    length: int
    lengths: Tensor
    positions: Tensor
    rows: int
    valid: Tensor | None = None
    index: Tensor | None = None
    source: Tensor | None = None
    full: bool = False
    filler: int | None = None
    scratch: dict[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def padded(lengths: Tensor, length: int) -> "Layout":
        """The layout with a row for every position.

        Args:
            lengths: (B,) integers, the real points of each window, on the activations' device.
            length: T.

        Raises:
            ValueError: the lengths are no integers.
        """
        _check_whole("padded", lengths)
        batch, positions = lengths.shape[0], _prefix_mask(lengths, length)
        return Layout(batch, length, lengths.to(torch.int64), positions, batch * length, positions.flatten())

    @staticmethod
    def packed(
        lengths: Tensor, length: int, device: torch.device | str | None = None, capacity: int | None = None
    ) -> "Layout":
        """The layout with a row for every real point.

        Args:
            lengths: (B,) integers, the real points of each window, on the CPU, so that the host need not wait for the
                device.
            length: T.
            device: the activations' device; default the CPU.
            capacity: N, at least the number of real points; the rows beyond them are filler. Default: the next multiple
                of `ROW_MULTIPLE`, at most B*T.

        Raises:
            ValueError: a length is no integer, negative or above T, or the capacity is too small.
            RuntimeError: a CUDA graph is being captured, and not every window is full.
        """
        _check_whole("packed", lengths)
        lengths = lengths.to("cpu", torch.int64)
        if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > length):
            raise ValueError(f"Layout.packed: lengths must lie in 0..{length}, got {lengths.tolist()}")
        batch, real = lengths.shape[0], int(lengths.sum())
        rows = min(-(-real // ROW_MULTIPLE) * ROW_MULTIPLE, batch * length) if capacity is None else capacity
        if rows < real:
            raise ValueError(f"Layout.packed: capacity {rows} is below the {real} real points")
        if rows == real == batch * length:  # needs no copy from the host, so that it may be part of a CUDA graph
            on_device = torch.full((batch,), length, device=device)
            return Layout(batch, length, on_device, _prefix_mask(on_device, length), rows, full=True)
        on_device = _upload(lengths, device)
        positions = _prefix_mask(on_device, length)
        index = _upload(_prefix_mask(lengths, length).flatten().nonzero().squeeze(1), device)
        valid = None if rows == real else torch.arange(rows, device=device) < real
        return Layout(batch, length, on_device, positions, rows, valid, index, index)

    @staticmethod
    def on_device(lengths: Tensor, length: int, rows: int, filler: int) -> "Layout":
        """The packed layout of lengths that the host does not know, as in a CUDA graph: N is fixed, and the batch not.

        Args:
            lengths: (B,) int64, from 0 to T, on the activations' device.
            length: T.
            rows: N, at least the number of real points.
            filler: at least N minus the number of real points, and at least 1.
        """
        batch, ends = lengths.shape[0], lengths.cumsum(0)
        row = torch.arange(rows, device=lengths.device)
        window = torch.searchsorted(ends, row, right=True)  # B at filler rows
        valid = window < batch
        first = torch.cat([ends - lengths, ends.new_zeros(1)])
        index = (window * length + row - first[window]).masked_fill(~valid, batch * length)
        positions = _prefix_mask(lengths, length)
        return Layout(batch, length, lengths, positions, rows, valid, index, index, filler=filler)

    @staticmethod
    def from_mask(mask: Tensor) -> "Layout":
        """The layout of a (B, T) bool mask, True at real points.

        It is packed, for which the mask is copied to the host once. In a graph it is padded.
        """
        batch, length = mask.shape
        if in_graph():
            order = torch.argsort(~mask, dim=1, stable=True)  # real points first
            source = (order + length * torch.arange(batch, device=mask.device)[:, None]).flatten()
            return replace(Layout.padded(mask.sum(1), length), source=source)
        host = mask.to("cpu", torch.bool)
        lengths = host.sum(1)
        layout = Layout.packed(lengths, length, mask.device)
        if torch.equal(host, _prefix_mask(lengths, length)):
            return layout
        return replace(layout, source=host.flatten().nonzero().squeeze(1).to(mask.device))

    def seed(self) -> Tensor:
        """The batch's dropout seed, (1,) int64 on the device, for backends that draw by counting.

        The first call draws it from torch's generator of the device, which pretraining seeds at every step. It is kept,
        so that a block that backward runs again drops the same numbers again.
        """
        if "seed" not in self.scratch:
            self.scratch["seed"] = torch.randint(2**62, (1,), device=self.lengths.device)
        return self.scratch["seed"]

    def enter(self, values: Tensor) -> Tensor:
        """The caller's (B, T, ...) to rows (N, ...). Filler rows are zero."""
        flat = values.reshape(self.batch * self.length, *values.shape[2:])
        return flat if self.source is None else self._take(flat, self.source)

    def leave(self, rows: Tensor) -> Tensor:
        """Rows (N, ...) to the caller's (B, T, ...), zero at padded positions, contiguous."""
        return self._to_positions(rows, self.source)

    def pad(self, rows: Tensor) -> Tensor:
        """Rows (N, ...) to windows (B, T, ...), real points first, zero at padded positions."""
        return self._to_positions(rows, self.index)

    def unpad(self, windows: Tensor) -> Tensor:
        """Windows (B, T, ...) to rows (N, ...); the inverse of `pad`. Filler rows are zero."""
        flat = windows.reshape(self.batch * self.length, *windows.shape[2:])
        return flat if self.index is None else self._take(flat, self.index)

    def _take(self, flat: Tensor, index: Tensor) -> Tensor:
        """Positions (B*T, ...) to rows (N, ...); filler rows are zero."""
        if self.filler is not None:
            return _gather(torch.cat([flat, flat.new_zeros((1, *flat.shape[1:]))]), index)
        rows = _gather(flat, index)
        missing = self.rows - rows.shape[0]
        return rows if missing == 0 else torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))])

    def _to_positions(self, rows: Tensor, index: Tensor | None) -> Tensor:
        shape = (self.batch, self.length, *rows.shape[1:])
        if self.index is None and self.valid is not None:
            rows = rows.masked_fill(~self.valid.view(-1, *[1] * (rows.dim() - 1)), 0)
        if index is not None:
            size = self.batch * self.length
            if self.filler is None:
                rows = _scatter(rows[: index.shape[0]], index, size)
            else:  # filler rows go to one spare row
                rows = _scatter(rows, index, size + 1)[:size]
        return rows.reshape(shape)


def _check_whole(kind: str, lengths: Tensor) -> None:
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"Layout.{kind}: lengths must be integers, got {lengths.dtype}")


def in_graph() -> bool:
    """Whether this call becomes a graph for other calls, whose rows cannot depend on this call's data."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _upload(values: Tensor, device: torch.device | str | None) -> Tensor:
    """CPU values on a device, from pinned memory: a copy from pageable memory would wait for the GPU."""
    if device is None or torch.device(device).type != "cuda":
        return values.to(device)
    if torch.cuda.is_current_stream_capturing():  # the graph would read from this host memory when it has other uses
        raise RuntimeError("a CUDA graph can't copy lengths from the host: make the layout before capturing")
    return values.pin_memory().to(device, non_blocking=True)


def _prefix_mask(lengths: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=lengths.device) < lengths[:, None]
