"""Embeddings: one row for each light curve, from every kind of input."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import astroco_fast as af
from astroco_fast import embed as embed_module
from astroco_fast.errors import UserError

Curve = np.ndarray


@pytest.fixture(scope="module")
def model() -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo.from_preset("tiny", width=16, heads=2, window=20).eval()


def curve(n: int, seed: int = 0) -> Curve:
    rng = np.random.default_rng(seed)
    return np.column_stack([np.sort(58000 + 900 * rng.random(n)), 15 + rng.normal(size=n), 0.01 + 0.1 * rng.random(n)])


@pytest.fixture(scope="module")
def curves() -> list[Curve]:
    return [curve(n, seed) for seed, n in enumerate((20, 45, 7, 61))]


def by_hand(model: af.AstroCo, c: Curve) -> np.ndarray:
    parts = [c[i : i + 20] for i in range(0, len(c), 20)]
    vectors = [model(*(torch.from_numpy(p[:, k])[None] for k in range(3))).embedding[0].detach().numpy() for p in parts]
    return np.average(vectors, axis=0, weights=[len(p) for p in parts])


def test_arrays_in_array_out_averaged_over_windows_by_points(model: af.AstroCo, curves: list[Curve]) -> None:
    vectors = model.embed(curves)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [by_hand(model, c) for c in curves], rtol=1e-4, atol=1e-5)


def test_batch_size_does_not_matter(model: af.AstroCo, curves: list[Curve]) -> None:
    np.testing.assert_allclose(model.embed(curves, batch_size=1), model.embed(curves), rtol=1e-4, atol=1e-5)


def long_table(curves: list[Curve]) -> pd.DataFrame:
    frames = [pd.DataFrame(c, columns=["mjd", "mag", "magerr"]).assign(id=f"star{i}") for i, c in enumerate(curves)]
    return pd.concat(frames).sample(frac=1, random_state=0)  # a star's rows need not be adjacent


def test_frame_in_frame_with_ids_out(model: af.AstroCo, curves: list[Curve]) -> None:
    frame = model.embed(long_table(curves))
    assert list(frame.columns) == ["id", "band", "label", "n_points", "embedding"]
    frame = frame.set_index("id").loc[[f"star{i}" for i in range(4)]]
    assert frame["n_points"].tolist() == [len(c) for c in curves]
    np.testing.assert_allclose(np.stack(frame["embedding"]), model.embed(curves), rtol=1e-4, atol=1e-5)


def test_a_bad_curve_keeps_its_row(model: af.AstroCo, curves: list[Curve]) -> None:
    empty = np.full((5, 3), np.nan)
    with pytest.warns(UserWarning, match="1 of 3 light curves"):
        vectors = model.embed([curves[0], empty, curves[2]])
    assert np.isnan(vectors[1]).all()
    np.testing.assert_allclose(vectors[[0, 2]], model.embed([curves[0], curves[2]]), rtol=1e-4, atol=1e-5)


def test_lists_of_tables_and_files_are_not_lists_of_arrays(
    model: af.AstroCo, curves: list[Curve], tmp_path: Path
) -> None:
    tables = [long_table([c]).assign(id=str(3 - i)) for i, c in enumerate(curves)]  # ids that look like positions
    expected = dict(zip("3210", model.embed(curves), strict=True))
    for i, table in enumerate(tables):
        table.to_csv(tmp_path / f"{i}.csv", index=False)
    for given in (tables, [tmp_path / f"{i}.csv" for i in range(4)], [str(tmp_path / "*.csv")]):
        frame = model.embed(given).set_index("id")
        assert sorted(frame.index) == ["0", "1", "2", "3"]
        for star, vector in frame["embedding"].items():
            np.testing.assert_allclose(vector, expected[star], rtol=1e-4, atol=1e-5)


def test_stars_left_out_of_a_table_are_counted(model: af.AstroCo, curves: list[Curve]) -> None:
    frame = long_table(curves)
    frame.loc[frame["id"] == "star1", "mag"] = np.nan
    with pytest.warns(UserWarning, match="1 curves: too few points"):
        assert len(model.embed(frame)) == 3


def test_training_mode_is_restored(model: af.AstroCo, curves: list[Curve]) -> None:
    model.train()
    try:
        running = model.blocks[0].convolution.batch_norm.running_mean.clone()
        in_training = model.embed(curves)
        assert model.training
        assert torch.equal(model.blocks[0].convolution.batch_norm.running_mean, running)
    finally:
        model.eval()
    np.testing.assert_array_equal(in_training, model.embed(curves))


def command(tmp_path: Path, model: af.AstroCo, *arguments: str) -> int:
    model.save_pretrained(tmp_path / "model")
    return embed_module.main([*arguments, "--model", str(tmp_path / "model")])


def test_command_writes_parquet(tmp_path: Path, model: af.AstroCo, curves: list[Curve]) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.parquet"
    long_table(curves).to_csv(source, index=False)
    assert command(tmp_path, model, str(source), str(out)) == 0
    frame = pq.read_table(out).to_pandas().sort_values("id")
    assert frame["id"].tolist() == [f"star{i}" for i in range(4)]
    np.testing.assert_allclose(np.stack(frame["embedding"]), model.embed(curves), rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv", "out.parquet"], "missing.csv"),
        (["in.csv", "no/such/out.parquet"], "no folder"),
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
    assert command(tmp_path, model, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out.parquet").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_nothing_to_embed_is_an_error(model: af.AstroCo) -> None:
    frame = long_table([curve(3)]).assign(magerr=-1.0)
    with pytest.raises(UserError, match="no light curve left"):
        model.embed(frame)
