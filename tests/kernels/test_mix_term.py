"""A state's gradient through the layer mix, which the next block's attention adds to its own."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import Layout, ops
from astroco_fast.reference.sublayers import Attention, LayerMix
from tests.kernels import harness
from tests.kernels.test_opcheck import Calls

SIZE = 11


class Chain(nn.Module):
    """The encoder's way from one state to the next, without the other sublayers."""

    def __init__(self, width: int = 64, count: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.ModuleList(Attention(width, 2, 0.0) for _ in range(count))
        self.mix_pool = LayerMix(count)
        nn.init.normal_(self.mix_pool.logits)

    def forward(self, x: Tensor, layout: Layout, kept: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        def states() -> Iterator[Tensor]:
            state = x
            yield state
            for attention in self.attention:
                state = ops.attention(attention, state, layout)
                if kept is not None:
                    kept.append(state)
                yield state

        return ops.mix_pool(self.mix_pool, states(), layout)


def subject(device: torch.device, **options: int) -> tuple[Chain, Tensor, Layout]:
    """A model, its first state, and the layout of two full windows."""
    layout = Layout.packed(torch.tensor([SIZE, SIZE]), SIZE, device)
    return Chain(**options).to(device), torch.randn(layout.rows, 64, device=device).requires_grad_(), layout


def loss_of(outputs: tuple[Tensor, Tensor]) -> Tensor:
    mixed, pooled = outputs
    return mixed.square().sum() + pooled.sum()


def assert_close(ours: list[Tensor], plain: list[Tensor]) -> None:
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("used", "kind", "width", "dtype"),
    [
        ((0,), "packed", 276, torch.bfloat16),
        ((1,), "padded", 64, torch.float32),
        ((0, 1), "packed", 64, torch.float16),
        pytest.param((0, 1), "padded", 276, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_gradients(
    used: tuple[int, ...], kind: str, width: int, dtype: torch.dtype, fused: str, device: torch.device
) -> None:
    """Of the sequence, of the means, and of both; what is in rows that are not real has no effect."""
    case = harness.fitting(harness.Case(SIZE, width, kind, dtype, "training", "contiguous"), fused)
    layout = harness.layout_of(case, device)
    real = harness.real_rows(layout)
    model = Chain(width).to(device)

    def draw(number: int) -> tuple[harness.Draw, Tensor]:
        torch.manual_seed(number)
        x = torch.randn(layout.rows, width, device=device)
        ups = [harness.upstream(case, (layout.rows, layout.batch)[i], device) for i in used]
        filler = ~real[:, None]
        found = harness.variants(
            lambda module, state: tuple(module(state, layout)[i] for i in used),
            model,
            [x.masked_fill(filler, 0).requires_grad_()],
            [up.masked_fill(filler, 0) if i == 0 else up for i, up in zip(used, ups, strict=True)],
            case.dtype,
            fused,
            fused_inputs=[x.masked_fill(filler, float("nan")).requires_grad_()],
            fused_upstream=[
                up.masked_fill(filler, float("nan")) if i == 0 else up for i, up in zip(used, ups, strict=True)
            ],
        )
        return found, real

    harness.check(draw)


def test_attention_adds_all_but_the_last(triton: str, device: torch.device) -> None:
    model, x, layout = subject(device, count=6)
    with af.backend(triton), Calls() as calls:
        loss_of(model(x, layout)).backward()
    written = [args[7] for op, args in calls.every if op.name() == "astroco_fast::mix_backward"]
    assert written == [[False] * 5, [False, True]]
    sums = [args for op, args in calls.every if op.name().startswith("aten::add") and args[0].shape == x.shape]
    assert not sums  # autograd has none to make


def test_any_gradients_alone(triton: str, device: torch.device) -> None:
    """Those of a state between, of the logits only, of a loss beside the mix, and all once more."""
    model, x, layout = subject(device)

    def found(backend: str) -> list[Tensor]:
        kept: list[Tensor] = []
        with af.backend(backend):
            loss = loss_of(model(x, layout, kept))
        beside = kept[0].square().sum()
        ways = [(loss, kept[0]), (loss, model.mix_pool.logits), (beside, x), (loss, x), (beside + loss, x)]
        return [torch.autograd.grad(value, of, retain_graph=True)[0] for value, of in 2 * ways]

    assert_close(found(triton), found("reference"))


@pytest.mark.parametrize(
    "change", ["another tensor", "reference", "twice", "unused", "frozen", "detached", "no gradients"]
)
def test_what_leaves_the_offer(change: str, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mix writes a state's gradient itself where no attention adds it, and no two attentions add it."""
    model, x, layout = subject(device)
    attention = ops.attention

    def changed(module: Any, state: Tensor, layout: Layout) -> Tensor:
        if change == "another tensor":
            return attention(module, state * 1, layout)
        if change == "detached":
            return attention(module, state.detach(), layout)
        if change == "no gradients" and module is model.attention[0]:
            with torch.no_grad():
                return attention(module, state, layout)
        if change == "reference" and module is model.attention[1]:
            return module(state, layout)
        y = attention(module, state, layout)
        if change == "unused":  # y adds the gradient, although nothing else comes back to it
            return attention(module, state, layout)
        return y + attention(module, state, layout) if change == "twice" else y

    monkeypatch.setattr(ops, "attention", changed)
    if change == "frozen":
        model.attention[0].requires_grad_(False)
        x.requires_grad_(False)
    if change == "no gradients":  # with dropout, or attention would run as in inference; of no element
        model.attention[0].requires_grad_(False).dropout.p = 1e-12
    wanted = [p for p in (x, *model.parameters()) if p.requires_grad]

    def found(backend: str) -> list[Tensor]:
        with af.backend(backend):
            loss = loss_of(model(x, layout))
        return list(torch.autograd.grad(loss, wanted))

    assert_close(found(triton), found("reference"))


def test_nothing_outlives_the_graph(triton: str, device: torch.device) -> None:
    """Without the garbage collector, which would find no cycle through autograd's own objects."""
    model, x, layout = subject(device)
    kept: list[Tensor] = []
    gc.disable()
    try:
        with af.backend(triton):
            outputs = model(x, layout, kept)
        states = [weakref.ref(state) for state in kept]
        kept.clear()
        del outputs
        assert not any(state() is not None for state in states)
    finally:
        gc.enable()
