"""Files and folders: every table is read once, and what the names of folders say counts."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroco_fast.data.columns import Columns
from astroco_fast.data.formats import open_table
from astroco_fast.data.paths import find_files
from astroco_fast.data.sources import open_source
from astroco_fast.errors import UserError
from tests.data.curve_factory import as_long, as_nested, assert_same_curves, gather, make_batch, read_curves


@pytest.mark.parametrize("key", ["band", "id", "label"])
@pytest.mark.parametrize("star_a_row", [False, True])
def test_columns_that_became_folders(batch, tmp_path, key, star_a_row):
    batch.label[:] = ["RRab", "RR c/d", "EW"] * 2
    frame = as_nested(batch).to_pandas() if star_a_row else as_long(batch)
    frame.to_parquet(tmp_path / "survey", partition_cols=[key])
    assert_same_curves(read_curves(tmp_path / "survey"), [batch])
    assert_same_curves(read_curves(f"{tmp_path}/survey/{key}=*/*.parquet"), [batch])
    one = next((tmp_path / "survey").rglob("*.parquet"))
    assert set(gather(read_curves(one))) <= {*zip(batch.ids, batch.band, strict=True)}
    assert_same_curves(read_curves(tmp_path / "survey", band="I"), [batch.select(batch.band == "I")])


def test_folders_of_other_names(batch, tmp_path):
    """By the user's choice; a column of the table itself counts before a folder; numbers are no folder's name."""
    frame = as_long(batch).rename(columns={"band": "b"})
    frame.to_parquet(tmp_path / "survey", partition_cols=["b"])
    assert_same_curves(read_curves(tmp_path / "survey", Columns(band="b")), [batch])
    inside = tmp_path / "band=R" / "mag=1" / "part.parquet"
    inside.parent.mkdir(parents=True)
    as_long(batch).to_parquet(inside)
    assert_same_curves(read_curves(inside), [batch])
    as_long(batch).drop(columns="mag").to_parquet(inside)
    with pytest.raises(UserError, match="no magnitude column"):
        list(read_curves(inside))
    with pytest.raises(UserError, match=r"no column 'c', asked for by --columns\.band"):
        list(read_curves(tmp_path / "survey", Columns(band="c")))


def test_a_folder_without_a_value(batch, tmp_path):
    frame = as_long(batch)
    frame["label"] = frame["label"].where(frame["label"] != "", None)
    frame.to_parquet(tmp_path / "survey", partition_cols=["label"])
    assert_same_curves(read_curves(tmp_path / "survey"), [batch])
    frame["id"] = frame["id"].where(frame["id"] != "star-2", None)
    frame.to_parquet(tmp_path / "other", partition_cols=["id"])
    with pytest.raises(UserError, match="'id', row 1: no value"):
        list(read_curves(tmp_path / "other"))


def test_simulated_by_a_folder(batch, tmp_path):
    as_long(batch).assign(survey="simulated").to_parquet(tmp_path / "s", partition_cols=["survey"])
    assert open_table(next((tmp_path / "s").rglob("*.parquet"))).is_simulated()


def test_bands_by_the_names_of_surveys(batch):
    for name in ("fid", "filtercode", "filterid", "FILTER", "Band"):
        assert_same_curves(read_curves(as_long(batch).rename(columns={"band": name, "id": "oid"})), [batch])


def test_input_file_given_twice(batch, tmp_path):
    path, other = tmp_path / "a.csv", tmp_path / "sub" / "b.csv"
    as_long(batch).to_csv(path, index=False)
    other.parent.mkdir()
    os.link(path, other)
    (tmp_path / "link.csv").symlink_to(path)
    for paths in ([path, path], [path, tmp_path / "sub" / ".." / "a.csv"], [tmp_path], [other, tmp_path / "link.csv"]):
        with pytest.raises(UserError, match="the same file"):
            find_files(paths)


@pytest.mark.parametrize("names", [("a.csv", "a.parquet"), ("a.csv", "a.csv.gz"), ("x.v2.fits", "x.v2.fits.gz")])
def test_one_table_in_two_formats(names, tmp_path):
    for name in names:
        (tmp_path / name).write_text(name)
    with pytest.raises(UserError, match="one table in two formats, by their names, whose points would be doubled"):
        find_files([tmp_path])


def test_tables_of_one_name_in_two_folders_are_two(tmp_path):
    for name in ("r/part-0.csv", "g/part-0.csv", "g/part-1.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert len(find_files([tmp_path])) == len(find_files([tmp_path / "**"])) == 3


def write_catalogue(folder, batch, table=as_long, properties="hats.properties", kind="object", piece="Npix=1.parquet"):
    """Write a HATS catalogue of two pieces, with what hats and LSDB write beside them."""
    half = np.arange(len(batch)) < len(batch) // 2
    for order, keep in enumerate((half, ~half)):
        path = folder / "dataset" / f"Norder={order}" / "Dir=0" / piece
        path.parent.mkdir(parents=True)
        rows = table(batch.select(keep))
        rows = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
        rows = rows.add_column(0, "_healpix_29", pa.array(range(rows.num_rows), pa.int64()))
        pq.write_table(rows, path)
    pq.write_metadata(rows.schema, folder / "dataset" / "_common_metadata")
    pq.write_metadata(rows.schema, folder / "dataset" / "_metadata")
    pq.write_table(rows.slice(0, 5), folder / "dataset" / "data_thumbnail.parquet")
    pd.DataFrame({"Norder": [0, 1], "Npix": [1, 1]}).to_csv(folder / "partition_info.csv", index=False)
    (folder / "skymap.fits").write_bytes(b"an image")
    (folder / properties).write_text(
        f"#HATS catalog\nobs_collection=x\ndataproduct_type={kind}\nhats_col_ra=ra\nhats_npix_suffix=.parquet\n"
    )


def nested_rows(batch):
    """A row a star with the points in one nested column, as nested-pandas writes it: a struct of lists."""
    table = as_nested(batch)
    names = ["mjd", "mag", "err"]
    structs = pa.StructArray.from_arrays([table[name].combine_chunks() for name in names], names=names)
    return table.drop_columns(names).append_column("lightcurve", structs)


@pytest.mark.parametrize("table", [as_long, as_nested, nested_rows])
@pytest.mark.parametrize("place", [".", "dataset", "dataset/Norder=*/*/*"])
def test_hats_catalogue(table, place, batch, tmp_path):
    write_catalogue(tmp_path / "x", batch, table)
    assert_same_curves(read_curves(f"{tmp_path}/x/{place}" if place != "dataset" else f"{tmp_path}/x"), [batch])


def test_hats_catalogues_of_other_forms(batch, tmp_path):
    write_catalogue(tmp_path / "old", batch, properties="properties")
    assert_same_curves(read_curves(tmp_path / "old"), [batch])
    write_catalogue(tmp_path / "folders", batch, piece="Npix=1/part0.parquet")
    assert_same_curves(read_curves(tmp_path / "folders"), [batch])
    empty = batch.select(np.zeros(6, dtype=bool))
    write_catalogue(tmp_path / "empty", empty)
    assert sum(map(len, read_curves(tmp_path / "empty"))) == 0


def test_hats_collection(batch, tmp_path):
    """Its margin has stars of the catalogue once more."""
    write_catalogue(tmp_path / "c" / "x", batch)
    write_catalogue(tmp_path / "c" / "x_5arcs", batch.select(np.arange(6) < 2), kind="margin")
    write_catalogue(tmp_path / "c" / "x_id_index", batch, kind="index")
    properties = tmp_path / "c" / "collection.properties"
    properties.write_text("#HATS Collection\nobs_collection=c\nhats_primary_table_url=x\nall_margins=x_5arcs\n")
    for place in ("c", ".", "c/x", "*"):
        assert_same_curves(read_curves(f"{tmp_path}/{place}"), [batch])
    for place, kind in (("x_5arcs", "margin"), ("x_id_index", "index")):
        with pytest.raises(UserError, match=f"{place}: is no catalogue of its own, but the {kind} of one"):
            open_source(tmp_path / "c" / place)
    properties.write_text("all_margins=x_5arcs\n")
    with pytest.raises(UserError, match=r"collection\.properties names no catalogue"):
        open_source(tmp_path / "c")
    (tmp_path / "m").mkdir()
    (tmp_path / "c" / "x_5arcs").rename(tmp_path / "m" / "x_5arcs")
    with pytest.raises(UserError, match="m: there is no catalogue in it, but a margin"):
        open_source(tmp_path / "m")


def test_hats_collection_by_fsspec(batch, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("upath")
    write_catalogue(tmp_path / "x", batch, nested_rows)
    write_catalogue(tmp_path / "x_5arcs", batch, nested_rows, kind="margin")
    (tmp_path / "collection.properties").write_text("hats_primary_table_url=x\n")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/hats-test", recursive=True)
    try:
        for place in ("memory://hats-test", "memory://hats-test/x"):
            assert_same_curves(read_curves(place), [batch])
    finally:
        memory.rm("/hats-test", recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["rows", "points"])
def test_catalogues_of_lsdb(form, tmp_path):
    """What LSDB writes by default: a collection with a margin."""
    lsdb, nested = pytest.importorskip("lsdb"), pytest.importorskip("nested_pandas")
    rng = np.random.default_rng(0)
    batch = make_batch(40, bands=("",))
    batch.label[:] = ""
    stars = pd.DataFrame({"id": batch.ids, "ra": rng.uniform(0, 360, 40), "dec": rng.uniform(-60, 60, 40)})
    points = as_long(batch)[["mjd", "mag", "err"]].set_index(np.repeat(np.arange(40), batch.lengths))
    joined = nested.NestedFrame(stars).join_nested(points, "lightcurve")
    frame = joined if form == "rows" else points.join(stars).reset_index(drop=True)
    catalogue = lsdb.from_dataframe(frame, catalog_name="stars", margin_threshold=60, partition_rows=200)
    catalogue.write_catalog(tmp_path / "collection", catalog_name="stars")
    assert (tmp_path / "collection" / "collection.properties").is_file()
    for path in (tmp_path / "collection", tmp_path / "collection" / "stars", tmp_path):
        assert_same_curves(read_curves(path), [batch])
    assert_same_curves(read_curves(catalogue.compute()), [batch])  # in the form that functions of LSDB get


def test_two_nested_columns():
    g, r = ([[1.0, 2.0]], [[15.0, 16.0]], [[0.1, 0.1]]), ([[3.0]], [[17.0]], [[0.2]])
    structs = [
        {"g": {"mjd": t, "mag": m, "err": e}, "r": {"hjd": u, "magnitude": n, "sigma": f}}
        for t, m, e, u, n, f in zip(*g, *r, strict=True)
    ]
    frame = pd.DataFrame({"id": ["a"], "g": [s["g"] for s in structs], "r": [s["r"] for s in structs]})
    with pytest.raises(UserError, match="more than one column holds light curves"):
        open_source(frame)
    for names in (("g.mjd", "g.mag", "g.err"), ("r.hjd", "r.magnitude", "r.sigma")):
        (batch,) = read_curves(frame, Columns(**dict(zip(("time", "mag", "err"), names, strict=True))))
        assert batch.n_points == len(frame[names[0][0]][0][names[0][2:]])


def test_lists_beside_a_nested_column():
    lists = {"mjd": [[1.0]], "mag": [[15.0]], "err": [[0.1]]}
    frame = pd.DataFrame({"id": ["a"], **lists, "forced": [{"time": [1.0, 2.0], "m": [1.0, 2.0], "sigma": [1.0, 2.0]}]})
    with pytest.raises(UserError, match="the fields of 'forced'"):
        open_source(frame)
    assert next(read_curves(frame, Columns(time="mjd"))).n_points == 1
    with pytest.raises(UserError, match="more than one column"):
        open_source(frame.drop(columns="mag"), Columns(time="mjd"))
    frame["forced"] = [{"ra": [1.0], "dec": [2.0]}]
    assert next(read_curves(frame)).n_points == 1


def test_two_tables_of_one_star():
    from astropy.table import Table

    def table(**columns):
        return Table({"mjd": [1.0], "mag": [2.0], "err": [0.1], **columns}, meta={"OBJECT": "M67"})

    with pytest.raises(UserError, match="two tables are of a star 'M67': give each"):
        list(read_curves([table(), table()]))
    with pytest.raises(UserError, match="two tables are of a star 'M67' in band 'g'"):
        list(read_curves([table(band=["g"]), table(band=["r"]), table(band=["g"])]))
    assert {*gather(read_curves([table(band=["g"]), table(band=["r"])]))} == {("M67", "g"), ("M67", "r")}
    assert [*gather(read_curves([table(id=["a"]), table(id=["b"])]))] == [("a", ""), ("b", "")]
    unnamed = Table({"mjd": [1.0], "mag": [2.0], "err": [0.1]})
    named = table()
    named.meta["OBJECT"] = "1"  # the place of the other in the list
    with pytest.raises(UserError, match="two tables are of a star '1'"):
        list(read_curves([named, unnamed]))
