"""Splits are stratified, do not overlap, depend on ids alone, and are refused if a star is on two sides."""

from pathlib import Path

import numpy as np
import pytest

from astroco_fast.errors import UserError
from astroco_fast.probe.splits import PARTS, Split, draw, read_splits, write_splits

COUNTS = {"EA": 40, "RRab": 55, "RRc": 43}


def stars(counts: dict[str, int] = COUNTS) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.array(list(counts), dtype=object), list(counts.values()))
    return np.array([f"star-{i}" for i in range(len(labels))], dtype=object), labels


def label_of(ids: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    return dict(zip(ids, labels, strict=True))


def some(sizes: tuple[int, ...] = (5, 20), **changes: object) -> list[Split]:
    return draw(*stars(), sizes, **{"validation": 8, "test": 10, **changes})  # type: ignore[arg-type]


def test_every_part_has_its_stars_of_each_class() -> None:
    classes = label_of(*stars())
    splits = some()
    assert [(split.n, split.fold) for split in splits] == [(n, fold) for n in (5, 20) for fold in range(3)]
    for split in splits:
        wanted = {"train": split.n, "validation": min(split.n, 8), "test": 10}
        for part, ids in split.parts.items():
            counts = np.unique([classes[star] for star in ids], return_counts=True)
            assert counts[0].tolist() == sorted(COUNTS)
            assert counts[1].tolist() == [wanted[part]] * len(COUNTS)
        assert len(split.stars) == sum(map(len, split.parts.values()))


def test_the_order_of_stars_and_other_classes_and_sizes_do_not_matter() -> None:
    ids, labels = stars()
    order = np.random.default_rng(0).permutation(len(ids))
    assert draw(ids[order], labels[order], (5, 20), validation=8, test=10) == some()
    assert some((20,)) == some()[3:]
    kept = labels != "EA"
    classes = label_of(ids, labels)
    for alone, together in zip(draw(ids[kept], labels[kept], (5,), validation=8, test=10), some((5,)), strict=True):
        for part in PARTS:
            assert alone.parts[part] == tuple(star for star in together.parts[part] if classes[star] != "EA")


def test_sizes_share_test_stars_and_the_smaller_is_within_the_larger() -> None:
    small, large = some()[0], some()[3]
    assert small.test == large.test
    assert {*small.train} < {*large.train}
    assert {*small.validation} < {*large.validation}


def test_folds_and_seeds_are_other_draws() -> None:
    tests = [split.test for split in some((5,))] + [split.test for split in some((5,), seed=1)]
    assert len({*tests}) == 6


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_a_star_on_two_sides_is_leakage(one: str, other: str, tmp_path: Path) -> None:
    parts = {part: (f"{part}-1", f"{part}-2") for part in PARTS}
    parts[one] = (*parts[one], parts[other][0])
    with pytest.raises(UserError, match=rf"leakage: n = 7, fold 1: star '{other}-1' in both {one} and {other}"):
        Split(7, 1, **parts)
    rows = [f"7,1,{part},{star}" for part, ids in parts.items() for star in ids]
    path = tmp_path / "splits.csv"
    path.write_text("\n".join(["n,fold,split,id", *rows]))
    with pytest.raises(UserError, match=rf"splits\.csv: leakage: .* in both {one} and {other}"):
        read_splits(path)


def test_too_few_stars_says_which_and_how_many() -> None:
    ids, labels = stars({"EA": 24, "RRab": 38, "RRc": 37})
    with pytest.raises(UserError, match=r"too few stars: EA has 24, RRc has 37; each class needs 38 \(20 to train"):
        draw(ids, labels, (5, 20), validation=8, test=10)


def test_fewer_stars_are_shared_out_when_told_to() -> None:
    ids, labels = stars({"EA": 19, "RRab": 38})
    classes = label_of(ids, labels)
    (split,) = draw(ids, labels, (20,), validation=8, test=10, folds=1, allow_fewer=True)
    counts = {part: [[classes[s] for s in ids].count(c) for c in ("EA", "RRab")] for part, ids in split.parts.items()}
    assert counts == {"train": [10, 20], "validation": [4, 8], "test": [5, 10]}
    ids, labels = stars({"EA": 6, "RRab": 3})
    (split,) = draw(ids, labels, (4,), validation=4, test=100, folds=1, allow_fewer=True)
    assert [len(ids) for ids in split.parts.values()] == [1 + 1, 1 + 1, 4 + 1]
    with pytest.raises(UserError, match=r"EA has 2; each class needs 3 \(one a part\)"):
        draw(*stars({"EA": 2, "RRab": 38}), (20,), validation=8, test=10, allow_fewer=True)


def test_one_class_cannot_be_probed() -> None:
    with pytest.raises(UserError, match="two classes at least"):
        draw(*stars({"EA": 100}), (5,))


def test_files_hold_splits(tmp_path: Path) -> None:
    splits, path = some(), tmp_path / "splits.csv"
    write_splits(path, splits, label_of(*stars()))
    assert path.read_text().splitlines()[0] == "n,fold,split,id,label"
    assert read_splits(path) == splits


def test_a_file_without_sizes_and_with_short_names(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text("id,fold,split\n007,0,train\n8,0,train\n9,0,val\n10,0,test\n")
    assert read_splits(path) == [Split(2, 0, ("007", "8"), ("9",), ("10",))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,split\n1,train\n", "no column 'fold'; found: id, split"),
        ("id,fold,split\n1,0,dev\n", "'dev' is none of train, validation, test"),
        ("id,fold,split\n1,zero,train\n", "column 'fold': whole numbers are needed"),
        ("id,fold,split\n1,0,train\n2,0,val\n", "no star in test"),
        ("id,fold,split\n", "the table is empty"),
        ("id,fold,split\n,0,train\n", "row 1: no value"),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(UserError, match=rf"splits\.csv.*{message}"):
        read_splits(tmp_path / "splits.csv")
