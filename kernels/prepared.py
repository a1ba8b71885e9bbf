"""Parameters in the form that kernels read: cast to the compute dtype, zeros in the pitch, BatchNorm folded.

In inference made once and kept until a parameter changes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")

_cache: WeakKeyDictionary[nn.Module, dict[Any, tuple[list[ref[Tensor]], Any, Any]]] = WeakKeyDictionary()
_steps = 0


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


# Fused optimisers write parameters without a new version of them.
register_optimizer_step_post_hook(_count_step)


def prepared(module: nn.Module, form: Any, sources: Iterable[Tensor], make: Callable[[], T]) -> T:
    """What `make()` gives; where `sources` need no gradients, kept with `module` until one of `sources` changes.

    A change is seen by its tensor, its version or place in memory, or by an optimiser's step; what is written through
    `.data`, or by replaying a CUDA graph, is not (`forget`). While gradients of the sources are wanted, or a graph is
    traced or captured, nothing is kept: parameters are about to change, and the graph must include the casts.

    Args:
        module: whose parameters these are.
        form: tells one prepared form of the module from another; holds the dtype.
        sources: the parameters and buffers that go in.
        make: prepares them; it runs without gradients.
    """
    sources = list(sources)
    trained = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
    if trained or torch.compiler.is_compiling() or any(map(_untraceable, sources)):
        with torch.no_grad():
            return make()
    kept = _cache.setdefault(module, {})
    key = [_steps, *((source.data_ptr(), source._version, source.device) for source in sources)]
    found = kept.get(form)
    # The tensors themselves count too: another may come to lie where one was freed.
    if found is None or found[1] != key or any(r() is not source for r, source in zip(found[0], sources, strict=True)):
        found = kept[form] = ([ref(source) for source in sources], key, make())
    return found[2]


def _untraceable(source: Tensor) -> bool:
    """Whether a change could not be seen: inference tensors have no version; a captured graph keeps addresses."""
    return source.is_inference() or (source.is_cuda and torch.cuda.is_current_stream_capturing())


def forget() -> None:
    """Prepare everything anew: after parameters were written where nobody sees it, by a replayed CUDA graph for one."""
    _cache.clear()


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
