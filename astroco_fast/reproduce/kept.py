"""The models that an experiment keeps: a folder for each row and stage, with the model, its summary and checksums."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from astroco_fast.checksums import MANIFEST, check_files, write_manifest
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from astroco_fast.files import read_json, set_aside, whole_folder
from astroco_fast.pretrain import run_folder
from astroco_fast.pretrain.log import Console
from astroco_fast.pretrain.report import read_metrics, training_lines
from astroco_fast.pretrained import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from astroco_fast.reproduce.paper import UNTRAINED
from astroco_fast.reproduce.plan import Row

MODELS, RUNS, PROBES = "models", "runs", "probes"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE)
DISK_FULL = "free some disk space, or choose another --out"  # the advice where the disk is full


class KeptModels:
    """The kept models of an experiment, and the places of their probes. Files are read and written on rank 0.

    Args:
        out: the experiment's folder.
        store: the light curves that the models are compared on.
        console: where damage is told.
    """

    def __init__(self, out: Path, store: Store, console: Console) -> None:
        self.out, self.store, self.console = out, store, console
        self._damaged: set[Path] = set()  # models that are not as they were written

    def place(self, row: Row, stage: str) -> Path:
        """The folder of the model as it was at the end of a stage."""
        return self.out / MODELS / f"{row.folder}-{stage.replace(' ', '-')}"

    @property
    def untrained(self) -> Path:
        """The folder of the model with its initial weights."""
        return self.out / MODELS / UNTRAINED.replace(", ", "-")

    def probes(self, kept: Path) -> Path:
        """The folder of a kept model's probes."""
        return self.out / PROBES / kept.name

    def check(self, kept: Path, names: Sequence[str] = (*MODEL_FILES, run_folder.SUMMARY)) -> None:
        """Compare a model's files with their checksums, and note it if one is damaged."""
        if not kept.exists():
            return
        try:
            if (kept / MANIFEST).exists():
                check_files(kept, names)
            for name in names:
                if not (kept / name).exists():
                    raise UserError(f"{kept / name}: missing")
            if run_folder.SUMMARY in names:
                read_summary(kept)
        except UserError as error:
            self._damaged.add(kept)
            self.console.say(f"{error}: this model is kept anew.")

    def holds(self, kept: Path) -> bool:
        """Whether a model is kept, and whole."""
        return kept.exists() and kept not in self._damaged

    def write(self, kept: Path, fill: Callable[[Path], Any]) -> None:
        """Make a model's folder, all of it or nothing, by a function that writes the files into a new one."""
        with whole_folder(kept, DISK_FULL) as new:
            fill(new)
        self._damaged.discard(kept)

    def keep(self, source: Path, kept: Path, seconds: float | None, steps: int | None, epochs: int) -> None:
        """Copy the best model and the summary of a run, which will continue, or of the model kept for the first stage.

        Args:
            source: folder of the run, or of the kept model.
            kept: folder to copy to.
            seconds: the training time of the stage (None: the stage has no such limit), for the copy's summary.
            steps: the stage's last step; None: the end of `epochs`.
            epochs: the epochs of the budget.

        Raises:
            UserError: the run has no model, or has gone on beyond the stage.
        """
        summary = read_summary(source)
        is_run = source.parent.name == RUNS
        if is_run and (summary["step"] > steps if steps is not None else summary["epochs"] > epochs):
            raise UserError(
                f"{kept}: this model has to be kept anew, but its run has gone on beyond it; remove {kept} and "
                f"{source}, and it is trained again"
            )
        if summary["best"] is None:
            raise UserError(f"{source}: no evaluation has a finite RMSE; see its metrics.jsonl")
        model = source
        if is_run:
            model = source / "checkpoints" / "best"
            summary["training_seconds"] = training_seconds(source, summary)
            summary["store"] = self.store.digest
        if (probes := self.probes(kept)).exists():  # those of an earlier model of this stage
            shutil.rmtree(set_aside(probes))
        if (model / MANIFEST).exists():
            check_files(model)

        def copy(new: Path) -> None:
            for name in (*MODEL_FILES, CARD_FILE):
                shutil.copyfile(model / name, new / name)
            text = json.dumps({**summary, "seconds_asked": seconds}, indent=1)
            (new / run_folder.SUMMARY).write_text(text + "\n")
            write_manifest(new)

        self.write(kept, copy)


def read_summary(kept: Path) -> dict[str, Any]:
    """The summary of a run, or of a kept model, to which `keep` adds fields.

    Raises:
        UserError: it is missing or damaged.
    """
    path = kept / run_folder.SUMMARY
    try:
        summary: dict[str, Any] = read_json(path)
        if not isinstance(summary, dict) or "best" not in summary:
            raise ValueError("not a summary")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read; put it back, or remove {kept}") from error
    return summary


def training_seconds(run: Path, summary: dict[str, Any]) -> float:
    """Seconds that a run's steps took by its metrics, without evaluations and checkpoints."""
    *_, (seconds, line) = training_lines(read_metrics(run))
    return float(seconds * summary["windows_seen"] / line["windows_seen"])  # the last steps may have no line yet
