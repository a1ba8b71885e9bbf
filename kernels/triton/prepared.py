"""Parameters in the form that kernels read: cast to the compute dtype, zeros in the pitch, BatchNorm folded.

Made once and kept until a parameter changes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

T = TypeVar("T")

_cache: WeakKeyDictionary[nn.Module, dict[Any, tuple[Any, Any]]] = WeakKeyDictionary()


def prepared(module: nn.Module, form: Any, sources: Iterable[Tensor], make: Callable[[], T]) -> T:
    """What `make()` gives, kept with `module` until one of `sources` changes.

    Args:
        module: whose parameters these are.
        form: tells one prepared form of the module from another; holds the dtype.
        sources: the parameters and buffers that go in.
        make: prepares them; it runs without gradients.
    """
    # A graph replays what was traced or captured: while gradients are wanted that must include the casts themselves.
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and _capturing()):
        with torch.no_grad():
            return make()
    kept = _cache.setdefault(module, {})
    key = [(source.data_ptr(), source._version, source.device) for source in sources]
    if form not in kept or kept[form][0] != key:
        with torch.no_grad():
            kept[form] = (key, make())
    return kept[form][1]


def cast(dtype: torch.dtype, weights: Sequence[tuple[Tensor, tuple[int, ...]]]) -> list[Tensor]:
    """Copies in `dtype`, each padded with zeros to the shape beside it; one launch where nothing has to be padded."""
    copies = [
        torch.empty(shape, dtype=dtype, device=weight.device)
        if weight.shape == shape
        else torch.zeros(shape, dtype=dtype, device=weight.device)
        for weight, shape in weights
    ]
    targets = [
        copy[tuple(slice(size) for size in weight.shape)] for copy, (weight, _) in zip(copies, weights, strict=True)
    ]
    torch._foreach_copy_(targets, [weight.detach() for weight, _ in weights])
    return copies


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
