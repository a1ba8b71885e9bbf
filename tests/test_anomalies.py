"""Anomalies: odd vectors are found by both measures, the same each time, and agreement is what it says."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.vector_tables import vectors, write

pytest.importorskip("faiss")
pytest.importorskip("sklearn")

from astroco_fast import anomalies, oddity
from astroco_fast.oddity import Oddity, ranks


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oddity, "_TREES", 20)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """60 stars, of which star7 and star12 lie far from all."""
    made = vectors(60)
    matrix = np.stack(made["embedding"].to_numpy())
    matrix[7], matrix[12] = 60, -50
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 6)
    return write(tmp_path, "v.parquet", made.set_column(4, "embedding", lists))


def test_odd_stars_come_first_and_again(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outs = [tmp_path / f"{i}.parquet" for i in range(2)]
    for out in outs:
        assert anomalies.main([table, "--out", str(out), "--top", "3", "--k", "3"]) == 0
    shown = capsys.readouterr().out
    found = pq.read_table(outs[0])
    assert set(found["id"].to_pylist()[:2]) == {"star7", "star12"}
    assert found.num_rows == 60
    assert found["score"].to_pylist() == sorted(found["score"].to_pylist(), reverse=True)
    assert found.equals(pq.read_table(outs[1]))
    assert "star12" in shown
    assert "isolation forest, between seeds" in shown
    assert "shared of the 3 oddest" in shown


def test_distances_are_to_the_kth_other_star() -> None:
    matrix = np.array([[0.0], [1], [3], [7]], dtype=np.float32)
    np.testing.assert_allclose(oddity._distance(matrix, 2, seed=0), [3, 2, 3, 6], atol=1e-5)
    np.testing.assert_allclose(oddity._distance(matrix, 9, seed=0), [7, 6, 4, 7], atol=1e-5)


def test_a_large_survey_is_compared_with_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oddity, "REFERENCE", 30)
    matrix = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    found = oddity.oddity(matrix, 3, (5, 6))
    assert not np.array_equal(found.distance[0], found.distance[1])
    standardised = (matrix - matrix.mean(0)) / matrix.std(0)
    sample = np.sort(np.random.default_rng(5).choice(100, 30, replace=False))
    for star in (0, int(sample[0])):
        away = np.sort(np.linalg.norm(standardised[sample[sample != star]] - standardised[star], axis=1))
        assert found.distance[0, star] == pytest.approx(away[2], rel=1e-3)


def test_ranks_and_agreement_by_hand() -> None:
    np.testing.assert_allclose(ranks(np.array([5.0, 1, 1, 9])), [2 / 3, 1 / 6, 1 / 6, 1])
    up, down = np.arange(10.0), np.arange(10.0)[::-1]
    between, _, both = Oddity(np.array([up, up]), np.array([down, down])).agreement(3)
    assert between[1:] == pytest.approx((1, 1))
    assert both[1:] == pytest.approx((-1, 0))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top", "0"], "top must be at least 1"),
        (["--k", "0"], "k must be at least 1"),
        (["--seeds", "[1, 1]"], "seeds must be different"),
        (["--seeds", "[-1]"], "seeds must be"),
        (["--seeds", "[]"], "seeds must be"),
        (["--out", "{table}"], "holds the vectors"),
    ],
)
def test_bad_input_is_one_line(table: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(table).read_bytes()
    assert anomalies.main([table, *(flag.format(table=table) for flag in flags)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert Path(table).read_bytes() == before


def test_too_few_stars_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert anomalies.main([write(tmp_path, "v.parquet", vectors(2))]) == 2
    assert "2 light curves are too few" in capsys.readouterr().err
