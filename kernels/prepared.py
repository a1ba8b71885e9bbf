"""Parameters in the form that kernels read: cast to the compute dtype, padded with zeros, with BatchNorm folded in.

In inference they are prepared once and cached until a parameter changes.
"""

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._pytree import tree_leaves

from astroco_fast.kernels.checksum import checksum

T = TypeVar("T")

# About as many numbers of each source are compared in every call: all of them would take a third of a small batch's
# time, these take 0.1 % of a call of preset S at batch 32, and 0.9 % of one for a single window.
SAMPLES = 32

_cache: WeakKeyDictionary[nn.Module, dict[Any, "_Form"]] = WeakKeyDictionary()
_steps = 0


class _Using(threading.local):
    """What holds in one thread.

    Attributes:
        forms: the forms used since they are listed; None: they are not.
        stream: the stream whose forms to use, whichever is current, even while a graph is captured; None: the current.
        anew: whether to prepare them anew, in their places.
    """

    forms: "list[_Form] | None" = None
    stream: int | None = None
    anew: bool = False


_using = _Using()


@contextmanager
def uses() -> Iterator["list[_Form]"]:
    """List the forms that this thread uses inside the block."""
    forms: list[_Form] = []
    before, _using.forms = _using.forms, forms
    try:
        yield forms
    finally:
        _using.forms = before
        if before is not None:
            before += forms


@contextmanager
def on_stream(stream: int, anew: bool = False) -> Iterator[None]:
    """Use the forms of the stream that a graph will be replayed on, while this thread captures the graph on another.

    Args:
        stream: the stream's handle.
        anew: whether the graph is to prepare them anew, in their places, before it reads them.
    """
    _using.stream, _using.anew = stream, anew
    try:
        yield
    finally:
        _using.stream, _using.anew = None, False


def count_step(*_: Any) -> None:
    """Note that weights were changed in a way that their version counters may not show."""
    global _steps
    _steps += 1


# Fused optimisers write parameters without raising their version counters.
register_optimizer_step_post_hook(count_step)


def prepared(
    module: nn.Module, form: Any, sources: Sequence[Tensor], make: Callable[[], T], settings: tuple[Any, ...] = ()
) -> T:
    """The result of `make()`, cached with `module` until one of `sources` or of `settings` changes; one a stream.

    A change of a source is noticed by another tensor, version counter or address, by an optimiser's step, and on the
    CPU by the numbers themselves: by a sample of them in each call, and by all of them after `recheck`. So a write that
    PyTorch does not count (through `.data`, a numpy array, shared memory or a collective) goes unnoticed if it spares
    the sample, or if it is to a GPU's memory: call `forget` after it. Nothing is cached while gradients of the sources
    are wanted, because an optimiser is about to change them, nor while a graph is traced or captured, because the graph
    must contain the casts. The exception are graphs of our own (`astroco_fast.capture`), which read forms made before;
    these are prepared anew in the same place.

    Args:
        module: the owner of the parameters.
        form: a key for one of the module's prepared forms, which contains the dtype where the form depends on it.
        sources: the parameters and buffers that `make` reads, contiguous.
        make: prepares them, without gradients.
        settings: the module's other attributes that `make` reads.
    """
    trained = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
    state = None if trained or torch.compiler.is_compiling() else _state(sources, settings)
    if state is None:
        with torch.no_grad():
            return make()
    forms = _cache.get(module)
    if forms is None:
        forms = _cache.setdefault(module, {})
    key = form, _stream(sources)
    found = forms.get(key)
    if found is not None and _using.anew:
        found.write(make())
    elif found is None or not found.holds(sources, state):
        if _capturing(sources):  # what is captured is not computed yet
            return make()
        made = make()
        if found is None or not found.renew(sources, state, made):
            found = forms[key] = _Form(sources, state, made)
    if _using.forms is not None:
        _using.forms.append(found)
    return found.made


def steps() -> int:
    """How many steps optimisers have made in this process."""
    return _steps


def _stream(sources: Sequence[Tensor]) -> int:
    """The GPU's stream that a form is written on, which alone may read it: another might read it before; 0 on a CPU."""
    if not sources or not sources[0].is_cuda:
        return 0
    if _using.stream is not None:
        return _using.stream
    return torch.cuda.current_stream(sources[0].device).cuda_stream


def _state(sources: Sequence[Tensor], settings: tuple[Any, ...]) -> list[Any] | None:
    """What changes with the sources and settings; None: a change might go unnoticed."""
    state: list[Any] = [_steps, settings]
    for source in sources:
        if source.is_inference():  # it has no version
            return None
        state += (source.data_ptr(), source._version)
    if _using.stream is None and _capturing(sources):  # a graph keeps addresses
        return None
    return state


def _capturing(sources: Sequence[Tensor]) -> bool:
    """Whether what is made of the sources now becomes a part of a CUDA graph; a form without sources may do so, too."""
    on_gpu = sources[0].is_cuda if sources else torch.cuda.is_initialized()
    return on_gpu and torch.cuda.is_current_stream_capturing()


