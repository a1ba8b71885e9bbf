"""Embeddings: one row for each light curve, from every kind of input."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import astroco_fast as af
from astroco_fast import embed as embed_module
from astroco_fast import embedding as embedding_module
from astroco_fast.data.convert import convert
from astroco_fast.data.periods import find_periods
from astroco_fast.data.store import Store
from astroco_fast.embedding import PARTS, dimensions, layout
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


def periodic(n: int, period: float, seed: int) -> Curve:
    rng = np.random.default_rng(seed)
    time = np.sort(58000 + 400 * rng.random(n))
    mag = 15 + 0.4 * np.sin(2 * np.pi * time / period) + 0.02 * rng.normal(size=n)
    return np.column_stack([time, mag, 0.01 + 0.02 * rng.random(n)])


@pytest.fixture(scope="module")
def mixed() -> list[Curve]:
    """Two light curves with periods, 0.37 and 2.3 days, and one of noise."""
    return [periodic(70, 0.37, 1), periodic(45, 2.3, 2), curve(61, 3)]


def test_vector_parts_hold_their_named_values(model: af.AstroCo, mixed: list[Curve]) -> None:
    vectors = model.embed(mixed, parts=PARTS)
    where = layout(model, PARTS)
    assert list(where) == list(PARTS)
    assert vectors.shape == (3, where["magnitudes"].stop) == (3, dimensions(model, PARTS))
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(vectors[:, where["time_mean"]], model.embed(mixed))
    np.testing.assert_array_equal(
        model.embed(mixed, parts=["period", "time_mean"])[:, :28], vectors[:, where["period"]]
    )
    # Without a period the time view stands in, and no number tells of a period.
    for part in ("mean", "spread"):
        one, other = (vectors[:, where[f"{view}_{part}"]] for view in ("time", "folded"))
        assert np.array_equal(one[2], other[2])
        assert not np.allclose(one[:2], other[:2])
    assert not vectors[2, where["period"]].any()
    np.testing.assert_allclose(vectors[:2, where["period"].start], np.log10([0.37, 2.3]), atol=1e-3)
    spread = vectors[:, where["magnitudes"].start + 3]
    np.testing.assert_allclose(10**spread, [c[:, 1].std() for c in mixed], rtol=0.1)


def test_store_periods_are_used_again(model: af.AstroCo, mixed: list[Curve], tmp_path: Path) -> None:
    table = tmp_path / "curves.parquet"
    long_table(mixed).to_parquet(table)
    convert(table, tmp_path / "store")
    searched = model.embed(tmp_path / "store", parts=PARTS)
    store = Store.open(tmp_path / "store")
    store.add_periods(find_periods, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_module, "find_periods", None)
        again = model.embed(tmp_path / "store", parts=PARTS)
        with pytest.warns(UserWarning, match="1 curves: too few points"):
            longer = embedding_module.embed(model, tmp_path / "store", parts=PARTS, min_points=50)
    pd.testing.assert_frame_equal(again, searched)
    assert np.array_equal(longer["period"], searched["period"][searched["n_points"] >= 50], equal_nan=True)


def test_mean_and_spread_are_over_all_points_of_a_curve(model: af.AstroCo, mixed: list[Curve]) -> None:
    where = layout(model, PARTS)
    vectors = model.embed(mixed, parts=PARTS)
    windows = [mixed[0][i : i + 20] for i in range(0, 70, 20)]
    with torch.no_grad():
        states = [model(*(torch.from_numpy(w[:, k])[None] for k in range(3))).sequence[0] for w in windows]
    together = torch.cat(states).numpy()
    np.testing.assert_allclose(vectors[0, where["time_mean"]], together.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vectors[0, where["time_spread"]], together.std(0), rtol=1e-3, atol=1e-4)


def test_the_views_of_pretraining_decide_the_default_parts(
    model: af.AstroCo, mixed: list[Curve], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "time")
    assert "views" not in json.loads((tmp_path / "time" / "config.json").read_text())
    folded = af.load(tmp_path / "time")
    folded.views = "folded"
    folded.save_pretrained(tmp_path / "folded")
    loaded = af.load(tmp_path / "folded")
    assert loaded.views == "folded"
    expected = model.embed(mixed, parts=["folded_mean", "period", "shape", "magnitudes"])
    np.testing.assert_array_equal(loaded.embed(mixed), expected)
    config = tmp_path / "folded" / "config.json"
    config.write_text(config.read_text().replace('"folded"', '"sideways"'))
    (config.parent / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"config.json: 'views' is 'sideways'; there are: time, folded, both"):
        af.load(tmp_path / "folded")


@pytest.mark.parametrize(
    ("parts", "message"),
    [(["period", "mean"], "no part 'mean'; there are: time_mean,"), ([], "at least one"), (["period"] * 2, "once")],
)
def test_unknown_parts_are_named(model: af.AstroCo, mixed: list[Curve], parts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.embed(mixed, parts=parts)


def test_the_table_says_where_each_part_lies(model: af.AstroCo, mixed: list[Curve], tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.parquet"
    long_table(mixed).to_csv(source, index=False)
    assert command(tmp_path, model, str(source), str(out), "--views", "folded") == 0
    table = pq.read_table(out)
    assert table.column_names == ["id", "band", "label", "n_points", "period", "embedding"]
    places = json.loads(table.schema.field("embedding").metadata[b"parts"])
    assert places == {"folded_mean": [0, 16], "period": [16, 44], "shape": [44, 50], "magnitudes": [50, 63]}
    frame = table.to_pandas().sort_values("id")
    assert np.isnan(frame["period"].iloc[2])
    np.testing.assert_allclose(frame["period"].iloc[:2], [0.37, 2.3], rtol=1e-3)
    np.testing.assert_allclose(np.stack(frame["embedding"]), model.embed(mixed, parts=list(places)), atol=1e-5)


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


def test_vectors_that_are_not_finite_are_left_out_and_counted(tmp_path: Path, model: af.AstroCo) -> None:
    arrays = [curve(20), curve(20), curve(3)]
    broken = copy.deepcopy(model)
    plain = broken.forward

    def forward(*args: object, **keywords: object) -> object:
        out = plain(*args, **keywords)
        out.embedding[0] = float("nan")
        return out

    broken.forward = forward  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="the embeddings of 1 of 3 light curves are not finite"):
        vectors = broken.embed(arrays)
    assert np.isnan(vectors[0]).all()
    assert np.isfinite(vectors[1:]).all()
    with pytest.warns(UserWarning, match="dropped 1 curves: embedding not finite"):
        assert len(broken.embed(long_table(arrays))) == 2
    with pytest.raises(UserError, match="no light curve left to embed; dropped 1 curves: embedding not finite"):
        broken.embed(arrays[:1])


def test_nothing_to_embed_is_an_error(model: af.AstroCo) -> None:
    frame = long_table([curve(3)]).assign(magerr=-1.0)
    with pytest.raises(UserError, match="no light curve left"):
        model.embed(frame)
