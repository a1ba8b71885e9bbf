"""The kernels' library in use: loaded or compiled at the first call, and the same for the life of the process.

It is the package's own where it has one that serves here (`prebuilt`), or else compiled here (`build`).
"""

import threading
import warnings

from astroco_fast.kernels import checksum
from astroco_fast.kernels.cpu import build, prebuilt

_library: build.Library | str | None = None  # or the reason why there is no library; None: not tried yet
_lock = threading.Lock()


def missing() -> str | None:
    """Why there are no kernels to call; None if there are. The first call may compile them, which takes seconds.

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
                _library = _find()
                checksum.use(_library.handle)
            except build.BuildFailed as error:
                _library = str(error)
                warnings.warn(f"ops run in plain PyTorch on the CPU: {error}", RuntimeWarning, stacklevel=3)
            except build.NoLibrary as error:
                _library = str(error)
        return _library


def _find() -> build.Library:
    (isa, *_) = build.wanted()
    try:
        return prebuilt.library(build.SOURCES, isa)
    except prebuilt.Unusable as reason:
        try:
            return build.library(build.SOURCES)._replace(unused=str(reason))
        except build.BuildFailed as error:
            raise build.BuildFailed(f"{error}; and {reason}") from error
