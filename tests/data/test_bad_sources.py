"""Sources that cannot be read: each is refused in one line, in bounded memory and time."""

import gzip
import re
import struct

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroco_fast.data import points, sources
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.sources import open_source
from astroco_fast.errors import UserError
from tests.data.curve_factory import (
    as_long,
    as_nested,
    assert_same_curves,
    make_batch,
    read_curves,
    write_nested,
)

fits = pytest.importorskip("astropy.io.fits")


def test_damaged_metadata_of_a_column(batch, tmp_path):
    """Pyarrow 26 ends the process when it is asked for the metadata of a column that does not fit the schema."""
    content = write_nested(batch, tmp_path / "good.parquet").read_bytes()
    optional, required = b"\x25\x02\x18\x07element", b"\x25\x00\x18\x07element"
    assert content.count(optional) == 3
    (tmp_path / "bad.parquet").write_bytes(content.replace(optional, required, 1))
    with pytest.raises(UserError, match=r"bad\.parquet: cannot be read: .*size mismatch"):
        list(read_curves(tmp_path / "bad.parquet"))


def with_card(content, key, value):
    """A FITS file with another value of the last card of a key."""
    at = content.rindex(f"{key:8}=".encode())
    return content[:at] + f"{key:8}= {value:>20}".ljust(80).encode() + content[at + 80 :]


