"""The whole encoder in plain PyTorch: it is read against the paper, and every kernel is compared with it."""

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn

from astroco_fast.reference.config import AstroCoConfig
from astroco_fast.reference.dropout import number_salts
from astroco_fast.reference.encoder import AstroCoOutput, Encoder
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import (
    Attention,
    Convolution,
    FeedForward,
    InputEmbed,
    LastLayer,
    LayerMix,
    PlainFeedForward,
)


class Block(nn.Module):
    """One Conformer-style block: attention, convolution (unless ablated), feed-forward."""

    def __init__(self, config: AstroCoConfig) -> None:
        super().__init__()
        feed_forward = FeedForward if config.gate else PlainFeedForward
        self.attention = Attention(config.width, config.heads, config.dropout)
        self.convolution = Convolution(config.width, config.kernel, config.dropout) if config.convolution else None
        self.feed_forward = feed_forward(config.width, config.expansion, config.dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Rows (N, D) to rows (N, D)."""
        x = self.attention(x, layout)
        if self.convolution is not None:
            x = self.convolution(x, layout)
        return self.feed_forward(x, layout)


class ReferenceAstroCo(Encoder):
    """AstroCo (arXiv 2509.24134, section 3): embedding, L blocks, layer mix, mean pooling, reconstruction head.

    Attributes:
        block: the class of its blocks.
    """

    name = "AstroCo"
    block: ClassVar[type[Block]] = Block

    def __init__(self, config: AstroCoConfig) -> None:
        super().__init__()
        self.config, self.hides = config, config.hide
        self.input_embed = InputEmbed(config.width, config.time_base, config.hide)
        self.blocks = nn.ModuleList(self.block(config) for _ in range(config.layers))
        self.mix_pool = LayerMix(config.layers) if config.mix else LastLayer()
        self.head = nn.Linear(config.width, 1)
        number_salts(self)

    def encode(self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout) -> AstroCoOutput:
        def states() -> Iterator[Tensor]:
            x = self.input_embed(time, mag, err, hidden, layout)
            yield x
            for block in self.blocks:
                x = block(x, layout)
                yield x

        mixed, embedding = self.mix_pool(states(), layout)
        return self.output(mixed, embedding, layout)
