"""`astroco finetune`: what is trained, what is saved, the loss, the report; and a stopped run goes on exactly."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import astroco_fast as af
from astroco_fast.data.columns import Columns
from astroco_fast.data.store import Store
from astroco_fast.data.training import EMPTY
from astroco_fast.errors import UserError
from astroco_fast.finetune import main
from astroco_fast.finetune.classes import BalancedCrossEntropy, balanced_weights, classes_of
from astroco_fast.finetune.model import load_finetuned
from tests.pretrain.finetuning import CLASSES, finetune, labelled_store, tiny_model
from tests.pretrain.patches import kill_at, signal_at
from tests.pretrain.processes import on_ranks
from tests.pretrain.test_resume import outcome


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    labelled_store(folder / "store")
    tiny_model(folder / "model")
    return folder


def flags(place: Path, out: Path, **settings: object) -> list[str]:
    train = {"global_batch": 40, "micro_batch": 12, "warmup_steps": 3, "log_every": 2, "epochs": 2, "device": "cpu"}
    train |= {"plots": "false", "precision": "fp32"} | settings
    words = [word for name, value in train.items() for word in (f"--train.{name}", str(value))]
    return [str(place / "store"), "--model", str(place / "model"), "--out", str(out), *words]


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    out = place / "run"
    assert main(flags(place, out, epochs=12, learning_rate=0.01, ema_decay="null")) == 0
    return out


def test_classes_that_differ_by_amplitude_are_learnt(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["split"] == "validation"]
    assert max(line["macro_f1"] for line in validation) > 0.8
    assert validation[-1]["loss"] < validation[0]["loss"]
    found = json.loads((trained / "test.json").read_text())
    assert found["classes"] == sorted(CLASSES)
    assert found["macro_f1"] > 0.7
    assert np.sum(found["confusion"]) == found["curves"]
    assert "Macro-F1" in (trained / "report.md").read_text()


def test_the_result_is_a_saved_encoder_with_its_head(trained):
    best = trained / "checkpoints" / "best"
    model = load_finetuned(best)
    assert model.classes == tuple(sorted(CLASSES))
    rng = np.random.default_rng(0)
    curve = np.column_stack([np.sort(rng.uniform(0, 100, 20)), rng.normal(15, 0.1, 20), np.full(20, 0.02)])
    vector = af.load(best).embed([curve], precision="fp32").copy()
    points = [torch.from_numpy(column)[None] for column in curve.T]
    with torch.no_grad():
        torch.testing.assert_close(model(*points).logits, model.head(torch.from_numpy(vector)), atol=1e-4, rtol=1e-4)
    assert "Fine-tuned from" in (best / "README.md").read_text()


@pytest.mark.parametrize(
    ("blocks", "changed"),
    [
        ("0", set()),
        ("1", {"blocks.1", "mix_pool"}),
        (None, {"blocks.0", "blocks.1", "input_embed", "mix_pool"}),
    ],
)
def test_only_the_last_blocks_are_trained_and_statistics_of_others_stay(blocks, changed, place, tmp_path):
    extra = [] if blocks is None else ["--blocks", blocks]
    assert main([*flags(place, tmp_path / "run", max_steps=2, ema_decay="null"), *extra]) == 0
    before, after = (af.load(folder).state_dict() for folder in (place / "model", tmp_path / "run/checkpoints/last"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for part in changed for name in moved if name.startswith(part)} == moved
    assert {part for part in changed if any(name.startswith(part) for name in moved)} == changed


def test_the_loss_weights_classes_alike_whatever_their_numbers():
    of_window = np.array([0, 0, 0, 1])
    weights = balanced_weights(of_window, 2)
    loss = BalancedCrossEntropy(of_window, weights)
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    batch = SimpleNamespace(index=torch.tensor([0, 1, EMPTY, 2, 3]))
    value, sums, by_window = loss.part(SimpleNamespace(logits=logits), batch)
    total, factor = loss.loss_and_factor(sums)
    each = cross_entropy(logits[[0, 1, 3, 4]], torch.tensor([0, 0, 0, 1]), reduction="none")
    wanted = (each[:3].mean() + each[3]) / 2
    assert float(total) == pytest.approx(wanted.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
    (right,) = torch.autograd.grad(wanted, logits)
    torch.testing.assert_close(gradient * factor.float(), right)
    assert by_window[2] == 0


def test_an_empty_slot_has_no_class():
    loss = BalancedCrossEntropy(np.array([-1, 0, 1]), np.ones(2))  # window 0 is of a star without a label
    batch = SimpleNamespace(index=torch.tensor([1, EMPTY, 2]))
    value, sums, by_window = loss.part(SimpleNamespace(logits=torch.zeros(3, 2)), batch)
    assert float(value) == pytest.approx(2 * np.log(2))
    assert float(sums[1]) == 2
    assert by_window[1] == 0


@pytest.mark.parametrize(
    ("world", "accident"),
    [
        (None, (kill_at, ("replace", 14))),
        pytest.param(None, (signal_at, ("forward", 8, 0, signal.SIGTERM)), marks=pytest.mark.slow),
        pytest.param(2, (signal_at, ("forward", 4, 1, signal.SIGTERM)), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_killed_goes_on_exactly(world, accident, place, tmp_path):
    whole, stopped = (flags(place, tmp_path / name, checkpoint_every=2) for name in ("whole", "stopped"))
    assert [rank.code for rank in on_ranks(world, finetune, whole, tmp_path=tmp_path)] == [0] * (world or 1)
    ended = on_ranks(world, finetune, stopped, accident, tmp_path=tmp_path)
    assert {rank.code for rank in ended} <= {75, -signal.SIGKILL}, ended[0].err
    assert (tmp_path / "stopped" / "checkpoints" / "last").exists()
    (first, *_) = on_ranks(world, finetune, stopped, tmp_path=tmp_path)
    assert first.code == 0, first.err
    assert "Going on from" in first.out
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_light_curves_that_come_twice_are_used_once(place):
    store = Store.open(place / "store")
    found = classes_of(store, None, None, Columns())
    assert found.copies == 1
    assert found.used.sum() == store.n_curves - 1
    for number in range(len(CLASSES)):  # a tenth of each class to validate, and a tenth to test
        counts = np.bincount(found.parts[found.of_curve == number], minlength=3)
        assert counts[1] == counts[2] == counts.sum() // 10


def test_a_class_of_two_stars_is_refused(place):
    labels = place / "few.csv"
    ids = Store.open(place / "store").ids
    labels.write_text("id,label\n" + "".join(f"{star},{'a' if i < 2 else 'b'}\n" for i, star in enumerate(ids)))
    with pytest.raises(UserError, match=r"class 'a' has 2 star\(s\)"):
        classes_of(Store.open(place / "store"), str(labels), None, Columns())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "absent"], "absent: no such folder"),
        (["--blocks", "3"], "blocks: the encoder has 2, not 3"),
        (["--blocks", "-1"], "blocks must be zero or more"),
        (["--classes", "[EW]"], "two or more different labels"),
        (["--classes", "[EW, X]"], "no light curve of class 'X'; found: EW, LPV, RRab"),
        (["--labels", "labels.csv"], "none of its stars (nobody) has a light curve"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, message, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("id,label\nnobody,EW\n")
    assert main([*flags(place, tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
