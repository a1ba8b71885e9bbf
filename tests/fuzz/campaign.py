"""Many inputs, guided by coverage: a process for each kind, whose crashes, hangs and memory are recorded.

atheris (libFuzzer for Python) changes inputs so that they reach more of the package's code. Half of the inputs of a
kind are contents of the file; the other half are choices from which hypothesis makes a file that is odd inside.
"""

import hashlib
import os
import platform
import random
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from mmap import mmap
from pathlib import Path
from typing import Any

BYTES, CONTENT = "bytes", "content"
OUTCOMES = ("valid", "refused", "failed")
_STUCK_SECONDS = 180  # without a new input; limits of processor time apply before that, unless code never returns
_CHOICES = 4096  # bytes from which hypothesis makes a file
_DATA = 1 << 20  # the most bytes of an input that are kept


@dataclass
class Progress:
    """What a child has done so far, in a file that outlives it: the number of each outcome, and the input at hand."""

    memory: mmap

    @classmethod
    def open(cls, path: Path) -> "Progress":
        size = 8 * len(OUTCOMES) + 8 + _DATA
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            return cls(mmap(file.fileno(), size))

    @property
    def counts(self) -> list[int]:
        return list(struct.unpack_from(f"<{len(OUTCOMES)}Q", self.memory))

    def count(self, outcome: str) -> None:
        counts = self.counts
        counts[OUTCOMES.index(outcome)] += 1
        struct.pack_into(f"<{len(OUTCOMES)}Q", self.memory, 0, *counts)
        self.input = b""

    @property
    def input(self) -> bytes:
        at = 8 * len(OUTCOMES)
        (size,) = struct.unpack_from("<Q", self.memory, at)
        return bytes(self.memory[at + 8 : at + 8 + size])

    @input.setter
    def input(self, data: bytes) -> None:
        at, kept = 8 * len(OUTCOMES), data[:_DATA]
        self.memory[at + 8 : at + 8 + len(kept)] = kept
        struct.pack_into("<Q", self.memory, at, len(kept))


def instrumented_kinds() -> dict[str, Any]:
    """The kinds, where the package is imported so that its coverage is measured."""
    import atheris

    with atheris.instrument_imports(include=["astroco_fast"], enable_loader_override=False):
        from tests.fuzz.kinds import KINDS
    return KINDS


def child(kind: Any, sort: str, inputs: int, seed: int, folder: Path) -> None:
    """Give inputs of one kind to the package, up to this number in all; does not return."""
    import atheris

    progress = Progress.open(folder / "progress")
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)

    def judged(drawn: Any) -> None:
        try:
            progress.count(kind.outcome(drawn))
        except BaseException as error:
            keep(folder, signature(error), progress.input, traceback.format_exc() + f"\n{drawn!r:.3000}\n")
            progress.count("failed")

    if sort == BYTES:
        seeds, run = kind.seeds, judged
    else:
        from hypothesis import HealthCheck, given, settings

        assert kind.odd is not None
        quiet = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
        test = quiet(given(kind.odd(kind.seeds))(judged))
        run = test.hypothesis.fuzz_one_input
        source = random.Random(seed)
        seeds = [source.randbytes(_CHOICES) for _ in range(50)]
    for content in seeds:
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)

    def one(data: bytes) -> None:
        progress.input = data
        run(data)
        if sum(progress.counts) >= inputs:
            os._exit(0)

    longest = max([_CHOICES, *(2 * len(content) for content in seeds)])
    flags = [
        f"-seed={seed % 2**31 or 1}",
        f"-max_len={longest}",
        "-timeout=1000000",
        "-rss_limit_mb=0",
        "-len_control=0",
    ]
    flags += [f"-artifact_prefix={folder}/", *(f"-handle_{name}=0" for name in ("segv", "abrt", "bus", "fpe", "ill"))]
    atheris.Setup([sys.argv[0], "-verbosity=0", "-print_final_stats=0", *flags, str(corpus)], one)
    atheris.Fuzz()


def signature(error: BaseException) -> str:
    """The sort of a failure: its class, and the innermost line of the package that it went through."""
    package = f"{os.sep}astroco_fast{os.sep}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "result"
    told = f" {str(error).splitlines()[0][:80]}" if isinstance(error, AssertionError) and str(error) else ""
    return f"{type(error).__name__} in {place}{told}"


def keep(folder: Path, sort: str, data: bytes, text: str) -> None:
    """Keep the first input of each sort of failure, and how many there were."""
    failures = folder / "failures"
    failures.mkdir(exist_ok=True)
    base = failures / hashlib.sha256(sort.encode()).hexdigest()[:12]
    if not base.with_suffix(".bin").exists():
        base.with_suffix(".bin").write_bytes(data)
        base.with_suffix(".txt").write_text(f"{sort}\n\n{text}", encoding="utf-8", errors="backslashreplace")
    with base.with_suffix(".count").open("a") as file:
        file.write("1\n")


def failures(folder: Path) -> Counter[str]:
    """The number of failures of each sort."""
    return Counter(
        {
            path.read_text(encoding="utf-8").splitlines()[0]: len(path.with_suffix(".count").read_text().split())
            for path in sorted(folder.glob("failures/*.txt"))
        }
    )


def run_kind(kind: Any, sort: str, inputs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Give inputs of one kind to children, one after another until all are done; returns the record of it."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress.open(folder / "progress")
    began, starts = time.monotonic(), 0
    while sum(progress.counts) < inputs:
        how = _watch(lambda at=seed + starts: child(kind, sort, inputs, at, folder), progress, folder)
        if how is not None:
            keep(folder, how, progress.input, f"{how}: the process ended at this input")
            progress.count("failed")
        starts += 1
    return {
        "kind": kind.name,
        "sort": sort,
        "inputs": sum(progress.counts),
        **dict(zip(OUTCOMES, progress.counts, strict=True)),
        "failures": dict(failures(folder)),
        "seconds": round(time.monotonic() - began),
    }


def _watch(body: Callable[[], None], progress: Progress, folder: Path) -> str | None:
    """Run the body in a child to its end. Returns why it was ended at an input; None: it was not."""
    # Forked, because it takes seconds to import the package.
    if not (process := os.fork()):
        with (folder / "log").open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            body()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    last, since = None, time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            if os.WIFSIGNALED(status):
                return f"killed by signal {os.WTERMSIG(status)}"
            return f"ended with status {code}" if (code := os.WEXITSTATUS(status)) else None
        if progress.counts != last:
            last, since = progress.counts, time.monotonic()
        elif time.monotonic() - since > _STUCK_SECONDS:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "hang"
        time.sleep(0.2)


def facts() -> dict[str, Any]:
    """The date, the commit of the code ("+": changed since), and the versions of what an input goes through."""
    told = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    names = ("astroco_fast", "numpy", "pandas", "pyarrow", "astropy", "torch", "safetensors", "pyyaml", "jsonargparse")
    versions = {"python": platform.python_version(), **{n: version(n) for n in (*names, "hypothesis", "atheris")}}
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": told.stdout.strip(),
        "versions": versions,
    }


def chosen(kinds: dict[str, Any], wanted: str | None) -> Iterator[tuple[str, str]]:
    """The kinds, each with the sorts of inputs that it takes."""
    for name, kind in kinds.items():
        if wanted is None or wanted == name:
            if kind.seeds:
                yield name, BYTES
            if kind.odd is not None:
                yield name, CONTENT