class _Form:
    """A prepared form, and what its sources were like when it was made.

    Attributes:
        made: the form.
        doubted: whether the next use compares all of the sources' numbers.
        dropped: whether the form was forgotten.
        pinned: whether graphs read the form at its present addresses.
        sampled: whether the sources' numbers are compared at all, which are float32 then.
    """

    def __init__(self, sources: Sequence[Tensor], state: list[Any], made: Any) -> None:
        self.made, self.dropped, self.pinned = made, False, False
        # The tensors' identities count too: a new tensor may get the address of a freed one.
        self._sources = [ref(source) for source in sources]
        self._note(sources, state)

    def _note(self, sources: Sequence[Tensor], state: list[Any]) -> None:
        """Remember what the sources are like."""
        self._state, self.doubted = state, False
        self._seen = all(source.is_cpu for source in sources)  # reading a GPU's memory would wait for the GPU
        self._words = [_words(source) for source in sources] if self._seen else []
        self._samples = [words[:: _stride(source)] for words, source in zip(self._words, sources, strict=False)]
        self._sample, self._sums = self._sampled(), self._summed()
        self.sampled = self._seen and all(words.itemsize == 4 for words in self._words)

    def holds(self, sources: Sequence[Tensor], state: list[Any]) -> bool:
        """Whether these sources, in this state, are as they were when the form was made."""
        if state != self._state:
            return False  # before any memory is read, because it may have been freed
        for known, source in zip(self._sources, sources, strict=True):
            if known() is not source:
                return False
        return self._sampled() == self._sample and self.settle()

    def renew(self, sources: Sequence[Tensor], state: list[Any], made: Any) -> bool:
        """Write what was prepared anew over a pinned form; False: it is not pinned, or made of other tensors.

        A form may contain a source itself: it must not be written to, nor may another source be written over it.
        """
        same = len(sources) == len(self._sources) and all(k() is s for k, s in zip(self._sources, sources, strict=True))
        if not self.pinned or self.dropped or not same or _places(state) != _places(self._state):
            return False
        self.write(made)
        self._note(sources, state)
        return True

    def write(self, made: Any) -> None:
        """Write what was prepared anew over the form."""
        pairs = zip(tree_leaves(self.made), tree_leaves(made), strict=True)
        apart = [(old, new) for old, new in pairs if old.data_ptr() != new.data_ptr()]
        if apart:
            with torch.inference_mode():  # which may write to tensors of either kind
                torch._foreach_copy_([old for old, _ in apart], [new for _, new in apart])

    def renewed(self) -> None:
        """Note that a graph has prepared the form anew, from the sources as they are."""
        sources = [source for source in (known() for known in self._sources) if source is not None]
        state = _state(sources, self._state[1])
        if state is not None and len(sources) == len(self._sources):
            self._note(sources, state)

    def settle(self) -> bool:
        """Whether the form still stands; where it is in doubt, all of the sources' numbers are compared."""
        if self.dropped or (self.doubted and not (self._seen and self._summed() == self._sums)):
            return False
        self.doubted = False
        return True

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """The addresses of the sampled words, int64, and the words, uint32, as they were when the form was made."""
        places = [sample.ctypes.data + sample.strides[0] * np.arange(sample.size) for sample in self._samples]
        return np.concatenate(places), np.frombuffer(b"".join(self._sample), dtype=np.uint32)

    def _sampled(self) -> list[bytes]:
        return [sample.tobytes() for sample in self._samples]

    def _summed(self) -> list[int]:
        return list(map(checksum, self._words))


def _places(state: list[Any]) -> list[int]:
    """The addresses in what `_state` returns."""
    return state[2::2]


def _words(source: Tensor) -> np.ndarray:
    """The memory of a contiguous CPU tensor as whole numbers. It does not keep the memory from being freed."""
    size = source.element_size()
    memory: Any = (ctypes.c_char * (source.numel() * size)).from_address(source.data_ptr())
    return np.frombuffer(memory, dtype=np.dtype(f"u{size}"))


def _stride(source: Tensor) -> int:
    """A distance between samples which spreads them over a matrix's columns, not over its rows alone."""
    columns = source.shape[-1] if source.dim() > 1 else 1
    return max(1, source.numel() // SAMPLES // columns * columns + int(0.618 * columns))


def forget(model: nn.Module | None = None) -> None:
    """Drop the prepared weights of a model, so that its next call prepares them anew.

    Needed only after parameters were written in a way that goes unnoticed, see `prepared`.

    Args:
        model: an encoder, a part of one, or a module that contains one; None: all models of the process.
    """
    for module in list(_cache) if model is None else model.modules():
        for form in _cache.pop(module, {}).values():
            form.dropped = True


def recheck(modules: Iterable[nn.Module]) -> None:
    """Have the modules' next call compare all numbers with those that were prepared (on a GPU, prepare them anew)."""
    for module in modules:
        for form in _cache.get(module, {}).values():
            form.doubted = True


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
