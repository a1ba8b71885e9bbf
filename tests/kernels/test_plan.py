"""Inference by a plan: the results of the ops called one by one, and never those of another model than the present."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import astroco_fast as af
from astroco_fast.kernels.cpu import plan
from astroco_fast.kernels.cpu.plan import Plan, Slot
from astroco_fast.kernels.prepared import forget, recheck
from astroco_fast.reference.sublayers import Attention, FeedForward
from tests.windows import make_windows

pytestmark = pytest.mark.usefixtures("cpu")


def tiny(**overrides: Any) -> Any:
    torch.manual_seed(0)
    model: Any = af.AstroCo.from_preset("tiny", **{"width": 32, "heads": 2, "kernel": 5, "layers": 2, **overrides})
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and "logits" not in name:  # else means of 0 and scales of 1 would hide a fault
            tensor.data += 0.1 * torch.rand_like(tensor)
    return model.eval()


def points(*lengths: int, seed: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    w = make_windows(list(lengths), max(lengths))
    return w.time, w.mag, w.err, w.mask


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a plan could be used, for each time that one was tried."""
    tries: list[bool] = []
    call = Plan.__call__

    def counted(self: Plan, *arguments: Any) -> Any:
        outputs = call(self, *arguments)
        tries.append(outputs is not None)
        return outputs

    monkeypatch.setattr(Plan, "__call__", counted)
    return tries


def one_by_one(model: Any, batch: tuple[Tensor, ...], **options: Any) -> Any:
    """The outputs without plans, by a copy of the model, which nothing has prepared."""
    return copy.deepcopy(model)(*batch, **options)


