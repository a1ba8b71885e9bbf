"""Checkpoints that a kill at any moment cannot spoil.

    checkpoints/step-00000120/   model.safetensors, config.json, README.md   the model, as `save_pretrained` writes it
                                 live.safetensors     with an average only: the weights in training; the model above is
                                                      their average
                                 optimizer.safetensors
                                 state.json           where the run stood (`State`)
                                 manifest.json        the SHA-256 of each of these files
    checkpoints/last, best       symbolic links to such folders (after a copy that follows links, they are copies of the
                                 folders, until the next save makes links of them again)

A checkpoint is written under a temporary name and flushed to disk, files and folder. Only then is it renamed and are
the links replaced, each in one atomic call. So `last`, where it exists, leads to a complete checkpoint. If the disk
spoils that one later, its checksums show it, and a run is resumed from the newest complete checkpoint instead.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from astroco_fast.checksums import MANIFEST, check_files, write_manifest
from astroco_fast.errors import UserError
from astroco_fast.files import flush, read_json, remove_partials, set_aside, temporary_name, unwritable, whole_folder
from astroco_fast.pretrain.objective import SumIndex
from astroco_fast.pretrain.step import Trainer
from astroco_fast.pretrained import WEIGHTS_FILE
from astroco_fast.text import first_reason

STATE = "state.json"
STATE_FORMAT = 1  # the version of state.json's layout
LAST, BEST = "last", "best"
LIVE, OPTIMIZER = "live.safetensors", "optimizer.safetensors"
_WAY_OUT = "free some disk space and run the same command again"


@dataclass
class Interval:
    """Running sums for the next line of training metrics: the steps since the last line.

    Attributes:
        steps: optimiser steps applied.
        skipped: steps skipped because something was not finite.
        sums: (8,) the applied steps' vectors of sums, added; `SumIndex` says what stands where.
        loss, grad_norm: added over the applied steps.
    """

    steps: int = 0
    skipped: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * SumIndex.SIZE)
    loss: float = 0.0
    grad_norm: float = 0.0

    def add(self, sums: list[float], loss: float, grad_norm: float) -> None:
        """Count an applied step."""
        self.steps += 1
        self.sums = [old + new for old, new in zip(self.sums, sums, strict=True)]
        self.loss += loss
        self.grad_norm += grad_norm


@dataclass
class State:
    """A run's progress between two steps: everything, besides tensors, that it needs to continue exactly.

    Attributes:
        step: steps taken, skipped ones included.
        epoch: the epoch of the next step, from 1.
        position: global batches of that epoch already taken.
        windows_seen: training windows in the steps taken.
        evaluated_step: the step at which the validation split was last evaluated; -1 before the first evaluation.
        best: the validation metrics of the best evaluation so far, None before the first.
        best_checkpoint: the name of the checkpoint that holds the best evaluation's weights; None before the first.
        worse: the number of evaluations since the best one.
        bad_in_a_row: steps skipped in a row.
        bad_steps: steps skipped in all.
        interval: running sums for the next line of training metrics.
        metrics_bytes: the length of metrics.jsonl when this was saved; a resumed run cuts off what follows.
        seconds: the time spent in this run, over all its starts.
    """

    step: int = 0
    epoch: int = 1
    position: int = 0
    windows_seen: int = 0
    evaluated_step: int = -1
    best: dict[str, Any] | None = None
    best_checkpoint: str | None = None
    worse: int = 0
    bad_in_a_row: int = 0
    bad_steps: int = 0
    interval: Interval = field(default_factory=Interval)
    metrics_bytes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON types; floats survive JSON to the bit."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "State":
        """The state that `to_dict` was called on.

        Raises:
            UserError: a value is missing, unknown, or of another type.
        """
        try:
            state = cls(**{**values, "interval": Interval(**values["interval"])})
        except (TypeError, KeyError) as error:
            raise UserError(f"{STATE}: not the state of a run ({error})") from error
        fresh = cls()
        for told, usual in ((state, fresh), (state.interval, fresh.interval)):
            for name, value in vars(usual).items():
                kinds = (
                    (dict, str, type(None)) if value is None else (int, float) if type(value) is float else type(value)
                )
                if not isinstance(getattr(told, name), kinds):
                    raise UserError(f"{STATE}: {name} is {getattr(told, name)!r}; it cannot be")
        return state


class CheckpointFolder:
    """A run's `checkpoints/`. Only rank 0 writes to it."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Describe the folder, which need not exist yet.

        Args:
            folder: its path.
            keep: how many checkpoints to keep besides the best.
        """
        self.folder = folder
        self.keep = keep

    def next_name(self, step: int) -> str:
        """A name for a checkpoint of this step that no checkpoint has yet."""
        name, again = f"step-{step:08d}", 0
        while (self.folder / name).exists():
            again += 1
            name = f"step-{step:08d}-{again}"
        return name

    def write(
        self, name: str, state: dict[str, Any], write_model: Callable[[Path], None], needed: str | None = None
    ) -> None:
        """Write a checkpoint, point `last` to it, and remove old ones.

        Args:
            name: the checkpoint's name, from `next_name`.
            state: the content of state.json.
            write_model: writes the other files (`save_weights`) into the folder that it is given.
            needed: another checkpoint to keep.

        Raises:
            UserError: the checkpoint cannot be written, for instance because the disk is full. Earlier ones stay as
                they were.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.remove_partials()
            with whole_folder(self.folder / name, _WAY_OUT) as folder:
                write_model(folder)
                (folder / STATE).write_text(json.dumps(state, indent=1) + "\n")
                write_manifest(folder)
            self.link(LAST, name)
            self._prune({name, needed})
        except (OSError, SafetensorError) as error:
            raise unwritable(self.folder / name, error, _WAY_OUT) from error

    def remove_partials(self) -> None:
        """Remove what killed processes have left. The run's folder must be locked."""
        if self.folder.is_dir():
            remove_partials(self.folder)

    def link(self, link: str, name: str) -> None:
        """Point `last` or `best` to a checkpoint, in one atomic step.

        If a copy of the run has a folder in place of the link, that folder is moved away first. A kill at that moment
        leaves no link, but all checkpoints.
        """
        path = self.folder / link
        temporary = temporary_name(path)
        temporary.symlink_to(name)
        copy = set_aside(path) if path.is_dir() and not path.is_symlink() else None
        os.replace(temporary, path)
        flush(self.folder)
        if copy is not None:
            shutil.rmtree(copy)

    def reset_best(self, name: str | None) -> None:
        """Point `best` to the checkpoint of that name, if there is one."""
        if name in self.names():
            self.link(BEST, name)

    def target(self, link: str) -> str | None:
        """The checkpoint that `last` or `best` points to, or is a copy of; None if there is none."""
        path = self.folder / link
        if path.is_symlink():
            return os.readlink(path)
        if not path.is_dir():
            return None
        manifest = _content(path / MANIFEST)
        return next(
            (n for n in self.names()[::-1] if manifest and manifest == _content(self.folder / n / MANIFEST)), None
        )

    def names(self) -> list[str]:
        """All checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p.name for p in self.folder.iterdir() if p.name.startswith("step-")), key=_age)

    def to_resume(self) -> tuple[str, dict[str, Any]] | None:
        """The checkpoint to resume from and its state; None if the run has not saved any.

        This is the checkpoint that `last` leads to. If that one is damaged, or there is no `last`, it is the newest
        complete one. A warning on stderr names a damaged checkpoint that was passed over.

        Raises:
            UserError: there are checkpoints, but all are damaged.
        """
        names = self.names()
        order = list(dict.fromkeys([name for name in (self.target(LAST),) if name] + names[::-1]))
        problems = []
        for name in order:
            try:
                state = self.read_state(name)
            except UserError as error:
                problems.append(str(error))
                continue
            if problems:
                print(f"astroco: warning: {problems[0]}; resuming from {name}", file=sys.stderr)
            return name, state
        if problems:
            raise UserError(
                f"{self.folder}: none of {len(problems)} checkpoints is complete ({problems[0]}); "
                "remove the folder to start again, or choose another --out"
            )
        return None

    def read_state(self, name: str) -> dict[str, Any]:
        """Verify all files of a checkpoint, and return its state.

        Raises:
            UserError: names a file that is missing or changed.
        """
        folder = self.folder / name
        check_files(folder)
        try:
            return dict(read_json(folder / STATE))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"checkpoint {folder}: {STATE} cannot be read") from error

    def _prune(self, needed: set[str | None]) -> None:
        names = self.names()
        needed |= {self.target(LAST), self.target(BEST), *names[-self.keep :]}
        for name in set(names) - needed:
            shutil.rmtree(set_aside(self.folder / name))


def save_weights(trainer: Trainer, folder: Path, notes: str) -> None:
    """Write the model as `save_pretrained` does, and what training needs besides.

    Args:
        trainer: holds the tensors to write.
        folder: an existing one.
        notes: text for the model card.
    """
    model: Any = trainer.evaluated
    model.save_pretrained(folder, notes=notes)
    if trainer.average is not None:
        save_file(_on_cpu(trainer.model.state_dict()), folder / LIVE)
    save_file(_on_cpu(_optimizer_tensors(trainer)), folder / OPTIMIZER)


def load_weights(trainer: Trainer, folder: Path) -> None:
    """Read what `save_weights` wrote, to the bit.

    Raises:
        UserError: a file does not fit this model; names it.
    """
    file = folder
    try:
        if trainer.average is None:
            file = read_model(trainer.model, folder)
        else:
            file = folder / LIVE
            trainer.model.load_state_dict(load_file(file))
            file = read_model(trainer.average, folder)
        file = folder / OPTIMIZER
        _load_optimizer(trainer, load_file(file))
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(f"{file}: does not fit this run's model: {first_reason(error)}") from error


def read_model(model: Any, folder: Path) -> Path:
    """Load what a model's `save_pretrained` wrote, to the bit; return the file that was read last.

    A model with parts in several files has `weight_files`: the beginning of its tensors' names by file.
    """
    tensors: dict[str, Tensor] = {}
    file = folder
    for name, beginning in getattr(model, "weight_files", {WEIGHTS_FILE: ""}).items():
        file = folder / name
        tensors |= {f"{beginning}{key}": value for key, value in load_file(file).items()}
    model.load_state_dict(tensors)
    return file


def _optimizer_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """AdamW's state, under names such as `PARAMETER/exp_avg`."""
    state = trainer.optimizer.state
    return {
        f"{name}/{key}": value
        for name, parameter in trainer.model.named_parameters()
        for key, value in state.get(parameter, {}).items()
    }


def _load_optimizer(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(name, {})[entry] = value
    # The optimiser knows its parameters by number, in the order of its groups.
    order = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    packed = trainer.optimizer.state_dict()
    packed["state"] = {i: state[name] for i, name in enumerate(order) if name in state}
    trainer.optimizer.load_state_dict(packed)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _age(name: str) -> tuple[int, ...]:
    """A checkpoint's place in time: step-00000120-1 -> (120, 1)."""
    return tuple(int(part) for part in name.split("-")[1:] if part.isdecimal())


def _content(path: Path) -> bytes | None:
    """A file's bytes; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
