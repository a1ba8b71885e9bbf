"""`astroco embed`: its files, what they say of themselves, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

import astroco_fast as af
from astroco_fast import embed as embed_module
from astroco_fast import pretrained
from astroco_fast.digest import model_digest
from tests.embedding.curves import Curve, command, long_table


def test_command_writes_parquet(tmp_path: Path, model: af.AstroCo, curves: list[Curve]) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.parquet"
    long_table(curves).to_csv(source, index=False)
    assert command(tmp_path, model, str(source), str(out)) == 0
    frame = pq.read_table(out).to_pandas().sort_values("id")
    assert frame["id"].tolist() == [f"star{i}" for i in range(4)]
    assert np.array_equal(np.stack(frame["embedding"]), model.embed(curves))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "model", "out.parquet"]


def test_provenance_is_in_the_file(tmp_path: Path, model: af.AstroCo, survey: Path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    told = {}
    for suffix in (".parquet", ".feather", ".fits", ".npz"):
        out = tmp_path / f"out{suffix}"
        assert command(tmp_path, model, str(survey), str(out), "--min_points", "12", "--short", "nan") == 0
        if suffix == ".parquet":
            frame = pq.read_table(out).to_pandas()
            text = pq.read_schema(out).metadata[b"astroco_fast"]
        elif suffix == ".feather":
            text = feather.read_table(out).schema.metadata[b"astroco_fast"]
            pd.testing.assert_frame_equal(feather.read_feather(out), frame)
        elif suffix == ".fits":
            text = fits.getheader(out)["ASTROCO"]
            rows = fits.getdata(out)
            assert rows["id"].tolist() == frame["id"].tolist()
            assert np.array_equal(rows["embedding"], np.stack(frame["embedding"]), equal_nan=True)
        else:
            arrays = np.load(out)
            text = str(arrays["astroco_fast"])
            assert arrays["n_points"].tolist() == frame["n_points"].tolist()
            assert np.array_equal(arrays["embedding"], np.stack(frame["embedding"]), equal_nan=True)
        told[suffix] = json.loads(text)
    assert len({json.dumps(facts) for facts in told.values()}) == 1
    facts = told[".parquet"]
    without = {"curves: too few points": 3, "points: in curves that are too short": 30}
    assert facts["counts"] == {"light_curves": 11, "rows": 11, "without": without}
    assert facts["model"]["name"] == str(tmp_path / "model")
    assert facts["model"]["sha256"] == model_digest(model, ["time_mean"])
    assert pq.read_schema(tmp_path / "out.parquet").metadata[b"model_sha256"].decode() == facts["model"]["sha256"]
    assert facts["version"] == af.__version__
    assert facts["source"] == str(survey)
    assert facts["settings"]["precision"] in ("fp32", "bf16")
    assert np.isnan(np.stack(frame["embedding"])).all(1).sum() == 3


def test_an_empty_table_gives_an_empty_table(tmp_path: Path, model: af.AstroCo, survey: Path) -> None:
    frame = pd.read_parquet(survey).assign(band="V").iloc[:0]
    frame.to_parquet(tmp_path / "empty.parquet")
    frame.to_csv(tmp_path / "empty.csv", index=False)
    frame.to_feather(tmp_path / "empty.feather")
    for source in ("empty.csv", "empty.feather"):
        out = tmp_path / f"{source}.parquet"
        assert command(tmp_path, model, str(tmp_path / source), str(out), "--band", "V") == 0
        assert pq.read_table(out).num_rows == 0
    for suffix in (".parquet", ".fits", ".npz", ".csv"):
        flags = ["--short", "nan"] if suffix == ".npz" else []
        assert command(tmp_path, model, str(tmp_path / "empty.parquet"), str(tmp_path / f"out{suffix}"), *flags) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 0
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    assert np.load(tmp_path / "out.npz")["embedding"].shape == (0, 16)


@pytest.mark.parametrize("output", ["sequence", "reconstruction"])
def test_sequences_are_written_as_lists(tmp_path: Path, model: af.AstroCo, survey: Path, output: str) -> None:
    out = tmp_path / "out.parquet"
    assert command(tmp_path, model, str(survey), str(out), "--output", output, "--windows", "all") == 0
    table = pq.read_table(out)
    wanted = model.embed(survey, output=output, windows="all")
    assert table.column_names == list(wanted.columns)
    for name in ("time", output):
        for row, given in zip(wanted[name], table[name].to_pylist(), strict=True):
            assert np.array_equal(np.array(given, dtype=row.dtype), row)


def test_the_model_is_looked_up_once(
    tmp_path: Path, model: af.AstroCo, survey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "model")
    asked = []
    whole = pretrained.local_folder

    def local_folder(source: object) -> Path:
        asked.append(str(source))
        return whole(source)

    monkeypatch.setattr(pretrained, "local_folder", local_folder)
    (tmp_path / "best").symlink_to("model")
    assert embed_module.main([str(survey), str(tmp_path / "o.parquet"), "--model", str(tmp_path / "best")]) == 0
    assert asked.count(str(tmp_path / "best")) == 1


def test_notes_and_duplicates_are_told(
    tmp_path: Path, model: af.AstroCo, curves: list[Curve], capsys: pytest.CaptureFixture[str]
) -> None:
    frame = long_table(curves)
    frame["mjd"] = frame["mjd"].astype(np.float32)
    pd.concat([frame, frame[:3]]).to_parquet(tmp_path / "in.parquet")
    assert command(tmp_path, model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")) == 0
    told = capsys.readouterr()
    assert told.err.count("note: ") == told.err.count("single precision") == 1
    assert "dropped 3 points: exact duplicates" in told.out
    with pytest.warns(UserWarning, match="single precision|exact duplicates") as warned:
        model.embed(pd.concat([frame, frame[:3]]))
    assert [str(warning.message) for warning in warned][1:] == ["dropped 3 points: exact duplicates"]
    with pytest.warns(UserWarning, match="7 points: exact duplicates"):
        model.embed([np.concatenate([curves[2], curves[2]])])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv", "out.parquet"], "missing.csv"),
        (["in.csv", "no/such/out.parquet"], "no folder"),
        (["in.csv", "out.fit"], "out.fit: its suffix decides the format; there are: .parquet, .feather"),
        (["in.csv", "out.csv", "--output", "sequence"], "which .csv files cannot hold; name the file .parquet or"),
        (["in.csv", "out.parquet", "--shard", "0/2"], "shard: give i/n with i from 1 to n"),
        (["in.csv", "old.parquet"], "old.parquet: exists; choose another output, or replace it with --overwrite"),
        (["in.csv", "out.parquet", "--batch_size", "0"], "batch_size must be at least 1"),
        (["in.csv", "out.parquet", "--device", "abacus"], "device 'abacus'"),
        (["in.csv", "out.parquet", "--min_points", "1000"], "no light curve left to embed; dropped"),
        (["in.csv"], "required: out"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path,
    model: af.AstroCo,
    curves: list[Curve],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    long_table(curves).to_csv("in.csv", index=False)
    Path("old.parquet").write_text("precious")
    assert command(tmp_path, model, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "model", "old.parquet"]
    assert Path("old.parquet").read_text() == "precious"


def test_a_band_that_there_is_not_leaves_nothing_in_the_way(
    tmp_path: Path, model: af.AstroCo, capsys: pytest.CaptureFixture[str]
) -> None:
    stars = {"id": ["a", "b"], "band": ["V", "I"], **{name: [[1.0, 2.0, 3.0]] * 2 for name in ("time", "mag", "err")}}
    pq.write_table(pa.table(stars), tmp_path / "in.parquet")
    words = [str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), "--band"]
    assert command(tmp_path, model, *words, "R") == 2
    assert "no light curve in band 'R'; bands found: I, V" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "model"]
    assert command(tmp_path, model, *words, "V") == 0
