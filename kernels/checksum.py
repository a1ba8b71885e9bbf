"""A checksum of memory, by which weights are compared with those that were prepared."""

import ctypes
import functools
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int64)  # checksum in cpu/csrc/plan.h

_library: ctypes.CDLL | None = None


def use(library: ctypes.CDLL) -> None:
    """Compute checksums by the CPU kernels' library from now on, as it is loaded.

    Checksums from before differ, so that what was prepared until then is prepared once more.
    """
    global _library
    _library = library


def checksum(words: np.ndarray) -> int:
    """A number that changes with the numbers of a contiguous array and with their order.

    A change goes unseen by one chance in 2^32, if it was not made for that. The number holds for this process alone:
    by the CPU kernels' library the array is read at the speed of memory, without it by zlib, several times slower.
    """
    return zlib.crc32(words.data) if _library is None else _function(_library)(words.ctypes.data, words.nbytes)


@functools.cache
def _function(library: ctypes.CDLL) -> Callable[[int, int], int]:
    address: Any = ctypes.c_void_p.in_dll(library, "checksum").value
    return _FUNCTION(address)
