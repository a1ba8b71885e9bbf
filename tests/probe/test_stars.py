"""Labels from a table of their own: what does not match is told."""

from pathlib import Path

import pytest

from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError
from astroco_fast.probe.stars import Stars, relabel


def labelled(tmp_path: Path, rows: str, *, curves: str, short: str = "") -> tuple[dict[str, str], str]:
    """The labels of stars with these light curves by a table of these rows, and what was told."""
    (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{row}\n" for row in rows.split()))
    stars = Stars(curves=dict.fromkeys(curves.split(), "digest"), short={*short.split()})
    told = relabel(stars, str(tmp_path / "labels.csv"), Columns())
    return stars.labels, told.removeprefix(f"{tmp_path / 'labels.csv'}: ")


def test_labels_that_match_need_no_word(tmp_path: Path) -> None:
    assert labelled(tmp_path, "a,EW b,EA", curves="a b") == ({"a": "EW", "b": "EA"}, "")
    assert labelled(tmp_path, "a,EW b,EA", curves="a", short="b") == ({"a": "EW"}, "")


def test_labels_and_light_curves_without_the_other_are_counted(tmp_path: Path) -> None:
    labels, told = labelled(tmp_path, "a,EW x,EA y,EA", curves="a b c", short="d")
    assert labels == {"a": "EW"}
    assert told == "2 of 3 stars have no light curve ('x', 'y'); 2 of 3 light curves get no label"


def test_words_for_no_value_are_no_class(tmp_path: Path) -> None:
    labels, told = labelled(tmp_path, "a,EW b,nan c,None d,", curves="a b c d")
    assert labels == {"a": "EW"}
    assert told == "3 of 4 light curves get no label"


def test_zeros_that_a_spreadsheet_dropped_are_shown(tmp_path: Path) -> None:
    labels, told = labelled(tmp_path, "7,EW 12,EA", curves="007 12")
    assert labels == {"12": "EA"}
    assert told == "1 of 2 stars have no light curve ('7'): '7' is not '007'; 1 of 2 light curves get no label"
    with pytest.raises(
        UserError, match=r"none of its stars \(7\) has a light curve: '7' is not '007'; compare the ids"
    ):
        labelled(tmp_path, "7,EW", curves="007")
