"""Training by CUDA graphs: the weights of training op by op, with dropout, AMP, accumulation and undone steps.

A fake device stands in for a GPU (`bench.fake_graphs`): its graphs repeat recorded ops on recorded memory.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import astroco_fast as af
from astroco_fast import capture
from astroco_fast.data.training import EMPTY, DeviceBatch
from astroco_fast.finetune.classes import BalancedCrossEntropy
from astroco_fast.finetune.model import Finetuned
from astroco_fast.kernels.cpu import plan
from astroco_fast.pretrain import step
from astroco_fast.pretrain.checkpoint import _optimizer_tensors, load_weights, save_weights
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.loop import accumulate, update
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step import Requests, Trainer
from bench.fake_graphs import FakeCuda
from bench.host_launches import step_launches
from tests.windows import make_windows

SIZE = 8
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def gpu(cpu: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A device whose graphs are on, in place of a GPU, with the CPU's kernels."""
    device = FakeCuda()
    monkeypatch.setattr(capture, "driver", device)
    monkeypatch.setattr(capture, "enabled", True)
    monkeypatch.setattr(plan, "MOST_ROWS", 0)
    with af.backend(cpu):
        yield device


def trainer_of(ranks: Ranks = ALONE, dropout: float = 0.1, layers: int = 2, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = af.AstroCo.from_preset("tiny", width=32, heads=2, kernel=5, layers=layers, dropout=dropout)
    # Learning rates that float32 holds exactly, as graphs read them from there.
    settings = {"learning_rate": 2**-7, "warmup_steps": 2, "precision": "fp32", "loss": "batch", **settings}
    return Trainer(model, TrainConfig(**settings), ranks, seed=0)


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


def assert_same(a: Trainer, b: Trainer, when: str = "", average: float = 1e-6) -> None:
    """Weights and the optimiser's state have the same bits, and the average nearly: graphs round it three times."""
    found, expected = ({**state_of(trainer), **_optimizer_tensors(trainer)} for trainer in (a, b))
    assert found.keys() == expected.keys()
    for name, x in found.items():
        tolerance = average if name.startswith("average") else 0
        torch.testing.assert_close(x, expected[name], rtol=tolerance, atol=tolerance, msg=f"{name} {when}")


def refuse(trainer: Trainer) -> Trainer:
    """A trainer that computes as graphs do, but op by op."""
    trainer._fixed._refused = trainer._graphs._refused = True
    return trainer


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
    passes, rates = ["copy", "replay"], ["copy"]
    assert gpu.launches[-6:] == ["replay", *passes, "replay", *rates, "replay"]
    assert len(gpu.graphs) == 4  # the beginning, the passes, the norm, the update
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
    assert len(by_graphs._graphs._store._graphs) == 3
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
    assert len(gpu.graphs) == 4  # the evaluation has not cost them


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


def test_evaluation_after_replays_sees_the_weights(gpu: FakeCuda) -> None:
    """The average, which evaluation's own graphs encode with, is written by replays alone from the sixth step on."""
    trainer, batch = trainer_of(layers=1), batch_of(8, 5, 0, 3)
    points, keywords = batch.inputs()
    model = trainer.evaluated.eval()
    for first in range(0, 24, 6):
        steps(trainer, [[batch]] * 6, first)
        with torch.inference_mode():
            got = model(*points, **keywords)
            again = af.AstroCo(model.config).eval()
            again.load_state_dict(model.state_dict())
            assert torch.equal(got.sequence, again(*points, **keywords).sequence)
    assert gpu.launches[-4:] == 2 * ["copy", "replay"]  # the update, the encode


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
    watched = trainer_of()
    watched.model.register_forward_hook(lambda *_: None)
    for trainer in (hooked, recomputed, other, watched):
        steps(trainer, [[batch]])
    assert gpu.launches == 4 * ["copy"]  # the learning rate
    assert not gpu.graphs


def test_a_changed_model_is_captured_anew(gpu: FakeCuda) -> None:
    batch = batch_of(8, 5, 0, 3)
    alone, by_graphs = trainer_of(), trainer_of()
    for trainer in (alone, by_graphs):
        capture.enabled = trainer is by_graphs
        steps(trainer, [[batch]] * 3)
        trainer.model.blocks[0].attention.dropout.p = 0.5
        steps(trainer, [[batch]] * 3, 3)
    assert_same(by_graphs, alone)


def _load_optimizer(trainer: Trainer) -> None:
    trainer.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))


def _halve_moments(trainer: Trainer) -> None:
    for state in trainer.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"] / 2


