"""From a file to vectors, a user's first steps, with every kind of table that can be read."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from astroco_fast import convert, embed, pretrain
from astroco_fast.data.convert import convert as convert_curves
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.simulate import simulate_survey
from astroco_fast.data.store import Store
from tests.data.curve_factory import SHARED, as_long, as_nested, assert_same_curves
from tests.data.tfrecords import new_style, old_style, write_records

STARS, POINTS = 40, 30
SMALL = """
preset: tiny
model: {width: 16, heads: 2, layers: 1, window: 40, kernel: 4}
train: {max_steps: 2, global_batch: 16, plots: false, device: cpu}
"""

real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")


@pytest.fixture(scope="module")
def survey() -> CurveBatch:
    """The first points of simulated stars."""
    (batch,) = simulate_survey(STARS, seed=0)
    return batch.select_points(np.arange(batch.n_points) - np.repeat(batch.offsets[:-1], batch.lengths) < POINTS)


def nested(batch: CurveBatch, path: Path) -> None:
    pq.write_table(as_nested(batch), path)


def long_csv(batch: CurveBatch, path: Path) -> None:
    """Write the points in any order, as an export from a database has them."""
    as_long(batch).sample(frac=1, random_state=0).to_csv(path, index=False)


def long_parquet(batch: CurveBatch, path: Path) -> None:
    as_long(batch).to_parquet(path)


def astromer(batch: CurveBatch, path: Path) -> None:
    """Write shards of points that have only the star's number, and the star's other properties in metadata.parquet."""
    path.mkdir()
    points = as_long(batch).rename(columns={"err": "errmag"})
    number = points["id"].str.removeprefix("sim-").astype(int)
    points = points.assign(newID=number)[["newID", "mjd", "mag", "errmag"]]
    for i in range(3):
        points[number % 3 == i].to_parquet(path / f"shard_{i}.parquet")
    stars = pd.DataFrame({"ID": "other", "newID": range(len(batch)), "Class": batch.label, "band": batch.band})
    stars.iloc[::-1].to_parquet(path / "metadata.parquet")


def long_fits(batch: CurveBatch, path: Path) -> None:
    pytest.importorskip("astropy.table").Table.from_pandas(as_long(batch)).write(path)


def json_lines(batch: CurveBatch, path: Path) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in as_long(batch).astype({"mag": float}).to_dict("records")))


def long_ecsv(batch: CurveBatch, path: Path) -> None:
    pytest.importorskip("astropy.table").Table.from_pandas(as_long(batch)).write(path)


def long_votable(batch: CurveBatch, path: Path) -> None:
    pytest.importorskip("astropy.table").Table.from_pandas(as_long(batch)).write(path, format="votable")


def nested_fits(batch: CurveBatch, path: Path) -> None:
    """Write one row a star, with arrays of varying lengths in the columns."""
    table = pytest.importorskip("astropy.table").Table()
    for name, values in (("id", batch.ids), ("band", batch.band), ("label", batch.label)):
        table[name] = values.tolist()
    for name, points in (("mjd", batch.time), ("mag", batch.mag), ("err", batch.err)):
        column = np.empty(len(batch), dtype=object)
        column[:] = np.split(points, batch.offsets[1:-1])
        table[name] = column
    table.write(path)


def new_records(batch: CurveBatch, path: Path) -> None:
    """Write shards of TFRecords that contain the name of their star's class."""
    for i in range(3):
        write_records(path / f"{i}.record", [new_style(batch, row) for row in range(i, len(batch), 3)])


def old_records(batch: CurveBatch, path: Path) -> None:
    """Write a folder for each class, which names the class; its TFRecords contain a number, and no band."""
    classes = sorted({*batch.label})
    for name in classes:
        rows = np.flatnonzero(batch.label == name)
        write_records(path / name / "chunk_0.record", [old_style(batch, row, classes) for row in rows])


# The name of a file or folder, whose suffix decides how it is read, and the function `(batch, path)` that writes it.
# What is read back must equal the batch bit for bit, except for what `held_by` says that a format cannot hold.
WRITERS: dict[str, Callable[[CurveBatch, Path], None]] = {
    "nested.parquet": nested,
    "long.csv": long_csv,
    "long.csv.gz": long_csv,
    "long.parquet": long_parquet,
    "astromer": astromer,
    "long.fits": long_fits,
    "nested.fits": nested_fits,
    "nested.feather": lambda batch, path: pyarrow.feather.write_feather(as_nested(batch), path),
    "long.jsonl": json_lines,
    "long.ecsv": long_ecsv,
    "long.vot": long_votable,
    "tfrecord": new_records,
    "old tfrecord": old_records,
}


