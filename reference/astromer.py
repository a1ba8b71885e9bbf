"""The baselines: Astromer, a transformer encoder of light curves, versions 1 and 2, in plain PyTorch.

Version 1 is A&A 670, A54 (arXiv 2205.01677), version 2 is arXiv 2502.02717. This module has the architecture of their
code (github.com/astromer-science/main-code, Keras); a test compares the numbers block by block. Both versions have the
same time encoding, attention and feed-forward; `AstromerConfig` names all differences.

The known faults are kept, because a baseline has to be what it was:

- Version 1's mask adds 1 to the attention logits of masked points, where it meant to exclude them. Visible points
  attend to them e times as much, and masked points attend to all points as if there were no mask. Its code leaves
  their magnitudes in the input, too. So the model sees the answers, and a low error in training says little
  (`hidden_magnitude="zero"` is version 1 without this fault).
- Version 2 replaces masked magnitudes and excludes masked points from the keys. So the other points do not learn that
  the star was observed at that time either. Each masked point still sees its own time.
- In both, about a fifth of the probed points are unchanged, a fifth show another magnitude, and none of these is
  masked. Their code computes the error and R2 over all probed points, which rewards copying.

Models must therefore be compared at hidden points. Evaluation takes the magnitudes of these points out of the data
before any model sees them (`WindowBatches`).

One difference is ours: padding takes no part in anything. The original masks padding like hidden points, so that
version 1 attends to padding more than to real points.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from astroco_fast.reference.config import AstromerConfig
from astroco_fast.reference.encoder import AstroCoOutput, Encoder
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import LayerNorm, masked_mean

EPSILON = 1e-6  # of every LayerNorm


class ReferenceAstromer(Encoder):
    """Astromer: magnitude projection plus time encoding, L blocks, and a head of LayerNorm and one linear layer.

    It ignores uncertainties.
    """

    name = "Astromer"

    def __init__(self, config: AstromerConfig) -> None:
        super().__init__()
        self.config, self.hides = config, () if config.hidden_magnitude == "shown" else ("magnitude",)
        self.mask_token = nn.Parameter(torch.zeros(())) if config.hidden_magnitude == "token" else None
        self.magnitude = _dense(1, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(AstromerBlock(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width, EPSILON)
        self.head = _dense(config.width, 1)

    def encode(self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout) -> AstroCoOutput:
        x = self.dropout(self.embed_points(time, mag, hidden, layout))
        for block in self.blocks:
            x = block(x, hidden, layout)
        return self.output(x, masked_mean(x, layout), layout)

    def embed_points(self, time: Tensor, mag: Tensor, hidden: Tensor | None, layout: Layout) -> Tensor:
        """Centred points (N,) to x(0), rows (N, D). Times of hidden points stay visible."""
        if layout.valid is not None:
            time, mag = time.masked_fill(~layout.valid, 0), mag.masked_fill(~layout.valid, 0)
        if hidden is not None:
            if self.mask_token is not None:
                mag = torch.where(hidden, self.mask_token, mag)
            elif self.config.hidden_magnitude == "zero":
                mag = mag.masked_fill(hidden, 0)
        with torch.autocast(time.device.type, enabled=False):  # because bfloat16 would round the magnitudes
            return self.magnitude(mag[:, None]) + self.sinusoids(time)

    def sinusoids(self, time: Tensor) -> Tensor:
        """(N,) days to (N, D): of time * base^(-2i/D), i = 0 .. D - 1, the sine where i is even, else the cosine."""
        i = torch.arange(self.config.width, device=time.device)
        frequencies = (self.config.time_base ** (-2 * i.to(torch.float64) / self.config.width)).to(time.dtype)
        angles = time[:, None] * frequencies
        return torch.where(i % 2 == 0, angles.sin(), angles.cos())

    def reconstruct(self, sequence: Tensor) -> Tensor:
        return self.head(self.norm(sequence))


class AstromerBlock(nn.Module):
    """LayerNorm(leak(x) + Dropout(attention of x)), then the same with a feed-forward; version 1 has no leaks."""

    def __init__(self, config: AstromerConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = AstromerAttention(width, config.heads, config.mask_logit, config.mask_queries)
        self.leak_attention = _dense(width, width) if config.leak else None
        self.norm_attention = LayerNorm(width, EPSILON)
        self.feed_forward = nn.Sequential(
            _dense(width, config.feed_forward), nn.Tanh(), _dense(config.feed_forward, width)
        )
        self.leak_feed_forward = _dense(width, width) if config.leak else None
        self.norm_feed_forward = LayerNorm(width, EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, hidden: Tensor | None, layout: Layout) -> Tensor:
        """Rows (N, D), and which of them are hidden, (N,), to rows (N, D)."""
        attended = self.dropout(self.attention(x, hidden, layout))
        if self.leak_attention is not None:
            attended = self.leak_attention(x) + attended
        y = self.norm_attention(attended)
        fed = self.dropout(self.feed_forward(y))
        if self.leak_feed_forward is not None:
            fed = self.leak_feed_forward(y) + fed
        return self.norm_feed_forward(fed)


class AstromerAttention(nn.Module):
    """Multi-head self-attention that adds `mask_logit` to the logits of hidden keys and excludes padded keys.

    With `mask_queries` it adds the number to all logits of hidden queries too. A constant does not change a softmax, so
    hidden points attend to hidden and visible points as if there were no mask.
    """

    def __init__(self, width: int, heads: int, mask_logit: float, mask_queries: bool) -> None:
        super().__init__()
        self.heads, self.mask_logit, self.mask_queries = heads, mask_logit, mask_queries
        self.query, self.key, self.value, self.out = (_dense(width, width) for _ in range(4))

    def forward(self, x: Tensor, hidden: Tensor | None, layout: Layout) -> Tensor:
        """Rows (N, D), and which of them are hidden, (N,), to rows (N, D)."""
        q, k, v = (
            rearrange(layout.pad(dense(x)), "b t (h d) -> b h t d", h=self.heads)
            for dense in (self.query, self.key, self.value)
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, T, T)
        if hidden is not None:
            windows = layout.pad(hidden)  # (B, T)
            masked = windows[:, None, :]
            if self.mask_queries:
                masked = masked | windows[:, :, None]
            scores = scores + self.mask_logit * masked[:, None]
        if not layout.full:
            # The lowest finite number, not -inf, which would make a window without a real point NaN.
            scores = scores.masked_fill(~layout.positions[:, None, None, :], torch.finfo(scores.dtype).min)
        attended = rearrange(scores.softmax(-1).to(v.dtype) @ v, "b h t d -> b t (h d)")
        return self.out(layout.unpad(attended))


def _dense(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer initialised as in Keras: Glorot's uniform weights and zero biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
