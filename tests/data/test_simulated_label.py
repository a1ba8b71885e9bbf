"""Simulated light curves stay labelled as simulated in every file and table."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from astroco_fast import AstroCo
from astroco_fast.data.convert import convert
from astroco_fast.data.simulate import simulate_survey
from astroco_fast.data.store import Store
from astroco_fast.embed import EmbedConfig, write_embeddings
from astroco_fast.simulate import main
from tests.data.curve_factory import as_long, make_batch, read_curves, write_nested


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "survey.parquet"
    assert main([str(path), "--stars", "12"]) == 0
    return path


def long_table(table: Path) -> pd.DataFrame:
    """The table in the long form, as from a program that drops the file's metadata."""
    frame = pd.read_parquet(table).explode(["mjd", "mag", "err"])
    return frame.astype({"mjd": float, "mag": float, "err": float})


def test_a_table_made_by_the_command(table: Path, tmp_path: Path) -> None:
    report = convert(table, tmp_path / "store")
    assert "SIMULATED" in str(report)
    store = Store.open(tmp_path / "store")
    assert store.manifest["provenance"]["simulated"] is True
    again = convert(table, tmp_path / "store")
    assert again.simulated, "already there"


def test_metadata_mark_simulated_data(table: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(table).drop_columns(["survey"]), tmp_path / "in.parquet")
    assert convert(tmp_path / "in.parquet", tmp_path / "store").simulated


@pytest.mark.parametrize("kind", ["nested.parquet", "long.parquet", "long.csv", "long.fits", "frame", "astropy"])
def test_survey_column_marks_simulated_data(kind: str, table: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(table) if kind == "nested.parquet" else long_table(table)
    if kind.endswith((".fits", "astropy")):
        frame = pytest.importorskip("astropy.table").Table.from_pandas(frame)
    path = tmp_path / kind
    if kind.endswith(".parquet"):
        frame.to_parquet(path)
        assert b"simulated" not in pq.read_schema(path).metadata
    elif kind.endswith(".csv"):
        frame.to_csv(path, index=False)
    elif kind.endswith(".fits"):
        frame.write(path)
    source = path if path.exists() else frame
    assert all(batch.simulated for batch in read_curves(source))
    convert(source, tmp_path / "store")
    assert Store.open(tmp_path / "store").simulated


def test_one_simulated_row_among_observed_ones_is_found(table: Path, tmp_path: Path) -> None:
    observed = as_long(make_batch(30)).assign(survey="CSS")
    pd.concat([observed, long_table(table)[observed.columns].tail(20)]).to_csv(tmp_path / "in.csv", index=False)
    assert convert(tmp_path / "in.csv", tmp_path / "store").simulated


def test_a_folder_with_one_simulated_file(table: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_nested(make_batch(5), tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "b.parquet").write_bytes(table.read_bytes())
    convert(tmp_path / "in", tmp_path / "store")
    assert Store.open(tmp_path / "store").simulated


def test_a_store_made_of_a_store(table: Path, tmp_path: Path) -> None:
    convert(table, tmp_path / "one")
    convert(tmp_path / "one", tmp_path / "two", band="V")
    assert Store.open(tmp_path / "two").simulated


def test_curves_of_the_simulation_need_no_word_of_the_caller(tmp_path: Path) -> None:
    convert(simulate_survey(3, seed=0), tmp_path / "store")
    assert Store.open(tmp_path / "store").simulated


def test_parts_of_a_batch_keep_the_label() -> None:
    batch = replace(make_batch(4), simulated=True)
    assert batch.select(batch.ids != "star-2").simulated
    assert batch.select_points(batch.mag > 15).simulated


def test_observed_light_curves_have_no_such_label(tmp_path: Path) -> None:
    frame = as_long(make_batch(5)).assign(survey="not simulated")
    for i, source in enumerate([frame, frame.assign(survey=7), frame.assign(survey=None), make_batch(5)]):
        report = convert(source, tmp_path / str(i))
        assert not report.simulated
        assert "SIMULATED" not in str(report)
        assert Store.open(tmp_path / str(i)).manifest["provenance"]["simulated"] is False


def test_embeddings_are_labelled_simulated(table: Path, tmp_path: Path) -> None:
    AstroCo.from_preset("tiny", width=16, heads=2, layers=1, window=50, kernel=4).save_pretrained(tmp_path / "model")
    observed = write_nested(make_batch(5), tmp_path / "observed.parquet")
    for source, metadata in ((table, b"true"), (observed, None)):
        out = tmp_path / f"{source.stem}-out.parquet"
        write_embeddings(EmbedConfig(str(source), str(out), str(tmp_path / "model")))
        assert (pq.read_schema(out).metadata or {}).get(b"simulated") == metadata
