"""Calls of the kernels' C functions.

The library exports them as pointers to functions, so that a template's instance need not be written out again:
`extern "C" void (*const name)(int64_t threads, ...)`, with a pointer for a tensor (null for None), int64_t for a whole
number or a truth value, double for a float. They check nothing and never fail: what they are given has been checked.
"""

import ctypes
import threading
import warnings
from typing import Any

import torch
from torch import Tensor

from astroco_fast.kernels.cpu import build

_library: build.Library | str | None = None  # or why there is none; None: not asked yet
_functions: dict[str, Any] = {}
_lock = threading.Lock()
_NUMBERS = {int, bool, float, type(None)}  # None is the null pointer


def missing() -> str | None:
    """Why the kernels can't be called; None if they can. The first time it compiles them, which takes seconds.

    A failure holds for the process, which warns of it once.
    """
    if build.wish == "none":
        return "switched off by ASTROCO_CPU_ISA=none"
    found = _library or _load()
    return found if isinstance(found, str) else None


def library() -> build.Library:
    """The library in use.

    Raises:
        RuntimeError: there is none.
    """
    found = _library or _load()
    if isinstance(found, str):
        raise RuntimeError(f"no CPU kernels: {found}")
    return found


def _load() -> build.Library | str:
    global _library
    with _lock:
        if _library is None:
            try:
                _library = build.library(build.SOURCES)
            except build.BuildFailed as error:
                _library = str(error)
                warnings.warn(f"ops run in plain PyTorch on the CPU: {error}", RuntimeWarning, stacklevel=3)
            except build.NoLibrary as error:
                _library = str(error)
        return _library


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Run `name(threads, *arguments)` without the GIL, with as many threads as torch has.

    What an argument is, a pointer, a whole number or a float, is settled by the function's first call: a float that may
    be 0 or 1 must be a `float` then. Tensors must be on the CPU and laid out as the function expects.
    """
    values = [value if type(value) in _NUMBERS else value.data_ptr() for value in arguments]  # type: ignore[union-attr]
    (_functions.get(name) or _function(name, arguments))(torch.get_num_threads(), *values)


def _function(name: str, arguments: tuple[Any, ...]) -> Any:
    address = ctypes.c_void_p.in_dll(library().handle, name).value
    assert address is not None
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, *map(_kind, arguments))(address)
    _functions[name] = function
    return function


def _kind(argument: Any) -> type:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_double if isinstance(argument, float) else ctypes.c_int64
