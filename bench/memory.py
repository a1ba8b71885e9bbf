"""The memory of one training step, in a process of its own: `python -m bench.memory PROVIDER PRESET TASK BATCH KIND`.

Prints {"bytes": ...}: the peak during the step, above what was there before it. On a CPU that is resident memory: a
step of one window has loaded the libraries, and memory freed since has been given back to the system. On a GPU it is
what torch's allocator has given out.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from bench.cases import Case, make_batch
from bench.measuring import device
from bench.providers import Run, by_name


def main(words: list[str]) -> None:
    provider, case = by_name(words[0]), Case(words[1], words[2], int(words[3]), words[4])
    on = device()
    single = case._replace(batch=1)
    provider.make(single, make_batch(single, on)).call()
    print(json.dumps({"bytes": _peak(provider.make(case, make_batch(case, on)), on)}))


def _peak(run: Run, on: torch.device) -> int:
    """Bytes above those before a step; gradients are part of it."""
    gc.collect()
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
        before = torch.cuda.memory_allocated(on)
        run.call()
        return torch.cuda.max_memory_allocated(on) - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _resident("VmRSS")
    run.call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main(sys.argv[1:])
