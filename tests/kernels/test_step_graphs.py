"""Training by CUDA graphs: the weights of training op by op, with dropout, AMP, accumulation and undone steps.

A fake device stands in for a GPU (`bench.fake_graphs`): its graphs repeat recorded ops on recorded memory.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import astroco_fast as af
from astroco_fast import capture
from astroco_fast.data.training import DeviceBatch
from astroco_fast.kernels.cpu import plan
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.loop import accumulate, update
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step import Requests, Trainer
from bench.fake_graphs import FakeCuda
from bench.host_launches import step_launches
from tests.windows import make_windows

SIZE = 8


@pytest.fixture
def gpu(cpu: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A device whose graphs are on, in place of a GPU, with the CPU's kernels."""
    device = FakeCuda()
    monkeypatch.setattr(capture, "driver", device)
    monkeypatch.setattr(capture, "enabled", True)
    monkeypatch.setattr(plan, "MOST_ROWS", 0)
    with af.backend(cpu):
        yield device


def trainer_of(**settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = af.AstroCo.from_preset("tiny", width=32, heads=2, kernel=5, layers=2, dropout=0.1)
    settings = {"learning_rate": 1e-2, "warmup_steps": 2, "precision": "fp32", "loss": "batch", **settings}
    return Trainer(model, TrainConfig(**settings), Ranks(0, 1, torch.device("cpu")), seed=0)


def batch_of(*lengths: int, seed: int = 0) -> DeviceBatch:
    """A micro-batch of two or four windows: as many rows in all layouts, so that sums have the same order."""
    w = make_windows(list(lengths), SIZE, seed)
    time, mag, err = ((x - x.nanmean()).nan_to_num().float() for x in (w.time, w.mag, w.err))
    role = w.hidden.to(torch.uint8) + 2 * (w.mask & ~w.hidden & (mag > 0.5)).to(torch.uint8)
    return DeviceBatch(time, mag.masked_fill(w.hidden, 0), err, mag, role, w.lengths, torch.arange(len(lengths)))


def steps(trainer: Trainer, batches: list[list[DeviceBatch]], first: int = 0) -> list[Any]:
    outcomes = []
    for i, micro in enumerate(batches, first):
        outcomes.append(accumulate(trainer, micro, i, Requests(), lambda: False))
        update(trainer, outcomes[-1], i)
    return outcomes


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    averages = {} if trainer.average is None else {f"average {n}": x for n, x in trainer.average.state_dict().items()}
    return {**trainer.model.state_dict(), **averages}


def assert_same(a: Trainer, b: Trainer) -> None:
    for (name, x), y in zip(state_of(a).items(), state_of(b).values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize(
    "settings", [{}, {"loss": "curve"}, {"precision": "bf16"}, {"ema_decay": 0.9, "clip_norm": 0.5}], ids=str
)
def test_the_weights_of_training_op_by_op(settings: dict[str, Any], gpu: FakeCuda) -> None:
    lengths = ([8, 5, 0, 3], [1, 2, 8, 8], [8, 8, 8, 8], [4, 4, 0, 1], [0, 0, 0, 2])
    batches = [[batch_of(*of, seed=seed)] for seed, of in enumerate(lengths)]
    alone, by_graphs = trainer_of(**settings), trainer_of(**settings)
    capture.enabled = False
    expected = steps(alone, batches)
    capture.enabled = True
    got = steps(by_graphs, batches)
    assert gpu.launches == ["copy", *3 * ["copy", "replay"]]
    assert len(gpu.graphs) == 1
    for a, b in zip(got, expected, strict=True):
        assert (a.loss, a.sums, a.grad_norm, a.points) == (b.loss, b.sums, b.grad_norm, b.points)
    assert_same(by_graphs, alone)
    for a, b in zip(by_graphs._by_window, alone._by_window, strict=True):
        assert torch.equal(a, b)


def test_accumulation_over_buckets_and_without_them(gpu: FakeCuda) -> None:
    """A step's gradients come from graphs of two buckets, and from a bucket that is new and runs op by op."""
    two, four = [batch_of(8, 5, seed=1), batch_of(3, 8, seed=2)], [batch_of(8, 5, 0, 3), batch_of(1, 2, 8, 8, seed=3)]
    batches = [[*two, *four], [four[0], two[1], batch_of(8), two[0]], [batch_of(7), four[1], batch_of(2)]]
    alone, by_graphs = trainer_of(), trainer_of()
    capture.enabled = False
    steps(alone, batches)
    capture.enabled = True
    steps(by_graphs, batches)
    assert len(gpu.graphs) == 3
    assert gpu.launches.count("replay") == 5
    assert_same(by_graphs, alone)


def test_an_undone_step_and_an_evaluation_between(gpu: FakeCuda) -> None:
    good, bad = batch_of(8, 5, 0, 3), batch_of(8, 5, 0, 3, seed=1)
    bad.target[0, :3] = torch.inf
    bad.role[0, :3] = 1
    alone, by_graphs = trainer_of(), trainer_of()
    for trainer in (alone, by_graphs):
        capture.enabled = trainer is by_graphs
        steps(trainer, [[good]] * 3)
        before = {name: x.clone() for name, x in state_of(trainer).items()}
        (undone,) = steps(trainer, [[bad]], 3)
        assert not undone.is_finite
        assert not torch.isfinite(trainer._by_window[0]).all(1)[0]
        assert all(torch.equal(x, before[name]) for name, x in state_of(trainer).items())
        trainer.model.eval()
        with torch.no_grad():
            trainer.model(good.time, good.mag, good.err, lengths=good.lengths, centered=True)
        steps(trainer, [[good]] * 2, 4)
    assert_same(by_graphs, alone)
    assert len(gpu.graphs) == 1  # the evaluation has not cost it
    assert gpu.launches.count("replay") == 4


def test_evaluation_after_replays_sees_the_statistics(gpu: FakeCuda) -> None:
    """A replay changes BatchNorm's statistics, which PyTorch does not count by itself."""
    trainer, batch = trainer_of(), batch_of(8, 5, 0, 3)
    call = ((batch.time, batch.mag, batch.err), {"lengths": batch.lengths, "centered": True})
    steps(trainer, [[batch]] * 2)
    model = trainer.model
    versions = [buffer._version for buffer in model.buffers()]
    trainer.begin(2)
    trainer.forward_backward(batch, is_last=True)
    assert all(buffer._version > version for buffer, version in zip(model.buffers(), versions, strict=True))
    model.eval()
    with torch.no_grad():
        got = [model(*call[0], **call[1]) for _ in range(3)][-1]
        again = af.AstroCo(model.config).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(got.sequence, again(*call[0], **call[1]).sequence)


def test_dropout_is_drawn_anew_in_every_replay(gpu: FakeCuda) -> None:
    trainer, batch = trainer_of(), batch_of(8, 5, 0, 3)
    norms = {outcome.grad_norm for outcome in steps(trainer_of(learning_rate=1e-12, warmup_steps=0), [[batch]] * 5)}
    assert len(norms) == 5
    seeded = []
    for _ in range(2):  # the seed of step 7, whatever came before
        steps(trainer, [[batch]] * 2)
        trainer.begin(7)
        trainer.optimizer.zero_grad()
        seeded.append(torch.randint(2**62, (1,)))
    assert torch.equal(*seeded)


def test_what_has_no_graphs(gpu: FakeCuda) -> None:
    batch = batch_of(8, 5, 0, 3)
    hooked, recomputed = trainer_of(), trainer_of()
    hooked.model.blocks[0].register_forward_hook(lambda *_: None)
    recomputed.model.recompute = True
    other = trainer_of()
    other._graphs = None  # as with several ranks, or for a classifier
    for trainer in (hooked, recomputed, other):
        steps(trainer, [[batch]] * 3)
    watched = trainer_of()
    watched.model.register_forward_hook(lambda *_: None)
    steps(watched, [[batch]] * 3)
    assert not gpu.launches


def test_a_changed_model_is_captured_anew(gpu: FakeCuda) -> None:
    batch = batch_of(8, 5, 0, 3)
    alone, by_graphs = trainer_of(), trainer_of()
    for trainer in (alone, by_graphs):
        capture.enabled = trainer is by_graphs
        steps(trainer, [[batch]] * 3)
        trainer.model.blocks[0].attention.dropout.p = 0.5
        steps(trainer, [[batch]] * 3, 3)
    assert_same(by_graphs, alone)
    assert gpu.launches == 2 * ["copy", "copy", "replay"]


@pytest.mark.parametrize("when", ["at once", "in the capture"])
def test_a_refused_capture_falls_back(when: str, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step in which it fails changes nothing twice, and the reason is said once."""
    alone, by_graphs = trainer_of(), trainer_of()
    batches = [[batch_of(8, 5, 0, 3, seed=seed)] for seed in range(4)]
    capture.enabled = False
    steps(alone, batches)
    capture.enabled = True

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory\nand more")

    if when == "at once":
        monkeypatch.setattr(torch.autograd, "grad", fail)  # after the forward pass has changed the statistics
    else:
        gpu.capture = fail  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match="no CUDA graphs in training.*one by one: out of memory$") as told:
        steps(by_graphs, batches)
    assert len(told) == 1
    if when == "in the capture":
        assert_same(by_graphs, alone)
    else:  # the second step's dropout was drawn a second time
        for (name, x), y in zip(by_graphs.model.named_buffers(), alone.model.buffers(), strict=True):
            torch.testing.assert_close(x, y, rtol=0.5, atol=0.5, msg=name)
            assert x.dim() or x == y == 4, "batches were counted twice"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(by_graphs, batches, 4)


def test_launches_of_the_host() -> None:
    alone, by_graph = step_launches("tiny")
    assert by_graph < 50 < 200 < alone  # most of what is left comes before and after the passes
