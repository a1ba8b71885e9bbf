"""Every command that takes embeddings reads every format that `astroco embed` writes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from tests.vector_tables import light_curves, write

pytest.importorskip("faiss")
pytest.importorskip("sklearn")
pytest.importorskip("astropy")

import astroco_fast as af
from astroco_fast import anomalies, embed, explore, neighbours
from astroco_fast.classify import main as classify
from astroco_fast.embedding_formats import _WRITERS
from astroco_fast.errors import UserError
from astroco_fast.vector_tables import VectorTable
from astroco_fast.vectors import read_vectors

IDS = [f"{i:03d}" for i in range(24)]  # text, which no reader may take for numbers
LABELS = ["RRab", "é"] * 12
FORMATS = [suffix or "none" for suffix in _WRITERS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with light curves, a model and its vectors in each format; the last star has a row of NaN."""
    folder = tmp_path_factory.mktemp("formats")
    torch.manual_seed(0)
    af.AstroCo.from_preset("tiny", width=16, heads=2, window=20).save_pretrained(folder / "model")
    curves = light_curves(IDS, points=12, label=LABELS)
    last = {name: [*curves[name].to_pylist()[:-1], [1.0, 2.0, 3.0]] for name in ("mjd", "mag", "err")}
    for name, values in last.items():
        curves = curves.set_column(curves.column_names.index(name), name, [values])
    curves = curves.replace_schema_metadata({"simulated": "true"})
    write(folder, "curves.parquet", curves)
    words = [str(folder / "curves.parquet"), "--model", str(folder / "model"), "--parts", "[time_mean, magnitudes]"]
    for name in FORMATS:
        # FITS holds ASCII only.
        flags = ["--columns.label", "band"] if name == ".fits" else []
        out = str(folder / ("v" if name == "none" else f"v{name}"))
        assert embed.main([words[0], out, *words[1:], "--min_points", "5", "--short", "nan", *flags]) == 0
    return folder


def table(place: Path, name: str) -> str:
    return str(place / ("v" if name == "none" else f"v{name}"))


@pytest.mark.parametrize("name", FORMATS)
def test_vectors_are_the_same_from_every_format(place: Path, name: str) -> None:
    wanted, found = read_vectors(table(place, ".parquet")), read_vectors(table(place, name))
    assert found.ids.tolist() == IDS[:-1]
    assert found.band.tolist() == ["V"] * 23
    assert found.label.tolist() == (["V"] * 23 if name == ".fits" else LABELS[:-1])
    np.testing.assert_array_equal(found.matrix, wanted.matrix)
    assert (found.total, found.not_finite) == (24, 1)
    assert found.columns["n_points"].to_pylist() == [12] * 23
    assert found.simulated == (name != ".csv")
    sample = read_vectors(table(place, name), most=5, seed=1)
    assert sample.ids.tolist() == read_vectors(table(place, ".parquet"), most=5, seed=1).ids.tolist()
    if name != ".csv":
        told = json.loads(found.metadata[b"astroco_fast"])
        assert told["model"]["sha256"] == found.metadata[b"model_sha256"].decode()
        assert told["parts"] == {"time_mean": [0, 16], "magnitudes": [16, 29]}
        field = VectorTable(Path(table(place, name))).schema.field("embedding")
        assert json.loads(field.metadata[b"parts"]) == told["parts"]


