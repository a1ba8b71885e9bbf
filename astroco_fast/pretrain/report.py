"""The report on a pretraining run: its best evaluation as a table, and plots in RUN/plots.

- training.png: loss and RMSE of training and validation, RMSE and R2 by role, and the trivial answer.
- reconstructions.png: light curves of the validation split, their probed points by role, and the best model's
  reconstruction of these. Six windows, from among the best reconstructed to among the worst.
- layer_mix.png: the share of each layer in the best model's output, if the model mixes layers.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from astroco_fast import plots, settings
from astroco_fast.data.batches import CYCLE_DAYS, Batch
from astroco_fast.data.masking import HIDDEN
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData, upload
from astroco_fast.data.windows import NOT_DEALT
from astroco_fast.errors import UserError
from astroco_fast.files import read_json, whole_file
from astroco_fast.pretrain.checkpoint import STATE
from astroco_fast.pretrained import PretrainedEncoder, read_saved
from astroco_fast.registry import load
from astroco_fast.text import figure_text, rows

# The windows that are shown: each is reconstructed better than this share of windows.
RANKS = (0.95, 0.8, 0.6, 0.4, 0.2, 0.05)
CANDIDATES = 128  # windows to reconstruct and rank
SHOWN_POINTS = 100  # points shown of a window of the time view, side by side; more would overlap


def plot_run(folder: Path, data: str | Path | None = None) -> list[Path]:
    """Draw a run's plots; those of the model need a checkpoint.

    Args:
        folder: the folder of the run, which may still be in progress.
        data: the store of its light curves, if it has been moved since the run.

    Returns:
        The PNG files, in the run's folder `plots/`.

    Raises:
        UserError: the folder holds no run or cannot be written, its light curves are missing or are others, or
            matplotlib is missing.
    """
    folder = Path(folder)
    config, metrics = read_config(folder), read_metrics(folder)
    store = Store.open(store_of(folder, config, data))
    title = f"preset {config['preset']} on {_name(store, config)}"
    train, validation = ([line for line in metrics if line["split"] == split] for split in ("train", "validation"))
    with plots.drawing():
        try:
            figures = {"training": plots.training_curves(train, validation, title)}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / 'metrics.jsonl'}: a line lacks a figure ({error}); remove the line") from error
        checkpoint = next((c for c in ("best", "last") if (folder / "checkpoints" / c).is_dir()), None)
        if checkpoint is not None:
            model = read_saved(folder / "checkpoints" / checkpoint, lambda place: _model(store, folder, place))
            windows = reconstruct(model, store, config)
            what = "Masked points of validation light curves"
            if not all(window.folded for window in windows):
                what += f" (first {SHOWN_POINTS} points of a window)"
            figures["reconstructions"] = plots.reconstructions(windows, f"{what}: {title}")
            logits = model.state_dict().get("mix_pool.logits")  # a model may not mix its layers
            if logits is not None:
                figures["layer_mix"] = plots.layer_mix(logits.softmax(0).numpy(), f"Layer mix: {title}")
        paths = {folder / "plots" / f"{name}.png": figure for name, figure in figures.items()}
        try:
            (folder / "plots").mkdir(exist_ok=True)
            for path, figure in paths.items():
                with whole_file(path) as partial:
                    figure.savefig(partial, format="png")
        except OSError as error:
            raise UserError(f"{folder / 'plots'}: cannot be written: {error.strerror or error}") from error
    return list(paths)


def read_config(folder: Path) -> dict[str, Any]:
    """A run's resolved settings.

    Raises:
        UserError: the folder holds no run.
    """
    path = folder / "config.yaml"
    way_out = "give the folder of a run, its --out"
    config = settings.read_yaml(path, way_out)
    if not {"preset", "seed"} <= config.keys() or not isinstance(config.get("train"), dict):
        raise UserError(f"{path}: not the settings of a run; {way_out}")
    return config


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    Raises:
        UserError: there are none yet, or one is damaged; names the line.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not _is_line(record):
            raise UserError(f"{path}, line {number}: not a line of metrics; remove it")
        records.append(record)
    if not records:
        raise UserError(f"{path}: no metrics yet; let the run take some steps first")
    return records


def _is_line(record: dict[str, Any]) -> bool:
    """Whether a line of metrics has what all lines have, and one of training steps what those have."""
    numbers = ["step", *(["windows_seen", "windows_per_s"] if record.get("split") == "train" else [])]
    values = [record.get(name) for name in numbers]
    return "split" in record and all(isinstance(value, int | float) and abs(value) < 2**63 for value in values)


def training_lines(metrics: Iterable[dict[str, Any]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """The lines of training steps, each with the seconds that all steps up to it took.

    Evaluations, checkpoints and the time between a stop and the next start are not counted.

    Yields:
        (seconds, line).
    """
    seen, seconds = 0, 0.0
    for line in metrics:
        if line["split"] == "train" and line["windows_per_s"]:
            seconds += (line["windows_seen"] - seen) / line["windows_per_s"]
            seen = line["windows_seen"]
            yield seconds, line


def evaluation_table(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """The best evaluation as lines of text: RMSE (magnitudes) and R2 by role, and the RMSE of the trivial answer."""
    evaluations = [line for line in metrics if line["split"] == "validation"]
    if not evaluations:
        return ["no evaluation yet"]
    best = [line for line in evaluations if line.get("best")] or evaluations
    chosen = best[-1]
    table: list[tuple[str, ...]] = [("probed points", "RMSE (mag)", "window's mean", "R2")]
    for role in ("all", *plots.ROLES):
        names = (name if role == "all" else f"{name}_{role}" for name in ("rmse", "trivial_rmse", "r2"))
        found = [chosen.get(name) for name in names]
        table.append((role, *("-" if value is None else f"{value:.4f}" for value in found)))
    return [f"validation at step {chosen['step']}, the best of {len(evaluations)} evaluations", *rows(table)]


def reconstruct(model: PretrainedEncoder, store: Store, config: dict[str, Any]) -> list[plots.Reconstruction]:
    """Validation windows under evaluation's masks with the model's reconstruction of them.

    The windows are those at the `RANKS` of R2 at hidden points among `CANDIDATES` windows spread over the split, best
    first.

    Args:
        model: in evaluation mode, on the CPU.
        store: the run's light curves.
        config: the run's settings.
    """
    data = TrainingData(
        store,
        size=model.config.window,
        seed=config["seed"],
        global_batch=1,
        micro_batch=None,
        band=config.get("band"),
        views=config.get("views", "time"),
        evaluate_windows=config["train"].get("evaluate_windows"),
    )
    chosen = _candidates(data.table.length, data.validation, model.config.window)
    batch = data.evaluation_batch(chosen)
    positional, keywords = upload(batch, torch.device("cpu")).inputs()
    with torch.inference_mode():
        predicted = model(*positional, **keywords).reconstruction.numpy()
    quality = r2_hidden(batch, predicted)
    order = np.argsort(quality, kind="stable")
    windows = []
    for rank in RANKS[: len(order)]:
        row = int(order[round(rank * (len(order) - 1))])
        folded = bool(data.table.part[batch.index[row]] != NOT_DEALT)
        points = slice(0, int(batch.lengths[row]) if folded else min(SHOWN_POINTS, int(batch.lengths[row])))
        time = batch.time[row, points]
        curve = int(data.table.curve[batch.index[row]])
        words = (store.words(column, np.array([curve]))[0] for column in ("id", "label", "band"))
        name = "  ".join(figure_text(word) for word in words if word)
        score = f"$R^2$ = ${quality[row]:.2f}$"
        windows.append(
            plots.Reconstruction(
                title=f"{name}   hidden points: {score}, better than {rank:.0%} of windows",
                time=(time - time[0]) / CYCLE_DAYS if folded else time,
                mag=batch.target[row, points],
                err=batch.err[row, points],
                shown=batch.mag[row, points],
                role=batch.role[row, points],
                predicted=predicted[row, points],
                folded=folded,
            )
        )
    return windows


def r2_hidden(batch: Batch, predicted: NDArray[np.float32]) -> NDArray[np.float64]:
    """R2 at the hidden points of each window, (B,) float64; minus infinity where these have no spread."""
    hidden = batch.role == HIDDEN
    target = batch.target.astype(np.float64)
    mean = (target * hidden).sum(1) / np.maximum(hidden.sum(1), 1)
    residual = (np.square(target - predicted) * hidden).sum(1)
    total = (np.square(target - mean[:, None]) * hidden).sum(1)
    return np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), -np.inf)


def _candidates(lengths: NDArray[np.int32], windows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Windows spread evenly over those at least half full, or over the longest if there are too few of these.

    Args:
        lengths: real points of every window.
        windows: indices of the windows to choose from.
        size: positions of a window.
    """
    half_full = windows[lengths[windows] >= size / 2]
    if len(half_full) < len(RANKS):
        half_full = windows[np.argsort(-lengths[windows], kind="stable")[: len(RANKS)]]
    return half_full[np.unique(np.linspace(0, len(half_full) - 1, CANDIDATES).astype(np.int64))]


