"""Ops whose kernels are C++ functions: the functions' arguments, and their calls.

The C++ function of the op `cpu_attention` is `attention`. It takes one struct by pointer, `AttentionArguments`, whose
declaration in csrc names and explains every field: a pointer for a tensor, int64_t for a whole number or a truth value,
double for a float. The struct's mirror in Python, a `ctypes.Structure`, is made from that declaration, and a call fills
it by name from the op's arguments and results. So an op's arguments are listed twice: in the struct, and as the
parameters of the Python function.
"""

import ctypes
import functools
import inspect
import operator
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from astroco_fast.kernels.cpu import build, native
from astroco_fast.kernels.library import kernel_op

_SUFFIXES = {torch.float32: "_f32", torch.bfloat16: "_bf16", torch.int8: "_i8"}
# The dtypes of pointers' tensors. T is the compute type for which a function is compiled: float, BFloat16 or int8; H is
# the type of half rows, T or for int8 BFloat16.
_ELEMENTS = {
    "float": torch.float32,
    "double": torch.float64,
    "int64_t": torch.int64,
    "uint8_t": torch.bool,
    "T": None,
    "H": None,
}
_NUMBERS = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}


class Field(NamedTuple):
    """One field of a struct, as in `const float* x;`.

    Attributes:
        name: of the argument.
        type: float, double, int64_t, uint8_t, or T, the compute type.
        pointers: 0: a number; 1: a tensor; 2: tensors.
    """

    name: str
    type: str
    pointers: int

    @property
    def mirror(self) -> Any:
        return (_NUMBERS.get(self.type), ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))[self.pointers]


@functools.cache
def structs(sources: Path) -> dict[str, tuple[Field, ...]]:
    """The fields of every `<Name>Arguments` that the headers in a folder declare, by that name, in their order.

    Raises:
        ValueError: a declaration in a struct does not declare one field of a type above.
    """
    found = {}
    for path in sorted(sources.glob("*.h")):
        for name, body in re.findall(r"struct (\w+Arguments) \{(.*?)\n\};", path.read_text(), re.DOTALL):
            found[name] = tuple(_field(path.name, name, line) for line in _declarations(body))
    return found


def _declarations(body: str) -> list[str]:
    return [part for part in re.sub(r"//.*|\bconst\b", "", body).split(";") if part.strip()]


def _field(file: str, struct: str, declaration: str) -> Field:
    parts = re.fullmatch(r"\s*(\w+)((?:\s*\*)*)\s+(\w+)\s*", declaration)
    if parts is not None:
        field = Field(parts[3], parts[1], parts[2].count("*"))
        if field.pointers <= 2 and field.type in (_ELEMENTS if field.pointers else _NUMBERS):
            return field
    raise ValueError(f"{file}: {struct} declares {declaration.strip()!r}, which is no argument of a kernel")


def _size(axis: int) -> Callable[[Tensor], int]:
    return lambda x: x.shape[axis]


def _rows(axis: int) -> dict[str, Callable[[Any], int]]:
    return dict.fromkeys(("x", "y", "dy", "weight"), _size(axis)) | {"states": lambda states: states[0].shape[axis]}


# Fields that are neither arguments nor results, but follow from one: by field, from which (the first that the op has).
_DERIVED: dict[str, dict[str, Callable[[Any], int]]] = {
    "batch": {"windows": _size(1)},
    "rows": _rows(0),
    "width": _rows(1),
    "count": {"states": len},
    "layers": {"logits": _size(0)},
    "parts": {"partial": _size(0)},
    "columns": {"partial": _size(2)},
    "channels": {"running_mean": lambda mean: 0 if mean is None else mean.shape[0]},
}


class Call(NamedTuple):
    """A function for one compute type, and the way to fill its struct.

    Attributes:
        function: the C++ function, which takes the struct.
        take: picks each field's value from the arguments, the results and `threads`.
        conversions: the places of fields whose values must be converted, and the functions that convert them.
    """

    function: Any
    take: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    conversions: list[tuple[int, Callable[[Any], Any]]]


class Recorded(NamedTuple):
    """A call that was made: its function, the struct that it took, and the values that the struct points to."""

    kernel: "Kernel"
    function: Any
    structure: ctypes.Structure
    values: tuple[Any, ...]


class _Recording(threading.local):
    """The calls made in one thread while they are recorded; None: they are not."""

    calls: list[Recorded] | None = None


recording = _Recording()


