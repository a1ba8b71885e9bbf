"""Embeddings: one row for each light curve, from every kind of input."""

import copy
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch

import astroco_fast as af
from astroco_fast import embed as embed_module
from astroco_fast import embedding, encoding, machine, pretrained
from astroco_fast.data.convert import convert
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periods import find_periods
from astroco_fast.data.store import Store
from astroco_fast.digest import model_digest
from astroco_fast.embedding import dimensions, layout
from astroco_fast.encoding import PARTS
from astroco_fast.errors import UserError
from astroco_fast.kernels.cpu import build, native
from tests.conftest import CPU_ISA

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
    vectors = model.embed(curves, precision="fp32")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [by_hand(model, c) for c in curves], rtol=1e-4, atol=1e-5)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the compiled CPU kernels, which the tests switch off elsewhere."""
    monkeypatch.setattr(build, "wish", CPU_ISA)
    if native.missing() is not None:
        pytest.skip("no C++ compiler, or a CPU without kernels")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("width", [16, 36])
def test_the_batch_changes_no_bit(compiled: None, precision: str, width: int) -> None:
    torch.manual_seed(1)
    model = af.AstroCo.from_preset("tiny", width=width, heads=2, window=20).eval()
    curves = [curve(int(n), seed) for seed, n in enumerate(np.random.default_rng(0).integers(1, 75, 12))]
    curves[5:7] = periodic(80, 0.37, 1), periodic(40, 2.3, 2)

    def vectors(chosen: list[Curve], batch_size: int = 256) -> Curve:
        return model.embed(chosen, parts=PARTS, precision=precision, batch_size=batch_size)

    wanted = vectors(curves)
    for batch_size in (1, 7):
        assert np.array_equal(vectors(curves, batch_size), wanted)
    order = np.random.default_rng(1).permutation(len(curves))
    assert np.array_equal(vectors([curves[i] for i in order]), wanted[order])
    assert all(np.array_equal(vectors([curves[i]])[0], wanted[i]) for i in (0, 5))


def test_pieces_of_a_batch_change_no_bit(
    compiled: None, model: af.AstroCo, curves: list[Curve], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = long_table(curves)
    wanted = [model.embed(frame), model.embed(frame, output="sequence")]
    for name, value in (("PIECE_CURVES", 1), ("PIECE_POINTS", 50)):
        with monkeypatch.context() as patch:
            patch.setattr(embedding, name, value)
            for output, whole in zip(("embedding", "sequence"), wanted, strict=True):
                again = model.embed(frame, output=output)
                assert again["id"].tolist() == whole["id"].tolist()
                assert all(map(np.array_equal, again[output], whole[output]))


def test_precision_is_chosen_by_name_by_the_machine_and_by_autocast(
    model: af.AstroCo, curves: list[Curve], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, half = (model.embed(curves, precision=name) for name in ("fp32", "bf16"))
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.05)
    for fast, wanted in ((True, half), (False, full)):
        monkeypatch.setattr(machine, "multiplies_bfloat16", lambda device, fast=fast: fast)
        assert np.array_equal(model.embed(curves), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(model.embed(curves), half)
        assert np.array_equal(model.embed(curves, precision="fp32"), full)


@pytest.mark.parametrize("parts", [["time_mean", "time_spread"], ["folded_mean"], ["period", "time_mean"]])
def test_windows_policies(model: af.AstroCo, mixed: list[Curve], parts: list[str]) -> None:
    embed = partial(model.embed, parts=parts, precision="fp32")
    frame = embed(mixed, windows="all")
    assert frame["id"].tolist() == ["0"] * 4 + ["1"] * 3 + ["2"] * 4
    assert frame["window"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3]
    assert frame["window"].dtype == np.int32
    assert [group["n_points"].sum() for _, group in frame.groupby("id")] == [len(c) for c in mixed]
    if "time_spread" not in parts:
        weighted = [
            np.average(np.stack(group["embedding"]), axis=0, weights=group["n_points"])
            for _, group in frame.groupby("id")
        ]
        np.testing.assert_allclose(embed(mixed), weighted, atol=1e-5)
    if "folded_mean" not in parts:  # whose period would be that of the shorter curve
        where = slice(-16, None)
        for windows, ends in (("first", [c[:20] for c in mixed]), ("last", [c[-20:] for c in mixed])):
            np.testing.assert_allclose(embed(mixed, windows=windows)[:, where], embed(ends)[:, where], atol=1e-5)
    else:
        assert not np.array_equal(embed(mixed, windows="first"), embed(mixed))
    if "period" in parts:
        assert np.array_equal(embed(mixed, windows="last")[:, :28], embed(mixed)[:, :28])


@pytest.mark.parametrize("views", ["time", "folded"])
def test_sequences_and_reconstructions_are_of_points_in_time_order(
    model: af.AstroCo, mixed: list[Curve], views: str
) -> None:
    states, given = (
        model.embed(mixed, output=output, views=views, precision="fp32") for output in ("sequence", "reconstruction")
    )
    vectors = model.embed(mixed, parts=[f"{views}_mean"], precision="fp32")
    for i, c in enumerate(mixed):
        assert np.array_equal(states["time"][i], c[:, 0])
        assert np.array_equal(given["mag"][i], c[:, 1].astype(np.float32))
        assert states["sequence"][i].shape == (len(c), 16)
        assert states["sequence"][i].dtype == given["reconstruction"][i].dtype == np.float32
        np.testing.assert_allclose(states["sequence"][i].mean(0), vectors[i], atol=1e-5)
    window = mixed[0][:20]
    with torch.no_grad():
        out = model(*(torch.from_numpy(window[:, k])[None] for k in range(3)))
    if views == "time":
        np.testing.assert_allclose(states["sequence"][0][:20], out.sequence[0], atol=1e-4)
        middle = window[:, 1].mean()
        np.testing.assert_allclose(given["reconstruction"][0][:20], out.reconstruction[0] + middle, atol=1e-4)
    by_window = model.embed(mixed, output="sequence", views=views, windows="all", precision="fp32")
    assert by_window["sequence"].map(len).tolist() == by_window["n_points"].tolist()
    together = np.concatenate(by_window["time"][by_window["id"] == "0"])
    joined = np.concatenate(by_window["sequence"][by_window["id"] == "0"])
    np.testing.assert_allclose(joined[np.argsort(together)], states["sequence"][0], atol=1e-6)
    assert model.embed(mixed, output="sequence", views=views, windows="last")["n_points"].tolist() == [20] * 3


@pytest.mark.parametrize("output", ["embedding", "sequence"])
def test_curves_without_a_result_have_a_row_of_nan_or_none(model: af.AstroCo, curves: list[Curve], output: str) -> None:
    frame = long_table(curves).sort_values(["id", "mjd"])
    frame.loc[frame["id"] == "star0", "mag"] = np.nan
    embed = partial(model.embed, min_points=10, output=output)
    with pytest.warns(UserWarning, match="2 curves: too few points"):
        kept = embed(frame)
    with pytest.warns(UserWarning, match="2 of 4 light curves have too few good points: their rows are NaN"):
        rows = embed(frame, short="nan")
    assert rows["id"].tolist() == ["star0", "star1", "star2", "star3"]
    assert rows["n_points"].tolist() == [0, 45, 7, 61]
    assert kept["id"].tolist() == ["star1", "star3"]
    assert all(map(np.array_equal, rows[output].iloc[[1, 3]], kept[output]))
    shape = (7, 16) if output == "sequence" else (16,)
    assert rows[output].iloc[2].shape == shape
    assert np.isnan(rows[output].iloc[2]).all()
    with pytest.warns(UserWarning, match="1 curves: too few points"):
        assert len(model.embed(curves, min_points=10, short="drop")) == 3
    with pytest.warns(UserWarning, match="1 curves: too few points"):
        assert len(embed(frame[frame["id"] == "star2"], short="drop")) == 0


@pytest.mark.parametrize("output", ["embedding", "sequence", "reconstruction"])
@pytest.mark.parametrize("windows", ["mean", "all"])
def test_empty_in_typed_and_empty_out(model: af.AstroCo, mixed: list[Curve], output: str, windows: str) -> None:
    embed = partial(model.embed, output=output, windows=windows, views="folded")
    full = embed(long_table(mixed))
    nested = {name: pa.array([], pa.list_(pa.float64())) for name in ("time", "mag", "err")}
    empty = long_table(mixed).iloc[:0]
    for source in (empty, empty.astype(object), pa.table({"id": pa.array([], pa.string()), **nested})):
        frame = embed(source)
        assert len(frame) == 0
        assert frame.dtypes.to_dict() == full.dtypes.to_dict()
    vectors = model.embed([])
    assert (vectors.shape, vectors.dtype) == ((0, 16), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"windows": "middle"}, "windows: there is no 'middle'; there are: mean, first, last, all"),
        ({"output": "image"}, "output: there is no 'image'"),
        ({"short": "zero"}, "short: there is no 'zero'"),
        ({"precision": "int8"}, "precision: there is no 'int8'"),
        ({"views": "sideways"}, "views: there is no 'sideways'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"min_points": 0}, "min_points must be at least 1"),
        ({"output": "sequence", "parts": ["period"]}, "parts: only vectors have parts"),
        ({"output": "sequence", "views": "both"}, "views: output 'sequence' is of one view"),
    ],
)
def test_wrong_arguments_are_named(
    model: af.AstroCo, curves: list[Curve], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        model.embed(curves, **arguments)


def long_table(curves: list[Curve]) -> pd.DataFrame:
    frames = [pd.DataFrame(c, columns=["mjd", "mag", "magerr"]).assign(id=f"star{i}") for i, c in enumerate(curves)]
    return pd.concat(frames).sample(frac=1, random_state=0)  # a star's rows need not be adjacent


def test_frame_in_frame_with_ids_out(model: af.AstroCo, curves: list[Curve]) -> None:
    frame = model.embed(long_table(curves))
    assert list(frame.columns) == ["id", "band", "label", "n_points", "embedding"]
    frame = frame.set_index("id").loc[[f"star{i}" for i in range(4)]]
    assert frame["n_points"].tolist() == [len(c) for c in curves]
    assert np.array_equal(np.stack(frame["embedding"]), model.embed(curves))


def test_a_bad_curve_keeps_its_row(model: af.AstroCo, curves: list[Curve]) -> None:
    empty = np.full((5, 3), np.nan)
    with pytest.warns(UserWarning, match="1 of 3 light curves have too few good points: their rows are NaN"):
        vectors = model.embed([curves[0], empty, curves[2]])
    assert np.isnan(vectors[1]).all()
    assert np.array_equal(vectors[[0, 2]], model.embed([curves[0], curves[2]]))


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
            assert np.array_equal(vector, expected[star])


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
        patch.setattr(encoding, "find_periods", None)
        again = model.embed(tmp_path / "store", parts=PARTS)
        with pytest.warns(UserWarning, match="1 curves: too few points"):
            longer = model.embed(tmp_path / "store", parts=PARTS, min_points=50)
    pd.testing.assert_frame_equal(again, searched)
    assert np.array_equal(longer["period"], searched["period"][searched["n_points"] >= 50], equal_nan=True)


def test_mean_and_spread_are_over_all_points_of_a_curve(model: af.AstroCo, mixed: list[Curve]) -> None:
    where = layout(model, PARTS)
    vectors = model.embed(mixed, parts=PARTS, precision="fp32")
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
    assert np.array_equal(np.stack(frame["embedding"]), model.embed(curves))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "model", "out.parquet"]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PIECE_CURVES", 2)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows in the process counts."""


