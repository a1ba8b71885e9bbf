"""Files and folders that only this user can have written.

Whoever can write to a file that is loaded as code can do all that the user can. The same holds for a folder above it,
in which another folder could be put in its place. So these are checked, and a file is opened once: what is checked is
what is then read, whatever has its name by that time.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def private_folder(folder: Path) -> Path:
    """Create a folder for this user alone, with the missing ones above it.

    Returns:
        Its path, without links.

    Raises:
        OSError: it cannot be created, or another user could put files there, or another folder in its place.
    """
    folder = Path(os.path.realpath(folder))
    for missing in [path for path in (folder, *folder.parents) if not path.exists()][::-1]:
        missing.mkdir(mode=0o700, exist_ok=True)
    if _ours(os.lstat(folder)) and os.lstat(folder).st_mode & _OTHERS:
        folder.chmod(0o700)  # made under a umask that lets the group write
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or not _ours(status) or status.st_mode & _OTHERS:
        raise PermissionError(f"{folder} belongs to another user, or others can write to it")
    for path in folder.parents:
        if not _safe_above(os.lstat(path)):
            raise PermissionError(f"{folder}: other users can write to {path}, and put another folder in its place")
    return folder


def open_private(path: Path) -> int:
    """Open a file of a private folder to read it.

    Returns:
        The descriptor, for the caller to close.

    Raises:
        OSError: there is no such file, it is a link, or somebody else can have written it.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or not _ours(status) or (os.name != "nt" and status.st_mode & _OTHERS):
        os.close(handle)
        raise PermissionError(f"{path} belongs to another user, or others can write to it")
    return handle


def _ours(status: os.stat_result) -> bool:
    return os.name == "nt" or status.st_uid == os.geteuid()


def _safe_above(status: os.stat_result) -> bool:
    """Whether no other user can rename what is in a folder: in a sticky one, such as /tmp, only the owner can."""
    if os.name == "nt":
        return True
    others = status.st_mode & _OTHERS
    if others == stat.S_IWGRP and _is_own_group(status):
        others = 0
    return status.st_uid in (0, os.geteuid()) and (not others or bool(status.st_mode & stat.S_ISVTX))


def _is_own_group(status: os.stat_result) -> bool:
    """Whether a folder's group has only its owner, as on systems that give each user a group."""
    with suppress(ImportError, KeyError):
        import grp
        import pwd

        user, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
        return user.pw_gid == status.st_gid and group.gr_name == user.pw_name and {*group.gr_mem} <= {user.pw_name}
    return False
