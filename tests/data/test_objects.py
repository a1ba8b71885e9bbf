"""Objects of other libraries: every kind holds the same light curves as a table in memory, and is read in pieces."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from astroco_fast.data.clean import clean
from astroco_fast.data.columns import Columns
from astroco_fast.data.sources import open_source
from astroco_fast.data.streams import recut
from astroco_fast.errors import UserError
from tests.data.curve_factory import as_long, as_nested, assert_same_curves, make_batch, read_curves

ROLES = ["mjd", "mag", "err"]


def arrays(batch):
    return np.split(np.column_stack([batch.time, batch.mag, batch.err]), batch.offsets[1:-1])


def plain(batch, ids=None):
    """The batch without bands and labels, and with other ids."""
    batch.band[:] = batch.label[:] = ""
    batch.ids[:] = [str(i) for i in range(len(batch))] if ids is None else ids
    return batch


def scanner(table):
    return ds.dataset(table).scanner()


class Rereadable:
    """What hands out a stream of Arrow anew each time."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


ARROW = {
    "table": lambda table: table,
    "record batch": lambda table: table.combine_chunks().to_batches()[0],
    "struct array": lambda table: table.combine_chunks().to_batches()[0].to_struct_array(),
    "reader": lambda table: table.to_reader(7),
    "generator of batches": lambda table: iter(table.to_batches(7)),
    "list of frames": lambda table: [part for _, part in table.to_pandas().groupby("id")],
    "views": lambda table: table.set_column(0, "id", table["id"].cast(pa.string_view())),
    "data set": ds.dataset,
    "scanner": scanner,
    "stream": Rereadable,
    "pandas": lambda table: table.to_pandas(),
}


@pytest.mark.parametrize("form", ["points", "rows"])
@pytest.mark.parametrize("kind", ARROW)
def test_arrow_of_every_kind(kind, form, batch):
    table = as_nested(batch) if form == "rows" else pa.Table.from_pandas(as_long(batch))
    assert_same_curves(read_curves(ARROW[kind](table)), [batch])
    assert_same_curves(read_curves(ARROW[kind](table), band="I"), [batch.select(batch.band == "I")])
    empty = ARROW[kind](table.slice(0, 0)) if kind not in ("record batch", "struct array") else None
    assert empty is None or sum(map(len, read_curves(empty))) == 0


@pytest.mark.filterwarnings("ignore:Arrow output on a DB-API result")
@pytest.mark.parametrize("form", ["points", "rows"])
@pytest.mark.parametrize("kind", ["polars", "polars, lazy", "duckdb", "duckdb, executed"])
def test_other_engines(kind, form, batch):
    table = as_nested(batch) if form == "rows" else pa.Table.from_pandas(as_long(batch))
    engine = pytest.importorskip(kind[:6])

    def make(table):
        if engine.__name__ == "polars":
            frame = engine.from_arrow(table)
            return frame.lazy() if "lazy" in kind else frame
        connection = engine.connect()
        connection.register("curves", table)
        query = "select * from curves"
        return connection.execute(query) if "executed" in kind else connection.sql(query)

    assert_same_curves(read_curves(make(table)), [batch])
    assert_same_curves(read_curves(make(table), band="I"), [batch.select(batch.band == "I")])
    assert sum(map(len, read_curves(make(table.slice(0, 0))))) == 0


def test_lazy_polars_that_fails():
    polars = pytest.importorskip("polars")
    frame = polars.LazyFrame({"id": ["a"], "mjd": [1.0], "mag": [2.0], "err": ["x"]})
    with pytest.raises(UserError, match=r"LazyFrame: cannot be read: .*conversion"):
        list(read_curves(frame.with_columns(polars.col("err").cast(polars.Float64))))


def test_a_reader_is_read_once(batch):
    source = open_source(pa.Table.from_pandas(as_long(batch)).to_reader())
    list(source.batches())
    with pytest.raises(UserError, match="RecordBatchReader: can be read only once"):
        list(source.batches())