def held_by(name: str, survey: CurveBatch) -> CurveBatch:
    """The survey as a format can store it: a TFRecord has single precision, an old one no band."""
    if "tfrecord" not in name:
        return survey
    band = np.full(len(survey), "", dtype=object) if name == "old tfrecord" else survey.band
    return replace(survey, time=survey.time.astype(np.float32).astype(np.float64), band=band)


def numbered(batch: CurveBatch) -> CurveBatch:
    """The batch with the ids of an Astromer folder."""
    return replace(batch, ids=np.array([str(int(name.removeprefix("sim-"))) for name in batch.ids], dtype=object))


def read_embeddings(path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(path)
    return frame.assign(id=frame["id"].str.removeprefix("sim-").astype(int)).set_index("id").sort_index()


def train(data: Path, out: Path, *flags: str) -> Path:
    """Train for two steps; return the run's folder."""
    small = out.with_suffix(".yaml")
    small.write_text(SMALL)
    assert pretrain.main(["--config", str(small), "--data", str(data), "--out", str(out), *flags]) == 0
    return out


@pytest.fixture(scope="module")
def trained(survey: CurveBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one of the formats, which `pretrain` converts itself."""
    folder = tmp_path_factory.mktemp("trained")
    astromer(survey, folder / "astromer")
    return train(folder / "astromer", folder / "run")


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_holds_the_same_light_curves(name: str, survey: CurveBatch, trained: Path, tmp_path: Path) -> None:
    source, expected = tmp_path / name, trained / "store"
    WRITERS[name](survey, source)
    held = held_by(name, survey)
    if held is not survey:
        expected = tmp_path / "expected"
        convert_curves(held, expected)
    assert convert.main([str(source), str(tmp_path / "store")]) == 0
    assert_same_curves(map(numbered, Store.open(tmp_path / "store").batches()), [numbered(held)])
    model = str(trained / "checkpoints" / "best")
    for made_of, out in ((source, "direct"), (tmp_path / "store", "by store"), (expected, "expected")):
        assert embed.main([str(made_of), str(tmp_path / f"{out}.parquet"), "--model", model]) == 0
    wanted = read_embeddings(tmp_path / "expected.parquet")
    for out in ("direct", "by store"):
        found = read_embeddings(tmp_path / f"{out}.parquet")
        pd.testing.assert_frame_equal(found.drop(columns="embedding"), wanted.drop(columns="embedding"))
        np.testing.assert_allclose(np.stack(found["embedding"]), np.stack(wanted["embedding"]), rtol=1e-4, atol=1e-5)


def train_and_embed(source: Path, folder: Path, *flags: str) -> pd.DataFrame:
    """Run the three commands on one input; return the embeddings."""
    assert convert.main([str(source), str(folder / "store"), *flags]) == 0
    for data, out in ((source, "direct"), (folder / "store", "stored")):
        train(data, folder / out, *flags)
    digests = {Store.open(path).digest for path in (folder / "store", folder / "direct" / "store")}
    assert len(digests) == 1
    model = str(folder / "direct" / "checkpoints" / "best")
    assert embed.main([str(source), str(folder / "out.parquet"), "--model", model, *flags]) == 0
    return pd.read_parquet(folder / "out.parquet")


@pytest.mark.parametrize("name", ["tfrecord", "old tfrecord"])
def test_records_train_a_model(name: str, survey: CurveBatch, tmp_path: Path) -> None:
    WRITERS[name](survey, tmp_path / name)
    found = train_and_embed(tmp_path / name, tmp_path)
    assert sorted(found["label"]) == sorted(survey.label)


@real_data
@pytest.mark.parametrize(("band", "curves"), [("MACHO_R", 75), (None, 149)])
def test_two_bands_of_real_stars(band: str | None, curves: int, tmp_path: Path) -> None:
    frame = train_and_embed(SHARED / "macho.parquet", tmp_path, *(["--band", band] if band else []))
    assert len(frame) == curves
    assert set(frame["band"]) == ({band} if band else {"MACHO_B", "MACHO_R"})
    assert np.isfinite(np.stack(frame["embedding"])).all()


@real_data
@pytest.mark.parametrize("name", ["long.csv", "astromer", "long.fits", "nested.fits"])
def test_real_stars_in_other_formats(name: str, tmp_path: Path) -> None:
    frame = next(pq.ParquetFile(SHARED / "catalina.parquet").iter_batches(60)).to_pandas()
    lengths = frame["mjd"].map(len)
    batch = CurveBatch(
        ids=np.array([f"sim-{i}" for i in range(len(frame))], dtype=object),
        band=frame["band"].to_numpy(),
        label=frame["label"].to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        **{role: np.concatenate(frame[name]) for role, name in (("time", "mjd"), ("mag", "mag"), ("err", "err"))},
    )
    WRITERS[name](batch, tmp_path / name)
    found = train_and_embed(tmp_path / name, tmp_path)
    assert sorted(found["label"]) == sorted(frame["label"])
    assert found["n_points"].sum() == lengths.sum()
