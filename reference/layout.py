"""How rows of activations map to windows.

Inside the encoder activations are rows, (N, D). A `Layout` says which window and which position in it each row is:

- padded: N = B*T, a row for every position, real or not;
- packed: a row for every real point only, window after window, so that padding costs nothing. N is rounded up (the
  capacity), so that shapes repeat; the rows beyond the real points are filler and never count.

Either way a window's real points are its first positions. A mask with holes or padding on the left is brought to that
form on the way in and undone on the way out: where the padding stands never matters.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


class _Scatter(torch.autograd.Function):
    """(n, ...) to (size, ...): row i goes to `index[i]`, all else is zero. Indices are distinct."""

    @staticmethod
    def forward(rows: Tensor, index: Tensor, size: int) -> Tensor:
        return rows.new_zeros((size, *rows.shape[1:])).index_copy_(0, index, rows)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[2]

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (index,) = ctx.saved_tensors
        return _Gather.apply(grad, index), None, None


class _Gather(torch.autograd.Function):
    """(size, ...) to (n, ...): row i comes from `index[i]`.

    Because indices are distinct, the gradient is a copy, not the slow accumulation that plain indexing would use.
    """

    @staticmethod
    def forward(rows: Tensor, index: Tensor) -> Tensor:
        return rows.index_select(0, index)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[0].shape[0]

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (index,) = ctx.saved_tensors
        return _Scatter.apply(grad, index, ctx.size), None


def _scatter(rows: Tensor, index: Tensor, size: int) -> Tensor:
    return _Scatter.apply(rows, index, size)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    return _Gather.apply(rows, index)


# Libraries prepare and keep something for each shape they meet: with a new N in every batch, oneDNN's cache alone grew
# by gigabytes in an hour. Rounded up to this, shapes repeat, at about 1 % more rows.
ROW_MULTIPLE = 128


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows of one batch. Make it with `padded`, `packed` or `from_mask`.

    Attributes:
        batch: B, the number of windows.
        length: T, the positions a window has room for.
        lengths: (B,) int64, the real points of each window, on the activations' device.
        rows: N, the number of rows.
        index: (n,) int64, packed only: the flat position b*T + t of each real row. None: row r is position r.
        source: (n,) int64: the flat position each row has in the caller's tensors. It differs from `index` where the
            caller's mask has holes.
        positions: (B, T) bool: which positions of the windows hold real points.
        valid: (N,) bool: which rows are real points; None if all are (known on the host).
        full: every row is a real point and every position has one (known on the host).
        scratch: what backends derive from the layout, kept as long as the batch.
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
    scratch: dict[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def padded(lengths: Tensor, length: int) -> "Layout":
        """Every position is a row. Args: lengths (B,) integers on the activations' device; length T."""
        batch, positions = lengths.shape[0], _prefix_mask(lengths, length)
        return Layout(batch, length, lengths.to(torch.int64), positions, batch * length, positions.flatten())

    @staticmethod
    def packed(
        lengths: Tensor, length: int, device: torch.device | str | None = None, capacity: int | None = None
    ) -> "Layout":
        """Only real points are rows.

        Args:
            lengths: (B,) integers on the CPU, so that nothing has to wait for the device.
            length: T.
            device: where the activations are; default the CPU.
            capacity: N, at least the number of real points; the rows beyond are filler. Default: the next multiple of
                `ROW_MULTIPLE`, but not more than all positions.

        Raises:
            ValueError: a length is negative or above T, or the capacity is too small.
            RuntimeError: a CUDA graph is being captured, and not every window is full.
        """
        lengths = lengths.to("cpu", torch.int64)
        if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > length):
            raise ValueError(f"Layout.packed: lengths must lie in 0..{length}, got {lengths.tolist()}")
        batch, real = lengths.shape[0], int(lengths.sum())
        rows = min(-(-real // ROW_MULTIPLE) * ROW_MULTIPLE, batch * length) if capacity is None else capacity
        if rows < real:
            raise ValueError(f"Layout.packed: capacity {rows} is below the {real} real points")
        if rows == real == batch * length:  # nothing to copy, so that such a batch's layout may be part of a CUDA graph
            on_device = torch.full((batch,), length, device=device)
            return Layout(batch, length, on_device, _prefix_mask(on_device, length), rows, full=True)
        on_device = _upload(lengths, device)
        positions = _prefix_mask(on_device, length)
        index = _upload(_prefix_mask(lengths, length).flatten().nonzero().squeeze(1), device)
        valid = None if rows == real else torch.arange(rows, device=device) < real
        return Layout(batch, length, on_device, positions, rows, valid, index, index)

    @staticmethod
    def from_mask(mask: Tensor) -> "Layout":
        """The layout of a (B, T) bool mask, True at real points.

        Packed, for which the mask has to come to the host once; padded inside `torch.compile`, where shapes can't
        depend on data.
        """
        batch, length = mask.shape
        if torch.compiler.is_compiling():
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
        """(1,) int64 on the device: this batch's seed of dropout, drawn at the first call from torch's generator there.

        For backends that draw by counting. It is kept, so that a block which backward runs again drops what it dropped
        before.
        """
        if "seed" not in self.scratch:
            self.scratch["seed"] = torch.randint(2**62, (1,), device=self.lengths.device)
        return self.scratch["seed"]

    def enter(self, values: Tensor) -> Tensor:
        """The caller's (B, T, ...) to rows (N, ...). Filler rows are zero."""
        flat = values.reshape(self.batch * self.length, *values.shape[2:])
        if self.source is None:
            return flat
        return self._fill(_gather(flat, self.source))

    def leave(self, rows: Tensor) -> Tensor:
        """Rows (N, ...) to the caller's (B, T, ...), zero at padded positions, contiguous."""
        return self._to_positions(rows, self.source)

    def pad(self, rows: Tensor) -> Tensor:
        """Rows (N, ...) to windows (B, T, ...), real points first, zero at padded positions."""
        return self._to_positions(rows, self.index)

    def unpad(self, windows: Tensor) -> Tensor:
        """Windows (B, T, ...) to rows (N, ...); the inverse of `pad`. Filler rows are zero."""
        flat = windows.reshape(self.batch * self.length, *windows.shape[2:])
        if self.index is None:
            return flat
        return self._fill(_gather(flat, self.index))

    def _to_positions(self, rows: Tensor, index: Tensor | None) -> Tensor:
        shape = (self.batch, self.length, *rows.shape[1:])
        if self.index is None and self.valid is not None:
            rows = rows.masked_fill(~self.valid.view(-1, *[1] * (rows.dim() - 1)), 0)
        if index is not None:
            rows = _scatter(rows[: index.shape[0]], index, self.batch * self.length)
        return rows.reshape(shape)

    def _fill(self, rows: Tensor) -> Tensor:
        missing = self.rows - rows.shape[0]
        return rows if missing == 0 else torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))])


def _upload(values: Tensor, device: torch.device | str | None) -> Tensor:
    """CPU values on a device, without waiting for it: from pageable memory a GPU's copy would."""
    if device is None or torch.device(device).type != "cuda":
        return values.to(device)
    if torch.cuda.is_current_stream_capturing():  # the graph would read from this host memory when it has other uses
        raise RuntimeError("a CUDA graph can't copy lengths from the host: make the layout before capturing")
    return values.pin_memory().to(device, non_blocking=True)


def _prefix_mask(lengths: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=lengths.device) < lengths[:, None]
