"""Tables with a row a point, or a row a light curve, in files: whatever their order, pieces and nesting."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroco_fast.data import points, sources
from astroco_fast.data.columns import Columns
from astroco_fast.data.sources import open_source
from astroco_fast.errors import UserError
from tests.data.curve_factory import (
    as_long,
    as_nested,
    assert_same_curves,
    gather,
    make_batch,
    read_curves,
    shuffled,
    write_nested,
)

fits = pytest.importorskip("astropy.io.fits")


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


def test_names_with_points(tmp_path):
    table = as_nested(make_batch(3)).rename_columns(["id", "band", "label", "lc.mjd", "lc.mag", "lc"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert_same_curves(
        read_curves(tmp_path / "a.parquet", Columns(time="lc.mjd", mag="lc.mag", err="lc")), [make_batch(3)]
    )


def test_bands_in_lists_make_several_curves_of_a_star():
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


def test_missing_lists_are_empty_curves():
    table = pa.table({"id": ["a", "b"], "mjd": [None, [1.0]], "mag": [None, [2.0]], "err": [None, [0.1]]})
    assert next(read_curves(table)).lengths.tolist() == [0, 1]


def test_times_keep_float64_precision(tmp_path):
    (tmp_path / "a.csv").write_text("id,mjd,mag,err\nx,58000.123456789,2,3\n")
    assert next(read_curves(tmp_path / "a.csv")).time.tolist() == [58000.123456789]


def test_missing_and_padded_values_in_csv(tmp_path):
    (tmp_path / "a.csv").write_text("id, mjd ,mag,err\nx, 1.5 ,,0.1\nx,2,nan,NA\n")
    batch = next(read_curves(tmp_path / "a.csv"))
    assert batch.time.tolist() == [1.5, 2]
    assert np.isnan(batch.mag).all()
    np.testing.assert_allclose(batch.err, [0.1, np.nan])


def test_labels_missing_from_some_rows_are_no_conflict(tmp_path):
    (tmp_path / "a.csv").write_text("id,mjd,mag,err,label\na,1,15,0.1,EW\na,3,15,0.1,\nb,1,15,0.1,\n")
    assert next(read_curves(tmp_path / "a.csv")).label.tolist() == ["EW", ""]


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