@pytest.mark.parametrize("name", FORMATS)
def test_neighbours_reads_every_format(
    place: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = table(place, name), tmp_path / "n.parquet"
    assert neighbours.main([source, "--ids", "003", "--k", "2", "--out", str(out)]) == 0
    assert pq.read_table(out)["query"].to_pylist() == ["003"] * 2
    # New light curves need the model, which CSV does not name, and vectors of the model's own parts, which these lack.
    new = [source, "--curves", str(place / "curves.parquet")]
    capsys.readouterr()
    assert neighbours.main(new) == 2
    told = "v.csv: does not say which model made its vectors; name it by --model" if name == ".csv" else "own parts"
    assert told in capsys.readouterr().err
    assert neighbours.main([*new, "--model", str(place / "model")]) == 2
    told = "vectors have 16 numbers, those of the index 29" if name == ".csv" else "own parts"
    assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_anomalies_and_explore_read_every_format(
    place: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, page = table(place, name), str(tmp_path / "p.html")
    assert anomalies.main([source, "--out", str(tmp_path / "odd.parquet"), "--seeds", "[0]"]) == 0
    assert pq.read_table(tmp_path / "odd.parquet").num_rows == 23
    curves = str(place / "curves.parquet")
    assert explore.main([source, "--curves", curves, "--out", page, "--projections", "[pca]"]) == 0
    assert "SIMULATED" in capsys.readouterr().err  # by the light curves, where not by the vectors


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in (".csv", ".npz") else pytest.mark.slow)
        for name in FORMATS
        if name != ".fits"
    ],
)
def test_classify_reads_every_format(
    place: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = table(place, name), str(tmp_path / "c")
    model = ["--model", str(place / "model")]
    parts = ["--parts", "[time_mean, magnitudes]"]
    flags = ["--folds", "1", "--plots", "false"]
    if name == ".csv":
        assert classify(["fit", source, "--out", out, *flags]) == 2
        assert "does not say which model made its vectors" in capsys.readouterr().err
        assert classify(["fit", source, "--out", out, *flags, *model]) == 2
        assert "v.csv: its vectors have 29 numbers, those of" in capsys.readouterr().err
        flags += [*model, *parts]
    assert classify(["fit", source, "--out", out, *flags]) == 0
    assert "1 light curves without a finite vector" in capsys.readouterr().err
    words = ["predict", source, str(tmp_path / "o.csv"), "--classifier", out]
    assert classify([*words, *(model if name == ".csv" else [])]) == 0
    assert pd.read_csv(tmp_path / "o.csv", dtype=str)["id"].tolist() == IDS[:-1]


def test_folders_hold_files_of_one_form(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    vectors = pq.read_table(table(place, ".parquet"))
    for i in range(2):
        write(folder, f"{i}.parquet", vectors.slice(12 * i, 12))
    assert read_vectors(folder).ids.tolist() == IDS[:-1]
    write(folder, "1.parquet", vectors.slice(12).drop_columns(["n_points"]))
    with pytest.raises(UserError, match=r"1\.parquet: no column 'n_points', which .*0\.parquet has"):
        read_vectors(folder)


def _broken(place: Path, tmp_path: Path, name: str) -> dict[str, Path]:
    whole = Path(table(place, name)).read_bytes()
    made = {"cut": tmp_path / f"cut{name}", "few": tmp_path / f"few{name}"}
    made["cut"].write_bytes(whole[: len(whole) // 2])
    made["few"].write_bytes(whole[:4])
    return made


@pytest.mark.parametrize("name", [".parquet", ".feather", ".fits", ".npz"])
def test_damaged_files_are_one_line(place: Path, name: str, tmp_path: Path) -> None:
    for path in _broken(place, tmp_path, name).values():
        with pytest.raises(UserError, match="cannot be read") as told:
            read_vectors(path)
        assert str(path) in str(told.value)
        assert "\n" not in str(told.value)


def test_other_forms_of_csv_and_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text, message in (
        ("", "cannot be read"),
        ("id\na\n", "no column 'embedding'"),
        ("id,embedding_0,embedding_2\na,1,2\n", "has a column 'embedding_2', but no 'embedding_1'"),
        ("id,embedding_0\na,x\n", "cannot be read: .*embedding_0|conversion"),
        ("id,embedding_0\n", "the table is empty"),
        ('id,embedding\na,"[1, 2]"\n', "holds string, not lists of numbers"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_vectors(path)
    path.write_text("id,note,embedding_0,embedding_1\n007,,1,2\n1e5,,nan,2\n")
    read = read_vectors(path)
    assert (read.ids.tolist(), read.matrix.tolist(), read.not_finite) == (["007"], [[1, 2]], 1)

    path = tmp_path / "a.npz"
    good = {"id": np.array(["a", "b"]), "embedding": np.ones((2, 3))}
    for change, message in (
        ({"id": np.array(["a", "b"], dtype=object)}, "array 'id' is of type object"),
        ({"id": np.array(["a"])}, "its arrays have different lengths"),
        ({"embedding": np.ones((2, 3), dtype=complex)}, "array 'embedding' is of type complex128"),
        ({"embedding": np.asfortranarray(np.ones((2, 3)))}, "array 'embedding'"),
        ({"embedding": np.ones(2)}, "holds double, not lists of numbers"),
    ):
        np.savez(path, **{**good, **change})
        with pytest.raises(UserError, match=message):
            read_vectors(path)
    np.savez_compressed(path, **good)  # as a user writes them: float64, without provenance
    read = read_vectors(path)
    assert (read.ids.tolist(), read.matrix.shape, read.metadata) == (["a", "b"], (2, 3), {})
