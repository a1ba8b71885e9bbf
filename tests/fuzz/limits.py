"""Limits on the processor time and the memory that one input may take."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

SECONDS = 5.0
BYTES = 2 << 30


class _TooLong(BaseException):
    """Not an `Exception`, which readers may catch and take for an error of a library."""


class LimitError(AssertionError):
    """More time or memory than allowed."""


@contextlib.contextmanager
def limits(seconds: float = SECONDS, memory: int = BYTES) -> Iterator[None]:
    """Fail if the block takes more processor time, or lets the process grow by more address space.

    Code that never returns to the interpreter is not stopped here, but by the process that watches a campaign.

    Raises:
        LimitError: the block took more.
    """
    import resource

    def stop(*_: object) -> None:
        raise _TooLong

    before, (soft, hard) = signal.signal(signal.SIGPROF, stop), resource.getrlimit(resource.RLIMIT_AS)
    taken = Path("/proc/self/statm")
    if taken.exists():  # elsewhere, the address space is not limited
        now = int(taken.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except _TooLong as error:
        raise LimitError(f"more than {seconds:.0f} s of processor time") from error
    except MemoryError as error:
        raise LimitError(f"more than {memory >> 20} MiB of memory") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
