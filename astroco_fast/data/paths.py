"""Paths: the files of light curves that a path, a folder or a pattern names, each once."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astroco_fast.data import hats
from astroco_fast.data.formats import SUFFIXES, format_of
from astroco_fast.data.metadata import METADATA
from astroco_fast.data.tables import readable
from astroco_fast.errors import MissingExtraError, UserError


def is_path(place: Any) -> bool:
    """Whether this names a file: text, a path, or a path of `universal_pathlib`."""
    return isinstance(place, str | Path) or (hasattr(place, "fs") and hasattr(place, "storage_options"))


def to_path(place: Any) -> Any:
    """A path of this machine, or what behaves like one for a URL (s3://, https://, memory:// ...).

    Raises:
        MissingExtraError: the library for other machines is not installed.
        UserError: there is no such protocol, or what it needs is not installed.
    """
    if not isinstance(place, str):
        return place
    if "://" not in place:
        return Path(place)
    try:
        from upath import UPath
    except ImportError as error:
        raise MissingExtraError("universal_pathlib", "remote", f"reading {place}") from error
    try:
        path = UPath(place)
        path.fs  # noqa: B018 - loads what the protocol needs
    except (ImportError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{place}: cannot be read: {why}; s3:// and https:// need the extra 'remote'") from error
    return Path(path.path) if path.protocol in ("file", "local") else path


def is_url(place: Any) -> bool:
    """Whether this is a path of another machine, by `to_path`."""
    return not isinstance(place, Path)


def find_files(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """The files that paths name (themselves, a folder's tables, a pattern's matches), always in the same order.

    Returns:
        The files, each with the folder that it is below.

    Raises:
        UserError: a folder or a pattern has no files, or a file is named twice: its points would be doubled.
    """
    files = [found for path in paths for found in _expand(path)]
    read: dict[Any, Path] = {}
    for file, _ in files:
        if is_url(file):
            _add(read, str(file), file, "the same file")
        elif file.exists():
            facts = file.stat()
            _add(read, (facts.st_dev, facts.st_ino), file, "the same file")
        _add(read, (file.absolute().parent, _stem(file)), file, "one table in two formats, by their names")
    return files


def _add(read: dict[Any, Path], key: Any, file: Path, what: str) -> None:
    if key in read:
        raise UserError(f"{read[key]} and {file}: are {what}, whose points would be doubled; name one of them")
    read[key] = file


def identity(file: Any) -> dict[str, Any]:
    """Plain data that identify a file and its content."""
    if is_url(file):
        known = ("size", "ETag", "mtime", "LastModified", "created")
        with readable(str(file)):
            told = {key: str(value) for key, value in file.fs.info(file.path).items() if key in known}
        return {"path": str(file), **told}
    facts = file.stat()
    return {"path": str(file.resolve()), "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def _stem(file: Path) -> str:
    """A file's name without the suffix of its format."""
    name = file.name
    return name[: -max((len(suffix) for suffix in SUFFIXES if name.lower().endswith(suffix)), default=0) or None]


def _expand(path: Path) -> list[tuple[Path, Path]]:
    if is_url(path):
        return _expand_url(path)
    if path.is_dir():
        return _in_folder(path)
    if not path.exists() and glob.has_magic(str(path)):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not matches:
            raise UserError(f"{path}: no file matches this pattern")
        found: dict[Path, Path] = {}  # `**` matches folders and what is in them
        for match in matches:
            for file, root in _in_folder(match) if match.is_dir() else [(match, match.parent)]:
                found.setdefault(file, root)
        return list(found.items())
    return [(path, path.parent)]


def _expand_url(path: Any) -> list[tuple[Any, Any]]:
    if format_of(path) and not glob.has_magic(str(path)):
        return [(path, path.parent)]
    with readable(str(path)):
        if glob.has_magic(path.path):
            matches = sorted(path.fs.glob(path.path))
            if not matches:
                raise UserError(f"{path}: no file matches this pattern")
            found = [type(path)(match, protocol=path.protocol, **path.storage_options) for match in matches]
            return [(file, file.parent) for file in found]
        if not path.is_dir():
            raise UserError(f"{path}: no such file or folder, or of an unknown kind; see {', '.join(SUFFIXES)}")
        return _in_folder(path)


def _in_folder(path: Any) -> list[tuple[Any, Any]]:
    root = hats.dataset(path)
    found = sorted(p for p in root.rglob("*") if p.is_file() and format_of(p))
    hidden = [any(part[0] in "._" for part in p.relative_to(root).parts) or p.name == METADATA for p in found]
    files = [p for p, skip in zip(found, hidden, strict=True) if not skip]
    # What else is in a catalogue of pieces shows some of their rows again.
    hiding = [p for p in files if (kind := format_of(p)) and kind.hides_other_tables]
    chosen = hats.pieces(files, root) or hiding or files
    if not chosen:
        raise UserError(f"{path}: no table in this folder; light curves are read from {', '.join(SUFFIXES)}")
    return [(p, root) for p in chosen]
