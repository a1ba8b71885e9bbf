"""Encodes by CUDA graphs: the results of the ops called one by one, and never those of another model than the present.

A fake device stands in for a GPU (`bench.fake_graphs`): its graphs repeat recorded ops on recorded memory.
"""

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

import astroco_fast as af
from astroco_fast import capture
from astroco_fast.buckets import Bucket
from astroco_fast.kernels.cpu import plan
from astroco_fast.kernels.prepared import forget, recheck
from astroco_fast.kernels.triton.segments import segments
from astroco_fast.reference.layout import Layout
from bench.fake_graphs import FakeCuda, FakeGraph
from bench.host_launches import encode_launches
from tests.kernels import test_plan
from tests.kernels.test_model import shortened
from tests.kernels.test_plan import assert_same, in_four_threads, one_by_one, tiny
from tests.windows import make_windows

SIZE = 8


def windows(*lengths: int, seed: int = 0) -> tuple[Tensor, ...]:
    w = make_windows(list(lengths), SIZE, seed)
    return w.time, w.mag, w.err, w.mask


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A device whose graphs are on, and no plans, which would spare the kernels in their way."""
    device = FakeCuda()
    monkeypatch.setattr(capture, "driver", device)
    monkeypatch.setattr(capture, "enabled", True)
    monkeypatch.setattr(plan, "MOST_ROWS", 0)
    return device


@pytest.fixture
def native(cpu: str, gpu: FakeCuda) -> FakeCuda:
    """The same with the CPU's kernels, which are quick and read prepared weights as a GPU's do."""
    with af.backend("cpu"):
        yield gpu


def captured(model: Any, batch: tuple[Tensor, ...], **options: Any) -> Any:
    """The outputs of a third call, which is a replay."""
    return [model(*batch, **options) for _ in range(3)][-1]


def direct(model: Any, batch: tuple[Tensor, ...], **options: Any) -> Any:
    """The outputs without graphs, by a copy of the model, which nothing has prepared."""
    capture.enabled = False
    try:
        return one_by_one(model, batch, **options)
    finally:
        capture.enabled = True


def replays(gpu: FakeCuda) -> int:
    return gpu.launches.count("replay")


@torch.no_grad()
@pytest.mark.parametrize("preset", ["tiny", pytest.param("S", marks=pytest.mark.slow)])
def test_gpu_kernels_in_a_graph(preset: str, triton: str, gpu: FakeCuda) -> None:
    model = shortened(preset, layers=1).eval()
    with af.backend(triton), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            model(*windows(8, 0, 5, 2))
        batch = windows(1, 2, 8, 4, seed=1)  # four windows, too: PyTorch's products of another N have other sums
        for _ in range(2):
            model.blocks[0].attention.qkv.weight.mul_(1.5)
            renewed = model(*batch)
        expected = direct(model, batch)
        assert_same(renewed, expected)
        assert_same(model(*batch), expected)
    assert gpu.launches == ["copy", "copy", *2 * ["copy", "replay"]]


@pytest.mark.parametrize("overrides", [{}, {"mix": False}, {"convolution": False}, {"gate": False}])
@torch.no_grad()
def test_a_graph_gives_the_same_bits(overrides: dict[str, Any], native: FakeCuda) -> None:
    model = tiny(**overrides)
    for options in ({}, {"hidden": True}, {"centered": True}):
        for seed, lengths in enumerate(([8, 5, 0], [8, 5, 0], [1, 2, 8], [8, 8, 8], [0, 0, 1])):
            batch = windows(*lengths, seed=seed)
            if "hidden" in options:
                options["hidden"] = batch[3] & (torch.rand(batch[3].shape) < 0.3)
            assert_same(model(*batch, **options), direct(model, batch, **options))
    assert replays(native) == 9
    assert len(native.graphs) == 3


@torch.no_grad()
def test_all_forms_of_a_batch(native: FakeCuda) -> None:
    model = tiny()
    time, mag, err, mask = windows(8, 3, 5)
    expected = direct(model, (time, mag, err, mask))
    captured(model, (time, mag, err, mask))
    before = replays(native)
    lengths = torch.tensor([8, 3, 5])
    assert_same(model(time, mag, err, lengths=lengths), expected)
    assert_same(model(time, mag, err, lengths=lengths.int()), expected)
    spread = torch.stack([time, time]).transpose(0, 2).contiguous().transpose(0, 2)[1]  # not contiguous
    assert_same(model(spread, mag, err, lengths=lengths), expected)
    assert replays(native) == before + 3
    assert_same(model(time[:2], mag[:2], err[:2], mask[:2]), direct(model, (time[:2], mag[:2], err[:2], mask[:2])))
    full = windows(8, 8, 8)[:3]
    assert_same(captured(model, full), direct(model, full))
    float32 = tuple(x.float() for x in full)
    assert_same(captured(model, float32, centered=True), direct(model, float32, centered=True))
    with torch.inference_mode():
        again = model(*float32, centered=True)
    assert_same(again, direct(model, float32, centered=True))


def count_step(model: Any) -> None:
    model.train()
    model(*windows(8, 4)).embedding.square().sum().backward()
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()
    model.eval()


def running_statistics(model: Any) -> None:
    """A forward pass in training updates the buffers alone."""
    model.train()
    model(*windows(8, 4))
    model.eval()


def buffer_in_place(model: Any) -> None:
    model.blocks[0].convolution.batch_norm.running_mean.add_(1)


def other_memory(model: Any) -> None:
    """What `to` does for another device: new memory behind the same parameters."""
    model._apply(lambda x: 1.5 * x)


def state_dict(model: Any) -> None:
    model.load_state_dict({name: 1.5 * x if x.is_floating_point() else x for name, x in model.state_dict().items()})


def assigned(model: Any) -> None:
    state = {name: 1.5 * x if x.is_floating_point() else x for name, x in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def frozen(model: Any) -> None:
    model.requires_grad_(False)
    buffer_in_place(model)


# A GPU's memory is not compared, so that writes through `.data` have to be announced, as without graphs.
UNANNOUNCED = (test_plan.write_all, test_plan.write_a_bias)
CHANGES: list[Callable[[Any], None]] = [
    *(change for change in test_plan.CHANGES if change not in UNANNOUNCED),
    count_step, running_statistics, buffer_in_place, other_memory, state_dict, assigned, frozen,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_seen(change: Callable[[Any], None], native: FakeCuda) -> None:
    model, batch = tiny(), windows(8, 5)
    with torch.no_grad():
        before = captured(model, batch)
    assert replays(native) == 1
    change(model)
    native.launches.clear()
    with torch.no_grad():
        for seed in range(4):
            batch = windows(8, 5, seed=seed)
            assert_same(model(*batch), direct(model, batch))
        assert (model(*windows(8, 5)).sequence - before.sequence).abs().max() > 1e-3
    if change not in (test_plan.hook, test_plan.part_in_training):
        assert replays(native) >= 2  # a graph was renewed or captured anew


def doubt(model: Any) -> None:
    recheck(model.modules())


@torch.no_grad()
def test_changed_numbers_keep_the_graphs(native: FakeCuda) -> None:
    """Where numbers have changed, another graph is replayed, which prepares the weights anew; it is captured once."""
    model, batch = tiny(), windows(8, 5)
    captured(model, batch)
    changes = (count_step, running_statistics, buffer_in_place, state_dict, lambda m: m.train().eval(), doubt)
    for i, change in enumerate(changes):
        with torch.enable_grad():
            change(model)
        native.launches.clear()
        for _ in range(2):
            assert_same(model(*batch), direct(model, batch))
        assert native.launches == ["copy", *(["replay"] if i else []), "copy", "replay"], change
    assert len(native.graphs) == 2
    before = set(map(id, native.graphs))
    forget(model)
    captured(model, batch)
    assert len(native.graphs) == 1
    assert not before & set(map(id, native.graphs))


@torch.no_grad()
def test_numbers_that_change_between_captures(native: FakeCuda) -> None:
    """Graphs of two buckets share the prepared weights, which one of them prepares anew."""
    model, batches = tiny(), [windows(8, 5), windows(8, 5, 0, 3)]
    for batch in batches:
        captured(model, batch)
    for _ in range(3):
        buffer_in_place(model)
        for batch in batches:
            for _ in range(2):
                assert_same(model(*batch), direct(model, batch))
    assert len(native.graphs) == 4


def test_embed_by_graphs(native: FakeCuda) -> None:
    model, rng = tiny(window=SIZE), np.random.default_rng(0)
    curves = [np.stack([np.sort(rng.uniform(0, 99, n)), rng.normal(15, 1, n), np.full(n, 0.1)], 1) for n in (5, 30, 8)]
    capture.enabled = False
    expected = model.embed(curves, batch_size=4)
    capture.enabled = True
    for _ in range(4):
        assert np.array_equal(model.embed(curves, batch_size=4), expected)
    assert replays(native) == 3  # of two kinds of batches; from the fourth time on all are replayed
    with torch.no_grad():
        buffer_in_place(model)
    changed = model.embed(curves, batch_size=4)
    capture.enabled = False
    assert np.array_equal(model.embed(curves, batch_size=4), changed)
    assert not np.allclose(changed, expected)


@torch.no_grad()
def test_settings_have_graphs_of_their_own(native: FakeCuda) -> None:
    model, batch = tiny(), windows(8, 5)
    fast = captured(model, batch)
    with af.backend("reference"):
        plain = captured(model, batch)
        assert_same(plain, direct(model, batch))
    with torch.autocast("cpu", torch.bfloat16):
        half = captured(model, batch)
        assert not torch.equal(half.sequence, fast.sequence)
        assert_same(half, direct(model, batch))
    matmul = torch.backends.cuda.matmul
    for flag in ("allow_tf32", "allow_bf16_reduced_precision_reduction"):
        before = getattr(matmul, flag)
        setattr(matmul, flag, not before)
        captured(model, batch)
        setattr(matmul, flag, before)
    native.current = 7
    captured(model, batch)
    graphs = len(native.graphs)
    assert graphs == 6
    native.current = 0
    native.launches.clear()
    assert_same(model(*batch), fast)
    assert replays(native) == 1


@torch.no_grad()
def test_autocast_leaves_no_cast_of_old_weights(native: FakeCuda) -> None:
    """Autocast caches casts until it ends; a graph that reads them would keep the weights of its capture."""
    model, batch = tiny(gate=False), windows(8, 5)
    with af.backend("reference"), torch.autocast("cpu", torch.bfloat16):
        captured(model, batch)
    model.blocks[0].feed_forward.w_out.weight.mul_(2)
    with af.backend("reference"), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert_same(model(*batch), direct(model, batch))
    assert replays(native) == 2


def test_what_no_graph_is_made_for(native: FakeCuda) -> None:
    model, batch = tiny(), windows(8, 5)
    holes = torch.tensor([[True, False] * 4] * 2)
    for _ in range(3):
        model(*batch).embedding.sum().backward()  # gradients of the weights
        with torch.no_grad():
            model(*batch[:3], holes)
            model.train()
            model(*batch)
            model.eval()
            with FlopCounterMode(display=False):
                model(*batch)
            empty = model(*(x[:0] for x in batch))
            assert empty.sequence.shape == (0, SIZE, 32)
    model.requires_grad_(False)
    mag = batch[1].nan_to_num().requires_grad_()
    for _ in range(3):
        model(batch[0], mag, *batch[2:], centered=True).embedding.square().sum().backward()
        assert mag.grad is not None
    double = tiny().double()
    with torch.no_grad():
        for _ in range(3):
            double(*batch)
        hooked = tiny()
        hooked.blocks[0].register_forward_hook(lambda *_: None)
        captured(hooked, batch)
        native.has = lambda device: False  # type: ignore[method-assign]  # as while the caller captures
        captured(model, batch)
    assert not native.launches


@torch.no_grad()
def test_wrong_arguments_are_refused_as_without_graphs(native: FakeCuda) -> None:
    model, (time, mag, err, mask) = tiny(), windows(8, 5)
    captured(model, (time, mag, err, mask))
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((time, mag, err), {"lengths": torch.tensor([8, 9])}),
        ((time, mag, err), {"lengths": torch.tensor([8, -1])}),
        ((time, mag, err), {"lengths": torch.tensor([8.0, 1.0])}),
        ((time, mag, err), {"lengths": [8, 1]}),
        ((time, mag, err, mask), {"lengths": torch.tensor([8, 5])}),
        ((time, mag, err, mask.int()), {}),
        ((time, mag, err, mask), {"hidden": mask.int()}),
        ((time, mag[:1], err, mask), {}),
        ((time[0], mag[0], err[0]), {}),
        ((time.numpy(), mag, err), {}),
    ]
    for arguments, options in wrong:
        with pytest.raises(ValueError) as by_graph:
            model(*arguments, **options)
        capture.enabled = False
        with pytest.raises(ValueError) as plainly:
            model(*arguments, **options)
        capture.enabled = True
        assert str(by_graph.value) == str(plainly.value)


@torch.no_grad()
def test_outputs_are_the_callers(native: FakeCuda) -> None:
    model = tiny()
    batches = [windows(8, 5, seed=seed) for seed in range(5)]
    got = [model(*batch) for batch in batches]
    for out, batch in zip(got, batches, strict=True):
        assert_same(out, direct(model, batch))
        out.sequence.fill_(torch.nan)
    assert_same(model(*batches[0]), direct(model, batches[0]))
    assert replays(native) == 4


@torch.no_grad()
def test_memory_is_bounded_over_many_batches(native: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MOST_GRAPHS", 4)
    native.computes = False
    model, rng = tiny(layers=1), torch.Generator().manual_seed(0)
    for _ in range(100):
        batch = int(torch.randint(1, 70, (), generator=rng))
        lengths = torch.randint(0, SIZE + 1, (batch,), generator=rng)
        points = windows(*lengths.tolist())[:3]
        for _ in range(2):
            model(*points, lengths=lengths)
        assert len(native.graphs) <= 4
    graphs = capture._graphs[model].store
    assert len(graphs._graphs) == len(native.graphs) == len(graphs._seen) == 4
    assert 20 < replays(native) < 150  # many batches needed a graph that had been dropped
    assert len(graphs._pools) == 1
    assert sum(graph._table.numbers.nbytes for graph in graphs._graphs.values()) < 4 * 1024
    monkeypatch.setattr(capture, "_MOST_SEEN", 4)
    model(*windows(*[1] * 100))
    assert len(graphs._seen) == 1
    gone, parts = weakref.ref(model), weakref.ref(model.blocks[0])
    del model, graphs
    gc.collect()
    assert (gone(), parts(), len(native.graphs)) == (None, None, 0)


@torch.no_grad()
def test_switching_off_frees_the_graphs(native: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny(), windows(8, 5)
    captured(model, batch)
    af.set_cuda_graphs(False)
    gc.collect()
    assert not native.graphs
    captured(model, batch)
    assert replays(native) == 1
    af.set_cuda_graphs(True)
    captured(model, batch)
    assert replays(native) == 2


@torch.no_grad()
def test_a_refused_capture_falls_back(native: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """An op that waits for the device may not be captured: the reason is said once, and nothing is lost."""
    model, batch = tiny(), windows(8, 5)
    encode = type(model).encode

    def waiting(self: Any, *arguments: Any) -> Any:
        assert arguments[0].sum().item() == arguments[0].sum().item()
        return encode(self, *arguments)

    monkeypatch.setattr(type(model), "encode", waiting)
    with pytest.warns(
        RuntimeWarning, match="no CUDA graphs for this AstroCo.*not permitted.*_local_scalar_dense"
    ) as told:
        outputs = [model(*windows(8, 5, seed=seed)) for seed in range(4)]
    assert len(told) == 1
    assert told[0].filename == __file__
    for seed, out in enumerate(outputs):
        assert_same(out, direct(model, windows(8, 5, seed=seed)))
    assert replays(native) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(captured(model, batch), direct(model, batch))


def test_a_model_in_two_threads(native: FakeCuda) -> None:
    model = tiny()
    batches = [windows(8, 5, seed=seed) for seed in range(2)]
    with torch.no_grad():
        expected = [direct(model, batch) for batch in batches]
        captured(model, batches[0])
    wrong: list[int] = []

    def call(i: int) -> None:
        with torch.no_grad(), af.backend("cpu"):
            wrong.extend(i for _ in range(5) if not torch.equal(model(*batches[i]).sequence, expected[i].sequence))

    in_four_threads(call)
    assert not wrong
    assert replays(native) > 1


def test_a_fake_graph_repeats_what_was_recorded() -> None:
    x, scale = torch.ones(3), [2.0]
    graph = FakeGraph()
    with graph:
        y = (scale[0] * x).relu_()
        z = y.view(3, 1)[1:] + 1
    scale[0] = 5.0  # Python does not run again
    x.copy_(torch.tensor([1.0, -2.0, 3.0]))
    graph.replay()
    assert y.tolist() == [2, 0, 6]
    assert z.flatten().tolist() == [1, 7]
    cast = FakeGraph()
    with torch.inference_mode(), cast:  # where a cast is one op, which might have been a view
        half = x.to(torch.bfloat16)
    x.fill_(7)
    cast.replay()
    assert half.tolist() == [7, 7, 7]
    for wait in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: torch.tensor([1.0])):
        with FakeGraph(), pytest.raises(RuntimeError, match="not permitted"):
            wait()


def test_buckets() -> None:
    sizes = set()
    for real in range(1, 60_000, 7):
        lengths = np.array([200] * (real // 200) + [real % 200])
        bucket = Bucket.of(lengths, 200)
        assert bucket.rows - bucket.filler <= real <= bucket.rows <= max(128, 1.125 * real + 128)
        assert len(lengths) <= bucket.windows < 2 * len(lengths)
        sizes.add(bucket)
    assert len(sizes) < 80
    full = Bucket.of(np.full(256, 200), 200)
    assert (full.windows, full.rows) == (256, 256 * 200)


@pytest.mark.parametrize("lengths", [[5, 0, 8], [0, 0, 0], [8, 8, 8], [0, 1, 0]])
def test_layout_on_the_device(lengths: list[int], triton: str, device: torch.device) -> None:
    given, size = torch.tensor(lengths, device=device), SIZE
    rows, real = 24, sum(lengths)
    packed = Layout.packed(given, size, device, rows)
    layout = Layout.on_device(given, size, rows, filler=rows)
    x, y = torch.randn(3, size, 2, device=device), torch.randn(rows, 2, device=device)
    for name in ("enter", "unpad"):
        assert torch.equal(getattr(layout, name)(x), getattr(packed, name)(x)), name
    for name in ("leave", "pad"):
        assert torch.equal(getattr(layout, name)(y), getattr(packed, name)(y)), name
    assert torch.equal(layout.positions, packed.positions)
    assert torch.equal(layout.valid, torch.arange(rows, device=device) < real)
    got, expected = segments(layout), segments(packed)
    assert torch.equal(got.first, expected.first)
    assert torch.equal(got.end, expected.end)
    # Runs cover all rows, a window's first, and none is longer than a window.
    assert torch.equal(got.offsets[: len(lengths) + 1], torch.tensor([0, *lengths], device=device).cumsum(0))
    assert got.offsets[-1] == rows
    assert 0 <= got.offsets.diff().min() <= got.offsets.diff().max() <= got.longest == size
    assert torch.equal(got.start[: len(lengths)], expected.start)
    assert got.start.diff().min() >= 0
    assert got.lengths[len(lengths) :].tolist() == [0] * (rows // size)


def test_gradients_through_a_layout_on_the_device() -> None:
    given, rows = torch.tensor([5, 0, 8]), 20
    gradients = []
    for layout in (Layout.packed(given, SIZE, capacity=rows), Layout.on_device(given, SIZE, rows, filler=rows)):
        torch.manual_seed(0)
        x = torch.randn(3, SIZE, 2, requires_grad=True)
        y = torch.randn(rows, 2, requires_grad=True)
        (layout.enter(x).sin() * layout.unpad(layout.pad(y) * x)).square().sum().backward()
        (layout.leave(y) * x).sum().backward()
        gradients.append((x.grad, y.grad))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_launches_of_the_host() -> None:
    alone, by_graph = encode_launches("tiny")
    assert by_graph == 2
    assert alone > 40


@pytest.mark.parametrize("fails", [False, True])
def test_what_torch_is_asked_for(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real capture has a stream of the device, the shared pool, and gives the caller the current stream back."""
    told: list[Any] = []

    class Context:
        def __init__(self, name: str, *arguments: Any, **options: Any) -> None:
            self.name = name
            told.append((name, *arguments, *options.items()))

        def __enter__(self) -> None:
            told.append(f"enter {self.name}")

        def __exit__(self, *error: Any) -> None:
            told.append(f"exit {self.name}")
            if self.name == "graph" and fails:  # as `capture_end` after an error
                raise RuntimeError("operation failed due to a previous error during capture")

    for name in ("graph", "device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *a, _name=name, **o: Context(_name, *a, **o))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "a graph")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the current stream of {device}")
    device, cuda = torch.device("cuda", 1), capture.Cuda()
    call = lambda: cuda.capture(lambda: told.append("run"), device, "a pool")  # noqa: E731
    if fails:
        with pytest.raises(RuntimeError, match="previous error"):
            call()
    else:
        assert call() == "a graph"
    options = [("pool", "a pool"), ("stream", "a stream of cuda:1"), ("capture_error_mode", "thread_local")]
    assert told == [
        ("graph", "a graph", *options), ("device", device), "enter device",
        ("stream", "the current stream of cuda:1"), "enter stream", "enter graph", "run",
        "exit graph", "exit stream", "exit device",
    ]  # fmt: skip


def test_off_unless_asked_for(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeCuda()
    monkeypatch.setattr(capture, "driver", device)
    with torch.no_grad():
        captured(tiny(), windows(8, 5))
    assert not device.launches
    assert not capture.enabled
