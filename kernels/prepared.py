"""Parameters in the form that kernels read: cast to the compute dtype, padded with zeros, with BatchNorm folded in.

In inference they are prepared once and cached until a parameter changes.
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


# Fused optimisers write parameters without raising their version counters.
register_optimizer_step_post_hook(_count_step)


def prepared(module: nn.Module, form: Any, sources: Iterable[Tensor], make: Callable[[], T]) -> T:
    """The result of `make()`, cached with `module` until one of `sources` changes.

    A change is noticed by another tensor, version counter or address, or by an optimiser's step. Writing through
    `.data` or by replaying a CUDA graph is not noticed: call `forget` after it. Nothing is cached while gradients of
    the sources are wanted, because an optimiser is about to change them, nor while a graph is traced or captured,
    because the graph must contain the casts.

    Args:
        module: the owner of the parameters.
        form: a key for one of the module's prepared forms, which contains the dtype where the form depends on it.
        sources: the parameters and buffers that `make` reads.
        make: prepares them, without gradients.
    """
    sources = list(sources)
    trained = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
    if trained or torch.compiler.is_compiling() or any(map(_untraceable, sources)):
        with torch.no_grad():
            return make()
    kept = _cache.setdefault(module, {})
    key = [_steps, *((source.data_ptr(), source._version, source.device) for source in sources)]
    found = kept.get(form)
    # The tensors' identities count too: a new tensor may get the address of a freed one.
    if found is None or found[1] != key or any(r() is not source for r, source in zip(found[0], sources, strict=True)):
        found = kept[form] = ([ref(source) for source in sources], key, make())
    return found[2]


def _untraceable(source: Tensor) -> bool:
    """Whether changes would go unnoticed: inference tensors have no version, and a captured graph keeps addresses."""
    return source.is_inference() or (source.is_cuda and torch.cuda.is_current_stream_capturing())


def forget() -> None:
    """Drop every cached form, after parameters were written in a way that is not noticed (see `prepared`)."""
    _cache.clear()


def cast(dtype: torch.dtype, weights: Sequence[tuple[Tensor, tuple[int, ...]]]) -> list[Tensor]:
    """Copy weights to `dtype`, each padded with zeros to the shape beside it; one launch if none needs padding."""
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