def assert_same(got: Any, expected: Any) -> None:
    for name, a, b in zip(got._fields, got, expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overrides", [{}, {"mix": False}, {"convolution": False}, {"width": 64, "heads": 4}])
@torch.no_grad()
def test_a_plan_gives_the_same_bits(dtype: torch.dtype, overrides: dict[str, Any], used: list[bool]) -> None:
    model = tiny(**overrides)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        for lengths in ([137], [1], [31, 0, 33]):
            for seed in range(3):  # the first calls only look at the model and record
                batch = points(*lengths, seed=seed)
                assert_same(model(*batch), one_by_one(model, batch))
            hidden = batch[3] & (torch.rand(batch[3].shape) < 0.3)
            for _ in range(2):
                assert_same(model(*batch, hidden=hidden), one_by_one(model, batch, hidden=hidden))
    supported = (
        dtype is torch.float32 or af.ops.BACKENDS["cpu"].unsupported("attention", batch[0].device, dtype, False) is None
    )
    assert used and all(used) if supported else not used


@pytest.mark.parametrize("overrides", [{}, {"mix": False}])
@torch.no_grad()
def test_a_batch_in_parts_gives_the_same_bits(
    overrides: dict[str, Any], used: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows without points, of one point, and longer than a part; filler rows behind the last; and no plan before."""
    monkeypatch.setattr(plan, "MOST_ROWS", 40 // torch.get_num_threads() or 1)
    model = tiny(**overrides)
    for lengths in ([9, 31, 0, 33, 1, 20], [0, 0, 90, 5], [3] * 40, [20] * 4):
        for seed in range(2):
            batch = points(*lengths, seed=seed)
            hidden = batch[3] & (torch.rand(batch[3].shape) < 0.3)
            for options in ({}, {"hidden": hidden}):
                assert_same(model(*batch, **options), one_by_one(model, batch, **options))
    layout = af.Layout.padded(torch.tensor([9, 31, 0, 33]), 33)
    rows = [torch.randn(layout.rows) for _ in range(3)]
    assert_same(model.encode(*rows, None, layout), copy.deepcopy(model).encode(*rows, None, layout))
    assert len(used) >= 14
    assert all(used)


def test_a_part_has_whole_windows_and_all_rows() -> None:
    layout = af.Layout.packed(torch.tensor([0, 30, 10, 50, 0, 3]), 60, capacity=128)
    parts = plan._parts(layout, 40)
    assert [(part.rows.start, part.rows.stop) for part in parts] == [(0, 40), (40, 90), (90, 128)]
    assert [part.windows[1].tolist() for part in parts] == [[0, 30, 10], [50], [0, 3]]
    assert [part.windows[0].tolist() for part in parts] == [[0, 0, 30], [0], [0, 0]]


def write_all(model: Any) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.mul_(1.1)


def write_a_bias(model: Any) -> None:
    model.blocks[0].feed_forward.w_out.bias.data[0] += 1


def write_a_number(model: Any) -> None:
    model.blocks[1].feed_forward.w_val.weight.data[0, 1] = 50.0
    recheck(model.modules())


def write_a_number_that_is_counted(model: Any) -> None:
    with torch.no_grad():
        model.blocks[1].feed_forward.w_val.weight[0, 1] = 50.0


def other_data(model: Any) -> None:
    weight = model.blocks[1].feed_forward.w_val.weight
    changed = weight.detach().clone()
    changed[0, 1] = 50.0
    weight.data = changed


def forgotten(model: Any) -> None:
    model.blocks[1].feed_forward.w_val.weight.data[0, 1] = 50.0
    forget(model)


def optimise(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def average(model: Any) -> None:
    averaged = AveragedModel(tiny(), avg_fn=lambda a, b, _: a + 0.5 * (b - a))
    averaged.update_parameters(model)
    model.load_state_dict(averaged.module.state_dict())
    model.blocks[0].attention.qkv.weight.data *= 2


def another_parameter(model: Any) -> None:
    model.blocks[0].attention.norm.bias = nn.Parameter(torch.ones(32))


def another_block(model: Any) -> None:
    model.blocks[1] = copy.deepcopy(model.blocks[0])


def another_order(model: Any) -> None:
    model.blocks[0], model.blocks[1] = model.blocks[1], model.blocks[0]


def another_class(model: Any) -> None:
    class Doubled(Attention):
        def forward(self, x: Tensor, layout: Any) -> Tensor:
            return 2 * super().forward(x, layout)

    model.blocks[0].attention.__class__ = Doubled


def another_forward(model: Any) -> None:
    model.blocks[0].forward = lambda x, layout: 2 * x


def another_eps(model: Any) -> None:
    model.blocks[0].convolution.batch_norm.eps = 0.5


def another_time_base(model: Any) -> None:
    model.input_embed.time_base = 77.0


def hook(model: Any) -> None:
    model.blocks[0].convolution.register_forward_hook(lambda module, inputs, x: 2 * x)


def part_in_training(model: Any) -> None:
    model.blocks[0].convolution.batch_norm.train()


CHANGES: list[Callable[[Any], None]] = [
    write_all, write_a_bias, write_a_number, write_a_number_that_is_counted, other_data, forgotten, optimise,
    average, another_parameter, another_block, another_order, another_class, another_forward, another_eps,
    another_time_base, hook, part_in_training,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_seen(change: Callable[[Any], None], used: list[bool]) -> None:
    model, batch = tiny(), points(20, 9)
    with torch.no_grad():
        before = [model(*batch) for _ in range(3)][-1]
    assert used == [True]
    change(model)
    with torch.no_grad():
        assert (model(*batch).sequence - before.sequence).abs().max() > 1e-3
        for _ in range(3):
            expected = one_by_one(model, batch)
            assert_same(model(*batch), expected)


@torch.no_grad()
def test_dropout_in_training_by_itself_draws_anew(used: list[bool]) -> None:
    """As Monte Carlo dropout has it; its kernels also keep sums by window, of which the next batch may have more."""
    model = tiny(dropout=0.5)
    for part in model.modules():
        part.train(isinstance(part, nn.Dropout))
    batch = points(60, 60)
    drawn = [model(*batch).sequence for _ in range(4)]
    assert not any(torch.equal(x, y) for i, x in enumerate(drawn) for y in drawn[:i])
    assert torch.isfinite(model(*points(*[2] * 60)).sequence).all()
    assert not used


@torch.no_grad()
def test_outputs_are_float32_whatever_the_default(used: list[bool]) -> None:
    model, batch = tiny(), points(20, 9)
    expected = one_by_one(model, batch)
    for _ in range(2):
        model(*batch)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(model(*batch), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert used == [True]


@torch.no_grad()
def test_points_that_the_ops_refuse_are_refused_with_a_plan_too(used: list[bool]) -> None:
    model, layout = tiny(), af.Layout.packed(torch.tensor([20, 9]), 20)
    time, mag, err = (torch.randn(layout.rows) for _ in range(3))
    for _ in range(3):
        model.encode(time, mag, err, None, layout)
    with pytest.raises(ValueError, match="mag"):
        model.encode(time, mag.double(), err, None, layout)
    with pytest.raises(ValueError, match="err"):
        model.encode(time, mag, err[:-1], None, layout)
    assert used == [True]


@torch.no_grad()
def test_a_class_whose_forward_is_replaced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny(), points(20, 9)
    before = [model(*batch) for _ in range(3)][-1]
    monkeypatch.setattr(FeedForward, "forward", lambda self, x, layout: x)
    assert not torch.equal(model(*batch).sequence, before.sequence)


@torch.no_grad()
def test_a_recheck_without_a_change_keeps_the_plan(used: list[bool]) -> None:
    model, batch = tiny(), points(20, 9)
    for _ in range(4):
        model(*batch)
        recheck(model.modules())
    assert used == [True, True]


@torch.no_grad()
def test_weights_prepared_in_the_recorded_call_are_not_prepared_again(used: list[bool]) -> None:
    model, batch, other = tiny(), points(20, 9), points(3, seed=1)
    for _ in range(3):
        model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        if af.ops.BACKENDS["cpu"].unsupported("attention", batch[0].device, torch.bfloat16, False) is not None:
            pytest.skip("a CPU without products of bfloat16 numbers")
        for _ in range(2):
            assert_same(model(*batch), one_by_one(model, batch))
            assert_same(model(*other), one_by_one(model, other))
    (*_, last) = plan._planners[model]._plans.values()
    assert last is not None
    assert all(hasattr(structure, "windows") for structure in last._structures)
    assert used == [True] * 4


@torch.no_grad()
def test_settings_have_plans_of_their_own(used: list[bool]) -> None:
    model, batch = tiny(), points(20, 9)
    fast = [model(*batch) for _ in range(3)][-1]
    with af.backend("reference"):
        for _ in range(3):
            plain = model(*batch)
    assert used == [True]
    assert not torch.equal(plain.sequence, fast.sequence)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model(*batch).sequence, fast.sequence)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert_same(model(*batch), fast)
    finally:
        torch.set_num_threads(threads)
    assert used == [True]
    assert_same(model(*batch), fast)
    assert used == [True, True]


def test_gradients_are_computed_where_they_are_wanted(used: list[bool]) -> None:
    model, batch = tiny(), points(20, 9)
    with torch.no_grad():
        for _ in range(3):
            model(*batch)
    model(*batch).embedding.sum().backward()
    assert all(p.grad is not None for p in model.blocks.parameters())
    mag = batch[1].clone().requires_grad_()
    model.requires_grad_(False)
    for _ in range(3):
        model(batch[0], mag, *batch[2:], centered=True).embedding.square().sum().backward()
        assert mag.grad is not None
        assert mag.grad.abs().max() > 0
    assert used == [True]
    model(*batch)  # frozen: no mode is needed
    assert used == [True, True]


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(op))
        return op(*args, **(kwargs or {}))


@torch.no_grad()
def test_modes_that_watch_see_every_op(used: list[bool]) -> None:
    model, batch = tiny(), points(20, 9)
    for _ in range(3):
        model(*batch)
    with FlopCounterMode(display=False) as counter:
        model(*batch)
    assert counter.get_total_flops() > 100_000
    with Watch() as watch:
        model(*batch)
    assert sum("cpu_attention" in op for op in watch.seen) == 2
    assert used == [True]


@torch.no_grad()
def test_outputs_are_the_callers(used: list[bool]) -> None:
    model = tiny()
    batches = [points(20, 9, seed=seed) for seed in range(5)]
    expected = [one_by_one(model, batch) for batch in batches]
    got = [model(*batch) for batch in batches]
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)
        a.sequence.fill_(torch.nan)
    assert_same(model(*batches[0]), expected[0])
    assert used == [True] * 4


def in_four_threads(call: Callable[[int], None]) -> None:
    """Call `call(0)` and `call(1)` in two threads each, all at once."""
    threads = [threading.Thread(target=call, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_model_in_two_threads(used: list[bool]) -> None:
    model = tiny()
    batches = [points(20, 9, seed=seed) for seed in range(2)]
    with torch.no_grad():
        expected = [one_by_one(model, batch) for batch in batches]
        for _ in range(2):
            model(*batches[0])
    wrong: list[int] = []

    def call(i: int) -> None:
        with torch.no_grad():
            wrong.extend(i for _ in range(50) if not torch.equal(model(*batches[i]).sequence, expected[i].sequence))

    in_four_threads(call)
    assert not wrong
    assert used


def tensors_of(found: Any) -> Iterator[Tensor]:
    """The tensors that a plan keeps."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (list, tuple)) and not isinstance(found, Slot):
        for part in found:
            yield from tensors_of(part)


@torch.no_grad()
def test_memory_of_plans_is_bounded() -> None:
    model, threads = tiny(layers=3), torch.get_num_threads()
    try:
        for count in range(1, plan._MOST_PLANS + 2):
            torch.set_num_threads(count)
            for length in range(1, 15):
                for _ in range(2):
                    model(*points(length))
    finally:
        torch.set_num_threads(threads)
    plans = plan._planners[model]._plans
    assert len(plans) == plan._MOST_PLANS
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    prepared = {tensor.data_ptr() for p in plans.values() for form in p._forms for tensor in tensors_of(form.made)}
    for kept in plans.values():
        scratch = [x for x in tensors_of(list(vars(kept).values())) if x.data_ptr() not in own | prepared]
        assert sum(x.nbytes for x in scratch) <= kept.rows * 32 * 4  # a sublayer writes over its input
    gone, parts = weakref.ref(model), weakref.ref(model.blocks[0])
    del model, plans, kept, scratch, prepared
    gc.collect()
    assert gone() is None
    assert parts() is None


@torch.no_grad()
def test_what_no_plan_is_made_for(used: list[bool]) -> None:
    batch, inference = points(20, 9), tiny()
    plain = tiny(gate=False)  # whose feed-forward has no kernel
    with torch.inference_mode():
        inference = copy.deepcopy(inference)  # its tensors count no changes
        for _ in range(3):
            inference(*batch)
    for _ in range(3):
        assert_same(plain(*batch), one_by_one(plain, batch))
        tiny().double()(*batch)
    model = tiny()
    for _ in range(3):
        model.train()
        model(*batch)
        model.eval()
    assert not used
