"""The report of a run: its table and plots show the run's metrics, light curves and layer mix."""

import json
import shlex
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from astroco_fast import AstroCo, cli, plots, report
from astroco_fast.data.batches import Batch
from astroco_fast.data.convert import convert
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.hashing import split_of
from astroco_fast.data.masking import HIDDEN, RANDOM, UNCHANGED
from astroco_fast.data.periods import find_periods
from astroco_fast.data.store import Store
from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.pretrain import report as run_report

pytest.importorskip("matplotlib")

STARS, POINTS = 150, 60
CONFIG = {"preset": "tiny", "data": None, "seed": 3, "band": None, "train": {"evaluate_windows": None}}
TRAIN = [
    {
        "split": "train",
        "step": step,
        "loss": 0.3 - step / 1000,
        "rmse": 0.31 - step / 1000,
        "windows_seen": 32 * step,
        "windows_per_s": 90.0,
    }
    for step in (10, 20, 30)
]
VALIDATION = [
    {
        "split": "validation",
        "step": step,
        "rmse": 0.2,
        "r2": 0.3,
        "trivial_rmse": 0.25,
        "rmse_hidden": 0.21,
        "r2_hidden": 0.25,
        "trivial_rmse_hidden": 0.26,
        "rmse_random": 0.24,
        "r2_random": 0.1,
        "rmse_unchanged": 0.1,
        "r2_unchanged": 0.9,
    }
    for step in (15, 30)
]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw fewer pixels, to save time."""
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 50)


def survey() -> CurveBatch:
    """Sine curves of many periods, observed twice a night in three seasons."""
    rng = np.random.default_rng(0)
    nights = np.concatenate([np.arange(10.0) * 3 + season for season in (0, 200, 400)])
    time = 55000.25 + np.sort(np.concatenate([nights, nights + 0.02]))
    period = rng.uniform(20, 90, STARS)[:, None]
    mag = 15 + 0.3 * np.sin(2 * np.pi * time / period) + rng.normal(0, 0.02, (STARS, POINTS))
    return CurveBatch(
        ids=np.array([f"star-{i}" for i in range(STARS)], dtype=object),
        band=np.array(["V"] * STARS, dtype=object),
        label=np.array(["sine"] * STARS, dtype=object),
        offsets=np.arange(STARS + 1, dtype=np.int64) * POINTS,
        time=np.tile(time, STARS),
        mag=mag.ravel().astype(np.float32),
        err=np.full(STARS * POINTS, 0.02, dtype=np.float32),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("data") / "store"
    convert([survey()], folder, provenance={"simulated": True})
    return Store.open(folder)


@pytest.fixture(scope="module")
def model() -> AstroCo:
    return AstroCo.from_preset("tiny", window=POINTS).eval()


@pytest.fixture
def run(tmp_path: Path, store: Store, model: AstroCo) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": str(store.path)}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*TRAIN, *VALIDATION]))
    model.save_pretrained(tmp_path / "checkpoints" / "best")
    (tmp_path / "checkpoints" / "best" / "state.json").write_text(json.dumps({"store": store.digest}))
    return tmp_path


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines()}


def test_the_command_draws_all_and_says_where(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that simulated its own light curves."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "store").symlink_to(config["data"])
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": None}))
    assert report.main([str(run)]) == 0
    table, files, views = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == [
        "validation",
        "probed",
        "all",
        "hidden",
        "random",
        "unchanged",
    ]
    paths = [Path(line) for line in files.splitlines()]
    assert [path.name for path in paths] == ["training.png", "reconstructions.png", "layer_mix.png"]
    commands = [line.split()[:2] for line in views.splitlines()[1:]]
    assert commands == [["astroco", name] for name in ("embed", "explore", "anomalies", "neighbours")]
    assert views.splitlines()[1].split()[2] == str(run / "store")
    for path in paths:
        assert path.parent == run / "plots"
        head = path.read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", head[16:24])) > 150


@pytest.mark.slow
def test_the_commands_that_the_report_names_make_what_it_then_links(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    folder = tmp_path / "a run"
    folder.mkdir()
    for path in [path for path in run.iterdir() if path != folder]:
        path.rename(folder / path.name)
    assert report.main([str(folder)]) == 0
    for line in capsys.readouterr().out.split("\n\n")[2].splitlines()[1:]:
        _, name, *words = shlex.split(line)
        assert cli.main([name, *words]) == 0
    capsys.readouterr()
    assert report.main([str(folder)]) == 0
    linked = capsys.readouterr().out.split("\n\n")[2].splitlines()[1:]
    assert len(linked) == 4
    assert all(Path(line).is_file() for line in linked)


def test_a_run_without_a_checkpoint_shows_its_curves(unrendered: None, run: Path) -> None:
    for file in (run / "checkpoints" / "best").iterdir():
        file.unlink()
    (run / "checkpoints" / "best").rmdir()
    assert [path.name for path in run_report.plot_run(run)] == ["training.png"]


def test_a_model_without_a_mix_has_no_mix_to_show(unrendered: None, run: Path) -> None:
    AstroCo.from_preset("tiny", window=POINTS, mix=False).save_pretrained(run / "checkpoints" / "best")
    assert [path.stem for path in run_report.plot_run(run)] == ["training", "reconstructions"]


def test_training_curves_show_the_metrics_and_the_trivial_answer() -> None:
    with plots.drawing():
        figure = plots.training_curves(TRAIN, VALIDATION, "title")
    loss, rmse, r2 = figure.axes
    np.testing.assert_allclose(lines(loss)["training loss"].get_xydata(), [[10, 0.29], [20, 0.28], [30, 0.27]])
    np.testing.assert_allclose(lines(loss)["training RMSE, smoothed"].get_ydata(), [0.30, 0.29, 0.28])
    np.testing.assert_allclose(lines(loss)["validation, all probed"].get_xydata(), [[15, 0.2], [30, 0.2]])
    assert lines(loss)["trivial answer: the window's mean"].get_ydata()[0] == 0.25
    assert lines(rmse)["trivial answer: the window's mean"].get_ydata()[0] == 0.26
    for role, (best, r2_best) in {"hidden": (0.21, 0.25), "random": (0.24, 0.1), "unchanged": (0.1, 0.9)}.items():
        assert set(lines(rmse)[role].get_ydata()) == {best}
        assert set(lines(r2)[role].get_ydata()) == {r2_best}


def test_smoothing_keeps_a_constant_and_the_mean_of_noise() -> None:
    noise = np.random.default_rng(0).normal(5, 1, 4000)
    smooth = plots._smooth(noise)
    assert smooth.shape == noise.shape
    assert abs(smooth.mean() - noise.mean()) < 0.01
    assert smooth.std() < 0.15
    np.testing.assert_allclose(plots._smooth(np.full(500, 0.2)), 0.2)


def test_reconstructions_hold_the_stores_points_and_the_models_answer(store: Store, model: AstroCo) -> None:
    windows = run_report.reconstruct(model, store, CONFIG)
    assert len(windows) == 6
    ids = list(store.ids)
    scores = []
    for window in windows:
        name, label, band = window.title.split()[:3]
        assert (label, band) == ("sine", "V")
        curve = ids.index(name)
        points = slice(store.offsets[curve], store.offsets[curve + 1])
        mag = store.mag[points].astype(np.float64)
        np.testing.assert_allclose(window.mag, mag - mag.mean(), atol=1e-6)
        np.testing.assert_allclose(np.diff(window.time), np.diff(store.time[points]), atol=1e-4)
        np.testing.assert_array_equal(window.err, store.err[points])
        assert np.isin(window.role[window.shown != window.mag], (RANDOM, HIDDEN)).all()
        assert [(window.role == role).sum() for role in (HIDDEN, RANDOM, UNCHANGED)] == [18, 6, 6]
        hidden = window.role == HIDDEN
        spread = np.square(window.mag[hidden] - window.mag[hidden].mean()).sum()
        scores.append(1 - np.square(window.mag - window.predicted)[hidden].sum() / spread)
        assert f"{scores[-1]:.2f}" in window.title
    assert scores == sorted(scores, reverse=True)


def test_reconstructions_come_from_the_validation_split_alone(store: Store, model: AstroCo) -> None:
    part = {name for name, split in zip(store.ids, split_of(store.star_hash), strict=True) if split == 1}
    assert {window.title.split()[0] for window in run_report.reconstruct(model, store, CONFIG)} <= part


def test_panels_have_bright_above_and_every_role_in_the_legend(store: Store, model: AstroCo) -> None:
    with plots.drawing():
        figure = plots.reconstructions(run_report.reconstruct(model, store, CONFIG), "title")
    assert len(figure.axes) == 6
    for axes in figure.axes:
        bottom, top = axes.get_ylim()
        assert bottom > top
        assert lines(axes)["reconstruction"].get_xdata().size == 30
        assert lines(axes)["hidden: true"].get_xdata().size == 18
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "200", "400"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "visible",
        "hidden: true",
        "random: true",
        "unchanged: true",
        "random: as the model saw it",
        "reconstruction",
    ]


def test_folded_windows_are_drawn_against_phase(model: AstroCo, tmp_path: Path) -> None:
    convert([survey()], tmp_path / "store")
    folded = Store.open(tmp_path / "store")
    folded.add_periods(find_periods, progress=False)
    windows = run_report.reconstruct(model, folded, {**CONFIG, "views": "folded"})
    assert all(window.folded for window in windows)
    for window in windows:
        assert window.time[0] == 0
        assert (np.diff(window.time) >= -1e-6).all()
        assert 0.5 < window.time[-1] < 1
    with plots.drawing():
        figure = plots.reconstructions(windows, "title")
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert [label.startswith("phase") for label in labels] == [False] * 4 + [True] * 2
    np.testing.assert_array_equal(
        lines(figure.axes[0])["reconstruction"].get_xdata(), windows[0].time[windows[0].role > 0]
    )
    with plots.drawing():
        mixed = plots.reconstructions([*windows[:1], replace(windows[1], folded=False)], "title")
    assert [axes.get_xlabel().split()[0] for axes in mixed.axes] == ["phase,", "days"]


def test_simulated_data_are_called_so(unrendered: None, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []
    for name in ("training_curves", "reconstructions", "layer_mix"):
        draw = getattr(plots, name)
        monkeypatch.setattr(plots, name, lambda *args, draw=draw: titles.append(args[-1]) or draw(*args))
    run_report.plot_run(run)
    assert len(titles) == 3
    assert all("SIMULATED" in title for title in titles)


def test_the_table_is_of_the_best_evaluation() -> None:
    worse = {**VALIDATION[0], "step": 45, "rmse": 0.5, "best": False}
    best = {**VALIDATION[0], "step": 31, "rmse": 0.125, "r2_random": None, "best": True}
    title, _, everything, _, random, _ = run_report.evaluation_table([*TRAIN, *VALIDATION, best, worse])
    assert "step 31" in title
    assert "4 evaluations" in title
    assert everything.split() == ["all", "0.1250", "0.2500", "0.3000"]
    assert random.split() == ["random", "0.2400", "-", "-"]
    assert run_report.evaluation_table(TRAIN) == ["no evaluation yet"]


def test_layer_mix_bars_are_the_weights() -> None:
    weights = np.array([0.1, 0.2, 0.7])
    with plots.drawing():
        (axes,) = plots.layer_mix(weights, "title").axes
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], weights)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["input", "block 1", "block 2"]


def test_r2_of_hidden_points_by_hand() -> None:
    zeros = np.zeros((3, 4), dtype=np.float32)
    role = np.array([[HIDDEN, HIDDEN, RANDOM, 0], [HIDDEN, HIDDEN, 0, 0], [0, 0, 0, 0]], dtype=np.uint8)
    target = np.array([[1, 3, 9, 9], [2, 2, 9, 9], [1, 2, 3, 4]], dtype=np.float32)
    batch = Batch(zeros, zeros, zeros, target, role, np.array([4, 4, 4]), np.arange(3))
    predicted = np.array([[1, 2, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    # Window 0 has squared errors 0 and 1 about a spread of 1 + 1, window 1 no spread, window 2 no hidden points.
    np.testing.assert_array_equal(run_report.r2_hidden(batch, predicted), [0.5, -np.inf, -np.inf])


def test_without_matplotlib_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"astroco_fast\[plots\]"):
        run_report.plot_run(run)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.yaml", None, r"config\.yaml: cannot be read"),
        ("config.yaml", "preset: [", r"config\.yaml, line 1: not YAML"),
        ("config.yaml", "preset: tiny", r"config\.yaml: not the settings of a run"),
        ("config.yaml", yaml.safe_dump({**CONFIG, "data": "/nowhere/store"}), "/nowhere/store: not a store.*--data"),
        ("metrics.jsonl", None, r"metrics\.jsonl: no metrics yet"),
        ("metrics.jsonl", '{"split": "test", "step": 1}\n{"spl', r"metrics\.jsonl, line 2: not a line of metrics"),
        ("metrics.jsonl", "[]", r"metrics\.jsonl, line 1: not a line of metrics"),
        ("metrics.jsonl", '{"split": "train"}', r"metrics\.jsonl, line 1: not a line of metrics"),
        ("config.yaml", "preset: tiny\nseed: 0\ntrain: 7", r"config\.yaml: not the settings of a run"),
        ("checkpoints/best/state.json", "{", r"best/state\.json: cannot be read"),
        ("checkpoints/best/state.json", '{"store": "another"}', "not the light curves that .* was trained on.*--data"),
        ("checkpoints/best/config.json", "{", r"best/config\.json: not JSON"),
        ("checkpoints/best/model.safetensors", "{", r"best/model\.safetensors: does not hold this model's weights"),
    ],
)
def test_bad_run_folder_is_one_line(
    run: Path, file: str, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / file).unlink()
    (run / "checkpoints" / "best" / "manifest.json").unlink()  # it would tell of any change of the model
    if text is not None:
        (run / file).write_text(text)
    with pytest.raises(UserError, match=message):
        run_report.plot_run(run)
    assert report.main([str(run)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1


def test_moved_data_can_be_pointed_to(unrendered: None, run: Path, store: Store) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": "/nowhere/store"}))
    assert len(run_report.plot_run(run, store.path)) == 3
