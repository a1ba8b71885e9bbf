"""Sources: light curves from every kind of file, folder and object, and the errors of bad ones."""

import gzip
import struct
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroco_fast.data import points, sources
from astroco_fast.data.clean import clean
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.sources import open_source
from astroco_fast.errors import UserError
from tests.data.curve_factory import (
    as_long,
    as_nested,
    assert_same_curves,
    gather,
    make_batch,
    read_curves,
    write_nested,
)

fits = pytest.importorskip("astropy.io.fits")


@pytest.fixture
def batch():
    return make_batch(6, bands=("V", "I"))


def shuffled(batch, seed=0):
    """The rows in random order, in which each curve's points stay sorted by time."""
    frame = as_long(batch).sample(frac=1, random_state=seed)
    return frame.sort_values("mjd", kind="stable").reset_index(drop=True)


def write_fits(frame, path):
    columns = []
    for name, code in (("id", "20A"), ("band", "5A"), ("label", "10A"), ("mjd", "D"), ("mag", "E"), ("err", "E")):
        columns.append(fits.Column(name=name, format=code, array=frame[name].to_numpy()))
    fits.BinTableHDU.from_columns(columns).writeto(path)


WRITERS = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "parquet": lambda frame, path: frame.to_parquet(path),
    "fits": write_fits,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_long_table_with_rows_in_any_order(batch, tmp_path, kind):
    path = tmp_path / f"curves.{kind}"
    WRITERS[kind](shuffled(batch), path)
    assert_same_curves(read_curves(path), [batch])


