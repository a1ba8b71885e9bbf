"""The call that all encoders share: their inputs and outputs, and a batch's way to rows and back to windows."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from astroco_fast.reference.layout import Layout, in_graph


class AstroCoOutput(NamedTuple):
    """An encoder's outputs; they are zero at padded positions and for windows without a real point.

    Attributes:
        sequence: (B, T, D), the encoded points; AstroCo's are the mixed layers.
        embedding: (B, D), the sequence's mean over each window's real points.
        reconstruction: (B, T), magnitudes relative to the window's centre: the mean of its points, without the hidden
            ones unless the caller has centred (`centered`) or the model sees their magnitudes.
    """

    sequence: Tensor
    embedding: Tensor
    reconstruction: Tensor


class Encoder(nn.Module):
    """An encoder of windows of points. A subclass has an `encode` and a reconstruction `head`.

    Attributes:
        name: the architecture's name in messages and saved configurations.
        head: the layer that gives a magnitude.
        hides: which of magnitude, time and uncertainty it does not see at hidden points.
    """

    name: ClassVar[str]
    head: nn.Module
    hides: tuple[str, ...] = ()

    def forward(
        self,
        time: Tensor,
        mag: Tensor,
        err: Tensor,
        mask: Tensor | None = None,
        *,
        hidden: Tensor | None = None,
        centered: bool = False,
        lengths: Tensor | None = None,
    ) -> AstroCoOutput:
        """Encode windows.

        Args:
            time: (B, T) days, from any zero point; float64 unless `centered` (float32 MJD has steps of minutes).
            mag: (B, T) magnitudes.
            err: (B, T) their uncertainties, magnitudes.
            mask: (B, T) bool, True at real points; None: all are, or `lengths` says. Values at padding have no effect.
            hidden: (B, T) bool, True at points to hide; None: none. What `hides` names of them has no effect, so it may
                hold anything, such as NaN where a magnitude is not known: it takes no part in the centre either, which
                would otherwise tell the sum of what is hidden.
            centered: whether time and mag are already relative to a centre of the caller's. Pretraining and its
                evaluation take the mean of all real points, hidden ones included, as in the paper; at windows of 100
                to 200 points the sum that this tells is worth 0.002 mag of hidden RMSE
                (docs/results/recipe.md, "What hidden points give away").
            lengths: (B,) integers on the CPU, in place of `mask`: the numbers of real points, which come first in each
                window. They spare the copy of a mask from the device.

        Returns:
            `AstroCoOutput`.

        Raises:
            ValueError: an argument is no tensor, its shape or device differs from time's, it holds something else than
                it should (mask or hidden not bool, lengths not integers), both mask and lengths are given, or the
                parameters were cast to half precision.
        """
        dtype = self._dtype()
        if dtype not in (torch.float32, torch.float64):  # BatchNorm, times and magnitudes would not survive it
            raise ValueError(
                f"{self.name}: parameters must stay float32, got {dtype}; for half precision use torch.autocast"
            )
        return self.encode_windows(
            time, mag, err, hidden, centered, self._layout(time, mag, err, mask, hidden, lengths)
        )

    def encode_windows(
        self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, centered: bool, layout: Layout
    ) -> AstroCoOutput:
        """Encode windows (B, T) whose layout is known; arguments as of `forward`, which has checked them."""
        dtype = self._dtype()
        time, mag, err = (layout.enter(values) for values in (time, mag, err))
        hidden = None if hidden is None else layout.enter(hidden)
        if not centered:
            time = center(time, layout, hidden if "time" in self.hides else None)
            mag = center(mag, layout, hidden if "magnitude" in self.hides else None)
        return self.encode(time.to(dtype), mag.to(dtype), err.to(dtype), hidden, layout)

    def encode(self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout) -> AstroCoOutput:
        """Encode centred rows (N,); the values of rows that are not real points are undefined."""
        raise NotImplementedError(f"{type(self).__name__} has no encode()")

    def output(self, sequence: Tensor, embedding: Tensor, layout: Layout) -> AstroCoOutput:
        """Reconstruct from rows (N, D), and bring rows back to the caller's (B, T)."""
        # Autocast is off, because bfloat16 would round the magnitudes: by 0.01 where a star is 3 from its mean.
        device = sequence.device.type if sequence.device.type != "meta" else "cpu"  # autocast knows no meta device
        with torch.autocast(device, enabled=False):
            reconstruction = self.reconstruct(sequence.to(self._dtype())).squeeze(-1)
        return AstroCoOutput(layout.leave(sequence), embedding, layout.leave(reconstruction))

    def reconstruct(self, sequence: Tensor) -> Tensor:
        """Rows (N, D) to magnitudes (N, 1)."""
        return self.head(sequence)

    def _dtype(self) -> torch.dtype:
        """The parameters' dtype: the head's weight's, unless the head was replaced by something without one."""
        weight = getattr(self.head, "weight", None)
        return weight.dtype if isinstance(weight, Tensor) else next(self.parameters()).dtype

    def _layout(
        self, time: Tensor, mag: Tensor, err: Tensor, mask: Tensor | None, hidden: Tensor | None, lengths: Tensor | None
    ) -> Layout:
        """The batch's layout, packed; checks the arguments."""
        if isinstance(time, Tensor) and time.dim() != 2:
            raise ValueError(f"{self.name}: time must be (B, T), got {tuple(time.shape)}")
        given = {"time": time, "mag": mag, "err": err, "mask": mask, "hidden": hidden}
        for name, value in given.items():
            flag = name in ("mask", "hidden")
            if flag and value is None:
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"{self.name}: {name} must be a tensor (B, T), got {type(value).__name__}")
            if value.shape != time.shape:
                raise ValueError(
                    f"{self.name}: {name} must have time's shape {tuple(time.shape)}, got {tuple(value.shape)}"
                )
            if value.device != time.device:
                raise ValueError(f"{self.name}: {name} must be on time's device {time.device}, got {value.device}")
            if flag and value.dtype != torch.bool:
                raise ValueError(f"{self.name}: {name} must be bool, got {value.dtype}")
            if not flag and (value.is_complex() or value.dtype == torch.bool):
                raise ValueError(f"{self.name}: {name} must hold real numbers, got {value.dtype}")
        if mask is not None and lengths is not None:
            raise ValueError(f"{self.name}: give mask or lengths, not both")
        if mask is not None:
            return Layout.from_mask(mask)
        batch, length = time.shape
        if lengths is None:
            lengths = torch.full((batch,), length)
        elif not isinstance(lengths, Tensor) or lengths.shape != (batch,):
            found = tuple(lengths.shape) if isinstance(lengths, Tensor) else type(lengths).__name__
            raise ValueError(f"{self.name}: lengths must be a tensor ({batch},), got {found}")
        if in_graph():
            return Layout.padded(lengths.to(time.device), length)
        return Layout.packed(lengths, length, time.device)


def center(rows: Tensor, layout: Layout, hidden: Tensor | None = None) -> Tensor:
    """Rows (N,) minus the mean of their window's real points, without hidden ones (N,), in float64."""
    windows, counts = layout.pad(rows.to(torch.float64)), layout.lengths
    counted = windows
    if hidden is not None:
        left_out = layout.pad(hidden)
        counted, counts = windows.masked_fill(left_out, 0), counts - left_out.sum(1)
    mean = counted.sum(1, keepdim=True) / counts.clamp_min(1)[:, None]
    return layout.unpad(windows - mean)
