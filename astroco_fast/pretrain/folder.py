"""The run's folder: whether the same run goes on in it, and the facts about it that are written down."""

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
from astroco_fast import files, machine, settings
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData
from astroco_fast.errors import UserError
from astroco_fast.pretrain.checkpoint import CheckpointFolder
from astroco_fast.pretrain.config import FREE, MACHINE, PretrainConfig, differences
from astroco_fast.pretrain.distributed import Ranks
from astroco_fast.pretrain.log import Console
from astroco_fast.pretrain.state import State
from astroco_fast.pretrain.trainer import Trainer

CONFIG, SUMMARY, ENVIRONMENT = "config.yaml", "summary.json", "environment.json"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it for this run alone (rank 0): two would mix their metrics and checkpoints.

    Raises:
        UserError: it is something else, cannot be made, or another process runs in it.
    """
    if Store.is_store(folder):
        raise UserError(f"{folder}: a store of light curves is no place for a run; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be the run's folder: {error.strerror}; choose another --out") from error
    with files.held(folder, "another process is training in it; wait for it, or choose another --out"):
        yield


def claim(folder: Path, config: PretrainConfig, checkpoints: CheckpointFolder, console: Console) -> bool:
    """See that the folder is new, or this run's already (rank 0). What it says of the run stays as it is.

    A setting that it does not mention, of a later version, had what is now the default.

    Returns:
        Whether the run has saved anything there, and so goes on.

    Raises:
        UserError: it holds a run with other settings (names them), or what its settings were cannot be read.
    """
    goes_on = bool(checkpoints.names())
    if goes_on:
        assert config.train.learning_rate is not None
        defaults = PretrainConfig(data=config.data).resolve(config.train.learning_rate).to_dict()
        before = settings.read_yaml(folder / CONFIG, "put it back, or choose another --out")
        changed = set(differences(_filled(before, defaults), config.to_dict())) - FREE
        if config.data is not None and Store.is_store(config.data):
            changed -= {"data"}  # it may have moved; whether it holds the same light curves, its digest tells
        if changed - MACHINE:
            raise UserError(
                f"{folder} holds a run with other settings ({', '.join(sorted(changed - MACHINE))}); "
                f"to go on with it use --config {folder / CONFIG}, else choose another --out"
            )
        if changed:
            console.say(
                f"Note: {', '.join(sorted(changed))} changed: the run goes on, but not to the last bit as before."
            )
    return goes_on


def _filled(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of what is not set, at every depth."""
    both = {key for key in defaults if isinstance(defaults[key], dict) and isinstance(settings.get(key), dict)}
    return {**defaults, **settings, **{key: _filled(settings[key], defaults[key]) for key in both}}


def begin(folder: Path, config: PretrainConfig, ranks: Ranks) -> None:
    """The run is not finished, and starts (again) here: config.yaml, and a start in environment.json (rank 0).

    Not earlier: a start that fails, for want of its data say, must leave an older run's folder as it was.
    """
    replace_text(folder / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False))
    (folder / SUMMARY).unlink(missing_ok=True)
    path = folder / ENVIRONMENT
    try:
        starts = json.loads(path.read_text())["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        starts = []
    starts.append(environment(ranks))
    replace_text(path, json.dumps({"starts": starts}, indent=1) + "\n")


def write_summary(folder: Path, reason: str, state: State, data: TrainingData, trainer: Trainer) -> None:
    """Write summary.json, which also says that the run is finished, and why (rank 0)."""
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
        "best_checkpoint": "checkpoints/best",
        "best": state.best,
    }
    replace_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")


def card_notes(state: State, data: TrainingData) -> str:
    """For the model card of a checkpoint: what it was trained on, how far, and how good the run was at its best."""
    kind = "SIMULATED light curves, not observed ones" if data.store.simulated else "light curves"
    notes = (
        f"Pretrained by masked reconstruction on {data.store.n_curves:,} {kind}. These are the weights of step "
        f"{state.step:,}, after {state.windows_seen:,} windows."
    )
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
    """For a table; None where a figure is over no points."""
    return "-" if value is None else f"{value:.4f}"


def environment(ranks: Ranks) -> dict[str, Any]:
    """What this process runs on."""
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


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a kill, or a power cut, leaves either the old or the new one.

    Raises:
        UserError: the disk takes it not.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; make room, or choose another --out") from error
