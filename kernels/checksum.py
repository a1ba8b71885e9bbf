"""A checksum of memory, by which weights are compared with those that were prepared."""

import ctypes
import functools
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int64)  # checksum in cpu/csrc/plan.h


def checksum(words: np.ndarray) -> int:
    """A number that changes with the numbers of a contiguous array and with their order.

    A change goes unseen by one chance in 2^32, if it was not made for that. The number holds for this process alone:
    with the CPU kernels' library the array is read at the speed of memory, without it by zlib, several times slower.
    """
    native = _native()
    return zlib.crc32(words.data) if native is None else native(words.ctypes.data, words.nbytes)


@functools.cache
def _native() -> Callable[[int, int], int] | None:
    """The library's function; None: there is no library."""
    from astroco_fast.kernels.cpu import native  # which prepares weights by this module

    if native.missing() is not None:
        return None
    address: Any = ctypes.c_void_p.in_dll(native.library().handle, "checksum").value
    return _FUNCTION(address)
