"""Clustering, novelty and purity on planted vectors: 1 for separate classes, chance for shuffled ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from astroco_fast import probe
from astroco_fast.probe import heads, tasks
from astroco_fast.probe.heads import Sample
from astroco_fast.probe.splits import draw
from astroco_fast.probe.tasks import clustering, measure, novelty, purity
from tests.probe.survey import CLASSES, FEW, table, tiny_model
from tests.probe.test_evaluate import CLASSES as PLANTED
from tests.probe.test_evaluate import CONFIG, planted

pytest.importorskip("sklearn")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few starts and trees, where the scores' values do not matter."""
    monkeypatch.setattr(tasks, "STARTS", 2)
    monkeypatch.setattr(tasks, "TREES", 10)
    monkeypatch.setattr(heads, "TREES", 5)


def stars(distance: float, shuffled: bool = False) -> Sample:
    vectors, _, labels = planted(distance)
    vectors = (vectors - vectors.mean(0)) / vectors.std(0)
    classes = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return Sample(vectors, np.random.default_rng(0).permutation(classes) if shuffled else classes)


def test_separate_classes_are_found() -> None:
    sample = stars(distance=12.0)
    assert min(clustering(sample, len(PLANTED), seed=0).values()) > 0.98
    assert min(purity(sample, len(PLANTED))) > 0.98
    assert min(novelty(sample, sample, len(PLANTED), seed=0)) > 0.75


def test_shuffled_classes_are_chance() -> None:
    sample = stars(distance=12.0, shuffled=True)
    found = clustering(sample, len(PLANTED), seed=0)
    assert max(found["ari"], found["nmi"], found["homogeneity"]) < 0.05
    assert np.mean(purity(sample, len(PLANTED))) == pytest.approx(1 / len(PLANTED), abs=0.05)
    assert np.mean(novelty(sample, sample, len(PLANTED), seed=0)) == pytest.approx(0.5, abs=0.08)


def test_purity_by_hand() -> None:
    """Of two neighbours by angle; a star is not its own neighbour."""
    angles = np.radians([0, 10, 21, 90, 103, 60])
    sample = Sample(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), np.array([0, 0, 0, 1, 1, 1]))
    assert purity(sample, 2, neighbours=2) == [1.0, pytest.approx((1 + 1 + 0.5) / 3)]


def test_scores_are_of_the_largest_size_and_repeat(few: None) -> None:
    vectors, ids, labels = planted(distance=3.0)
    splits = draw(ids, labels, (5, 20), validation=20, test=30, folds=2)
    scores = measure(vectors, ids, labels, PLANTED, splits, CONFIG)
    assert len(scores) == 2 * (2 * (3 + len(PLANTED)) + len(PLANTED))
    assert scores == measure(vectors, ids, labels, PLANTED, [split for split in splits if split.n == 20], CONFIG)


def test_tasks_are_in_the_tables(few: None, tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "survey.parquet")
    tiny_model().save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    flags = ["--data", str(tmp_path / "survey.parquet"), "--model", str(tmp_path / "model"), "--out", str(out), *FEW]
    quick = ["--plots", "false", "--probes", "[linear]", "--against", "[statistics]"]
    assert probe.main([*flags, *quick, "--tasks", "true"]) == 0
    rows = list(csv.DictReader((out / "tasks.csv").open()))
    assert {row["vectors"] for row in rows} == {"model", "statistics"}
    assert {row["class"] for row in rows if row["figure"] == "auroc"} == {*CLASSES, ""}
    entry = next(
        entry
        for entry in json.loads((out / "results.json").read_text())["tasks"]
        if (entry["vectors"], entry["figure"], entry["class"]) == ("model", "auroc", "")
    )
    values = [
        float(row["value"]) for row in rows if (row["vectors"], row["figure"]) == ("model", "auroc") and row["class"]
    ]
    assert entry["value"]["mean"] == pytest.approx(np.mean(values))
    text = (out / "results.md").read_text()
    assert "| vectors | k-means: ARI | NMI |" in text
    assert "purity 0.333" in text
    assert probe.main([*flags, *quick]) == 0
    assert not (out / "tasks.csv").exists()