@pytest.mark.parametrize("kind", WRITERS)
def test_long_table_through_files_is_the_same(batch, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(points, "BUFFER_POINTS", 20)
    monkeypatch.setattr(points, "PARTITION_POINTS", 30)
    monkeypatch.setattr(sources, "_READ_ROWS", 16)
    path = tmp_path / f"curves.{kind}"
    WRITERS[kind](shuffled(batch), path)
    read = list(read_curves(path))
    assert len(read) > 1
    assert_same_curves(read, [batch])


@pytest.mark.parametrize("group_rows", [1, 4, 1000])
def test_nested_parquet(batch, tmp_path, group_rows):
    path = write_nested(batch, tmp_path / "curves.parquet", row_group_size=group_rows)
    assert_same_curves(read_curves(path), [batch])


@pytest.mark.parametrize("number_is_known", [True, False])
def test_nested_batches_can_be_skipped(number_is_known, tmp_path, monkeypatch):
    monkeypatch.setattr("astroco_fast.data.sources.BATCH_POINTS", 60)
    if not number_is_known:
        monkeypatch.setattr("astroco_fast.data.formats.parquet.ParquetTable.pieces", lambda table, rows: None)
    paths = []
    for i in range(3):
        batch = make_batch(11, first=100 * i)
        paths.append(write_nested(batch, tmp_path / f"{i}.parquet", row_group_size=7))
    every = list(read_curves(paths))
    assert len(every) > 8
    for skip in range(len(every) + 2):
        rest = list(open_source(paths).batches(skip))
        assert [b.ids.tolist() for b in rest] == [b.ids.tolist() for b in every[skip:]]


@pytest.mark.parametrize(
    "table", [as_nested, lambda batch: pa.Table.from_pandas(as_long(batch))], ids=["rows", "points"]
)
def test_many_row_groups_are_read_together(table, batch, tmp_path, monkeypatch):
    pq.write_table(table(batch), tmp_path / "c.parquet", row_group_size=2)
    opened = []
    monkeypatch.setattr(
        "pyarrow.parquet.ParquetFile",
        lambda *given, make=pq.ParquetFile, **more: opened.append(0) or make(*given, **more),
    )
    read = list(read_curves(tmp_path / "c.parquet"))
    assert len(read) == 1
    assert len(opened) == (3 if table is as_nested else 2)  # to find the columns, to count their values, and to read
    assert_same_curves(read, [batch])


def test_damaged_metadata_of_a_column(batch, tmp_path):
    """Pyarrow 26 ends the process when it is asked for the metadata of a column that does not fit the schema."""
    content = write_nested(batch, tmp_path / "good.parquet").read_bytes()
    optional, required = b"\x25\x02\x18\x07element", b"\x25\x00\x18\x07element"
    assert content.count(optional) == 3
    (tmp_path / "bad.parquet").write_bytes(content.replace(optional, required, 1))
    with pytest.raises(UserError, match=r"bad\.parquet: cannot be read: .*size mismatch"):
        list(read_curves(tmp_path / "bad.parquet"))


def test_names_with_points(tmp_path):
    table = as_nested(make_batch(3)).rename_columns(["id", "band", "label", "lc.mjd", "lc.mag", "lc"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert_same_curves(
        read_curves(tmp_path / "a.parquet", Columns(time="lc.mjd", mag="lc.mag", err="lc")), [make_batch(3)]
    )


def test_row_numbers_survive_row_groups(tmp_path):
    batch = make_batch(6)
    table = as_nested(batch)
    lists = [values.as_py() for values in table["mag"]]
    lists[4] = [str(v) for v in lists[4][:-1]] + ["bright"]
    lists = [[str(v) for v in values] for values in lists]
    table = table.set_column(table.schema.get_field_index("mag"), "mag", pa.array(lists))
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=3)
    with pytest.raises(UserError, match=r"c\.parquet: column 'mag', row 5: not a number: 'bright'"):
        list(read_curves(tmp_path / "c.parquet"))


@pytest.mark.parametrize("shape", ["struct of lists", "list of structs"])
def test_nested_columns(batch, tmp_path, shape):
    table = as_nested(batch)
    names = ["mjd", "mag", "err"]
    lists = [table[name].combine_chunks() for name in names]
    if shape == "struct of lists":
        nested = pa.StructArray.from_arrays(lists, names=names)
    else:
        structs = pa.StructArray.from_arrays([values.values for values in lists], names=names)
        nested = pa.ListArray.from_arrays(lists[0].offsets, structs)
    path = tmp_path / "nested.parquet"
    pq.write_table(table.drop_columns(names).append_column("lc", nested), path)
    assert_same_curves(read_curves(path), [batch])
    assert_same_curves(read_curves(path, Columns(time="lc.mjd")), [batch])
    assert_same_curves(read_curves(pq.read_table(path)), [batch])


def test_bands_in_lists_make_several_curves_of_a_star(tmp_path):
    table = pa.table(
        {
            "id": ["a", "b"],
            "band": [["g", "r", "g"], ["r", "r"]],
            "mjd": [[1.0, 2.0, 3.0], [4.0, 5.0]],
            "mag": [[10.0, 11.0, 12.0], [13.0, 14.0]],
            "err": [[0.1] * 3, [0.1] * 2],
        }
    )
    found = gather(read_curves(table))
    assert {key: mag.tolist() for key, (_, _, mag, _) in found.items()} == {
        ("a", "g"): [10, 12],
        ("a", "r"): [11],
        ("b", "r"): [13, 14],
    }
    assert list(gather(read_curves(table, band="g"))) == [("a", "g")]


def test_folder_pattern_and_list(tmp_path):
    parts = [make_batch(3, first=10 * i) for i in range(3)]
    for i, part in enumerate(parts):
        write_nested(part, tmp_path / f"part{i}.parquet")
    (tmp_path / "_metadata").write_text("not a table")
    (tmp_path / ".hidden.csv").write_text("")
    assert_same_curves(read_curves(tmp_path), parts)
    assert_same_curves(read_curves(str(tmp_path / "part[02].parquet")), [parts[0], parts[2]])
    assert_same_curves(read_curves([tmp_path / "part1.parquet", tmp_path / "part0.parquet"]), parts[:2])


@pytest.mark.parametrize("star_a_row", [False, True])
def test_astromer_folder(tmp_path, star_a_row):
    batch = make_batch(9, bands=("",))
    batch.ids = np.array([str(i) for i in range(9)], dtype=object)
    frame = pd.DataFrame({"newID": range(10), "ID": [f"macho{i}" for i in range(10)]})
    frame["Class"] = [*batch.label, "unseen"]
    frame.to_parquet(tmp_path / "metadata.parquet")
    (tmp_path / "light_curves").mkdir()
    for i, part in enumerate((slice(0, 4), slice(4, 9))):
        keep = np.zeros(9, dtype=bool)
        keep[part] = True
        table = as_nested(batch.select(keep)) if star_a_row else pa.Table.from_pandas(shuffled(batch.select(keep)))
        table = table.drop_columns(["band", "label"])
        table = table.set_column(0, "newID", table["id"].cast(pa.int64()))
        names = [{"err": "errmag"}.get(name, name) for name in table.column_names]
        pq.write_table(table.rename_columns(names), tmp_path / "light_curves" / f"shard_{i}.parquet")
    assert_same_curves(read_curves(tmp_path), [batch])


def test_astromer_metadata_with_two_classes_for_one_star(tmp_path):
    write_nested(make_batch(2), tmp_path / "shard.parquet")
    frame = pd.DataFrame({"id": ["star-0", "star-1", "star-0"], "Class": ["EW", "EA", "RRc"]})
    frame.to_parquet(tmp_path / "metadata.parquet")
    with pytest.raises(UserError, match=r"metadata\.parquet: rows 1 and 3 give one id two labels, 'EW' and 'RRc'"):
        list(read_curves(tmp_path))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array([7, 8], np.int64), ["7", "8"]),
        (np.array([7.0, 8.0]), ["7", "8"]),
        (np.array([7.5, 8.0]), ["7.5", "8"]),
        (np.array([2**63 + 1, 5], np.uint64), [str(2**63 + 1), "5"]),
        (pd.Categorical(["b", "a"]), ["b", "a"]),
        (np.array(["007", "008"], dtype=object), ["007", "008"]),
    ],
)
def test_ids_become_text(ids, expected):
    frame = pd.DataFrame({"id": ids, "mjd": [1, 2], "mag": [3, 4], "err": [5, 6]})
    assert [name for batch in read_curves(frame) for name in batch.ids] == expected


