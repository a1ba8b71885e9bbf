"""AstroCo as users import it: the reference's parameters, with each op run by the best backend."""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from astroco_fast import capture, ops
from astroco_fast.buckets import Call
from astroco_fast.kernels.cpu.plan import Points, planned
from astroco_fast.kernels.prepared import recheck
from astroco_fast.pretrained import PretrainedEncoder
from astroco_fast.reference.astroco import Block, ReferenceAstroCo
from astroco_fast.reference.batchnorm import frozen_statistics
from astroco_fast.reference.config import AstroCoConfig
from astroco_fast.reference.encoder import AstroCoOutput
from astroco_fast.reference.layout import Layout, in_graph
from astroco_fast.reference.sublayers import LastLayer


class FusedBlock(Block):
    """A block whose sublayers are run by the best backends; parameters and call are those of `Block`."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Rows (N, D) to rows (N, D)."""
        x = ops.attention(self.attention, x, layout)
        if self.convolution is not None:
            x = ops.convolution(self.convolution, x, layout)
        return ops.feed_forward(self.feed_forward, x, layout)


class AstroCo(PretrainedEncoder, ReferenceAstroCo):
    """AstroCo with its ops run by `astroco_fast.ops`; state_dict and call are those of `ReferenceAstroCo`.

    Examples:
        >>> model = AstroCo.from_preset("tiny").eval()
        >>> out = model(time, mag, err, mask)                # (B, T) each; mask is True at real points
        >>> out.sequence, out.embedding, out.reconstruction  # (B, T, D), (B, D), (B, T)

    Attributes:
        recompute: whether only each block's input is kept for backward, which then runs the block again: less memory
            for a third more arithmetic. `torch.compile` ignores it, because it decides for itself what to recompute.
    """

    config: AstroCoConfig
    config_class = AstroCoConfig
    paper = "arXiv 2509.24134"
    block = FusedBlock
    recompute = False

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
        """Encode windows; see `Encoder.forward`. On a GPU in inference, by a CUDA graph if these are switched on."""

        def one_by_one() -> AstroCoOutput:
            return super(AstroCo, self).forward(time, mag, err, mask, hidden=hidden, centered=centered, lengths=lengths)

        if not capture.enabled or in_graph():
            return one_by_one()
        call = Call(time, mag, err, mask, hidden, centered, lengths)
        return capture.encoded(self, call, one_by_one)

    def encode(self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout) -> AstroCoOutput:
        if self.training:
            layout.seed()  # before any block, because a block that is run again must find the same seed
        points = (time, mag, err, hidden)

        # `mix_pool` drives the generator: the blocks run inside this call, and without gradients each layer's output is
        # freed as soon as it is added.
        def mix(points: Points, layout: Layout) -> tuple[Tensor, ...]:
            return ops.mix_pool(self.mix_pool, self._states(*points, layout), layout)

        def last(points: Points, layout: Layout) -> tuple[Tensor, ...]:
            return tuple(deque(self._states(*points, layout), maxlen=1))

        if isinstance(self.mix_pool, LastLayer):  # which is no kernel, and so no part of a plan
            (x,) = planned(self, points, layout, ops.settings(), last)
            mixed, embedding = ops.mix_pool(self.mix_pool, [x], layout)
        else:
            mixed, embedding = planned(self, points, layout, ops.settings(), mix)
        return self.output(mixed, embedding, layout)

    def _states(
        self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout
    ) -> Iterator[Tensor]:
        """x(0) .. x(L), rows (N, D) each."""
        recompute = self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        x = ops.input_embed(self.input_embed, time, mag, err, hidden, layout)
        yield x
        for block in self.blocks:
            if recompute:
                x = checkpoint(block, x, layout, use_reentrant=False, context_fn=_recompute_contexts)
            else:
                x = block(x, layout)
            yield x

    def train(self, mode: bool = True) -> "AstroCo":
        """Set the mode; the next call looks for changes of the weights that PyTorch does not count."""
        recheck(self.modules())
        super().train(mode)
        return self

    def features(self) -> str:
        parts = [name for name in ("convolution", "gate", "mix") if getattr(self.config, name)]
        return ", ".join(parts) or "attention and a plain feed-forward only"


class _Repetition:
    """The context in which backward repeats a block: on the same backends, and without an update of BatchNorm.

    Backward may repeat a block in another thread, and more than once.
    """

    def __init__(self) -> None:
        self._choice, self._entered = ops.choice(), ExitStack()

    def __enter__(self) -> None:
        self._entered.enter_context(frozen_statistics())
        self._entered.enter_context(ops.backend(self._choice))

    def __exit__(self, *error: object) -> None:
        self._entered.close()


def _recompute_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a block's first pass and of its repetition."""
    return nullcontext(), _Repetition()
