"""Ray Data's actors: the same vectors as without them, and none lost when a worker is killed."""

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import astroco_fast as af
from astroco_fast.data.simulated_table import write_table
from astroco_fast.scale.ray import Embedder
from tests.scale.test_partition import model  # noqa: F401

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("ray.data")


class KilledOnce(Embedder):
    """An embedder that is killed at its second batch, once."""

    def __init__(self, model, mark):  # noqa: F811
        super().__init__(model, precision="fp32")
        self._mark, self._batches = Path(mark), 0

    def __call__(self, table):
        self._batches += 1
        if self._batches == 2 and self._mark.exists():
            self._mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(table)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_killed_worker_loses_nothing(cluster, model, tmp_path):  # noqa: F811
    (tmp_path / "survey").mkdir()
    write_table(tmp_path / "survey" / "part.parquet", n_stars=200, seed=0)
    (tmp_path / "mark").touch()
    stars = ray.data.read_parquet(str(tmp_path / "survey")).repartition(8)
    vectors = stars.map_batches(
        KilledOnce,
        fn_constructor_args=(model, str(tmp_path / "mark")),
        batch_format="pyarrow",
        batch_size=20,
        concurrency=2,
    )
    vectors.write_parquet(str(tmp_path / "vectors"))
    assert not (tmp_path / "mark").exists()
    found = pq.read_table(tmp_path / "vectors").to_pandas().sort_values("id", ignore_index=True)
    expected = af.load(model).embed(tmp_path / "survey", precision="fp32").sort_values("id", ignore_index=True)
    assert found["id"].tolist() == expected["id"].tolist()
    np.testing.assert_array_equal(np.stack(found["embedding"]), np.stack(expected["embedding"]))
