"""Catalogues on Dask's workers: what they hold, and that a crash costs only the partitions that were not written."""

import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from astroco_fast.digest import DIGEST, MODEL, model_digest
from astroco_fast.registry import load
from astroco_fast.scale.lsdb import embed_catalog
from astroco_fast.scale.partition import embed_partition
from astroco_fast.vector_tables import VectorTable
from bench.scale import make_catalog
from tests.scale.test_partition import model  # noqa: F401

pytestmark = pytest.mark.slow
lsdb = pytest.importorskip("lsdb", reason="the extra lsdb is not installed")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """300 simulated stars in some dozen partitions, with nested light curves."""
    folder = tmp_path_factory.mktemp("catalog") / "survey"
    make_catalog(folder, stars=300, rows=40, order=1)
    return folder


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        yield client


def kill_once(frame, model, mark):  # noqa: F811
    """`embed_partition` that takes its worker with it at one partition, as often as Dask is ready to try again."""
    if len(frame) and Path(mark).exists() and frame["id"].str.endswith("7").any():
        os.kill(os.getpid(), signal.SIGKILL)
    return embed_partition(frame, model)


def written(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("Npix=*.parquet"))


def contents(folder):
    frame = lsdb.open_catalog(folder).compute().sort_values("id")
    return frame.drop(columns="embedding"), np.array(frame["embedding"].tolist())


def test_vectors_are_written_beside_ra_and_dec(catalog, client, model, tmp_path):  # noqa: F811
    opened = lsdb.open_catalog(catalog)
    embed_catalog(opened, model).write_catalog(tmp_path / "vectors", progress_bar=False)
    columns, vectors = contents(tmp_path / "vectors")
    stars = opened.compute().sort_values("id")
    assert columns.columns.tolist() == ["id", "ra", "dec", "band", "n_points"]
    assert columns["id"].tolist() == stars["id"].tolist()
    np.testing.assert_array_equal(columns["ra"], stars["ra"])
    np.testing.assert_array_equal(columns.index, stars.index)
    assert vectors.shape == (300, 16)
    told = VectorTable(tmp_path / "vectors").schema.metadata
    assert told[MODEL.encode()].decode() == model
    assert told[DIGEST.encode()].decode() == model_digest(load(model), ["time_mean"])
    assert np.isfinite(vectors).all()


def test_a_crash_costs_the_partitions_that_were_not_written(catalog, client, model, tmp_path):  # noqa: F811
    opened = lsdb.open_catalog(catalog)
    whole = embed_catalog(opened, model)
    whole.write_catalog(tmp_path / "whole", progress_bar=False)
    mark = tmp_path / "mark"
    mark.touch()
    broken = opened.map_partitions(kill_once, model=model, mark=str(mark))
    with pytest.raises(Exception, match=r"(?i)worker|killed"):
        broken.write_catalog(tmp_path / "vectors", progress_bar=False)
    before = written(tmp_path / "vectors")
    times = {path: (tmp_path / "vectors" / path).stat().st_mtime_ns for path in before}
    mark.unlink()
    client.restart()
    whole.write_catalog(tmp_path / "vectors", resume=True, progress_bar=False)
    after = written(tmp_path / "vectors")
    assert len(before) < len(after) == opened.npartitions
    assert {path: (tmp_path / "vectors" / path).stat().st_mtime_ns for path in before} == times
    assert MODEL.encode() in VectorTable(tmp_path / "vectors").schema.metadata
    (columns, vectors), (expected_columns, expected) = contents(tmp_path / "vectors"), contents(tmp_path / "whole")
    pd.testing.assert_frame_equal(columns, expected_columns)
    np.testing.assert_array_equal(vectors, expected)


def test_partitions_without_rows_pass(catalog, client, model):  # noqa: F811
    few = lsdb.open_catalog(catalog).query("dec > 0")
    found = embed_catalog(few, model).compute()
    assert 0 < len(found) < 300
    assert (found["dec"] > 0).all()
