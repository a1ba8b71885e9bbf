"""The effects of training's settings, in numbers: clipping, warm-up, averaging, decay, patience, times and counts."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from astroco_fast.commands import parse
from astroco_fast.data.training import micro_batches, upload
from astroco_fast.pretrain import PretrainConfig, TrainConfig, loop, main
from astroco_fast.pretrain.checkpoint import CheckpointFolder
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step import Outcome, Requests, Trainer
from tests.pretrain.patches import command, evaluations, note_windows
from tests.pretrain.processes import on_ranks
from tests.pretrain.test_gradient import assembler, build

WINDOWS = np.arange(3, 14)


def trainer(**settings: Any) -> Trainer:
    settings = {"learning_rate": 1e-2, "warmup_steps": 0, "clip_norm": None, "ema_decay": None, **settings}
    return Trainer(
        build(True),
        TrainConfig(precision="fp32", **{"loss": "batch", **settings}),
        Ranks(0, 1, torch.device("cpu")),
        seed=0,
    )


def step(trainer: Trainer, store: Path, number: int = 0) -> Outcome:
    batches = assembler(store)
    micro = [batches.assemble(piece, 1 + number) for piece in micro_batches(WINDOWS, 0, 1, None)]
    on_device = [upload(batch, trainer.ranks.device) for batch in micro]
    outcome = loop.accumulate(trainer, on_device, number, Requests(), lambda: False)
    assert outcome is not None
    loop.update(trainer, outcome, number)
    return outcome


def gradients_of_a_step(store: Path, clip_norm: float | None) -> tuple[float, dict[str, torch.Tensor]]:
    """The reported norm, and the gradients that the optimiser receives."""
    found, taught = {}, trainer(clip_norm=clip_norm)
    taught.optimizer.step = lambda: found.update({n: p.grad.clone() for n, p in taught.model.named_parameters()})
    return step(taught, store).grad_norm, found


def test_clipping_scales_the_whole_gradient(store):
    norm, free = gradients_of_a_step(store, None)
    assert norm == pytest.approx(sum(g.square().sum().item() for g in free.values()) ** 0.5)
    for limit in (0.25 * norm, 0.999 * norm):
        reported, clipped = gradients_of_a_step(store, limit)
        assert reported == pytest.approx(norm)  # before clipping
        for name, gradient in free.items():
            torch.testing.assert_close(clipped[name], gradient * (limit / norm))
        assert sum(g.square().sum().item() for g in clipped.values()) ** 0.5 == pytest.approx(limit)
    _, untouched = gradients_of_a_step(store, 1.001 * norm)
    assert all(torch.equal(untouched[name], gradient) for name, gradient in free.items())


def test_points_and_pairs_of_a_step_are_counted(store):
    outcome = step(trainer(), store)
    lengths = assembler(store).assemble(WINDOWS, 1).lengths
    assert (outcome.points, outcome.attention_pairs) == (lengths.sum(), np.square(lengths).sum())


def test_warm_up_rises_linearly_and_stays(store):
    taught, rates = trainer(learning_rate=0.01, warmup_steps=4), []
    for number in range(7):
        step(taught, store, number)
        (rate,) = {group["lr"] for group in taught.optimizer.param_groups}
        assert rate == taught.learning_rate_at(number)
        rates.append(rate)
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01, 0.01])
    taught = trainer(learning_rate=0.01, warmup_steps=0)
    step(taught, store)
    assert {group["lr"] for group in taught.optimizer.param_groups} == {0.01}


def test_the_average_follows_its_formula(store):
    taught = trainer(ema_decay=0.3)
    assert taught.average is not None
    by_hand = {name: value.clone() for name, value in taught.model.state_dict().items()}
    assert any("running_var" in name for name in by_hand)
    for number in range(5):
        assert step(taught, store, number).is_finite
        decay = min(0.3, (1 + number) / (10 + number))  # 0.1, 0.18, 0.25, then 0.3
        for name, value in taught.model.state_dict().items():
            floating = value.is_floating_point()
            by_hand[name] = decay * by_hand[name] + (1 - decay) * value if floating else value.clone()
    for name, value in taught.average.state_dict().items():
        torch.testing.assert_close(value, by_hand[name], rtol=1e-9, atol=1e-12)
    live = taught.model.state_dict()
    assert any((value - live[name]).abs().max() > 1e-4 for name, value in taught.average.state_dict().items())
    assert taught.evaluated is taught.average


def test_weight_decay_is_for_matrices_only(store):
    with_decay, without = trainer(weight_decay=0.5), trainer(weight_decay=0.0)
    start = {name: p.detach().clone() for name, p in with_decay.model.named_parameters()}
    for taught in (with_decay, without):
        step(taught, store)
    free = dict(without.model.named_parameters())
    assert {p.dim() for p in free.values()} == {1, 2}  # biases and scales, matrices and convolutions
    for name, p in with_decay.model.named_parameters():
        pulled = 1e-2 * 0.5 * start[name] if p.dim() > 1 else torch.zeros_like(p)
        torch.testing.assert_close(p.detach(), free[name].detach() - pulled, rtol=1e-9, atol=1e-12)


def test_weights_are_averaged_unless_that_is_switched_off(arguments, tmp_path):
    assert TrainConfig().ema_decay == 0.999
    for flags, files in (([], 1), (["--train.ema_decay", "null"], 0)):
        out = tmp_path / str(files)
        assert main([*arguments, *flags, "--out", str(out), "--train.max_steps", "1"]) == 0
        assert len(list((out / "checkpoints" / "last").glob("live.safetensors"))) == files
    assert parse(PretrainConfig, "test", "", ["--train.ema_decay", "null"]).train.ema_decay is None


def lines(out: Path, split: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


@pytest.mark.parametrize("world", [None, 2])
def test_patience_counts_evaluations_without_improvement(world, arguments, tmp_path):
    flags = ["--train.evaluate_every", "1", "--train.patience", "3", "--train.epochs", "50"]
    argv = [*arguments, *flags, "--out", str(tmp_path / "run")]
    errors = [0.5, 0.6, 0.4, 0.4, 0.45, 0.3, float("nan"), 0.31, 0.3, 0.1]  # an equal error is no improvement
    ended = on_ranks(world, command, argv, (evaluations, (errors,)), tmp_path=tmp_path)
    assert [rank.code for rank in ended] == [0] * (world or 1), ended[0].err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"] == "no lower validation loss in 3 evaluations"
    assert (summary["step"], summary["best"]["step"], summary["best"]["rmse"]) == (9, 6, 0.3)
    found = lines(tmp_path / "run", "validation")
    assert [line["step"] for line in found if line["best"]] == [1, 3, 6]
    assert CheckpointFolder(tmp_path / "run" / "checkpoints", 1).target("best") == "step-00000006"


def test_a_checkpoint_is_saved_when_its_time_has_come(arguments, monkeypatch, tmp_path):
    """The clock advances by ten seconds at each reading."""
    clock, saved = {"now": 0.0}, []

    class Clock:
        perf_counter = staticmethod(loop.time.perf_counter)

        @staticmethod
        def monotonic() -> float:
            clock["now"] += 10
            return clock["now"]

    write = CheckpointFolder.write

    def noting(self: CheckpointFolder, name: str, *args: Any, **keywords: Any) -> None:
        saved.append((name, clock["now"]))
        write(self, name, *args, **keywords)

    monkeypatch.setattr(loop, "time", Clock)
    monkeypatch.setattr(CheckpointFolder, "write", noting)
    flags = ["--train.max_steps", "12", "--train.epochs", "9", "--train.evaluate_every", "12"]
    assert main([*arguments, *flags, "--train.checkpoint_minutes", "0.75", "--out", str(tmp_path / "often")]) == 0
    often, saved[:] = list(saved), []
    assert len(often) >= 3
    assert all(later[1] - earlier[1] > 45 for earlier, later in pairwise(often[:-1]))
    assert main([*arguments, *flags, "--train.checkpoint_minutes", "100", "--out", str(tmp_path / "never")]) == 0
    assert [name for name, _ in saved] == ["step-00000012"]  # saved with the evaluation


@pytest.mark.parametrize("keep", [1, 3])
def test_keep_sets_the_number_of_checkpoints(keep, arguments, tmp_path):
    flags = ["--train.checkpoint_every", "1", "--train.evaluate_every", "2", "--train.max_steps", "8"]
    argv = [*arguments, *flags, "--train.epochs", "9", "--train.keep", str(keep), "--out", str(tmp_path / "run")]
    errors = [0.5, 0.7, 0.7, 0.7]  # the best one is the evaluation at step 2
    (ended,) = on_ranks(None, command, argv, (evaluations, (errors,)), tmp_path=tmp_path)
    assert ended.code == 0, ended.err
    checkpoints = CheckpointFolder(tmp_path / "run" / "checkpoints", keep)
    steps = [int(name.split("-")[1]) for name in checkpoints.names()]
    assert len(steps) == keep + 1
    assert steps[0] == 2
    assert steps[-1] == 8
    assert str(checkpoints.target("best")).startswith("step-00000002")


@pytest.mark.parametrize(
    ("worlds", "flags", "note"),
    [
        ((2, None), [], "2 ranks before, 1 now"),
        ((None, 2), [], "1 ranks before, 2 now"),
        ((3, 2), [], "3 ranks before, 2 now"),
        ((None, None), ["--train.micro_batch", "7"], "train.micro_batch changed"),
    ],
)
def test_other_ranks_or_passes_take_the_same_global_batches(worlds, flags, note, arguments, tmp_path):
    argv = [*arguments, "--out", str(tmp_path / "run")]
    before, after = tmp_path / "before", tmp_path / "after"
    first = on_ranks(
        worlds[0], command, [*argv, "--train.max_steps", "3"], (note_windows, (str(before),)), tmp_path=tmp_path
    )
    again = on_ranks(worlds[1], command, [*argv, *flags], (note_windows, (str(after),)), tmp_path=tmp_path)
    assert [rank.code for rank in first + again] == [0] * len(first + again), again[0].err
    assert note in again[0].out
    unbroken = tmp_path / "unbroken"
    whole = [*arguments, "--out", str(tmp_path / "whole")]
    assert on_ranks(None, command, whole, (note_windows, (str(unbroken),)), tmp_path=tmp_path)[0].code == 0
    taken = [json.loads(line) for path in (before, after) for line in path.read_text().splitlines()]
    expected = [json.loads(line) for line in unbroken.read_text().splitlines()]
    assert len(expected) == 8
    assert taken == expected


def test_the_model_card_tells_what_the_weights_are(arguments, tmp_path):
    flags = ["--train.evaluate_every", "2", "--train.max_steps", "4", "--out", str(tmp_path / "run")]
    assert main([*arguments, *flags]) == 0
    evaluations = lines(tmp_path / "run", "validation")
    best = min(evaluations, key=lambda line: line["rmse"])
    for line in evaluations:
        (folder,) = (tmp_path / "run" / "checkpoints").glob(f"step-{line['step']:08d}")
        card = (folder / "README.md").read_text()
        assert f"step {line['step']}" in card
        assert f"{min(40 * line['step'], 121)} windows" in card  # an epoch has 121
        assert "70 light curves" in card
        assert "simulated" not in card.lower()
    assert f"at step {best['step']}, on 22 windows" in card
    for name in ("rmse", "r2", "trivial_rmse"):
        for points in ("", "_hidden"):
            assert f"{best[name + points]:.4f}" in card


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    taught = trainer(learning_rate=1.0, warmup_steps=4, decay_steps=5, max_steps=20)
    rates = [taught.learning_rate_at(step) for step in range(21)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[10:16] == [1.0] * 6
    assert rates[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