def _add_group(trainer: Trainer) -> None:
    """A group with a parameter of the model that had none."""
    moved = trainer.optimizer.param_groups[0]["params"].pop()
    trainer.optimizer.add_param_group({"params": [moved], "weight_decay": 0.25})


def _set(**settings: Any) -> Callable[[Trainer], None]:
    return lambda trainer: trainer.optimizer.param_groups[0].update(settings)


def _configure(**settings: Any) -> Callable[[Trainer], None]:
    def event(trainer: Trainer) -> None:
        trainer.config = replace(trainer.config, **settings)

    return event


def _load_weights(trainer: Trainer) -> None:
    for model in (trainer.model, trainer.average):
        model.load_state_dict({name: x * 3 // 2 for name, x in model.state_dict().items()})


def _move_tensors(trainer: Trainer) -> None:
    """As `Module.to` does with another device."""
    for model in (trainer.model, trainer.average):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()


def _drop_gradients(trainer: Trainer) -> None:
    trainer.model.zero_grad(set_to_none=True)


def _evaluate(trainer: Trainer) -> None:
    trainer.model.eval()


EVENTS = {
    "the optimiser's state is loaded": _load_optimizer,
    "the optimiser's tensors are others": _halve_moments,
    "a group is new": _add_group,
    "weight decay changes": _set(weight_decay=0.5),
    "betas change": _set(betas=(0.5, 0.75)),
    "the learning rate falls": _configure(decay_steps=100, max_steps=110),
    "the average is slower": _configure(ema_decay=0.75),
    "clipping changes": _configure(clip_norm=1e-3),
    "weights are loaded": _load_weights,
    "tensors are moved": _move_tensors,
    "gradients are dropped": _drop_gradients,
    "the model was evaluated": _evaluate,
}


def test_events_between_steps(gpu: FakeCuda) -> None:
    """After each event the steps are those of the ops one by one, and graphs are replayed again."""
    by_graphs, plain = trainer_of(layers=1, ema_decay=0.9), refuse(trainer_of(layers=1, ema_decay=0.9))
    batches = [[batch_of(8, 5, 0, 3, seed=seed)] for seed in range(5)]
    for number, (name, event) in enumerate({"": lambda _: None, **EVENTS}.items()):
        for trainer in (plain, by_graphs):
            event(trainer)
            steps(trainer, batches, 5 * number)
        assert gpu.launches[-6:] == ["replay", "copy", "replay", "replay", "copy", "replay"], name
        assert_same(by_graphs, plain, f"after: {name}", average=0)


def test_a_step_on_another_stream(gpu: FakeCuda) -> None:
    by_graphs, plain, batch = trainer_of(layers=1), refuse(trainer_of(layers=1)), [batch_of(8, 5, 0, 3)]
    for first in (0, 5, 10):
        gpu.current = first % 2
        for trainer in (by_graphs, plain):
            steps(trainer, [batch] * 5, first)
        assert_same(by_graphs, plain, average=0)


@pytest.mark.parametrize("blocks", [None, 1, 0])
def test_fine_tuning(blocks: int | None, gpu: FakeCuda) -> None:
    """Classes come by the windows' places, which the host writes for each replay; an empty slot has none."""
    of_window, places = np.arange(40) % 3, np.random.default_rng(0).integers(0, 40, (7, 4))
    batches = [[replace(batch_of(8, 5, 0, 3, seed=i), index=torch.from_numpy(index))] for i, index in enumerate(places)]
    for (batch,) in batches:
        batch.index[2] = EMPTY

    def trainer() -> Trainer:
        torch.manual_seed(0)
        encoder = af.AstroCo.from_preset("tiny", width=32, heads=2, kernel=5, layers=2, dropout=0.1)
        config = TrainConfig(learning_rate=1e-2, warmup_steps=0, precision="bf16", loss="batch")
        objective = BalancedCrossEntropy(of_window, np.array([1.0, 2.0, 0.5]))
        return Trainer(Finetuned(encoder, ["a", "b", "c"], blocks), config, ALONE, 0, objective)

    by_graphs, plain = trainer(), refuse(trainer())
    for first in (0, 7):
        outcomes = [steps(trainer, batches, first) for trainer in (plain, by_graphs)]
        assert [x.loss for x in outcomes[0]] == [x.loss for x in outcomes[1]]
        assert gpu.launches[-6:] == ["replay", "copy", "replay", "replay", "copy", "replay"]
        assert_same(by_graphs, plain, average=0)
        for trainer_ in (plain, by_graphs):  # what is frozen, too, with its prepared forms
            trainer_.model.load_state_dict({name: x * 3 // 2 for name, x in trainer_.model.state_dict().items()})


@dataclass(frozen=True)
class TwoRanks(Ranks):
    """One of two ranks in a process; they take turns, and meet in sums.

    Attributes:
        turn: held by the one that computes.
        meeting, given: where they wait for each other, and what each has brought.
    """

    turn: Any = None
    meeting: Any = None
    given: Any = None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        capture.driver.launches.append("sum")
        self.given[self.rank] = values.clone()
        self._meet()
        values.copy_(self.given[0] + self.given[1])
        self._meet()
        return values

    def _meet(self) -> None:
        self.turn.release()
        try:
            self.meeting.wait(60)
        finally:
            self.turn.acquire()


def on_two_ranks(body: Callable[[Ranks], Any]) -> list[Any]:
    """What the body returns on either rank."""
    turn, meeting = threading.Lock(), threading.Barrier(2)
    given = [torch.empty(0)] * 2

    def run(rank: int) -> Any:
        with turn:
            try:
                return body(TwoRanks(rank, 2, torch.device("cpu"), turn=turn, meeting=meeting, given=given))
            except Exception:
                meeting.abort()  # the other would wait
                raise

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def test_two_ranks_by_graphs(gpu: FakeCuda) -> None:
    """Each rank has graphs of its own; their sums lie between. The result is that of one rank with both batches."""
    batches = [(batch_of(8, 5, 0, 3, seed=seed), batch_of(2, 8, seed=seed)) for seed in range(7)]
    settings = {"dropout": 0.0, "clip_norm": 0.5}

    def train(ranks: Ranks) -> tuple[Trainer, Trainer]:
        by_graphs, plain = trainer_of(ranks, **settings), refuse(trainer_of(ranks, **settings))
        for trainer in (plain, by_graphs):
            steps(trainer, [[pair[ranks.rank]] for pair in batches])
        return by_graphs, plain

    capture.enabled = False
    one = trainer_of(**settings)
    steps(one, [list(pair) for pair in batches])
    capture.enabled = True
    trained = on_two_ranks(train)
    assert len(gpu.graphs) == 2 * 5  # the beginning, the passes, what to sum, the norm, the update
    for by_graphs, plain in trained:
        assert_same(by_graphs, plain, average=0)
        for (name, x), y in zip(by_graphs.model.named_parameters(), one.model.parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, msg=name)


def test_ranks_that_disagree_about_graphs_meet_in_the_passes(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_data_parallel", lambda model: model)
    monkeypatch.setattr(Trainer, "_settle_buckets", lambda trainer: None)

    def late(ranks: Ranks, enabled: tuple[bool, bool]) -> bool:
        capture.enabled = enabled[ranks.rank]
        return trainer_of(ranks)._meet_late

    for enabled in ((True, False), (False, False), (True, True)):
        assert on_two_ranks(lambda ranks, enabled=enabled: late(ranks, enabled)) == [all(enabled)] * 2


def test_checkpoints_with_and_without_graphs(gpu: FakeCuda, tmp_path: Path) -> None:
    """A run that is resumed has the bits of one that is not, and checkpoints of either kind fit the other."""
    settings = {"layers": 1, "learning_rate": 0.01, "decay_steps": 6, "max_steps": 12}
    batches = [[batch_of(8, 5, 0, 3, seed=seed)] for seed in range(12)]
    for number, (before, after) in enumerate([(True, True), (True, False), (False, True)]):
        unbroken, first, resumed = (trainer_of(**settings) for _ in range(3))
        capture.enabled = before
        for trainer in (first, unbroken):
            steps(trainer, batches[:7])
        folder = tmp_path / str(number)
        folder.mkdir()
        save_weights(first, folder, "")
        load_weights(resumed, folder)
        assert_same(resumed, first, average=0)
        capture.enabled = after
        for trainer in (unbroken, resumed):
            steps(trainer, batches[7:], 7)
        assert_same(resumed, unbroken, average=0)


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
    with pytest.warns(RuntimeWarning, match="no CUDA graphs.*one by one: out of memory$") as told:
        steps(by_graphs, batches)
    passes = "no CUDA graphs in training"
    assert sum(passes in str(one.message) for one in told) == 1
    assert len(told) == 1 + (when == "in the capture")  # and what surrounds the passes
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
    for fine_tuning in (False, True):
        alone, by_graph = step_launches("tiny", fine_tuning)
        assert by_graph == 7 < 150 < alone
