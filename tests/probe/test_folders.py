"""Folders of given splits, as Astromer's are, with tables or TFRecord files."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from astroco_fast import probe
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.errors import UserError
from astroco_fast.probe.stars import open_portions, read_stars
from tests.data.curve_factory import as_long, as_nested
from tests.data.tfrecords import new_style, write_records
from tests.probe.survey import CLASSES, survey, tiny_model

PARTS = {"train": slice(0, 12), "val": slice(12, 24), "test": slice(24, 36)}


def portion(part: slice) -> CurveBatch:
    batch = survey()
    chosen = np.zeros(len(batch), dtype=bool)
    chosen[part] = True
    return batch.select(chosen)


def as_tables(root: Path, batch: CurveBatch, folder: str) -> None:
    (root / folder).mkdir(parents=True)
    pq.write_table(as_nested(batch), root / folder / "part.parquet")


def tree(root: Path, sizes: tuple[int, ...] = (4,), folds: int = 2) -> Path:
    for n in sizes:
        for fold in range(folds):
            for name, part in PARTS.items():
                as_tables(root, portion(part), f"fold_{fold}/alcock_{n}/{name}")
    return root


def found(root: Path) -> list[tuple[int, int, str]]:
    return [p.place for p in open_portions(str(root), Columns(), None) if p.place]


def test_folders_of_splits_are_read_as_they_are(tmp_path: Path) -> None:
    root = tree(tmp_path / "alcock", sizes=(4, 20))
    assert found(root) == [
        (n, fold, part) for fold in (0, 1) for n in (20, 4) for part in ("test", "train", "validation")
    ]
    splits = read_stars(open_portions(str(root), Columns(), None), 1).splits()
    assert [(split.n, split.fold) for split in splits] == [(4, 0), (4, 1), (20, 0), (20, 1)]
    assert splits[0].train == tuple(sorted(survey().ids[:12]))
    assert splits[0].validation == tuple(sorted(survey().ids[12:24]))
    assert splits[0].test == tuple(sorted(survey().ids[24:36]))


def test_the_other_order_of_folders_is_read_too(tmp_path: Path) -> None:
    as_tables(tmp_path, portion(PARTS["train"]), "alcock/20/fold_3/train")
    as_tables(tmp_path, portion(PARTS["test"]), "alcock/20/fold_3/test")
    as_tables(tmp_path, portion(PARTS["test"]), "alcock/all/fold_3/test")  # a folder without a size is not used
    assert found(tmp_path) == [(20, 3, "test"), (20, 3, "train")]


def test_folder_of_tables_has_no_splits(tmp_path: Path) -> None:
    as_tables(tmp_path, survey(), "train")
    (one,) = open_portions(str(tmp_path), Columns(), None)
    assert one.place is None


def test_probe_command_reads_folders_of_splits(tmp_path: Path) -> None:
    root = tree(tmp_path / "alcock")
    tiny_model().save_pretrained(tmp_path / "model")
    flags = ["--data", str(root), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert probe.main([*flags, "--plots", "false", "--head.epochs", "5"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["classes"] == list(CLASSES)
    assert [(entry["probe"], entry["n"], len(entry["runs"])) for entry in results["results"]] == [
        ("linear", 4, 6),
        ("logistic", 4, 2),
        ("knn", 4, 2),
    ]
    assert len(pq.read_table(tmp_path / "out" / "embeddings.parquet")) == 36  # each star once, in both folds


def test_leakage_in_folders_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "alcock")
    as_tables(root, portion(slice(5, 6)), "fold_1/alcock_4/test/more")
    with pytest.raises(UserError, match="leakage: n = 4, fold 1: star 'star-5' in both train and test"):
        read_stars(open_portions(str(root), Columns(), None), 1).splits()


def test_a_star_has_one_light_curve_in_all_folds(tmp_path: Path) -> None:
    root = tree(tmp_path / "alcock")
    other = portion(slice(5, 6))
    other.mag[0] += 1
    as_tables(root, other, "fold_2/alcock_4/train")
    with pytest.raises(UserError, match="star 'star-5' has two light curves, with other points"):
        read_stars(open_portions(str(root), Columns(), None), 1)


def test_the_command_takes_records(tmp_path: Path) -> None:
    for name, part in PARTS.items():
        batch = portion(part)
        path = tmp_path / "alcock" / "fold_0" / "alcock_4" / name / "0.record"
        write_records(path, [new_style(batch, i) for i in range(len(batch))])
    tiny_model().save_pretrained(tmp_path / "model")
    flags = ["--data", str(tmp_path / "alcock"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert probe.main([*flags, "--plots", "false", "--probes", "[linear]", "--head.epochs", "5"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["classes"] == list(CLASSES)


def test_tables_in_the_long_form_are_read_too(tmp_path: Path) -> None:
    for name, part in PARTS.items():
        folder = tmp_path / "fold_0" / "alcock_4" / name
        folder.mkdir(parents=True)
        as_long(portion(part)).to_csv(folder / "points.csv", index=False)
    (split,) = read_stars(open_portions(str(tmp_path), Columns(), None), 1).splits()
    assert len(split.train) == len(split.test) == 12
