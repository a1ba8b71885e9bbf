"""Files that are whole or absent, and folders that one process has to itself."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from astroco_fast.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to; the file gets the name `path` when the block ends without an error.

    Whatever ends the block early leaves `path` as it was. A second process that writes to the same `path` has a
    temporary name of its own; the one that ends last wins.

    Raises:
        UserError: `path` is a folder, or cannot be written (an `OSError` in the block).
    """
    if not path.name or path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file to write")
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written: there is no folder {path.parent}; make it")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        why = " ".join((error.strerror or str(error)).split())
        raise UserError(f"{path}: cannot be written: {why}") from error
    finally:
        with suppress(OSError):  # it was never made
            partial.unlink(missing_ok=True)


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """Hold an existing folder for this process; the lock ends with the process, however it ends.

    Args:
        folder: to be held; nothing is written to it.
        busy: what to say, after the folder's name, if another process holds it.

    Raises:
        UserError: another process holds it. Where there are no such locks (Windows, some network disks), never.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: {busy}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        yield
    finally:
        os.close(handle)


def cache_folder() -> Path | None:
    """What is kept between processes: `ASTROCO_CACHE`, else in the user's cache folder; None: there is none."""
    if told := os.environ.get("ASTROCO_CACHE"):
        return Path(told)
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return base / "astroco_fast"


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
