"""Nearest neighbours: the right ones, from vectors, an index file and new light curves."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.vector_tables import light_curves, vectors, write

pytest.importorskip("faiss")

import astroco_fast as af
from astroco_fast import anomalies, neighbours
from astroco_fast.vector_index import VectorIndex, nearest
from astroco_fast.vectors import Scale, read_vectors


@pytest.fixture
def table(tmp_path: Path) -> str:
    return write(tmp_path, "vectors.parquet", vectors(60))


def by_hand(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    away = np.linalg.norm(matrix[:, None].astype(float) - matrix[None], axis=2)
    np.fill_diagonal(away, np.inf)
    rows = away.argsort(1, kind="stable")[:, :k]
    return np.take_along_axis(away, rows, 1), rows


def test_neighbours_are_those_of_all_distances_without_the_star_itself() -> None:
    matrix = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    distances, rows = nearest(matrix, 5)
    wanted_distances, wanted = by_hand(matrix, 5)
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_allclose(distances, wanted_distances, rtol=1e-4)
    assert nearest(matrix[:4], 10)[1].shape == (4, 3)


def test_twins_are_each_others_neighbours() -> None:
    matrix = np.repeat(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), 4, axis=0)
    distances, rows = nearest(matrix, 3)
    assert (rows // 4 == np.arange(20)[:, None] // 4).all()
    assert not (rows == np.arange(20)[:, None]).any()
    np.testing.assert_allclose(distances, 0, atol=1e-3)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_an_index_file_answers_as_the_vectors_do(
    table: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, out = str(tmp_path / "stars.index"), tmp_path / "near.parquet"
    assert neighbours.main([table, "--index", index, "--kind", kind]) == 0
    assert f"{kind} index of 60 light curves, 6 numbers each" in capsys.readouterr().out
    assert neighbours.main([index, "--ids", "star3, star8", "--k", "4", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    found = pq.read_table(out).to_pylist()
    read = read_vectors(table)
    distances, rows = by_hand(Scale.of(read.matrix)(read.matrix), 4)
    assert [row["query"] for row in found] == ["star3"] * 4 + ["star8"] * 4
    assert [row["id"] for row in found] == [f"star{row}" for row in (*rows[3], *rows[8])]
    assert [row["label"] for row in found] == ["EA"] * 4 + ["RRab"] * 4
    np.testing.assert_allclose([row["distance"] for row in found], [*distances[3], *distances[8]], rtol=1e-4)
    assert all(row["id"] in shown for row in found)


def test_simulated_stars_are_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(tmp_path / "stars.index")
    for told in ("true", "false"):
        table = write(tmp_path, "v.parquet", vectors(8).replace_schema_metadata({"simulated": told}))
        assert neighbours.main([table, "--index", index]) == 0
        first = capsys.readouterr().err
        assert neighbours.main([index, "--ids", "star1"]) == 0
        second = capsys.readouterr().err
        assert anomalies.main([table, "--seeds", "[0]"]) == 0
        notes = [
            text.count("note: these light curves are SIMULATED") for text in (first, second, capsys.readouterr().err)
        ]
        assert notes == [int(told == "true")] * 3


def test_a_star_with_a_comma_and_several_bands(tmp_path: Path) -> None:
    names, bands = ["a,b", "a,b", *"cdef"], ["g", "r", *"gggg"]
    table = write(tmp_path, "v.parquet", vectors(6, id=names, band=bands))
    assert neighbours.main([table, "--ids", "a,b", "--k", "2", "--out", str(tmp_path / "o")]) == 0
    found = pq.read_table(tmp_path / "o").to_pylist()
    assert [(row["query"], row["query_band"]) for row in found] == [("a,b", "g")] * 2 + [("a,b", "r")] * 2


def test_new_light_curves_find_their_own_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    af.AstroCo.from_preset("tiny", width=16, heads=2, window=20).save_pretrained(tmp_path / "model")
    curves = write(tmp_path, "curves.parquet", light_curves([f"star{i}" for i in range(12)]))
    from astroco_fast import embed

    assert embed.main([curves, str(tmp_path / "v.parquet"), "--model", str(tmp_path / "model")]) == 0
    command = [str(tmp_path / "v.parquet"), "--curves", curves, "--k", "2", "--out", str(tmp_path / "o.parquet")]
    assert neighbours.main(command) == 0  # the table names its model
    found = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert [row["id"] for row in found if row["rank"] == 1] == [row["query"] for row in found if row["rank"] == 1]
    af.AstroCo.from_preset("tiny", width=16, heads=2, window=20).save_pretrained(tmp_path / "another")
    capsys.readouterr()
    assert neighbours.main([*command, "--model", str(tmp_path / "another")]) == 2
    assert "give the --model that made them" in capsys.readouterr().err
    other = write(tmp_path, "other.parquet", vectors(9))
    capsys.readouterr()
    assert neighbours.main([other, "--curves", curves, "--model", str(tmp_path / "model")]) == 2
    assert "vectors have 16 numbers, those of the index 6; give the --model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to find"),
        (["--ids", "star3,nobody"], "no star 'nobody' in it"),
        (["--ids", ""], "no star '' in it"),
        (["--ids", "star3", "--k", "0"], "k must be at least 1"),
        (["--ids", "star3", "--out", "{table}"], "holds the vectors"),
        (["--index", "{table}"], "holds the vectors"),
        (["--index", "{folder}/a", "--out", "{folder}/a"], "cannot hold both"),
        (["--ids", "star3", "--out", "{folder}/no/where"], "there is no folder"),
        (["--ids", "star3", "--kind", "fast"], "kind"),
    ],
)
def test_bad_input_is_one_line_and_leaves_files_as_they_were(
    table: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(table).read_bytes()
    assert neighbours.main([table, *(flag.format(table=table, folder=tmp_path) for flag in flags)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert Path(table).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"vectors.parquet"}


def test_a_damaged_index_is_refused(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.index"
    VectorIndex.build(read_vectors(table), "hnsw").save(path)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    assert neighbours.main([str(path), "--ids", "star3"]) == 2
    assert "a.index: damaged" in capsys.readouterr().err
    save_file(load_file(path), path)  # without what it says of itself
    assert neighbours.main([str(path), "--ids", "star3"]) == 2
    assert "neither Parquet, Feather" in capsys.readouterr().err


def test_without_faiss_the_extra_is_named(
    table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    assert neighbours.main([table, "--ids", "star3"]) == 2
    assert "astroco_fast[explore]" in capsys.readouterr().err
