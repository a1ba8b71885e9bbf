"""What users' training loops do to an encoder: hooks, wrapped and replaced parts, transforms, traces, threads."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._composable import checkpoint
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.modules import module as all_modules
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

import astroco_fast as af
from astroco_fast import ops
from astroco_fast.reference.sublayers import Attention
from tests.windows import make_windows

SUBLAYERS = ("attention", "convolution", "feed_forward")


def tiny(**overrides: Any) -> Any:
    torch.manual_seed(0)
    return af.AstroCo.from_preset("tiny", **{"width": 16, "heads": 2, "kernel": 5, "dropout": 0.0, **overrides})


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, ...]:
    w = make_windows([12, 5, 9], 12)
    return w.time, w.mag, w.err, w.mask


def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    out = model(*batch)
    return out.sequence.square().sum() + out.embedding.sum()


def of_blocks(change: Callable[[nn.Module], nn.Module | None]) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        for i, block in enumerate(model.blocks):
            changed = change(block)
            model.blocks[i] = block if changed is None else changed

    return apply


def of_sublayers(change: Callable[[nn.Module], nn.Module | None]) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        for block in model.blocks:
            for name in SUBLAYERS:
                changed = change(part := getattr(block, name))
                setattr(block, name, part if changed is None else changed)

    return apply


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any) -> Any:
        return self.inner(*arguments)


class Subclass(Attention):
    def forward(self, x: Tensor, layout: Any) -> Tensor:
        return super().forward(x, layout)


def compiled(block: nn.Module) -> Any:
    return torch.compile(block, backend="eager")


def compiled_in_place(block: nn.Module) -> None:
    block.compile(backend="eager")


def checkpointed(block: nn.Module) -> None:
    checkpoint(block)  # type: ignore[operator]


def subclassed(block: Any) -> None:
    block.attention.__class__ = Subclass


def replaced_forward(part: nn.Module) -> None:
    forward = part.forward
    part.forward = lambda *arguments: forward(*arguments)  # type: ignore[method-assign]


def wrapped_ends(model: Any) -> None:
    model.input_embed, model.mix_pool, model.head = (
        Wrapper(x) for x in (model.input_embed, model.mix_pool, model.head)
    )


def offloaded(part: nn.Module) -> None:
    """Keep the parameters of each part on the meta device outside its forward pass, as offloading libraries do."""
    for module in part.modules():
        if module._parameters:
            values, forward = dict(module._parameters), module.forward
            without = {name: nn.Parameter(value.to("meta")) for name, value in values.items() if value is not None}

            def loaded(*arguments: Any, module=module, values=values, forward=forward, without=without) -> Any:  # type: ignore[no-untyped-def]
                module._parameters.update(values)
                try:
                    return forward(*arguments)
                finally:
                    module._parameters.update(without)

            module._parameters.update(without)
            module.forward = loaded  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[Any], None]] = {
    "checkpoint wrapper": of_blocks(checkpoint_wrapper),
    "composable checkpoint": of_blocks(checkpointed),
    "compiled": of_blocks(compiled),
    "compiled in place": of_blocks(compiled_in_place),
    "own wrapper": of_blocks(Wrapper),
    "replaced forward": of_blocks(replaced_forward),
    "subclassed sublayer": of_blocks(subclassed),
    "wrapped sublayers": of_sublayers(Wrapper),
    "replaced forwards of sublayers": of_sublayers(replaced_forward),
    "wrapped ends": wrapped_ends,
}


SLOW = ("compiled", "compiled in place")


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] if x in SLOW else []) for x in CHANGES])
def test_changed_parts_compute_the_same(name: str, batch: tuple[Tensor, ...]) -> None:
    plain, changed = tiny().train(), tiny().train()
    CHANGES[name](changed)
    with af.backend("reference"):
        expected = loss_of(plain, batch)
        expected.backward()
    got = loss_of(changed, batch)
    got.backward()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(plain.parameters(), changed.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-3 * a.grad.abs().max().item())
    for a, b in zip(plain.buffers(), changed.buffers(), strict=True):
        torch.testing.assert_close(b, a)  # a repeated block does not count as another batch


@pytest.mark.parametrize("change", [of_blocks(offloaded), of_sublayers(offloaded), offloaded])
def test_parameters_that_come_and_go(change: Callable[[Any], None], batch: tuple[Tensor, ...]) -> None:
    model = tiny().eval()
    with torch.no_grad():
        expected = model(*batch).sequence
        change(model)
        torch.testing.assert_close(model(*batch).sequence, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_fire(register: str, batch: tuple[Tensor, ...]) -> None:
    model, seen = tiny().train(), []
    for name, module in model.named_modules():
        getattr(module, register)(lambda *_, name=name: seen.append(name))
    loss_of(model, batch).backward()
    waiting = {name for name, _ in model.named_modules()} - {"blocks", "head"}
    if "backward" in register:
        waiting -= {"", "input_embed", "input_embed.photometry", "mix_pool"}  # no Tensor comes in that wants a gradient
    assert waiting <= set(seen)


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_full_backward_hook"])
def test_hooks_of_all_modules_fire(register: str, batch: tuple[Tensor, ...]) -> None:
    model, seen = tiny().train(), []
    handle = getattr(all_modules, register)(lambda module, *_: seen.append(module))
    try:
        loss_of(model, batch).backward()
    finally:
        handle.remove()
    assert {model.blocks[0], model.blocks[1].attention, model.blocks[0].feed_forward.w_val} <= set(seen)


def test_operations_are_counted(batch: tuple[Tensor, ...]) -> None:
    counted = []
    for backend in (None, "reference"):
        with af.backend(backend), FlopCounterMode(display=False) as counter:
            loss_of(tiny(), batch).backward()
        counted.append(counter.get_flop_counts())
    assert counted[0] == counted[1]
    assert counter.get_total_flops() > 100_000


def test_another_class_of_blocks_is_called(batch: tuple[Tensor, ...]) -> None:
    model = tiny(layers=1).eval()
    model.blocks[0].forward = lambda x, layout: x
    with torch.no_grad():
        embedded = model(*batch).sequence
        model.blocks[0] = nn.Module()
        model.blocks[0].forward = lambda x, layout: 2 * x
        assert not torch.equal(model(*batch).sequence, embedded)


# --- Heads, BatchNorm, quantisation -------------------------------------------------------------------------------


def test_another_head(batch: tuple[Tensor, ...]) -> None:
    model = tiny().eval()
    out = model(*batch)
    model.head = nn.Identity()
    again = model(*batch)
    assert torch.equal(again.embedding, out.embedding)
    torch.testing.assert_close(again.reconstruction, out.sequence)
    model.head = nn.Sequential(nn.Linear(16, 4), nn.GELU(), nn.Linear(4, 1))
    assert model(*batch).reconstruction.shape == (3, 12)


def test_dynamic_quantisation(batch: tuple[Tensor, ...]) -> None:
    model = tiny().eval()
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    torch.testing.assert_close(quantised(*batch).embedding, model(*batch).embedding, rtol=0.3, atol=0.3)


def test_update_bn_averages_over_all_batches() -> None:
    torch.manual_seed(0)
    norm, torchs = af.reference.batchnorm.MaskedBatchNorm1d(4), nn.BatchNorm1d(4)
    batches = [torch.randn(n, 4) * n for n in (7, 9, 5)]
    update_bn(batches, norm)
    update_bn(batches, torchs)
    for a, b in zip(norm.buffers(), torchs.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert norm.momentum == 0.1


@pytest.mark.parametrize("settings", [{"track_running_stats": False}, {"affine": False}, {"momentum": None}])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_has_torchs_settings(settings: dict[str, Any], training: bool) -> None:
    norm = af.reference.batchnorm.MaskedBatchNorm1d(4, **settings).train(training)
    torchs, x = nn.BatchNorm1d(4, **settings).train(training), torch.randn(9, 4)
    for _ in range(2):
        torch.testing.assert_close(norm(x), torchs(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(norm.buffers(), torchs.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("setting", [("momentum", None), ("track_running_stats", False), ("running_mean", None)])
def test_the_model_keeps_to_batch_norms_settings(setting: tuple[str, Any], batch: tuple[Tensor, ...]) -> None:
    models = [tiny(layers=1).train() for _ in range(2)]
    for model, backend in zip(models, (None, "reference"), strict=True):
        setattr(model.blocks[0].convolution.batch_norm, *setting)
        with af.backend(backend):
            model(*batch)
            model(*batch)
    for a, b in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_torchs_own_synchronised_batch_norm(batch: tuple[Tensor, ...]) -> None:
    model = tiny().eval()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    torch.testing.assert_close(converted(*batch).embedding, model(*batch).embedding, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"SyncBatchNorm would count padding as points; .* set its `group`"):
        converted.train()(*batch)


# --- Transforms, traces and threads -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_by_torch_func(batch: tuple[Tensor, ...]) -> None:
    model = tiny().eval()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    directions = {name: torch.randn_like(value) for name, value in parameters.items()}

    def loss(parameters: dict[str, Tensor], *points: Tensor, **options: Any) -> Tensor:
        return functional_call(model, parameters, points, options).embedding.square().sum()

    loss(dict(model.named_parameters()), *batch).backward()
    gradients = grad(loss)(parameters, *batch)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-3)
    _, along = jvp(lambda p: loss(p, *batch), (parameters,), (directions,))
    slope = sum((gradients[name] * directions[name]).sum() for name in parameters)
    torch.testing.assert_close(along, slope, rtol=1e-3, atol=1e-3)

    def one(parameters: dict[str, Tensor], *points: Tensor) -> Tensor:
        return loss(parameters, *(x[None] for x in points), lengths=torch.tensor([9]))

    each = vmap(grad(one), (None, 0, 0, 0))(parameters, *batch[:3])
    alone = grad(one)(parameters, *(x[0] for x in batch[:3]))
    for name, value in alone.items():
        torch.testing.assert_close(each[name][0], value, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_takes_any_mask_and_shape(batch: tuple[Tensor, ...]) -> None:
    model, (time, mag, err, mask) = tiny().eval(), batch
    with torch.no_grad():
        traced = torch.jit.trace(model, (time, mag, err, torch.ones_like(mask)), check_trace=False)
        for lengths, size in (([12, 5, 9], 12), ([3, 8, 2, 0], 9), ([18, 2], 18)):  # 36 points each
            w = make_windows(lengths, size)
            got, expected = (f(w.time, w.mag, w.err, w.mask) for f in (traced, model))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_choice_belongs_to_its_thread() -> None:
    inside, over = threading.Event(), threading.Event()
    seen: list[str | None] = []

    def first() -> None:
        with af.backend("reference"):
            inside.set()
            over.wait(10)
            seen.append(ops.choice())

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    before = ops.choice()
    with af.backend("cpu"):
        over.set()
        thread.join()
        seen.append(ops.choice())
    assert seen == ["reference", "cpu"]
    assert ops.choice() == before


def test_a_repeated_block_runs_on_the_same_backend(batch: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model, chosen = tiny(layers=1).train(), []
    model.recompute = True
    monkeypatch.setattr(ops, "attention", lambda module, x, layout: chosen.append(ops.choice()) or module(x, layout))
    with af.backend("reference"):
        loss = loss_of(model, batch)
    loss.backward(retain_graph=True)
    loss.backward()
    assert chosen == ["reference"] * 3
