"""Counts of the bytes, launches and operations of code, taken by running it on tensors without data.

Every op that reaches the dispatcher counts as one launch that moves each distinct piece of memory among its inputs and
outputs once: views cost nothing, an expanded tensor counts at its real size, a slice at the elements in it. Caches,
second passes over an operand inside a kernel, and the time of a launch are not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from astroco_fast.kernels.library import functions
from astroco_fast.kernels.triton.launch import Architecture, recording
from bench.roofline.flops import Product, product

aten = torch.ops.aten

# Ops that reserve memory without touching it.
ALLOCATIONS = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
# In-place ops that do not read the old content.
_OVERWRITES = {
    "copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "index_copy_", "_foreach_copy_",
    "_foreach_zero_",
}  # fmt: skip
# Ops that touch only part of an argument: (that argument, the argument with as many elements; None: see `_picked`).
_PARTIAL = {"index_select": (0, None), "gather": (0, None), "embedding": (0, None), "index_copy_": (0, 3)}


class Launch(NamedTuple):
    """A launch of one of the project's kernels: the arguments of `launch.recording`, its bytes, and known content.

    `known` has the content of tensors that loops and masks depend on, (n,) uint32, by the names of the arguments.
    """

    function: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    config: Any
    bytes: int
    known: Mapping[str, np.ndarray] = MappingProxyType({})


@dataclass
class Op:
    """The counts of one op.

    Attributes:
        name: of the op.
        launches: number of kernels that it launches.
        read, written: bytes.
        flops: floating-point operations of its matrix products and convolutions.
        dtype: the type that these are computed in.
        launched: its launches, if the project's kernels do its work.
        reads, writes: the bytes that it reads and writes by storage.
        product: its matrix products, where a library makes them.
    """

    name: str
    launches: int = 1
    read: int = 0
    written: int = 0
    flops: float = 0.0
    dtype: torch.dtype = torch.float32
    launched: list[Launch] = field(default_factory=list)
    reads: dict[int, int] = field(default_factory=dict)
    writes: dict[int, int] = field(default_factory=dict)
    product: Product | None = None

    @property
    def bytes(self) -> int:
        return self.read + self.written


@dataclass
class Counts:
    """The ops of a piece of code in order, and the bytes that it kept for the backward pass."""

    ops: list[Op] = field(default_factory=list)
    kept: int = 0

    @property
    def launches(self) -> int:
        return sum(op.launches for op in self.ops)

    @property
    def read(self) -> int:
        return sum(op.read for op in self.ops)

    @property
    def written(self) -> int:
        return sum(op.written for op in self.ops)

    @property
    def bytes(self) -> int:
        return self.read + self.written

    @property
    def flops(self) -> float:
        return sum(op.flops for op in self.ops)

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.ops + other.ops, max(self.kept, other.kept))


class Traffic(TorchDispatchMode):
    """A mode that adds every op to `counts`; enter it inside a `FakeTensorMode`.

    Args:
        flops: gives floating-point operations from an op, its arguments, its keyword arguments and its result.
        launches: number of launches by the name of an op that makes more than one.
        architecture: the architecture whose tilings the project's own kernels take.
        parameters: tensors that, like tensors made of them alone (casts), are not activations.
        known: the content of the kernels' arguments of these names, (n,) uint32.
    """

    def __init__(
        self,
        flops: Callable[[Any, tuple, dict, Any], float],
        launches: dict[str, int],
        architecture: Architecture,
        parameters: Iterable[Tensor] = (),
        known: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.counts, self._content = Counts(), known
        self._flops, self._launches, self._architecture = flops, launches, architecture
        self._parameters = {_storage(parameter) for parameter in parameters}
        self._met: list[StorageWeakRef] = []  # keeps identities of storages from being used again

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func.namespace == "astroco_fast":
            return self._kernel_op(func, args, kwargs)
        result = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        self._follow(func, inputs, outputs)
        known = {_storage(tensor) for tensor in inputs}
        makes = [tensor for tensor in outputs if _storage(tensor) not in known]
        if func in ALLOCATIONS or not (makes or func._schema.is_mutable):
            return result
        name = func._schema.name.partition("::")[2]
        op = Op(name, self._launches.get(name, 1), flops=self._flops(func, args, kwargs, result), dtype=_dtype(inputs))
        read, written = _accesses(func, name, args, kwargs)
        op.reads, op.writes = _by_storage(read), _by_storage(written + [(tensor, None) for tensor in makes])
        op.read, op.written = sum(op.reads.values()), sum(op.writes.values())
        op.product = product(func, args, result)
        self.counts.ops.append(op)
        return result

    def _kernel_op(self, func, args, kwargs):  # type: ignore[no-untyped-def]
        """Run the code of one of the project's ops, recording the kernels that it would launch."""
        name = func._schema.name.partition("::")[2]
        outside, self.counts = self.counts, Counts()
        inputs = _tensors((args, kwargs))
        made: set[int] = set()
        known = {_storage(tensor) for tensor in inputs}
        changed = {_storage(tensor) for tensor, _ in _accesses(func, "", args, kwargs)[1]}

        def record(kernel: Any, grid: tuple, given: tuple, constants: dict, config: Any) -> None:
            tensors = _tensors(given)
            fresh = {_storage(tensor) for tensor in tensors} - known - made
            read = [(tensor, None) for tensor in tensors if _storage(tensor) not in fresh]
            written = [(tensor, None) for tensor in tensors if _storage(tensor) in fresh | changed]
            made.update(fresh)
            if all(grid):
                op = Op("", read=sum(_by_storage(read).values()), written=sum(_by_storage(written).values()))
                op.launched.append(Launch(kernel, grid, given, constants, config, op.bytes, self._known(kernel, given)))
                self.counts.ops.append(op)

        with self, recording(record, self._architecture):
            result = functions[name](*args, **kwargs)
        inside, self.counts = self.counts, outside
        self._follow(func, inputs, _tensors(result))
        self.counts.ops.append(
            Op(
                name, inside.launches, inside.read, inside.written, self._flops(func, args, kwargs, result),
                _dtype(inputs), [launch for op in inside.ops for launch in op.launched],
            )
        )  # fmt: skip
        return result

    def _known(self, kernel: Any, given: tuple) -> dict[str, np.ndarray]:
        """What is known of the content of a kernel's arguments."""
        arguments = zip(kernel.arg_names, given, strict=False)
        return {
            name: self._content[name]
            for name, value in arguments
            if name in self._content and isinstance(value, Tensor) and value.shape == self._content[name].shape
        }

    def _follow(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Note the tensors that are made of parameters alone."""
        self._met += [StorageWeakRef(tensor.untyped_storage()) for tensor in outputs]
        written = set()
        if func._schema.name in ("aten::copy_", "aten::_foreach_copy_"):  # their old content does not matter
            written = {_storage(tensor) for tensor in inputs[: len(inputs) // 2]}
        sources = {_storage(tensor) for tensor in inputs} - written
        if sources and sources <= self._parameters:
            self._parameters |= written | {_storage(tensor) for tensor in outputs}

    def keep(self, saved: Iterable[Tensor]) -> None:
        """Count the memory of tensors saved for the backward pass, without parameters and their casts."""
        sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in saved}
        self.counts.kept = sum(size for storage, size in sizes.items() if storage not in self._parameters)


def touched(tensor: Tensor) -> int:
    """Bytes of a tensor's distinct elements; a dimension of stride 0 repeats the same ones."""
    return tensor.element_size() * math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0 or size == 0
    )


