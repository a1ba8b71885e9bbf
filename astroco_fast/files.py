"""Files and folders that appear whole or not at all, and a lock on a folder.

Everything is written under a temporary name beside its own, flushed to disk and then renamed in one atomic call, so
that a kill or a power cut at any moment leaves either the old content or the new. A temporary name ends in random
letters, and its writer keeps it locked. So writers on other machines, in other containers and in other threads never
share one, and what a killed writer left is known by its lock, which is free.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from astroco_fast.errors import UserError

CHECKSUM = "sha256"  # the field of a JSON object that has one
_PARTIAL = ".partial"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # a protocol has two letters or more, a disk of Windows one
_RANDOM = 4  # bytes of a temporary name, in hexadecimal
_TEMPORARY = re.compile(rf"\.(.+)\.[0-9a-f]{{{2 * _RANDOM}}}{re.escape(_PARTIAL)}", re.DOTALL)


@contextmanager
def whole_file(path: Path, way_out: str = "") -> Iterator[Path]:
    """Write a file so that `path` is replaced only once its new content is complete and on disk.

    The context's value is an empty temporary file for the block to write to. If the block raises, `path` stays as it
    was. If two processes write to the same `path`, each has its own temporary file, and the last to finish wins.

    Args:
        path: the file to write, in an existing folder.
        way_out: the advice in the error message if the file cannot be written.

    Raises:
        UserError: `path` is a folder, or cannot be written (an `OSError` in the block).
    """
    require_place(path)
    with _one_line(path, way_out), _temporary(path, is_folder=False) as partial:
        yield partial
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)


def require_here(path: Path, what: str = "results are written") -> None:
    """Refuse a URL where only a path of this machine will do.

    Args:
        path: the path, of which `Path` keeps one slash after the protocol.
        what: what is done with it, for the message.

    Raises:
        UserError: it is a URL.
    """
    if found := _URL.match(str(path)):
        url = f"{found[1]}://{str(path)[found.end() :]}"
        raise UserError(f"{url}: {what} on this machine's disks only; name a path here, and copy from or to the URL")


def require_place(path: Path) -> None:
    """Refuse a file to write that has no place.

    Raises:
        UserError: `path` is a URL, a folder, or in a folder that does not exist.
    """
    require_here(path)
    if not path.name or path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file to write")
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written: there is no folder {path.parent}; create it")


def write_text(path: Path, text: str, way_out: str = "") -> None:
    """Replace a text file (UTF-8) with `whole_file`, which lists the arguments and errors."""
    with whole_file(path, way_out) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(path: Path, way_out: str = "") -> Iterator[Path]:
    """Write a folder so that `path` is created or replaced only once its new content is complete and on disk.

    The context's value is an empty temporary folder for the block to fill. If the block raises, `path` stays as it was.
    When an old folder is replaced, a kill between moving it away and renaming the new one leaves no `path`.

    Args:
        path: the folder to write; missing parents are created.
        way_out: the advice in the error message if the folder cannot be written.

    Raises:
        UserError: it cannot be written (an `OSError` in the block).
    """
    replaced: Path | None = None
    require_here(path)
    with _one_line(path, way_out):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, is_folder=True) as partial:
            yield partial
            try:
                replaced = set_aside(path) if path.is_dir() else None
                publish(partial, path)
            except OSError:
                if replaced is not None and not path.exists():
                    os.rename(replaced, path)
                raise
        if replaced is not None:
            shutil.rmtree(replaced)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder beside `path`, which is removed at the end of the context.

    Raises:
        UserError: it cannot be written (an `OSError` in the block).
    """
    with _one_line(path, ""), _temporary(path, is_folder=True) as partial:
        yield partial


@contextmanager
def _one_line(path: Path, way_out: str) -> Iterator[None]:
    """Turn an `OSError` into one line that names `path`, or the file that the error names, if that is another one."""
    try:
        yield
    except OSError as error:
        culprit = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        if culprit in (path, path.parent) or any(_is_temporary(part, path.name) for part in culprit.parts):
            raise unwritable(path, error, way_out) from error
        raise UserError(f"{culprit}: {error.strerror or error}") from error


