"""Ids, bands and labels have one form of text, in tables of every kind, or are refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroco_fast.data.metadata import read_text_table
from astroco_fast.data.sources import open_source
from astroco_fast.data.words import Place, to_text
from astroco_fast.errors import UserError
from tests.data.curve_factory import make_batch, read_curves

fits = pytest.importorskip("astropy.io.fits")

POINTS = {"mjd": [1.0, 2.0], "mag": [15.0, 16.0], "err": [0.1, 0.1]}


def words(values, **options):
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return to_text(array, Place("a.csv", "id"), **options).to_pylist()


def refused(values):
    with pytest.raises(UserError) as error:
        words(values, required=True)
    return str(error.value)


def test_text_without_blanks_stays_as_it_is():
    ids = ["007", "7", "1e5", "12e99", "1.5", "NA", "0x1F", "a b", "Nancy", "4703128837201837443", "1.0", "\u03b1 Cen"]
    assert words(ids, required=True) == ids
    assert words([7, 2**63 - 1]) == ["7", str(2**63 - 1)]
    assert words(pa.array([2**63 + 1], pa.uint64())) == [str(2**63 + 1)]
    assert words([7.0, 7.5, None, float("nan")]) == ["7", "7.5", "", ""]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())])
def test_blanks_around_words_are_dropped(kind):
    assert words(pa.array(["V   ", " V", "V", "\tr\n", None], pa.string()).cast(kind)) == ["V", "V", "V", "r", ""]


def test_quotes_after_blanks_are_dropped():
    assert words([' "RRab"', 'x "y"', '"z"']) == ["RRab", 'x "y"', '"z"']


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "<NA>", "null", "NULL", "", "  ", "--", "-", "N/A", " nan "])
def test_words_for_no_value(word):
    assert words(["a", word]) == ["a", ""]
    assert "a.csv: column 'id', row 2: no value" in refused(["a", word])
    assert words(["a", word], any_word=True) == ["a", word.strip()]


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2**53], np.float64),
        np.array([1, -(2.0**60)], np.float64),
        np.array([1, 2**24], np.float32),
        np.array([1, 2**11], np.float16),
        ["1", "4.703128837201837e+18"],
        ["1", "1.0000000000000002e+16"],
        ["1", "4.82103E+14"],
        ["1", "4703128837201837056.0"],
    ],
)
def test_rounded_numbers_are_no_ids(values):
    assert "a.csv: column 'id', row 2: " in refused(values)
    assert "rounded" in refused(values)
    assert len(words(values)) == 2  # what is no id may be any number


@pytest.mark.parametrize(
    "values",
    [np.array([2**53 - 1], np.float64), np.array([2**24 - 1], np.float32), ["1e+05"], ["1.2345e+04"], ["123.0"]],
)
def test_numbers_that_are_whole_are_ids(values):
    assert len(words(values, required=True)) == 1


def test_other_arrow_types():
    assert words(pa.RunEndEncodedArray.from_arrays([2, 3], ["a ", "b"])) == ["a", "a", "b"]
    assert words(pa.array(["a "], pa.string_view())) == ["a"]
    for kind, value in ((pa.month_day_nano_interval(), (1, 2, 3)), (pa.list_(pa.string()), ["a"])):
        assert str(kind) in refused(pa.array([value], kind))


def test_bytes_that_are_no_text():
    unchecked = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    assert "no UTF-8 text" in refused(unchecked)


def write_padded_fits(frame, path):
    """Text filled up with blanks, as cfitsio writes it, which astropy does not drop in reading."""
    columns = [fits.Column(name, "D", array=frame[name]) for name in POINTS]
    columns += [fits.Column(name, "12A", array=frame[name].str.ljust(12, "~")) for name in ("id", "band", "label")]
    fits.BinTableHDU.from_columns(columns).writeto(path)
    path.write_bytes(path.read_bytes().replace(b"~", b" "))


WRITERS = {
    "a.csv": lambda frame, path: path.write_text(frame.to_csv(index=False).replace(",", ", ")),
    "a.tsv": lambda frame, path: frame.to_csv(path, sep="\t", index=False),
    "a.parquet": lambda frame, path: frame.to_parquet(path),
    "a.fits": write_padded_fits,
}


@pytest.mark.parametrize("name", WRITERS)
def test_padded_text_in_files(name, tmp_path):
    frame = pd.DataFrame({"id": "star-1 ", "band": "V ", "label": " RRab", **POINTS})
    WRITERS[name](frame, tmp_path / name)
    for band in (None, "V", "V "):
        (batch,) = read_curves(tmp_path / name, band=band)
        assert (batch.ids.tolist(), batch.band.tolist(), batch.label.tolist()) == (["star-1"], ["V"], ["RRab"])


@pytest.mark.parametrize("name", WRITERS)
def test_words_for_no_value_in_files(name, tmp_path):
    frame = pd.DataFrame({"id": "a", "band": "V", "label": ["nan", "None"], **POINTS})
    WRITERS[name](frame, tmp_path / name)
    assert next(read_curves(tmp_path / name)).label.tolist() == [""]
    (tmp_path / name).unlink()
    WRITERS[name](frame.assign(id=["a", "nan"]), tmp_path / name)
    with pytest.raises(UserError, match=r"column 'id', row 2: no value \('nan'\)"):
        list(read_curves(tmp_path / name))


def test_missing_cells_of_a_column_of_mixed_types_stay_missing():
    frame = pd.DataFrame({"id": ["a", 7], "band": [1, None], "label": ["EW", 3], **POINTS})
    frame.loc[1, "label"] = pd.NA
    (batch,) = read_curves(frame)
    assert list(zip(batch.ids, batch.band, batch.label, strict=True)) == [("a", "1", "EW"), ("7", "", "")]


def test_a_star_is_not_called_nan():
    from astropy.table import Table

    read = [next(read_curves([Table(POINTS, meta={"OBJECT": name})])).ids[0] for name in ("M 67 ", "nan", " ", None)]
    assert read == ["M 67", "0", "0", "0"]


def test_tables_about_stars(tmp_path):
    frame = pd.DataFrame({"id": ["a ", "b", "c"], "label": [" EW", "nan", None]})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    table = read_text_table(tmp_path / "labels.csv", {"id": None, "label": None})
    assert table["id"].tolist() == ["a", "b", "c"]
    assert table["label"].tolist() == ["EW", "", ""]
    folder = tmp_path / "survey"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["a ", "a "], **POINTS}), folder / "part.parquet")
    frame.to_parquet(folder / "metadata.parquet")
    assert next(open_source(folder).batches()).label.tolist() == ["EW"]


def test_batches_from_outside():
    batch = make_batch(3)
    batch.ids[:] = ["a ", "b", "c"]
    batch.band[:] = ["V ", "nan", ""]
    batch.label[:] = [" EW", "nan", "RRc"]
    (read,) = read_curves(iter([batch]))
    assert (read.ids.tolist(), read.band.tolist(), read.label.tolist()) == (
        ["a", "b", "c"],
        ["V", "nan", ""],
        ["EW", "", "RRc"],
    )
    batch.ids[1] = "None"
    with pytest.raises(UserError, match=r"test: column 'ids', row 2: no value \('None'\)"):
        list(read_curves([batch]))
    for odd in (None, 7, b"a", np.nan):
        with pytest.raises(UserError, match=r"test: id 2 is .*; it must be text"):
            replace(batch, ids=np.array(["a", odd, "c"], dtype=object))
        with pytest.raises(UserError, match=r"test: label 1 is .*; it must be text"):
            replace(batch, label=np.array([odd, "b", "c"], dtype=object))
