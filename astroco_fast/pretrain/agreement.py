"""What the ranks of a run must have in common, whatever machines they are on; else one sentence names the rank.

These are the packages, the settings, the run's folder and the light curves. Rank 0 gives the measure, because it
writes the files and the messages.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import astroco_fast
from astroco_fast.data.store import MANIFEST, Store, digest_of
from astroco_fast.files import temporary_name, unwritable
from astroco_fast.pretrain.config import differences
from astroco_fast.pretrain.ranks import Ranks, SharedError

T = TypeVar("T")
# Seconds in which a new file must be seen by all machines: network disks may keep a folder's names this long.
APPEARS = 60.0


def require_same_start(ranks: Ranks, settings: Mapping[str, Any]) -> None:
    """Check that all ranks were started alike.

    Args:
        ranks: this process's place among the ranks.
        settings: the command's settings.

    Raises:
        UserError: a rank has another version of a package that computes, another kind of device, or other settings.
    """
    here = {
        "astroco_fast": astroco_fast.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": ranks.device.type,
    }
    if odd := _odd_one(ranks, here):
        one, other, found, expected = odd
        name = next(name for name in here if found[name] != expected[name])
        way_out = "see to it that both or neither can use a GPU" if name == "device" else "install the same on both"
        raise SharedError(f"{one} has {name} {found[name]}, but {other} has {name} {expected[name]}; {way_out}")
    if odd := _odd_one(ranks, dict(settings)):
        one, other, found, expected = odd
        names = ", ".join(differences(expected, found))
        raise SharedError(f"{one} was started with other settings than {other} ({names}); give both the same command")


def require_shared_folder(ranks: Ranks, folder: Path) -> None:
    """Check that all ranks see the run's folder, an existing one, by a file that rank 0 writes there for a moment.

    Raises:
        UserError: a rank does not see it.
    """
    if ranks.world == 1:
        return

    def write() -> str:
        path = temporary_name(folder / "seen")
        try:
            path.touch(exist_ok=False)
        except OSError as error:
            raise unwritable(folder, error) from error
        return path.name

    name = ranks.on_rank_zero(write)
    try:
        odd = _odd_one(ranks, _appears(folder / name))
    finally:
        if ranks.is_first:
            (folder / name).unlink(missing_ok=True)
    if odd:
        raise SharedError(
            f"{folder}: {odd[0]} does not see the files that {odd[1]} writes there; give --out a folder on a disk that "
            "all machines share, by a path that is the same on all of them"
        )


def open_store(ranks: Ranks, path: Path) -> Store:
    """Open the store of a run's light curves on all ranks. Each copy of it is read and verified by one rank.

    Raises:
        UserError: the store cannot be opened on some rank, or does not hold the same light curves on all of them.
    """

    def identity() -> tuple[int, int]:
        try:
            status = (path / MANIFEST).stat()
        except OSError:
            return 0, 0
        return status.st_ino, status.st_mtime_ns

    # On a disk that machines share, the manifest is the same file on all of them, so that rank 0 verifies for all.
    copies = ranks.gather(identity())
    verify = copies.index(copies[ranks.rank]) == ranks.rank
    store = ranks.on_all_ranks(lambda: Store.open(path, verify=verify), is_long=True)
    if odd := _odd_one(ranks, digest_of(store.manifest["files"])):
        raise SharedError(
            f"{path}: {odd[0]} finds other light curves or periods there than {odd[1]}; copy the store from one "
            "machine to the other, or put it on a disk that both share"
        )
    return store


def _odd_one(ranks: Ranks, value: T) -> tuple[str, str, T, T] | None:
    """The name of the first rank whose value is not that of rank 0, rank 0's name, and both values; None: all agree."""
    told = ranks.gather(value)
    for rank, found in enumerate(told):
        if found != told[0]:
            return ranks.name(rank), ranks.name(0), found, told[0]
    return None


def _appears(path: Path) -> bool:
    """Whether a file is there, or appears within `APPEARS` seconds."""
    deadline = time.monotonic() + APPEARS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