@contextmanager
def _temporary(path: Path, is_folder: bool) -> Iterator[Path]:
    """A new file or folder beside `path`, locked for as long as the context lasts, and then removed if it is there.

    Those that killed writers of the same `path` left are removed first.
    """
    _remove_abandoned(path)
    handle = None
    while True:
        partial = temporary_name(path)
        partial.mkdir() if is_folder else os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        # Before it is locked, another writer may take it for one that a killed process has left, and remove it.
        with suppress(BlockingIOError, FileNotFoundError):
            handle = _lock(partial)
            break
    try:
        yield partial
    finally:
        with suppress(OSError):
            shutil.rmtree(partial, ignore_errors=True) if is_folder else partial.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def publish(partial: Path, path: Path) -> None:
    """Flush a finished folder to disk, with all files in it, and rename it to `path`.

    Raises:
        OSError: the folder cannot be flushed or renamed, for example because `path` is a folder that is not empty.
    """
    for folder, _, names in os.walk(partial, topdown=False):
        for name in sorted(names):
            flush(Path(folder, name))
        flush(Path(folder))
    os.rename(partial, path)
    flush(path.parent)


def set_aside(path: Path) -> Path:
    """Rename a folder to a temporary name before its removal, because a half-removed folder must not look whole."""
    aside = temporary_name(path)
    os.rename(path, aside)
    return aside


def temporary_name(path: Path) -> Path:
    """A unique hidden name beside `path`: it ends in random letters."""
    return path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM)}{_PARTIAL}")


def _is_temporary(name: str, of: str) -> bool:
    """Whether a name is one that `temporary_name` gives to a file or folder of the name `of`."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and found[1] == of


def remove_partials(folder: Path) -> None:
    """Remove the temporary files and folders of killed processes. The caller must have locked the folder (`locked`)."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files and folders of `path` whose writers have ended, which their free locks show."""
    with suppress(OSError):  # a folder that cannot be listed, for example
        for entry in list(path.parent.iterdir()):
            if _is_temporary(entry.name, path.name):
                with suppress(OSError):  # its writer lives, or it belongs to another user
                    handle = _lock(entry)
                    if handle is not None:
                        _remove(entry)
                        os.close(handle)


def _lock(path: Path) -> int | None:
    """The descriptor of a file or folder, which it locks; None where the system or the disk has no locks.

    Raises:
        BlockingIOError: it is locked already.
        FileNotFoundError: it is not there, or another one has replaced it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.lstat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except OSError as error:
        os.close(handle)
        if error.errno in _NO_LOCKS:
            return None
        raise
    return handle


def read_json(path: Path) -> Any:
    """The content of a JSON file (UTF-8).

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the checksum of its content, "sha256": the SHA-256 of its JSON text with sorted keys."""
    plain = {name: value for name, value in content.items() if name != CHECKSUM}
    text = json.dumps(plain, sort_keys=True)
    return {**plain, CHECKSUM: hashlib.sha256(text.encode()).hexdigest()}


def refuse_input(out: Path, inputs: Iterable[Path], what: str) -> None:
    """Refuse to replace what is read.

    Args:
        out: the file to write.
        inputs: files that are read, and folders of such files.
        what: what they hold, for the message.

    Raises:
        UserError: `out` is one of the files, or is in one of the folders already.
    """
    if not out.exists():
        return
    real = out.resolve()
    for path in inputs:
        if path.exists() and out.samefile(path):
            raise UserError(f"{out}: holds {what}; choose another output")
        if path.is_dir() and real.is_relative_to(path.resolve()):
            raise UserError(f"{out}: is a file of {path}, which holds {what}; choose another output")


def unwritable(path: Path, error: Exception, way_out: str = "") -> UserError:
    """The error to raise when `path` cannot be written because of `error`, an `OSError` or a library's own."""
    why = " ".join(str(getattr(error, "strerror", None) or error).split())
    return UserError(f"{path}: cannot be written: {why}{way_out and f'; {way_out}'}")


@contextmanager
def locked(folder: Path, busy: str | None) -> Iterator[None]:
    """Lock an existing folder for this process; the lock ends with the process, even if that is killed.

    Where the system has no such locks (Windows, some network disks), nothing is locked.

    Args:
        folder: the folder to lock; nothing is written to it.
        busy: the message, after the folder's name, if another process has locked it; None: wait for that process.

    Raises:
        UserError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: {busy}") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)


def cache_folder() -> Path | None:
    """The folder for files that outlive a process: `ASTROCO_CACHE`, or a folder in the user's cache folder.

    None if the user has no home. The folder may not exist yet.
    """
    if told := os.environ.get("ASTROCO_CACHE"):
        return Path(told)
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return base / "astroco_fast"


def flush(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to disk; on Windows, which cannot do this, do nothing."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: IO[bytes]) -> str:
    """The SHA-256 of what follows in an open file, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