def test_text_of_ids_in_csv_is_kept(tmp_path):
    (tmp_path / "a.csv").write_text("id,mjd,mag,err\n007,1,2,3\n")
    assert [b.ids.tolist() for b in read_curves(tmp_path / "a.csv")] == [["007"]]


def test_times_keep_float64_precision(tmp_path):
    (tmp_path / "a.csv").write_text("id,mjd,mag,err\nx,58000.123456789,2,3\n")
    assert next(read_curves(tmp_path / "a.csv")).time.tolist() == [58000.123456789]


def test_missing_and_padded_values_in_csv(tmp_path):
    (tmp_path / "a.csv").write_text("id, mjd ,mag,err\nx, 1.5 ,,0.1\nx,2,nan,NA\n")
    batch = next(read_curves(tmp_path / "a.csv"))
    assert batch.time.tolist() == [1.5, 2]
    assert np.isnan(batch.mag).all()
    np.testing.assert_allclose(batch.err, [0.1, np.nan])


def test_lists_of_arrays(batch):
    arrays = np.split(np.column_stack([batch.time, batch.mag, batch.err]), batch.offsets[1:-1])
    batch.ids = np.array([str(i) for i in range(6)], dtype=object)
    batch.band[:] = batch.label[:] = ""
    assert_same_curves(read_curves(arrays), [batch])
    assert_same_curves(read_curves([array.tolist() for array in arrays]), [batch])
    assert len(next(read_curves(np.zeros((4, 7, 3))))) == 4
    assert next(read_curves(np.zeros((7, 3)))).ids.tolist() == ["0"]


def test_frames(batch):
    assert_same_curves(read_curves(as_long(batch)), [batch])
    assert_same_curves(read_curves(as_nested(batch).to_pandas()), [batch])
    assert_same_curves(read_curves(as_nested(batch).to_pandas().set_index("id")), [batch])


def test_astropy_tables(batch):
    from astropy import units
    from astropy.table import MaskedColumn, Table
    from astropy.time import Time
    from astropy.timeseries import TimeSeries

    table = Table.from_pandas(as_long(batch))
    assert_same_curves(read_curves(table), [batch])

    series = TimeSeries(time=Time([58000.5, 58001.5], format="mjd"))
    series["mag"] = MaskedColumn([15.0, 16.0], mask=[False, True])
    series["err"] = [0.1, 0.2] * units.mag
    series.meta["OBJECT"] = "RR Lyr"
    read = next(read_curves(series))
    assert read.ids.tolist() == ["RR Lyr"]
    assert read.time.tolist() == [58000.5, 58001.5]
    np.testing.assert_allclose(read.mag, [15, np.nan])
    np.testing.assert_allclose(read.err, [0.1, 0.2], rtol=1e-6)


