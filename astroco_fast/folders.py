"""The folder of a command's results, which bears a mark, so that nothing else in it is ever replaced."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from astroco_fast.errors import UserError
from astroco_fast.files import flush, locked, read_json, remove_partials, require_here, write_text

MARK = ".astroco.json"
_WAY_OUT = "choose another --out"


@dataclass
class ResultFolder:
    """A folder of results, locked for this process.

    Attributes:
        path: the folder.
        command: the command whose results it holds, as "pretrain".
        names: the files and folders in it that the command wrote, or is about to write. Others are the user's.
        results: those of the names that `replace` wrote last.
    """

    path: Path
    command: str
    names: set[str] = field(default_factory=set)
    results: set[str] = field(default_factory=set)

    def claim(self, names: Collection[str]) -> None:
        """Note names before they are written.

        Raises:
            UserError: a file of such a name is there, which the command did not write.
        """
        for name in sorted({*names} - self.names):
            if (self.path / name).exists():
                raise UserError(
                    f"{self.path / name}: not written by astroco {self.command}, which would replace it; "
                    f"move it away, or {_WAY_OUT}"
                )
        self.note(names)

    def note(self, names: Collection[str]) -> None:
        """Note names that were written."""
        if not self.names.issuperset(names):
            self.names |= {*names}
            self._mark()

    def replace(self, made: Path, keep: Collection[str] = ()) -> None:
        """Move new results into the folder, in order of their names, and remove older ones without a successor.

        Args:
            made: a folder of files, on the same disk.
            keep: names of older results that stay although they have no successor.

        Raises:
            UserError: a file of such a name is there, which the command did not write.
        """
        new = sorted(path.name for path in made.iterdir())
        self.claim(new)
        self.results |= {*new}
        self._mark()
        for name in new:
            flush(made / name)
        for name in new:
            (made / name).replace(self.path / name)
        for name in self.results.difference(new, keep):
            (self.path / name).unlink(missing_ok=True)
        flush(self.path)
        self.results = {*new, *(self.results & {*keep})}
        self._mark()

    def _mark(self) -> None:
        content = {"command": self.command, "names": sorted(self.names), "results": sorted(self.results)}
        write_text(self.path / MARK, json.dumps(content, indent=1) + "\n", _WAY_OUT)


# Finds what an earlier version, which left no mark, wrote in a folder: the names of its files and folders, and those of
# them that are results; None if it wrote nothing there.
Unmarked = Callable[[Path], tuple[Collection[str], Collection[str]] | None]


@contextmanager
def result_folder(
    path: Path, command: str, busy: str, unmarked: Unmarked, called: str = "the folder of results"
) -> Iterator[ResultFolder]:
    """Create, lock and mark the folder of a command's results; if nothing is written to it, it is as it was before.

    Args:
        path: the folder.
        command: the command's name.
        busy: the message, after the folder's name, if another process has locked it.
        unmarked: finds what an earlier version wrote there.
        called: what the folder is, for messages.

    Raises:
        UserError: the folder cannot be created or written, holds anything but results of this command, or is in use.
    """
    require_here(path)
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        there = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{path}: cannot be {called}: {error.strerror}; {_WAY_OUT}") from error
    with locked(path, busy):
        content = known = _read_mark(path)
        if content is None:
            found = unmarked(path) if there else ((), ())
            if found is None:
                raise UserError(
                    f"{path}: holds {min(there)!r}, so it is not a folder of astroco {command}'s results; "
                    f"{_WAY_OUT}, or give an empty folder"
                )
            content = {"command": command, "names": [*found[0]], "results": [*found[1]]}
        if content["command"] != command:
            raise UserError(f"{path}: holds the results of astroco {content['command']}; {_WAY_OUT}")
        folder = ResultFolder(path, command, {*content["names"]}, {*content["results"]})
        if known is None:
            folder._mark()
        try:
            remove_partials(path)
            yield folder
        finally:
            with suppress(OSError):
                if all(entry.name.startswith(".") for entry in path.iterdir()):
                    (path / MARK).unlink()
                    if is_new:
                        path.rmdir()


def _read_mark(path: Path) -> dict[str, Any] | None:
    """The mark of a folder; None if it has none."""
    try:
        content = read_json(path / MARK)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = None
    lists = [content.get(key) for key in ("names", "results")] if isinstance(content, dict) else [None]
    told = isinstance(content, dict) and isinstance(content.get("command"), str)
    if not told or not all(isinstance(names, list) and all(map(_is_plain, names)) for names in lists):
        raise UserError(f"{path / MARK}: damaged, so it does not say whose results the folder holds; {_WAY_OUT}")
    return cast(dict[str, Any], content)


def _is_plain(name: object) -> bool:
    """Whether this is the name of something in a folder, and no path to what lies elsewhere and would be removed."""
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..")
