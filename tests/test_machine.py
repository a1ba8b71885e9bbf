"""What the package asks of the machine."""

import ctypes
import sys
from pathlib import Path

import pytest

from astroco_fast.machine import give_back_memory


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc's allocator"
)
def test_memory_freed_between_pieces_in_use_goes_back() -> None:
    pieces = [bytes(size) for _ in range(2000) for size in (20_000, 1_000)]  # 40 MB between 2 MB
    kept = pieces[1::2]
    del pieces
    before = resident()
    give_back_memory()
    assert before - resident() > 20e6
    assert len(kept) == 2000
