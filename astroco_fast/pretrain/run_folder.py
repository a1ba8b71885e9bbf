"""A run's folder: the check that the same run continues in it, its light curves, and the facts that are written to it.

config.yaml holds the settings with their defaults filled in, environment.json the machine and the versions of each
start, summary.json the results of a finished run, and store/ the light curves if the run converted or simulated them.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import astroco_fast
from astroco_fast import machine, settings
from astroco_fast.data.periods import find_periods
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData, make_store
from astroco_fast.errors import UserError
from astroco_fast.files import read_json, write_text
from astroco_fast.folders import ResultFolder, result_folder
from astroco_fast.pretrain.agreement import open_store, require_shared_folder
from astroco_fast.pretrain.checkpoint import STATE, CheckpointFolder, State
from astroco_fast.pretrain.config import FREE, MACHINE, RunConfig, differences
from astroco_fast.pretrain.log import Console
from astroco_fast.pretrain.ranks import Ranks, StopRequest
from astroco_fast.pretrain.step import Trainer

CONFIG, SUMMARY, ENVIRONMENT, STORE = "config.yaml", "summary.json", "environment.json", "store"
# Noted among the folder's names once a checkpoint was saved. Without it, a run may begin anew over its metrics.
CHECKPOINTS = "checkpoints"
REPORT, TESTED, CONFUSION = "report.md", "test.json", "confusion.png"  # of a fine-tuning run
_NAMES = (CONFIG, SUMMARY, ENVIRONMENT, STORE, f"{STORE}.partial", "metrics.jsonl", "plots", "tensorboard")
_WAY_OUT = "free some disk space, or choose another --out"


@contextmanager
def held(folder: Path, command: str = "pretrain") -> Iterator[ResultFolder]:
    """Create the folder, and hold it for this run alone (rank 0): two runs would mix their metrics and checkpoints.

    Args:
        folder: the run's folder.
        command: the command that the run is of.

    Raises:
        UserError: the folder is a store or holds anything but a run, it cannot be created, or another process trains in
            it.
    """
    if Store.is_store(folder):
        raise UserError(f"{folder}: a store of light curves is no place for a run; choose another --out")
    busy = "another process is training in it; wait for it, or choose another --out"
    unmarked = _unmarked if command == "pretrain" else lambda _: None
    with result_folder(folder, command, busy, unmarked, "the run's folder") as results:
        results.claim(_NAMES if command == "pretrain" else (*_NAMES, REPORT, TESTED, CONFUSION))
        yield results


def _unmarked(folder: Path) -> tuple[set[str], set[str]] | None:
    """What a run of an earlier version wrote in a folder; None if there was none."""
    try:
        began = isinstance(read_json(folder / ENVIRONMENT)["starts"], list)
    except (OSError, ValueError, KeyError, TypeError):
        began = any((folder / CHECKPOINTS).glob(f"step-*/{STATE}"))
    saved = {CHECKPOINTS} if (folder / SUMMARY).exists() else set()
    return ({*_NAMES} | saved, set()) if began else None


def claim(results: ResultFolder, config: RunConfig, checkpoints: CheckpointFolder, console: Console) -> bool:
    """Check that the folder is new, or this run's already (rank 0). None of the run's files is written; what killed
    processes left beside its checkpoints is removed.

    A setting that its config.yaml lacks, since an earlier version wrote it, counts as having its present default.

    Returns:
        Whether the run has saved a checkpoint there, from which it continues.

    Raises:
        UserError: the folder has a run with other settings, which the message names, its settings cannot be read, or
            its checkpoints are gone.
    """
    folder, is_resumed = results.path, bool(checkpoints.names())
    if CHECKPOINTS in results.names and not is_resumed:
        raise UserError(
            f"{folder}: the checkpoints of this run are gone, so it cannot go on, and a new run would replace its "
            "metrics; put a checkpoint back, or choose another --out"
        )
    checkpoints.remove_partials()
    if is_resumed:
        results.note([CHECKPOINTS])
        before = settings.read_yaml(folder / CONFIG, "put it back, or choose another --out")
        changed = set(differences(_filled(before, config.defaults()), config.to_dict())) - FREE
        if config.data is not None and Store.is_store(config.data):
            changed -= {"data"}  # it may have moved; its digest shows whether it holds the same light curves
        if changed - MACHINE:
            raise UserError(
                f"{folder} holds a run with other settings ({', '.join(sorted(changed - MACHINE))}); "
                f"to go on with it use --config {folder / CONFIG}, else choose another --out"
            )
        if changed:
            console.say(
                f"Note: {', '.join(sorted(changed))} changed: the run goes on, but results differ in the last bits."
            )
    return is_resumed


def _filled(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings with defaults for those that are not set, at every depth."""
    both = {key for key in defaults if isinstance(defaults[key], dict) and isinstance(settings.get(key), dict)}
    return {**defaults, **settings, **{key: _filled(settings[key], defaults[key]) for key in both}}


