"""`python -m bench.memory PROVIDER PRESET TASK BATCH KIND`: the memory of one training step, in a process of its own.

It prints {"bytes": ...}, the peak during the step less the memory in use before it. On a CPU that is resident memory,
after a step of one window has loaded the libraries and freed memory has been returned to the system. On a GPU it is the
memory that torch's allocator has handed out.
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
    """Run the command; `words` are its arguments."""
    provider, case = by_name(words[0]), Case(words[1], words[2], int(words[3]), words[4])
    on = device()
    single = case._replace(batch=1)
    provider.make(single, make_batch(single, on)).call()
    print(json.dumps({"bytes": _peak(provider.make(case, make_batch(case, on)), on)}))


def _peak(run: Run, on: torch.device) -> int:
    """The peak of a step in bytes, gradients included, above the memory before it."""
    gc.collect()
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
        before = torch.cuda.memory_allocated(on)
        run.call()
        return torch.cuda.max_memory_allocated(on) - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    before = _resident("VmRSS")
    run.call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main(sys.argv[1:])
