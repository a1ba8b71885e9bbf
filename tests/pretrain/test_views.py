"""Pretraining on folded views: the periods are found once, and the model says what it was trained on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import astroco_fast as af
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData
from astroco_fast.errors import UserError
from astroco_fast.pretrain import main, run_folder
from tests.pretrain.patches import command
from tests.pretrain.processes import on_ranks


@pytest.fixture
def own(store, tmp_path):
    """A copy of the store, to which periods may be added."""
    return Path(shutil.copytree(store, tmp_path / "own"))


@pytest.fixture
def arguments(arguments, store, own):
    return [str(own) if text == str(store) else text for text in arguments]


def settings(arguments, tmp_path, views="folded", name="run"):
    return [*arguments, "--views", views, "--train.max_steps", "3", "--out", str(tmp_path / name)]


def test_a_store_gets_its_periods_once_and_the_model_knows_its_views(arguments, own, tmp_path, monkeypatch, capsys):
    digest = Store.open(own).digest
    assert main(settings(arguments, tmp_path)) == 0
    assert "searching the periods" in "".join(capsys.readouterr())
    assert Store.open(own).periods.found.any()
    assert Store.open(own).digest == digest
    assert af.load(tmp_path / "run" / "checkpoints" / "best").views == "folded"
    monkeypatch.setattr(run_folder, "find_periods", None)
    assert main(settings(arguments, tmp_path, "both", "again")) == 0
    assert af.load(tmp_path / "again" / "checkpoints" / "best").views == "both"


def test_ranks_see_the_same_folded_windows(arguments, own, tmp_path):
    for world in (None, 2):
        for rank in on_ranks(world, command, settings(arguments, tmp_path, name=f"run-{world}"), tmp_path=tmp_path):
            assert rank.code == 0, rank.err
    lines = [
        [json.loads(line) for line in (tmp_path / f"run-{world}" / "metrics.jsonl").read_text().splitlines()]
        for world in (None, 2)
    ]
    assert [line["loss"] for line in lines[0] if line["split"] == "train"] == pytest.approx(
        [line["loss"] for line in lines[1] if line["split"] == "train"], rel=1e-2
    )


def test_folded_views_need_periods(own):
    with pytest.raises(UserError, match=r"has no periods; the folded view needs them: astroco periods"):
        TrainingData(Store.open(own), size=24, seed=0, global_batch=4, micro_batch=None, views="folded")


def test_every_view_has_the_same_split(arguments, own, tmp_path):
    assert main(settings(arguments, tmp_path)) == 0
    whole = Store.open(own)
    data = {
        views: TrainingData(whole, size=24, seed=0, global_batch=4, micro_batch=None, views=views)
        for views in ("time", "folded", "both")
    }
    stars = [np.unique(views.table.curve[views.train]).tolist() for views in data.values()]
    assert stars[0] == stars[1] == stars[2]
    assert len(data["both"].train) > len(data["folded"].train)
