"""AstroCo's pieces, in the paper's order: input embedding, attention, convolution, feed-forward, layer mix.

Each is a module that holds the parameters and computes its piece in plain PyTorch. Shapes: B windows of T positions,
width D, H heads, K taps; activations are rows (N, D) that a `Layout` maps to windows. After a sublayer
the values of rows that are not real points are undefined (fused backends write zeros); no sublayer lets them reach a
real point.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from astroco_fast.reference.batchnorm import MaskedBatchNorm1d
from astroco_fast.reference.dropout import Dropout
from astroco_fast.reference.layout import Layout


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` whose result is at least float32.

    Autocast does the same on GPUs. On CPUs it would return the bfloat16 that came in, and round the whole residual
    stream to 8 bits from the first layer on.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Rows (N, D) to rows (N, D)."""
        return super().forward(x.to(torch.promote_types(x.dtype, torch.float32)))


class InputEmbed(nn.Module):
    """x(0) from photometry and time (paper, section 3, input).

    Linear(2 -> D/2) of (magnitude, uncertainty), beside D/2 sinusoids of the time; then Linear(D -> D), GELU and
    LayerNorm.
    """

    def __init__(self, width: int, time_base: float, hide: tuple[str, ...]) -> None:
        super().__init__()
        self.time_base, self.hide = time_base, hide
        self.photometry = nn.Linear(2, width // 2)
        self.fuse = nn.Linear(width, width)
        self.norm = LayerNorm(width)

    def forward(self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout) -> Tensor:
        """Embed points.

        Args:
            time, mag, err: (N,) days and magnitudes, time and mag zero-mean in their window.
            hidden: (N,) bool, True at points whose fields named in `hide` are replaced by zero; None: none.
            layout: tells which rows are real points; the others' fields are replaced by zero.

        Returns:
            (N, D).
        """
        fields = {"time": time, "magnitude": mag, "uncertainty": err}
        if layout.valid is not None:
            fields = {name: value.masked_fill(~layout.valid, 0) for name, value in fields.items()}
        if hidden is not None:
            for name in self.hide:
                fields[name] = fields[name].masked_fill(hidden, 0)
        with torch.autocast(time.device.type, enabled=False):  # because bfloat16 would round the magnitudes
            photometry = self.photometry(torch.stack([fields["magnitude"], fields["uncertainty"]], dim=-1))
        x = torch.cat([photometry, self.sinusoids(fields["time"])], dim=-1)
        return self.norm(F.gelu(self.fuse(x)))

    def sinusoids(self, time: Tensor) -> Tensor:
        """(N,) days to (N, D/2): sines, then cosines, of time * base^(-2i/(D/2)), i = 0 .. D/4 - 1."""
        angles = time[:, None] * self.frequencies(time)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def frequencies(self, time: Tensor) -> Tensor:
        """(D/4,), of time's dtype and device; the powers are taken in float64."""
        half = self.photometry.out_features
        i = torch.arange(half // 2, dtype=torch.float64, device=time.device)
        return (self.time_base ** (-2 * i / half)).to(time.dtype)


class Attention(nn.Module):
    """Sublayer a: LayerNorm(x + Dropout(multi-head self-attention of x)).

    No point attends to padding; hidden points are attended to.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Rows (N, D) to rows (N, D)."""
        q, k, v = rearrange(layout.pad(self.qkv(x)), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, T, T)
        if not layout.full:
            # The lowest finite number, not -inf, which would make a window without a real point NaN.
            scores = scores.masked_fill(~layout.positions[:, None, None, :], torch.finfo(scores.dtype).min)
        attended = rearrange(scores.softmax(-1).to(v.dtype) @ v, "b h t d -> b t (h d)")
        return self.norm(x + self.dropout(self.out(layout.unpad(attended))))


class Convolution(nn.Module):
    """Sublayer b: LayerNorm(x + Dropout(pointwise(SiLU(BatchNorm(depthwise(GLU(pointwise(LayerNorm(x))))))))).

    The depthwise convolution is Y[b, t, d] = sum_k W[d, k] X[b, t + k - K/2, d]: for K = 32, 16 points to the left and
    15 to the right, padding being zero. It has no bias, since BatchNorm follows.
    """

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = LayerNorm(width)
        self.pointwise_in = nn.Linear(width, 2 * width)
        self.depthwise = nn.Parameter(torch.empty(width, kernel).uniform_(-(kernel**-0.5), kernel**-0.5))
        self.batch_norm = MaskedBatchNorm1d(width)
        self.pointwise_out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.norm_out = LayerNorm(width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Rows (N, D) to rows (N, D)."""
        gated = F.glu(self.pointwise_in(self.norm_in(x)), dim=-1)  # value half * sigmoid(gate half)
        convolved = layout.unpad(self.convolve(layout.pad(gated)))
        activated = F.silu(self.normalise(convolved, layout))
        return self.norm_out(x + self.dropout(self.pointwise_out(activated)))

    def normalise(self, rows: Tensor, layout: Layout) -> Tensor:
        """BatchNorm of rows (N, D).

        Raises:
            ValueError: in training, another kind of BatchNorm, which would count padding.
        """
        norm: nn.Module = self.batch_norm
        if isinstance(norm, (nn.Identity, nn.LayerNorm)):
            return norm(rows)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and not isinstance(norm, MaskedBatchNorm1d):
            if norm.training:
                raise ValueError(
                    f"{type(norm).__name__} would count padding as points; keep MaskedBatchNorm1d, and set its `group` "
                    "to a process group to synchronise it"
                )
            return norm(rows)
        return norm(rows, layout.valid)

    def convolve(self, windows: Tensor) -> Tensor:
        """The depthwise convolution of (B, T, D) along T."""
        if windows.shape[1] == 0:  # which PyTorch's convolution refuses
            return windows
        width, kernel = self.depthwise.shape
        channels = F.pad(windows.transpose(1, 2), (kernel // 2, kernel - 1 - kernel // 2))
        return F.conv1d(channels, self.depthwise[:, None].to(windows.dtype), groups=width).transpose(1, 2)


class FeedForward(nn.Module):
    """Sublayer c: LayerNorm(x + Dropout(W_out(GELU(W_val x) * sigmoid(W_gate x)))), GELU exact (erf)."""

    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.w_val = nn.Linear(width, expansion * width)
        self.w_gate = nn.Linear(width, expansion * width)
        self.w_out = nn.Linear(expansion * width, width)
        self.dropout = Dropout(dropout)
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Rows (N, D) to rows (N, D)."""
        return self.norm(x + self.dropout(self.w_out(F.gelu(self.w_val(x)) * torch.sigmoid(self.w_gate(x)))))


class PlainFeedForward(nn.Module):
    """Sublayer c of S-no-gate: LayerNorm(x + Dropout(Linear(GELU(Linear(x)))))."""

    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.w_in = nn.Linear(width, expansion * width)
        self.w_out = nn.Linear(expansion * width, width)
        self.dropout = Dropout(dropout)
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Rows (N, D) to rows (N, D)."""
        return self.norm(x + self.dropout(self.w_out(F.gelu(self.w_in(x)))))


class LayerMix(nn.Module):
    """The mixed sequence, sum_l softmax(logits)_l x(l) over the input and all blocks, and its mean over real points.

    Paper, section 3, layer mixing and pooling.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers + 1))

    def forward(self, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
        """From x(0) .. x(L), rows (N, D) each, taken one at a time, to mixed rows (N, D) and embeddings (B, D)."""
        mixed: Tensor | float = 0.0
        for weight, x in zip(self.logits.softmax(0), states, strict=True):
            mixed = mixed + weight * x
        return cast(Tensor, mixed), masked_mean(cast(Tensor, mixed), layout)


class LastLayer(nn.Module):
    """S-no-mix's replacement of `LayerMix`: the last block's output and its mean over real points."""

    def forward(self, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
        """From x(0) .. x(L), rows (N, D) each, to x(L) and embeddings (B, D)."""
        *_, last = states
        return last, masked_mean(last, layout)


def masked_mean(rows: Tensor, layout: Layout) -> Tensor:
    """Mean of rows (N, D) over each window's real points, (B, D); zero for a window without any."""
    return layout.pad(rows).sum(1) / layout.lengths.clamp_min(1)[:, None]
