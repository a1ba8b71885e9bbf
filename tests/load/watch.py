"""A command's memory, threads and open files over its life, from /proc."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

_BEGINNING = 0.2  # of a run, in which caches fill: left out of the slopes
_LEAVE = 120.0  # seconds for a command to save and end after SIGTERM


@dataclass(frozen=True)
class Load:
    """What a command took.

    Attributes:
        status: the command's exit status.
        seconds: from its start to its end.
        processor_seconds: of all its threads.
        peak_mb: the highest resident memory, MiB.
        memory_slope, thread_slope, file_slope: MiB, threads and open files an hour, fitted to all but the first fifth
            of the run.
        threads, files: the most that were seen.
    """

    status: int
    seconds: float
    processor_seconds: float
    peak_mb: float
    memory_slope: float
    thread_slope: float
    file_slope: float
    threads: int
    files: int


def watch(arguments: Sequence[str], log: Path, samples: Path, every: float = 2.0, limit: float | None = None) -> Load:
    """Run `astroco ARGUMENTS` and watch it.

    Args:
        arguments: of the command.
        log: is given what the command prints.
        samples: is given a line of JSON a sample: seconds, MiB, threads, files, processor seconds.
        every: seconds between samples.
        limit: seconds after which the command gets SIGTERM.
    """
    began, taken = time.monotonic(), []
    with log.open("w") as said, samples.open("w") as lines:
        process = subprocess.Popen([sys.executable, "-m", "astroco_fast", *arguments], stdout=said, stderr=said)
        stopped: float | None = None
        while process.poll() is None:
            seconds = time.monotonic() - began
            if sample := _sample(process.pid):
                taken.append((seconds, *sample))
                lines.write(json.dumps([round(value, 2) for value in taken[-1]]) + "\n")
                lines.flush()
            if limit and stopped is None and seconds > limit:
                process.send_signal(signal.SIGTERM)
                stopped = seconds
            if stopped is not None and seconds > stopped + _LEAVE:
                process.kill()
            time.sleep(every)
    return _load(process.returncode, time.monotonic() - began, np.array(taken).reshape(-1, 5))


def _sample(pid: int) -> tuple[float, float, float, float] | None:
    """Memory in MiB, threads, open files and processor seconds; None if the process has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        files = sum(1 for _ in (folder / "fd").iterdir())
        memory, threads = int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"])
    except (OSError, KeyError):
        return None
    return memory, threads, files, (int(fields[11]) + int(fields[12])) / 100


def _load(status: int, seconds: float, taken: np.ndarray) -> Load:
    later = taken[taken[:, 0] >= _BEGINNING * seconds]
    slopes = np.polyfit(later[:, 0] / 3600, later[:, 1:4], 1)[0] if len(later) > 2 else np.zeros(3)
    most = taken.max(0, initial=0)
    return Load(
        status=status,
        seconds=round(seconds, 1),
        processor_seconds=float(most[4]),
        peak_mb=round(float(most[1])),
        memory_slope=round(float(slopes[0]), 1),
        thread_slope=round(float(slopes[1]), 2),
        file_slope=round(float(slopes[2]), 2),
        threads=int(most[2]),
        files=int(most[3]),
    )


def record(load: Load) -> str:
    """The figures as JSON."""
    return json.dumps(asdict(load), indent=1) + "\n"
