"""Light curves that are equal, point by point, under two ids: they must not lie in two parts of a fold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from astroco_fast import probe
from astroco_fast.data.curves import CurveBatch
from astroco_fast.probe.splits import read_splits
from tests.probe.survey import FEW, POINTS, survey, table, tiny_model

COPIES = {"star-40": "star-1", "star-41": "star-38", "star-3": "star-0"}


def with_copies() -> CurveBatch:
    """The small survey, in which some stars have another star's points; each pair is of one class."""
    batch = survey()
    place = {star: slice(i * POINTS, (i + 1) * POINTS) for i, star in enumerate(batch.ids)}
    for copy, original in COPIES.items():
        for values in (batch.time, batch.mag, batch.err):
            values[place[copy]] = values[place[original]]
    return batch


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pq.write_table(table(with_copies()), tmp_path / "survey.parquet")
    return tmp_path / "survey.parquet"


def run(data: Path, out: Path, *flags: str) -> int:
    tiny_model().save_pretrained(out.parent / "model")
    model = str(out.parent / "model")
    quick = ("--probes", "[linear]", "--plots", "false")
    return probe.main(["--data", str(data), "--model", model, "--out", str(out), *FEW, *quick, *flags])


def test_copies_are_left_out_of_drawn_splits_and_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--sizes", "[4]") == 0
    printed = capsys.readouterr().out
    used = set().union(*(split.stars for split in read_splits(out / "splits.csv")))
    # Of each pair, the id that sorts first is kept: "star-38" before "star-41", "star-0" before "star-3".
    assert not used & {"star-3", "star-40", "star-41"}
    assert "3 stars left out, whose light curves equal another star's point by point" in printed
    embedded = pq.read_table(out / "embeddings.parquet")["id"].to_pylist()
    assert {*embedded} == used
    assert f"{len(used)} stars, {len(used)} of them embedded now" in printed
    assert json.loads((out / "results.json").read_text())["copies"] == ["star-3", "star-40", "star-41"]
    assert "3 stars left out" in (out / "results.md").read_text()


def test_no_message_about_copies_without_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(table(), tmp_path / "survey.parquet")
    assert run(tmp_path / "survey.parquet", tmp_path / "out") == 0
    assert "left out" not in capsys.readouterr().out
    assert "left out" not in (tmp_path / "out" / "results.md").read_text()


def test_given_splits_keep_the_copy_that_is_tested(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One pair lies in train and test, one in train and validation, one in test alone."""
    parts = {
        "train": ["star-1", "star-38", "star-6", "star-4", "star-2"],
        "validation": ["star-41", "star-9", "star-7"],
        "test": ["star-40", "star-0", "star-3", "star-5"],
    }
    lines = [f"{star},0,{part}" for part, stars in parts.items() for star in stars]
    (tmp_path / "given.csv").write_text("\n".join(["id,fold,split", *lines]))
    splits = ("--splits", str(tmp_path / "given.csv"), "--sizes", "[5]")
    assert run(data, tmp_path / "out", *splits) == 0
    (split,) = read_splits(tmp_path / "out" / "splits.csv")
    assert split.train == ("star-2", "star-4", "star-6")
    assert split.validation == ("star-41", "star-7", "star-9")
    assert split.test == ("star-0", "star-40", "star-5")
    assert "3 stars left out" in capsys.readouterr().out
    counts = json.loads((tmp_path / "out" / "results.json").read_text())["stars"][0]["train"]
    assert np.sum(list(counts.values())) == 3