def test_a_stream_that_says_late_that_it_is_simulated(batch):
    frame = as_long(batch).assign(survey="simulated")
    (read,) = read_curves(pa.Table.from_pandas(frame).to_reader(9))
    assert read.simulated
    frame.loc[: len(frame) // 2, "survey"] = "V1"
    with pytest.raises(UserError, match="simulated light curves follow others"):
        list(read_curves(pa.Table.from_pandas(frame).to_reader(9)))
    (read,) = read_curves(Rereadable(pa.Table.from_pandas(frame)))
    assert read.simulated


def test_pieces_do_not_depend_on_how_rows_come():
    table = pa.table({"x": pa.array(range(100)), "y": [[i] * (i % 3) for i in range(100)]})
    wanted = [table.slice(first, 7).to_pylist() for first in range(0, 100, 7)]
    for size in (1, 3, 7, 10, 200):
        assert [batch.to_pylist() for batch in recut(table.to_batches(size), 7)] == wanted
    mixed = [pa.record_batch({"x": [1, 2]}), pa.record_batch({"x": [1.5]})]
    assert [batch.to_pylist() for batch in recut(mixed, 9)] == [[{"x": 1.0}, {"x": 2.0}, {"x": 1.5}]]


@pytest.mark.parametrize("form", ["points", "rows"])
def test_streams_are_read_in_bounded_memory(form):
    """Arrow never holds more than some pieces of a stream of 60 MB."""
    n = 250
    batch = make_batch(n, lengths=[400] * n)
    table = as_nested(batch) if form == "rows" else pa.Table.from_pandas(as_long(batch))

    def pieces():
        for part in range(25):
            ids = pc.binary_join_element_wise(table["id"].cast(pa.string()), str(part), "/")
            yield from table.set_column(0, "id", ids.cast(table.schema.field("id").type)).to_batches()

    source = open_source(pa.RecordBatchReader.from_batches(table.schema, pieces()))
    before, most, curves = pa.total_allocated_bytes(), 0, 0
    for read in source.batches():
        curves += len(read)
        most = max(most, pa.total_allocated_bytes() - before)
        del read
    assert curves == 25 * n
    assert most < 60e6


def test_arrays_by_generator_and_dict(batch):
    curves = arrays(batch)
    batch = plain(batch)
    source = open_source(iter(curves))
    assert_same_curves(source.batches(), [batch])
    assert len(source) == 6
    assert_same_curves(read_curves(array.tolist() for array in curves), [batch])
    names = [f"s{i}" for i in range(6)]
    assert_same_curves(read_curves(dict(zip(names, curves, strict=True))), [plain(batch, names)])
    numbers = dict(enumerate(curves))
    assert [name for read in read_curves(numbers) for name in read.ids] == ["0", "1", "2", "3", "4", "5"]


def test_arrays_from_a_generator_are_read_some_at_a_time():
    made = []

    def curves():
        for i in range(3000):
            made.append(i)
            yield np.ones((300, 3))

    batches = open_source(curves()).batches()
    next(batches)
    assert len(made) < 2000


def frame_of(array):
    return pd.DataFrame(array, columns=ROLES)


def table_of(array):
    return pa.table(dict(zip(ROLES, array.T, strict=True)))


@pytest.mark.parametrize("make", [frame_of, table_of])
def test_tables_of_one_star(make, batch):
    curves = [make(array) for array in arrays(batch)]
    batch = plain(batch)
    for given in (curves, tuple(curves), iter(curves)):
        assert_same_curves(read_curves(given), [batch])
    assert_same_curves(read_curves(curves[0]), [batch.select(np.arange(6) == 0)])
    names = [f"s{i}" for i in range(6)]
    assert_same_curves(read_curves(dict(zip(names, curves, strict=True))), [plain(batch, names)])
    assert next(read_curves(curves[0], Columns(star="V* X"))).ids.tolist() == ["V* X"]


def records(table):
    return table.to_pandas().to_records(index=False)


def masked_records(table):
    masked = np.ma.array(records(table))
    masked["mag"][3] = np.ma.masked
    return masked


def hdu(table):
    from astropy.io import fits

    return fits.BinTableHDU(records(table).astype([("id", "S8"), *((role, "f8") for role in ROLES), ("band", "S2")]))


def hdu_list(table):
    from astropy.io import fits

    return fits.HDUList([fits.PrimaryHDU(), hdu(table)])


@pytest.mark.parametrize(
    "make", [records, hdu, hdu_list, lambda table: hdu(table).data], ids=["numpy", "HDU", "HDU list", "FITS records"]
)
def test_records(make, batch):
    """Arrays whose elements have named fields are tables, such as those that astropy reads from FITS files."""
    table = pa.Table.from_pandas(as_long(batch)).select(["id", *ROLES, "band"])
    batch.label[:] = ""
    assert_same_curves(read_curves(make(table)), [batch])
    parts = [make(table.slice(start, 7)) for start in range(0, len(table), 7)]
    assert_same_curves(read_curves(iter(parts)), [batch])


def test_masked_records(batch):
    table = pa.Table.from_pandas(as_long(batch)).select(["id", *ROLES, "band"])
    (found,) = read_curves(masked_records(table))
    assert np.isnan(found.mag).sum() == 1
    with pytest.raises(UserError, match=r"recarray: has 2 dimensions, but a table has one; give it \.ravel\(\)"):
        open_source(records(table)[:4].reshape(2, 2))


def test_headers_of_fits_objects():
    from astropy.io import fits

    null = fits.Column("mag", "J", null=-9, array=[15, -9, 16])
    table = fits.BinTableHDU.from_columns(
        [fits.Column("mjd", "D", unit="h", array=[24.0, 48.0, 72.0]), null, fits.Column("err", "D", array=[0.1] * 3)]
    )
    table.header["OBJECT"] = "V* X"
    source = open_source(table)
    (found,) = source.batches()
    assert found.ids.tolist() == ["V* X"]
    assert found.time.tolist() == [1.0, 2.0, 3.0]
    assert found.mag[[0, 2]].tolist() == [15.0, 16.0]
    assert np.isnan(found.mag[1])
    assert "'mjd' is in 'h' and was converted" in "".join(source.notes)
    assert "only the first of its 2 tables" in "".join(
        open_source(fits.HDUList([fits.PrimaryHDU(), table, table])).notes
    )
    with pytest.raises(UserError, match="HDUList: there is no table in it"):
        open_source(fits.HDUList([fits.PrimaryHDU()]))


@pytest.mark.parametrize("make", [np.asarray, frame_of, table_of])
@pytest.mark.parametrize("give", [iter, list, tuple])
def test_pairs_of_name_and_curve(give, make, batch):
    names = [f"s{i}" for i in range(6)]
    pairs = list(zip(names, map(make, arrays(batch)), strict=True))
    assert_same_curves(read_curves(give(pairs)), [plain(batch, names)])
    with pytest.raises(UserError, match="item 2 is no pair of an id and a light curve, but the first is"):
        list(read_curves(give([pairs[0], pairs[1][1]])))


def test_tuples_of_points_are_no_pairs():
    """A light curve of two points whose numbers are whole is not taken for a group's key and its light curve."""
    (found,) = read_curves([((1, 15, 1), (2, 16, 1))])
    assert found.time.tolist() == [1.0, 2.0]


def test_groups_of_a_frame(batch):
    frame = as_long(batch)
    for keys in ("id", ["id"], ["id", "band"]):
        assert_same_curves(read_curves(frame.groupby(keys)), [batch])
    with pytest.raises(UserError, match=r"item 1: the key \('.*', '.*'\) is no id"):
        list(read_curves(frame.groupby(["id", "band"])[ROLES]))
    with pytest.raises(UserError, match="list of arrays: light curve '0' is not an array of numbers"):
        list(read_curves(frame.groupby(["id", "mjd"])[["mag", "err"]]))


def test_dict_of_columns(batch):
    columns = {name: values.to_numpy() for name, values in as_long(batch).items()}
    assert_same_curves(read_curves(columns), [batch])
    assert next(read_curves({name: columns[name][:5] for name in ROLES})).ids.tolist() == ["0"]
    assert next(read_curves({"when": [1.0], "mag": [2.0], "err": [0.1]}, Columns(time="when"))).n_points == 1
    assert_same_curves(read_curves(as_nested(batch).to_pydict()), [batch])
    with pytest.raises(UserError, match="dict: its columns differ in length: 'mjd' 2, 'mag' 1"):
        open_source({"mjd": [1.0, 2.0], "mag": [1.0], "err": [1.0]})


@pytest.mark.parametrize("column", ["obj_name", "gaiaId", "TIC ID", "star_number", "source"])
def test_a_table_that_may_be_of_several_stars(column, batch, tmp_path):
    frame = as_long(batch).rename(columns={"id": column})
    frame.to_csv(tmp_path / "a.csv", index=False)
    for source in (frame, tmp_path / "a.csv"):
        with pytest.raises(UserError, match=r"no id column.*--columns\.id NAME, or, if all .*--columns\.star NAME"):
            open_source(source)
        assert_same_curves(read_curves(source, Columns(id=column)), [batch])
        labels = Columns(star="S", label="band")  # those of several stars differ
        assert {name for read in read_curves(source, labels, band="V") for name in read.ids} == {"S"}


def test_notes_on_columns_that_may_be_of_ids(batch):
    frame = as_long(batch)[ROLES].assign(camera="ba", centroid=1)
    source = open_source(frame)
    list(source.batches())
    assert "no column of ids is known: all points of a table are one star" in "".join(source.notes)
    assert not list(open_source(frame[ROLES]).notes)
    assert "no column of ids" not in "".join(open_source(frame, Columns(star="S")).notes)


def test_one_star_by_path(batch, tmp_path):
    for i, curve in enumerate(arrays(batch)):
        pd.DataFrame(curve, columns=ROLES).to_csv(tmp_path / f"star.{i}.csv.gz", index=False)
    assert_same_curves(read_curves(tmp_path), [plain(batch, [f"star.{i}" for i in range(6)])])
    pq.write_table(as_nested(batch).drop_columns(["id"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no id column"):
        open_source(tmp_path / "a.parquet")


def test_items_of_other_kinds():
    one = pd.DataFrame({"mjd": [1.0], "mag": [2.0], "err": [0.1]})
    for items, message in (
        (iter([one, 5]), "item 2 is a int, but the first is a DataFrame"),
        (iter([one, one[["mjd", "mag"]]]), "item 2 has no column 'err', which the first has"),
        ([one, np.ones((4, 3))], "one kind of object"),
        ({"a": one, "b": np.ones((4, 3))}, "one kind of object"),
    ):
        with pytest.raises(UserError, match=message):
            list(read_curves(items))
    hours = one.copy()
    hours.attrs["units"] = {"mjd": "h"}
    with pytest.raises(UserError, match="item 2: column 'mjd' is in 'h', but that of the first is in None"):
        list(read_curves(iter([one, hours])))


@pytest.mark.parametrize("shape", [(3, 50), (4, 3, 50)])
def test_rows_for_columns(shape):
    for source in (np.ones(shape), [*np.ones((2, 3, 50))], iter(np.ones((2, 3, 50))), {"a": np.ones((3, 50))}):
        with pytest.raises(UserError, match=r"has shape \(3, 50\); transpose it \(array\.T\) to the shape \(L, 3\)"):
            list(read_curves(source))


def test_infinite_magnitudes_of_arrays():
    (batch,) = read_curves([np.array([[1.0, -np.inf, 0.1], [2.0, 15.0, -np.inf], [3.0, 15.0, 0.1]])])
    assert clean(batch)[1]["points: not finite"] == 2


@pytest.mark.parametrize("source", [[], (), {}, iter(()), np.zeros((0, 5, 3)), frame_of(np.zeros((0, 3)))])
def test_nothing_is_no_error(source):
    assert sum(map(len, read_curves(source))) == 0


def test_data_sets_of_xarray(batch):
    xarray = pytest.importorskip("xarray")
    data = xarray.Dataset.from_dataframe(as_long(batch))
    assert_same_curves(read_curves(data), [batch])
    assert sum(map(len, read_curves(data.isel(index=slice(0))))) == 0
    data["mag"] = data["mag"] * 1000
    data["mag"].attrs["units"] = "mmag"
    assert_same_curves(read_curves(data), [batch], rtol=1e-6)
    one = data.isel(index=slice(5))[ROLES].assign_coords(id="a star")
    assert next(read_curves(one)).ids.tolist() == ["a star"]
    grid = xarray.Dataset({name: (("star", "epoch"), np.ones((2, 3))) for name in ROLES})
    with pytest.raises(UserError, match=r"Dataset: has 2 dimensions \(star, epoch\), but a table has one"):
        open_source(grid)
    with pytest.raises(UserError, match="DataArray: one variable is no table"):
        open_source(data["mag"])


def test_paths_from_a_generator(batch, tmp_path):
    as_long(batch).to_csv(tmp_path / "a.csv", index=False)
    assert_same_curves(read_curves(Path(name) for name in [tmp_path / "a.csv"]), [batch])