def killed_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Let the command end once it has embedded this many pieces in this process."""
    whole, made = embedding.embed_curves, []

    def embed_curves(model: af.AstroCo, raw: CurveBatch, choice: embedding.Choice) -> object:
        if len(raw) and len(made) == parts:
            raise Killed
        made.append(raw)
        return whole(model, raw, choice)

    monkeypatch.setattr(embedding, "embed_curves", embed_curves)


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    long_table([curve(n, n) for n in range(9, 20)]).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".csv", ".fits", ".npz"])
def test_a_killed_command_goes_on_and_writes_the_same_bytes(
    tmp_path: Path, model: af.AstroCo, survey: Path, suffix: str, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    assert command(tmp_path, model, str(survey), str(whole)) == 0
    for done in (2, 1):
        with monkeypatch.context() as patch:
            killed_after(patch, done)
            with pytest.raises(Killed):
                command(tmp_path, model, str(survey), str(out))
        assert not out.exists()
    parts = sorted((tmp_path / f"out{suffix}.partial").glob("*.parquet"))
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"!")  # is made again
    with monkeypatch.context() as patch:
        killed_after(patch, 4)
        assert command(tmp_path, model, str(survey), str(out)) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / f"out{suffix}.partial").exists()


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2]])
def test_shares_are_joined_by_the_last(
    tmp_path: Path, model: af.AstroCo, survey: Path, order: list[int], small_pieces: None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert command(tmp_path, model, str(survey), str(whole)) == 0
    for share in order:
        assert not out.exists()
        if share == 2:  # as a rank of torchrun, which takes its share of the share
            for rank in (0, 1):
                with monkeypatch.context() as patch:
                    patch.setenv("RANK", str(rank))
                    patch.setenv("WORLD_SIZE", "2")
                    assert command(tmp_path, model, str(survey), str(out), "--shard", "2/3") == 0
            continue
        assert command(tmp_path, model, str(survey), str(out), "--shard", f"{share}/3") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert "share 1 of 3 is done" in capsys.readouterr().out


@pytest.mark.slow
def test_ranks_of_torchrun_share_the_work(tmp_path: Path, model: af.AstroCo, survey: Path) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert command(tmp_path, model, str(survey), str(whole)) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["-m", "astroco_fast.embed", str(survey), str(out), "--model", str(tmp_path / "model")]
    subprocess.run([*launch, *arguments], check=True, timeout=300)
    assert out.read_bytes() == whole.read_bytes()


def test_parts_of_other_settings_are_never_mixed(
    tmp_path: Path, model: af.AstroCo, survey: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert command(tmp_path, model, str(survey), str(whole), "--windows", "first") == 0
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            command(tmp_path, model, str(survey), str(out))
    again = [str(survey), str(out), "--windows", "first"]
    assert command(tmp_path, model, *again) == 2
    assert "holds parts of an embedding with another settings; give the same" in capsys.readouterr().err
    assert command(tmp_path, model, *again, "--overwrite") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert command(tmp_path, model, *again) == 2
    assert command(tmp_path, model, *again, "--overwrite") == 0
    (tmp_path / "out2.parquet.partial").mkdir()
    (tmp_path / "out2.parquet.partial" / "thesis.tex").touch()
    assert command(tmp_path, model, str(survey), str(tmp_path / "out2.parquet"), "--overwrite") == 2
    assert "holds 'thesis.tex', which astroco embed did not write" in capsys.readouterr().err


def test_a_star_that_comes_twice_is_found_across_shares(
    tmp_path: Path, model: af.AstroCo, capsys: pytest.CaptureFixture[str], small_pieces: None
) -> None:
    table = pa.table({"id": ["a", "b", "c", "a"], **{name: [[1.0, 2.0, 3.0]] * 4 for name in ("time", "mag", "err")}})
    pq.write_table(table, tmp_path / "in.parquet")
    assert command(tmp_path, model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")) == 2
    assert "id 'a' has two light curves" in capsys.readouterr().err


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
    frame = pd.read_parquet(survey)
    frame.iloc[:0].to_parquet(tmp_path / "empty.parquet")
    for suffix in (".parquet", ".fits", ".npz", ".csv"):
        assert (
            command(tmp_path, model, str(tmp_path / "empty.parquet"), str(tmp_path / f"out{suffix}"), "--short", "drop")
            == 0
        )
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


def test_sigterm_leaves_what_resumes(tmp_path: Path, model: af.AstroCo, survey: Path, small_pieces: None) -> None:
    out = tmp_path / "out.parquet"
    with pytest.MonkeyPatch.context() as patch:
        whole, made = embedding.embed_curves, []

        def embed_curves(model: af.AstroCo, raw: CurveBatch, choice: embedding.Choice) -> object:
            made.append(raw)
            if len(made) == 2:
                signal.raise_signal(signal.SIGTERM)
            return whole(model, raw, choice)

        patch.setattr(embedding, "embed_curves", embed_curves)
        assert command(tmp_path, model, str(survey), str(out)) == 75
    left = [path.name for path in (tmp_path / "out.parquet.partial").iterdir()]
    assert sum("of" in name and name.endswith(".parquet") for name in left) == 1
    assert not [name for name in left if name.endswith(".partial")]
    assert command(tmp_path, model, str(survey), str(out)) == 0


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


def test_vectors_that_are_not_finite_are_left_out_and_counted(tmp_path: Path, model: af.AstroCo) -> None:
    arrays = [curve(20), curve(20), curve(3)]
    broken = copy.deepcopy(model)
    plain = broken.forward

    def forward(*args: object, **keywords: object) -> object:
        out = plain(*args, **keywords)
        out.embedding[0] = float("nan")
        return out

    broken.forward = forward  # type: ignore[method-assign]
    with pytest.warns(
        UserWarning, match="1 of 3 light curves have an embedding that is not finite: their rows are NaN"
    ):
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