def test_fits_files_that_ask_for_memory_or_time(tmp_path, batch):
    lists = as_nested(batch).to_pandas()
    columns = [fits.Column("id", "20A", array=batch.ids)]
    for name in ("mjd", "mag", "err"):
        columns.append(fits.Column(name, "PD()", array=np.array(list(lists[name]), dtype=object)))
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "good.fits")
    good = (tmp_path / "good.fits").read_bytes()
    rows = good.index(b"star-0")

    def places(*found):
        """The file with other (length, offset) of the first rows' times."""
        content = bytearray(good)
        for row, place in enumerate(found):
            struct.pack_into(">ii", content, rows + 44 * row + 20, *place)
        return bytes(content)

    heap = int(batch.n_points) * 24
    for content, message in (
        (with_card(good, "NAXIS1", -(heap + 4000) // 6), "negative size"),
        (with_card(good, "NAXIS2", -6), "cannot be read"),
        (with_card(good, "PCOUNT", -10_000), "cannot be read"),
        (with_card(good, "TFIELDS", 0), "rows are empty"),
        (places((2**31 - 1, 0)), "'mjd' lie outside"),
        (places((-1, 0)), "'mjd' lie outside"),
        (places((3, -800)), "'mjd' lie outside"),
        (places((3, heap - 16)), "'mjd' lie outside"),
        (places(*[(heap // 8, 0)] * 6), "'mjd' overlap"),
    ):
        (tmp_path / "bad.fits").write_bytes(content)
        with pytest.raises(UserError, match=rf"bad\.fits: .*{message}"):
            list(read_curves(tmp_path / "bad.fits"))


def test_several_labels_without_ids(tmp_path):
    (tmp_path / "a.csv").write_text("mjd,mag,err,label\n1,15,0.1,EW\n2,15,0.1,\n3,15,0.1,RRab\n")
    with pytest.raises(UserError, match=r"a\.csv: no column of ids is known, .*'EW' and 'RRab'.* by --columns\.id"):
        list(read_curves(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("name", "mark"),
    [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.csv", " "), ("a.tsv", ","), ("a.tsv.gz", ";")],
)
def test_columns_with_other_marks_between_them(name, mark, tmp_path):
    text = mark.join(["id", "mjd", "mag", "err"]) + "\n" + mark.join(["a", "1,5", "2,5", "0,1"]) + "\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    with pytest.raises(UserError, match=re.escape(f"{name}: its columns are separated by {mark!r}; write a .csv")):
        open_source(tmp_path / name)


LONG = "id,mjd,mag,err,label\na,1,15,0.1,EW\na,2,15,0.1,EW\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LONG + "a,3,bright,0.1,EW\n", r"a\.csv: column 'mag', row 3: not a number: 'bright'"),
        (LONG + "a,3,15,0.1,RRc\n", r"a\.csv: id 'a' has two labels, 'EW' and 'RRc'"),
        (LONG + "a,3,15\n", r"a\.csv: cannot be read: CSV parse error: .*Expected 5 columns, got 3"),
        (LONG + ",3,15,0.1,EW\n", r"a\.csv: column 'id', row 3: no value"),
        ("", r"a\.csv: the file is empty"),
        ("id,mjd,mag,err,mag\na,1,2,3,4\n", r"a\.csv: has more than one column 'mag'"),
        ("1,2,3\n4,5,6\n", r"a\.csv: no time column; found: 1, 2, 3; tried: mjd, hjd"),
        ("id,mjd,mag\na,1,2\n", r"a\.csv: no error column"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        list(read_curves(tmp_path / "a.csv"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("suffix", ["csv", "tsv.gz"])
@pytest.mark.parametrize(("header", "label"), [("flux(µJy)", "EW"), ("label", "Cephéide")])
def test_text_that_is_not_utf_8(encoding, suffix, header, label, tmp_path):
    text = f"id,mjd,mag,err,{header}\n" + f"a,1,15,0.1,{label}\n" * 3
    path = tmp_path / f"a.{suffix}"
    content = text.replace(",", "\t" if "tsv" in suffix else ",").encode(encoding)
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(UserError, match=r"its text is not UTF-8; convert it, by `iconv"):
        list(read_curves(path))
    content = text.replace(",", "\t" if "tsv" in suffix else ",").encode("utf-8-sig")
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert next(read_curves(path)).label.tolist() == [label if header == "label" else ""]


@pytest.mark.parametrize("star_a_row", [False, True])
def test_a_light_curve_that_is_too_long(star_a_row, tmp_path, monkeypatch):
    for module in ("curves", "points", "rows", "formats.parquet"):
        monkeypatch.setattr(f"astroco_fast.data.{module}.MOST_POINTS", 50)
    monkeypatch.setattr(points, "BUFFER_POINTS", 20)
    monkeypatch.setattr(sources, "_READ_ROWS", 16)
    for lengths, message in (
        ([30, 50, 50, 2], None),
        ([30, 20, 51, 2], r"c\.parquet: the light curve of id 'star-2' has more than 50 points"),
        ([51], r"c\.parquet: (a light curve|the light curve of id 'star-0') has more than 50 points.*--columns\.id"),
    ):
        batch = make_batch(len(lengths), lengths=lengths)
        table = as_nested(batch) if star_a_row else pa.Table.from_pandas(as_long(batch))
        pq.write_table(table, tmp_path / "c.parquet")
        if message is None:
            assert_same_curves(read_curves(tmp_path / "c.parquet"), [batch])
            continue
        with pytest.raises(UserError, match=message):
            list(read_curves(tmp_path / "c.parquet"))


@pytest.mark.parametrize("column", ["id", "label", "band", "mag"])
def test_text_of_tables_that_is_not_utf_8(column, tmp_path):
    raw = "Cephéide".encode("latin-1")
    offsets = np.arange(0, 3 * len(raw), len(raw), dtype=np.int32)
    text = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(2 * raw))  # nothing checks it
    table = pa.table({"id": ["s", "s"], "mjd": [1.0, 2.0], "mag": [1.0, 2.0], "err": [0.1, 0.1], column: text})
    pq.write_table(table, tmp_path / "a.parquet")
    for source in (table, tmp_path / "a.parquet"):
        with pytest.raises(UserError, match=f"column '{column}': its bytes are no UTF-8 text"):
            list(read_curves(source))
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content.replace(b"mjd", b"m\xe9d"))
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read: 'utf-8' codec"):
        list(read_curves(tmp_path / "b.parquet"))


def frame_with(**columns):
    return pd.DataFrame({"id": ["a", "a"], "mjd": [1.0, 2.0], "mag": [1.0, 2.0], "err": [0.1, 0.1]} | columns)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (frame_with(mag=["1", "x"]), r"DataFrame: column 'mag', row 2: not a number: 'x'"),
        (frame_with(mag=[1.0, "x"]), r"DataFrame: column 'mag', row 2: not a number: 'x'"),
        (frame_with(mjd=pd.to_datetime(["2020-01-01", "2020-01-02"])), r"column 'mjd': numbers are needed.*days"),
        (frame_with(mag=[True, False]), r"column 'mag': numbers are needed, but it holds bool"),
        (frame_with(id=["a", None]), r"column 'id', row 2: no value"),
        (frame_with(id=[b"a", b"\xff"]), r"column 'id': its bytes are no UTF-8 text"),
        (frame_with().rename(columns={"err": "mag"}), r"more than one column mag"),
        (frame_with(mjd=[[1.0, 2.0], [1.0]]), r"column 'mjd' holds lists but 'mag' holds single values"),
        (frame_with(band=[["g"], ["r"]]), r"column 'mjd' holds single values but 'band' holds lists"),
        (frame_with(label=[["g"], ["r"]]), r"column 'label': one value a row is needed"),
    ],
)
def test_bad_frames(frame, message):
    with pytest.raises(UserError, match=message):
        list(read_curves(frame))


def test_unneeded_columns_may_hold_anything():
    frame = frame_with(notes=[object(), 1.0])
    assert len(next(read_curves(frame))) == 1


def test_lists_of_unequal_length():
    table = as_nested(make_batch(3, lengths=[10, 11, 12]))
    mags = [values.as_py() for values in table["mag"]]
    mags[1] = mags[1][:-2]
    table = table.set_column(table.schema.get_field_index("mag"), "mag", pa.array(mags))
    with pytest.raises(UserError, match=r"row 2 \(id 'star-1'\) has 11 values in 'mjd' but 9 in 'mag'"):
        list(read_curves(table))


def test_bad_paths(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "bad.fits").write_bytes(b"nonsense")
    (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(b"id,mjd,mag,err\n")[:12])
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    (tmp_path / "sub").mkdir()
    for name, message in (
        ("nowhere.csv", "no such file"),
        ("*.dat", "no file matches"),
        ("a.txt", "unknown kind of file"),
        ("sub", "no table in this folder"),
        ("bad.parquet", "cannot be read"),
        ("bad.fits", "cannot be read"),
        ("bad.csv.gz", "cannot be read"),
        ("image.fits", "no table in this FITS file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            list(read_curves(tmp_path / name))
        assert name in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([np.zeros((5, 2))], r"light curve '0' has shape \(5, 2\)"),
        ([[["a", "b", "c"]]], "not an array of numbers"),
        (5, "cannot be read from a int"),
        (iter([5]), "iterable of int"),
    ],
)
def test_bad_objects(source, message):
    with pytest.raises(UserError, match=message):
        list(read_curves(source))


def test_tables_of_two_kinds(tmp_path):
    batch = make_batch(2)
    write_nested(batch, tmp_path / "a.parquet")
    as_long(batch).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(UserError, match=r"a\.parquet has a light curve a row but .*b\.csv has a point a row"):
        list(read_curves(tmp_path))


def test_batch_refuses_arrays_that_do_not_fit():
    batch = make_batch(2)
    with pytest.raises(UserError, match="number of points"):
        CurveBatch(batch.ids, batch.band, batch.label, batch.offsets, batch.time[:-1], batch.mag, batch.err)
    with pytest.raises(UserError, match="number of curves"):
        CurveBatch(batch.ids[:1], batch.band, batch.label, batch.offsets, batch.time, batch.mag, batch.err)