def store_of(folder: Path, config: dict[str, Any], data: str | Path | None) -> Path:
    """The store at `data`; without `data`, the store that the run made for itself, or the one of its settings.

    Raises:
        UserError: there is none.
    """
    places = [Path(place) for place in (data, folder / "store", config.get("data")) if place is not None]
    for place in places[:1] if data is not None else places:
        if Store.is_store(place):
            return place
    raise UserError(f"{places[0] if data is not None else places[-1]}: not a store; give the run's with --data STORE")


def _model(store: Store, folder: Path, checkpoint: Path) -> PretrainedEncoder:
    """The model of a run's checkpoint.

    Raises:
        UserError: the run was trained on other light curves, or the checkpoint cannot be read.
    """
    _check_digest(store, folder, checkpoint)
    return load(checkpoint)


def _check_digest(store: Store, folder: Path, checkpoint: Path) -> None:
    """Refuse another store than the run's, since windows are known by their indices in it.

    Raises:
        UserError: the store is another one, or the checkpoint cannot be read.
    """
    try:
        trained_on = read_json(checkpoint / STATE)["store"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint / STATE}: cannot be read; put it back, or remove {checkpoint}") from error
    if trained_on != store.digest:
        raise UserError(
            f"{store.path}: not the light curves that {folder} was trained on; give the run's with --data STORE"
        )


def _name(store: Store, config: dict[str, Any]) -> str:
    where = "a SIMULATED survey" if store.simulated else Path(config.get("data") or store.path).absolute().stem
    return f"{where} ({store.n_curves:,} light curves)"
