"""A conversion with small steps that is killed at a chosen place, for a process of its own."""

import os
import signal
from operator import attrgetter
from pathlib import Path
from typing import Any

from astroco_fast.data import convert, points, sources, writer

MODULES = {"points": points, "writer": writer}


def killed_conversion(
    source: Path, out: Path, settings: dict[tuple[str, str], int], place: tuple[str, int | str]
) -> None:
    """Convert, and be killed, as by `kill -9`, on entering a function.

    Args:
        source, out: the table and the store.
        settings: numbers by module and name, such as a step's points.
        place: the function, and how many calls of it precede the fatal one, or the name of the path that is the fatal
            call's last argument.
    """
    for (module, name), value in settings.items():
        setattr({"sources": sources, **MODULES}[module], name, value)
    kill_at(*place)
    convert.convert(source, out)


def kill_at(name: str, count: int | str) -> None:
    module, *path, last = name.split(".")
    owner = attrgetter(".".join(path))(MODULES[module]) if path else MODULES[module]
    real = getattr(owner, last)
    calls = 0

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 == count if isinstance(count, int) else os.path.basename(args[-1]) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, last, killing)
