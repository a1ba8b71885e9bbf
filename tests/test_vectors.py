"""Vectors of light curves, read back from the tables that `astroco embed` writes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from astroco_fast.errors import UserError
from astroco_fast.vectors import Scale, read_vectors
from tests.vector_tables import vectors, write


def test_every_form_of_a_table_is_read(tmp_path: Path) -> None:
    table = vectors(survey=["x"] * 40)
    path = write(tmp_path, "a.parquet", table)
    read = read_vectors(path)
    assert (list(read.ids), list(read.label)) == (table["id"].to_pylist(), table["label"].to_pylist())
    np.testing.assert_array_equal(read.matrix, np.stack(table["embedding"].to_numpy()))
    assert read.columns.column_names == ["n_points", "survey"]
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    (tmp_path / "parts").mkdir()
    for i in range(2):
        pq.write_table(table.slice(20 * i, 20), tmp_path / "parts" / f"{i}.parquet")
    doubles = table["embedding"].combine_chunks().flatten().cast(pa.float64())
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, 241, 6, dtype=np.int32)), doubles)
    write(tmp_path, "b.parquet", table.drop_columns(["embedding"]).append_column("embedding", lists))
    for other in ("a.feather", "parts", "b.parquet"):
        again = read_vectors(tmp_path / other)
        assert list(again.ids) == list(read.ids), other
        np.testing.assert_array_equal(again.matrix, read.matrix, other)


def test_a_catalogue_of_vectors_is_read_without_its_margin(tmp_path: Path) -> None:
    table = vectors(_healpix_29=list(range(40)))
    for name, kind, rows in (("stars", "object", 40), ("stars_5arcs", "margin", 3)):
        for i in range(0, rows, 20):
            piece = tmp_path / "catalogue" / name / "dataset" / "Norder=1" / "Dir=0" / f"Npix={i}.parquet"
            piece.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.slice(i, min(20, rows)), piece)
        (tmp_path / "catalogue" / name / "hats.properties").write_text(f"dataproduct_type={kind}\n")
        pq.write_table(table, tmp_path / "catalogue" / name / "per_partition_statistics.parquet")
        pq.write_table(table.slice(0, 2), tmp_path / "catalogue" / name / "dataset" / "data_thumbnail.parquet")
    (tmp_path / "catalogue" / "collection.properties").write_text("hats_primary_table_url = stars\n")
    for path in (tmp_path / "catalogue", tmp_path / "catalogue" / "stars"):
        read = read_vectors(path)
        assert sorted(read.ids) == sorted(table["id"].to_pylist())
        assert read.columns.column_names == ["n_points"]
    with pytest.raises(UserError, match="the margin of one"):
        read_vectors(tmp_path / "catalogue" / "stars_5arcs")


def test_a_sample_is_the_same_each_time_and_keeps_rows_together(tmp_path: Path) -> None:
    table = vectors(200)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    sample = read_vectors(tmp_path / "a.parquet", most=50, seed=3)
    assert (len(sample), sample.total) == (50, 200)
    rows = [int(star.removeprefix("star")) for star in sample.ids]
    assert rows == sorted(set(rows))
    np.testing.assert_array_equal(sample.matrix, np.stack(table["embedding"].to_numpy())[rows])
    assert sample.columns["n_points"].to_pylist() == [20 + row for row in rows]
    assert list(read_vectors(tmp_path / "a.parquet", most=50, seed=3).ids) == list(sample.ids)
    assert list(read_vectors(tmp_path / "a.parquet", most=50, seed=4).ids) != list(sample.ids)


def test_vectors_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    table = vectors(5, size=2)
    lists = pa.array([[0, 1], [np.nan, 1], None, [2, np.inf], [3, 4]], pa.list_(pa.float32()))
    read = read_vectors(write(tmp_path, "a.parquet", table.set_column(4, "embedding", lists)))
    assert (list(read.ids), read.not_finite, read.total) == (["star0", "star4"], 3, 5)
    np.testing.assert_array_equal(read.matrix, [[0, 1], [3, 4]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["embedding"]), "no column 'embedding'; found: id, band"),
        (lambda t: t.drop_columns(["id"]), "no column 'id'"),
        (lambda t: t.slice(0, 0), "the table is empty"),
        (lambda t: t.set_column(0, "id", pa.array(["a"] * 40)), "id 'a' in band 'V' has two vectors"),
        (lambda t: t.set_column(0, "id", pa.array([None, *["a"] * 39])), "a row has no id"),
        (lambda t: t.set_column(4, "embedding", t["n_points"]), "holds int64, not lists of numbers"),
        (lambda t: t.set_column(4, "embedding", pa.array([[1.0]] * 39 + [[1.0, 2]])), "have 1 to 2 numbers"),
        (lambda t: t.set_column(4, "embedding", pa.array([[np.nan]] * 40)), "no row has a vector of finite numbers"),
        (lambda t: t.set_column(4, "embedding", pa.array([[]] * 40, pa.list_(pa.float32()))), "vectors are empty"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, change: object, message: str) -> None:
    path = write(tmp_path, "a.parquet", change(vectors()))  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as told:
        read_vectors(path)
    assert path in str(told.value)


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("id,embedding\n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    for name, message in (("a.txt", "neither Parquet, Feather"), ("b.parquet", "cannot be read"), ("c", "no such")):
        with pytest.raises(UserError, match=message):
            read_vectors(tmp_path / name)


def test_standardised_columns_have_mean_0_and_spread_1_or_are_0() -> None:
    rng = np.random.default_rng(0)
    matrix = np.column_stack([rng.normal(5, 3, 100), np.full(100, 7.1), rng.normal(0, 1e-3, 100)]).astype(np.float32)
    done = Scale.of(matrix)(matrix)
    np.testing.assert_allclose(done.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(done.std(0), [1, 0, 1], atol=1e-4)