def _by_storage(accesses: Iterable[tuple[Tensor, int | None]]) -> dict[int, int]:
    """Bytes by storage of accesses (tensor, number of its elements or None for all); the same elements count once."""
    pieces: dict[int, dict[Any, int]] = {}
    whole: dict[int, int] = {}
    for tensor, elements in accesses:
        place = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1)
        size = touched(tensor) if elements is None else min(touched(tensor), elements * tensor.element_size())
        storage = _storage(tensor)
        pieces.setdefault(storage, {})[tensor.storage_offset(), tuple(place)] = size
        whole[storage] = tensor.untyped_storage().nbytes()
    return {storage: min(sum(sizes.values()), whole[storage]) for storage, sizes in pieces.items()}


def _accesses(func: Any, name: str, args: tuple, kwargs: dict) -> tuple[list, list]:
    """The accesses of an op to its arguments, those read and those written, in the form that `_bytes` takes."""
    read: list[tuple[Tensor, int | None]] = []
    written: list[tuple[Tensor, int | None]] = []
    partial, by = _PARTIAL.get(name, (None, None))
    if name.startswith("new_") or name.endswith("_like"):
        return read, written  # they read at most the shape or dtype of an argument
    for position, argument, value in _bound(func, args, kwargs):
        elements = None
        if position == partial:
            index = args[by] if by is not None else None
            elements = index.numel() if index is not None else _picked(name, args)
        accesses = [(tensor, elements) for tensor in _tensors(value)]
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes:
            written += accesses
        if not writes or name not in _OVERWRITES:
            read += accesses
    return read, written


def _picked(name: str, args: tuple) -> int:
    """The number of elements that an op with an index reads of its first argument."""
    if name == "gather":
        return args[2].numel()
    if name == "embedding":
        return args[1].numel() * args[0].shape[1]
    source, dim, index = args[:3]
    return source.numel() // source.shape[dim] * index.numel() if source.numel() else 0


def _bound(func: Any, args: tuple, kwargs: dict) -> Iterator[tuple[int, Any, Any]]:
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            yield position, argument, args[position]
        elif argument.name in kwargs:
            yield position, argument, kwargs[argument.name]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return StorageWeakRef(tensor.untyped_storage()).cdata


def _dtype(inputs: list[Tensor]) -> torch.dtype:
    """The type that a matrix product of these is computed in: the narrowest floating-point type among them."""
    floating = [tensor.dtype for tensor in inputs if tensor.is_floating_point() and tensor.numel()]
    return min(floating, key=lambda dtype: dtype.itemsize, default=torch.float32)
