"""Checkpoints that a kill at any moment cannot spoil.

    checkpoints/step-00000120/   model.safetensors, config.json, README.md   the model, as `save_pretrained` writes it
                                 live.safetensors     with EMA only: the weights in training; the model is their average
                                 optimizer.safetensors
                                 state.json           where the run stood (`State`)
                                 manifest.json        SHA-256 of each of these files
    checkpoints/last, best       symbolic links to such folders (after a copy that follows links, copies of them, until
                                 the next save makes links of them again)

A checkpoint is written under a temporary name, every file and folder is flushed to disk, and only then it is renamed
and the links are replaced, each in one atomic call. So `last` always leads to a complete checkpoint; should a disk
spoil it later, the manifest tells, and the newest whole one is taken.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from astroco_fast.checksums import MANIFEST, check_files, write_manifest
from astroco_fast.errors import UserError
from astroco_fast.files import flush

STATE = "state.json"
FORMAT = 1  # of what a run saves in state.json
LAST, BEST = "last", "best"
_TEMPORARY = ".writing-"
_DOOMED = ".removing-"


class CheckpointFolder:
    """A run's `checkpoints/`. Only rank 0 writes to it."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Args: the folder; how many checkpoints to keep besides those that `best` needs."""
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
        self, name: str, state: dict[str, Any], write_tensors: Callable[[Path], None], needed: str | None = None
    ) -> None:
        """Write a checkpoint, point `last` to it, and remove old ones.

        Args:
            name: from `next_name`.
            state: goes to state.json.
            write_tensors: writes the other files into the folder it is given.
            needed: another checkpoint to keep.

        Raises:
            UserError: the disk takes no more; the checkpoints before are as they were.
        """
        temporary = self.folder / f"{_TEMPORARY}{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            temporary.mkdir()
            write_tensors(temporary)
            _seal(temporary, state)
            os.rename(temporary, self.folder / name)
            flush(self.folder)
            self.link(LAST, name)
            self._prune({name, needed})
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"{self.folder / name}: cannot be written: {why}; make room, and the same command goes on"
            ) from error

    def link(self, link: str, name: str) -> None:
        """Point `last` or `best` to a checkpoint, in one atomic step.

        Where a copy has put a folder in the link's place, that is moved away first; a kill just then leaves no link,
        but every checkpoint.
        """
        path, temporary = self.folder / link, self.folder / f"{_TEMPORARY}{link}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        doomed = self._set_aside(link) if path.is_dir() and not path.is_symlink() else None
        os.replace(temporary, path)
        flush(self.folder)
        if doomed is not None:
            shutil.rmtree(doomed)

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

    def newest(self) -> tuple[str, dict[str, Any]] | None:
        """The newest whole checkpoint and its state; None if the run has not saved any.

        Warns on stderr when it is not the last one that was written.

        Raises:
            UserError: there are checkpoints, but none is whole.
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
                print(f"astroco: warning: {problems[0]}; going on from {name}", file=sys.stderr)
            return name, state
        if problems:
            raise UserError(
                f"{self.folder}: none of {len(problems)} checkpoints is whole ({problems[0]}); "
                "remove the folder to start again, or choose another --out"
            )
        return None

    def read_state(self, name: str) -> dict[str, Any]:
        """The state of a checkpoint, every file of which is as it was written.

        Raises:
            UserError: a file is missing or changed; names it.
        """
        folder = self.folder / name
        check_files(folder)
        try:
            return dict(json.loads((folder / STATE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"checkpoint {folder}: {STATE} cannot be read") from error

    def _prune(self, needed: set[str | None]) -> None:
        names = self.names()
        needed |= {self.target(LAST), self.target(BEST), *names[-self.keep :]}
        for name in set(names) - needed:
            shutil.rmtree(self._set_aside(name))

    def _set_aside(self, name: str) -> Path:
        """Free a folder's name before its content goes: a half-removed folder must not look like a checkpoint."""
        doomed = self.folder / f"{_DOOMED}{name}"
        shutil.rmtree(doomed, ignore_errors=True)  # left by a kill
        os.rename(self.folder / name, doomed)
        return doomed

    def _remove_leftovers(self) -> None:
        """What a kill left behind."""
        for path in self.folder.iterdir():
            if path.name.startswith((_TEMPORARY, _DOOMED)):
                path.unlink() if path.is_symlink() else shutil.rmtree(path)


def _seal(folder: Path, state: dict[str, Any]) -> None:
    """Add the state, and a manifest of all files, to a checkpoint's tensors, and see all of it safe on disk."""
    (folder / STATE).write_text(json.dumps(state, indent=1) + "\n")
    for path in [*write_manifest(folder), folder]:
        flush(path)


def _age(name: str) -> tuple[int, ...]:
    """step-00000120-1 -> (120, 1)."""
    return tuple(int(part) for part in name.split("-")[1:] if part.isdecimal())


def _content(path: Path) -> bytes | None:
    """A file's bytes; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