def test_lightkurve_like_objects():
    from astropy import units
    from astropy.time import Time

    flux = np.array([100.0, 0.0, 10.0, -5.0])
    curve = SimpleNamespace(
        time=Time(58000 + np.arange(4.0), format="mjd"),
        flux=flux * units.electron,
        flux_err=np.ones(4) * units.electron,
        meta={"LABEL": "TIC 1"},
    )
    with pytest.raises(UserError, match="zero_point"):
        list(read_curves(curve))
    batch = next(read_curves(curve, Columns(zero_point=20.0)))
    assert batch.ids.tolist() == ["TIC 1"]
    np.testing.assert_allclose(batch.mag, [15, np.inf, 17.5, np.inf])
    np.testing.assert_allclose(batch.err[[0, 2]], [0.010857362, 0.10857362], rtol=1e-6)
    assert clean(batch)[1]["points: flux not positive"] == 2
    other = SimpleNamespace(time=curve.time, flux=curve.flux, flux_err=curve.flux_err)
    read = gather(read_curves([curve, other], Columns(zero_point=20.0)))
    assert [name for name, _ in read] == ["TIC 1", "1"]


def test_fits_with_arrays_in_cells(tmp_path, batch):
    lists = as_nested(batch).to_pandas()
    columns = [fits.Column("id", "20A", array=batch.ids), fits.Column("band", "5A", array=batch.band)]
    columns += [fits.Column("label", "9A", array=batch.label)]
    for name, code in (("mjd", "PD()"), ("mag", "PE()"), ("err", "PE()")):
        columns.append(fits.Column(name, code, array=np.array(list(lists[name]), dtype=object)))
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    assert_same_curves(read_curves(tmp_path / "a.fits"), [batch])


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


def test_band_selects_and_lists_what_there_is(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(points, "BUFFER_POINTS", 20)
    as_long(batch).to_csv(tmp_path / "long.csv", index=False)
    nested = write_nested(batch, tmp_path / "nested.parquet")
    wanted = batch.select(batch.band == "I")
    for source in (tmp_path / "long.csv", nested, as_long(batch), batch, iter([batch])):
        assert_same_curves(read_curves(source, band="I"), [wanted])
    for source in (tmp_path / "long.csv", nested, batch):
        with pytest.raises(UserError, match=r"no light curve in band 'R'; bands found: I, V"):
            list(read_curves(source, band="R"))
    with pytest.raises(UserError, match=r"there is no band column; name it with --columns\.band"):
        list(read_curves(as_long(batch).drop(columns="band"), band="R"))
    with pytest.raises(UserError, match="arrays have no bands"):
        list(read_curves([np.zeros((5, 3))], band="R"))


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


def test_labels_missing_from_some_rows_are_no_conflict(tmp_path):
    (tmp_path / "a.csv").write_text(LONG + "a,3,15,0.1,\nb,1,15,0.1,\n")
    assert next(read_curves(tmp_path / "a.csv")).label.tolist() == ["EW", ""]


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


def test_lists_of_unequal_length(tmp_path):
    table = as_nested(make_batch(3, lengths=[10, 11, 12]))
    mags = [values.as_py() for values in table["mag"]]
    mags[1] = mags[1][:-2]
    table = table.set_column(table.schema.get_field_index("mag"), "mag", pa.array(mags))
    with pytest.raises(UserError, match=r"row 2 \(id 'star-1'\) has 11 values in 'mjd' but 9 in 'mag'"):
        list(read_curves(table))


def test_missing_lists_are_empty_curves():
    table = pa.table({"id": ["a", "b"], "mjd": [None, [1.0]], "mag": [None, [2.0]], "err": [None, [0.1]]})
    assert next(read_curves(table)).lengths.tolist() == [0, 1]


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