class Kernel:
    """The C++ function `name` for every compute type, called with a struct that is filled by name.

    Attributes:
        name: of the function.
        fields: the struct's.
        names: of the values that a call takes: the op's arguments, its results and `threads`.
        results: those of the results.
        structure: the mirror of the struct.
    """

    def __init__(self, name: str, struct: str, arguments: Sequence[str], results: Sequence[str] = ()) -> None:
        """Match the fields of `struct` with the names of an op's arguments and results.

        Raises:
            TypeError: a field gets no value, or a value has no field.
        """
        self.name, self.fields, self.results = name, structs(build.SOURCES)[struct], frozenset(results)
        self.names = [*arguments, *results, "threads"]
        if unused := set(self.names) - {field.name for field in self.fields} - {"dtype"}:  # which the results show
            raise TypeError(f"{struct} has no field for {', '.join(sorted(unused))}")
        self._sources = [self._source(struct, field) for field in self.fields]
        typed = [self.names.index(field.name) for field in self.fields if field.type == "T"]
        self._typed = typed[0] if typed else None
        self.structure = type(struct, (ctypes.Structure,), {"_fields_": [(f.name, f.mirror) for f in self.fields]})
        self._calls: dict[torch.dtype | None, Call] = {}

    def __call__(self, values: tuple[Any, ...]) -> None:
        """Run the function without the GIL, on the values of arguments, results and `threads`, in this order.

        Raises:
            ValueError: an argument is not a tensor that the function can read.
        """
        dtype = None if self._typed is None else values[self._typed].dtype
        function, take, conversions = self._calls.get(dtype) or self._call(dtype)
        fields = list(take(values))
        for place, convert in conversions:
            fields[place] = convert(fields[place])
        structure = self.structure(*fields)
        function(structure)
        if (record := recording.calls) is not None:
            record.append(Recorded(self, function, structure, values))

    def _source(self, struct: str, field: Field) -> str:
        """The name of the value that a field takes, or is derived from."""
        for name in (field.name, *_DERIVED.get(field.name, ())):
            if name in self.names:
                return name
        raise TypeError(f"{struct}: nothing gives the field {field.name}")

    def _call(self, dtype: torch.dtype | None) -> Call:
        """Look up the function for a compute type (None: it has no such type), and prepare its calls."""
        if dtype is not None and dtype not in _SUFFIXES:
            raise ValueError(f"{self.name}: there is no kernel that computes in {dtype}")
        symbol = self.name if dtype is None else self.name + _SUFFIXES[dtype]
        address = ctypes.c_void_p.in_dll(native.library().handle, symbol).value
        function = ctypes.CFUNCTYPE(None, ctypes.POINTER(self.structure))(cast(int, address))
        take = operator.itemgetter(*map(self.names.index, self._sources))
        conversions = [
            (place, convert)
            for place, (field, source) in enumerate(zip(self.fields, self._sources, strict=True))
            if (convert := self._conversion(field, source, dtype)) is not None
        ]
        self._calls[dtype] = Call(function, take, conversions)
        return self._calls[dtype]

    def _conversion(self, field: Field, source: str, dtype: torch.dtype | None) -> Callable[[Any], Any] | None:
        """The function that converts the value of `source` to the field's; None: the value is the field's."""
        if source != field.name:
            return _DERIVED[field.name][source]
        if not field.pointers:
            return None
        if field.pointers == 1 and source in self.results:
            return Tensor.data_ptr  # not checked again: the op has just allocated it
        element = _ELEMENTS[field.type] or dtype

        def address(x: Tensor | None) -> int | None:
            if x is None:
                return None
            if x.dtype is not element or not x.is_contiguous():
                found = f"{x.dtype} with strides {x.stride()}"
                raise ValueError(f"{self.name}: {field.name} must be {element}, contiguous, got {found}")
            return x.data_ptr()

        if field.pointers == 1:
            return address
        return lambda tensors: (ctypes.c_void_p * len(tensors))(*map(address, tensors))


kernels: dict[str, Kernel] = {}  # by op


def native_op(
    fields: str, struct: str | None = None, mutates: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as an op, which runs the C++ function of the same name without `cpu_`.

    The decorated function only allocates the op's results, and the C++ function writes them. Its arguments must be the
    struct's fields, in any order.

    Args:
        fields: the names of the results' fields, between spaces.
        struct: the struct that the C++ function takes; None: `<Name>Arguments`, after the function's name.
        mutates: names of the arguments that the C++ function writes to.
    """

    def register(allocate: Callable[..., Any]) -> Callable[..., Any]:
        op = allocate.__name__
        name = op.removeprefix("cpu_")
        names = list(inspect.signature(allocate).parameters)
        written = [names.index(argument) for argument in mutates]
        own = "".join(word.capitalize() for word in name.split("_")) + "Arguments"
        kernel = Kernel(name, struct or own, names, fields.split())

        @functools.wraps(allocate)
        def run(*arguments: Any) -> Any:
            made = allocate(*arguments)
            if written:
                # Weights prepared from a tensor are prepared again when its version changes.
                tensors = [x for i in written if (x := arguments[i]) is not None and not x.is_inference()]
                torch.autograd.graph.increment_version(tensors)
            results = made if isinstance(made, tuple) else (made,)
            kernel((*arguments, *results, torch.get_num_threads()))
            return made

        kernels[op] = kernel
        return kernel_op(allocate, mutates, "CPU")(run)

    return register
