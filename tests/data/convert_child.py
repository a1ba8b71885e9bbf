"""A conversion in its own process, with small steps, that is killed at a chosen place.

convert_child.py SOURCE OUT FUNCTION COUNT: the process is killed, as by `kill -9`, on entering the COUNT+1st call of
FUNCTION (or a call whose last argument is a path named COUNT).
"""

import os
import signal
import sys
from operator import attrgetter

from astroco_fast.data import convert, points, sources, writer

# As in test_convert.SMALL: the killed conversion is resumed there.
sources.BATCH_POINTS, writer.STEP_POINTS = 100, 150
points.BUFFER_POINTS, points.PARTITION_POINTS, sources._READ_ROWS = 50, 100, 100
MODULES = {"points": points, "writer": writer}


def kill_at(name: str, count: str) -> None:
    module, *path, last = name.split(".")
    owner = attrgetter(".".join(path))(MODULES[module]) if path else MODULES[module]
    real = getattr(owner, last)
    calls = 0

    def killing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls - 1 == int(count) if count.isdigit() else os.path.basename(args[-1]) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, last, killing)


source, out, *place = sys.argv[1:]
kill_at(*place)
convert.convert(source, out)
