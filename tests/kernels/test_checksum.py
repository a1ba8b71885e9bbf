"""The checksum of memory, by the library and without it."""

import zlib

import numpy as np
import pytest

from astroco_fast.kernels import checksum as module
from astroco_fast.kernels.checksum import checksum


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 255, 256, 257, 1000])
def test_a_change_of_content_or_order_is_seen(
    cpu: str, monkeypatch: pytest.MonkeyPatch, native: bool, size: int
) -> None:
    if not native:
        monkeypatch.setattr(module, "_library", None)
    memory = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    before = checksum(memory)
    assert (before == zlib.crc32(memory)) == (not native)
    assert checksum(memory.copy()) == before
    seen = {before, checksum(memory[:-1]), checksum(np.append(memory, np.uint8(0)))}
    for place in range(size):
        for bit in (1, 128):
            changed = memory.copy()
            changed[place] ^= bit
            seen.add(checksum(changed))
    for place in range(1, size):
        if memory[place] != memory[0]:
            swapped = memory.copy()
            swapped[[0, place]] = memory[[place, 0]]
            seen.add(checksum(swapped))
    assert len(seen) == 3 + 2 * size + (memory[1:] != memory[:1]).sum()


def test_two_changes_of_sign_are_seen(cpu: str) -> None:
    """In a sum, they would cancel out."""
    numbers = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    for second in range(1, 600):
        changed = numbers.copy()
        changed[[0, second]] *= -1
        assert checksum(changed) != checksum(numbers)