def open_data(
    config: RunConfig, folder: Path, is_resumed: bool, ranks: Ranks, console: Console, stop: StopRequest
) -> Store:
    """Open the store of the run's light curves; rank 0 converts or simulates them first if need be.

    Args:
        config, ranks, console, stop: the run's objects with these names.
        folder: the run's folder; a store that is made here is kept in `folder`/store.
        is_resumed: whether the run has begun already, and so has its store.

    Raises:
        UserError: the data cannot be read or are not the same on all ranks, or these do not share the run's folder; the
            same on all ranks.
        Interrupted: a signal came while rank 0 converted.
    """
    require_shared_folder(ranks, folder)
    own = folder / STORE

    def prepare() -> Path:
        with stop.immediate():
            if is_resumed and Store.is_store(own) and not Store.is_store(config.data or ""):
                return own
            return make_store(
                config.data,
                own,
                seed=config.seed,
                columns=config.columns,
                band=config.band,
                clean=config.clean,
                say=console.say,
                progress=console.speaks,
            )

    path = ranks.on_rank_zero(prepare, is_long=True)
    if config.views != "time":
        ranks.on_rank_zero(lambda: _add_periods(path, console, stop), is_long=True)
    return open_store(ranks, path)


def _add_periods(path: Path, console: Console, stop: StopRequest) -> None:
    """Search the periods of a store's light curves, unless it has them already."""
    store = Store.open(path, verify=False)
    if store.periods is not None:
        return
    console.say(f"{path}: searching the periods of {store.n_curves:,} light curves, once; the store keeps them.")
    with stop.immediate():
        store.add_periods(find_periods, progress=console.speaks)


def begin(folder: Path, config: RunConfig, ranks: Ranks) -> None:
    """Record a first or later start of a run that is not finished (rank 0).

    This writes config.yaml, adds the start to environment.json and removes summary.json. It comes after everything
    that can fail: a start that finds no data, say, must leave an older run's folder as it was.
    """
    write_text(folder / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False), _WAY_OUT)
    (folder / SUMMARY).unlink(missing_ok=True)
    path = folder / ENVIRONMENT
    try:
        starts = [*read_json(path)["starts"]]
    except (OSError, ValueError, KeyError, TypeError):
        starts = []
    starts.append(environment(ranks))
    write_text(path, json.dumps({"starts": starts}, indent=1) + "\n", _WAY_OUT)


def write_summary(folder: Path, reason: str, state: State, data: TrainingData, trainer: Trainer) -> None:
    """Write summary.json (rank 0): the run's results, and the reason why it is finished."""
    summary = {
        "finished": reason,
        "step": state.step,
        "epochs": state.epoch - 1 if state.position == 0 else state.epoch,
        "windows_seen": state.windows_seen,
        "skipped_steps": state.bad_steps,
        "seconds": state.seconds,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "simulated": data.store.simulated,
        "light_curves": data.store.n_curves,
        "training_windows": len(data.train),
        "validation_windows": len(data.validation),
        "best_checkpoint": None if state.best is None else "checkpoints/best",
        "best": state.best,
    }
    write_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n", _WAY_OUT)


def read_best(folder: Path) -> dict[str, Any] | None:
    """The best evaluation of a finished run, by its summary.json; None if there was none.

    Raises:
        UserError: the summary cannot be read.
    """
    path = folder / SUMMARY
    try:
        best = read_json(path)["best"]
        return None if best is None else dict(best)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read; remove it, and the same command writes it again") from error


def card_notes(state: State, data: TrainingData, start_from: str | None = None) -> str:
    """Text for a checkpoint's model card: what the model was trained on, how far, and the run's best evaluation.

    Args:
        state: the run's progress.
        data: its windows.
        start_from: the saved model whose weights it began with.
    """
    kind = "SIMULATED light curves, not observed ones" if data.store.simulated else "light curves"
    notes = (
        f"Pretrained by masked reconstruction on {data.store.n_curves:,} {kind}. These are the weights of step "
        f"{state.step:,}, after {state.windows_seen:,} windows."
    )
    if start_from is not None:
        notes += f" The run began with the weights of {start_from}."
    best = state.best
    if best is None:
        return f"{notes} They have not been evaluated."
    rows = [
        f"| {name} | {_figure(best[f'rmse{suffix}'])} | {_figure(best[f'r2{suffix}'])} | "
        f"{_figure(best[f'trivial_rmse{suffix}'])} |"
        for name, suffix in (("all probed points", ""), ("hidden points", "_hidden"))
    ]
    return "\n".join(
        [
            notes,
            "",
            f"The run's best evaluation so far, at step {best['step']:,}, on {best['windows']:,} windows of validation "
            "stars (magnitudes; the trivial answer is each window's mean):",
            "",
            "| | RMSE | R2 | RMSE of the trivial answer |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _figure(value: float | None) -> str:
    """A figure for a table; None, which is a figure over no points, is a dash."""
    return "-" if value is None else f"{value:.4f}"


def environment(ranks: Ranks) -> dict[str, Any]:
    """Facts about the machine and the versions that this process runs on."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "ranks": ranks.world,
        "device": str(ranks.device.type),
        "gpu": machine.gpu_name(ranks.device),
        "cpu": machine.cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "astroco_fast": astroco_fast.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
