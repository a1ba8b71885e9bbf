"""Registration of kernels with `torch.library`, so that `torch.compile` and `opcheck` know their schema and shapes."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

_LIBRARY = torch.library.Library("astroco_fast", "DEF")
# Every kernel takes contiguous tensors, so Inductor must pass it the strides that eager mode would.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)

# The Python function behind each op, by name. The dispatcher hands out only the op, and runs its fake where tensors
# have no data; bench/roofline runs these functions there instead, to see their launches.
functions: dict[str, Callable[..., Any]] = {}


def kernel_op(
    allocate: Callable[..., Any], mutates: Sequence[str] = (), key: str = "CompositeExplicitAutograd"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the op `torch.ops.astroco_fast.<its name>`, and return the op in its place.

    The op's schema is inferred from the function's annotations (`torch.library.infer_schema`).

    Args:
        allocate: allocates the outputs. It is also the op's fake, which replaces it where tensors have no data. It
            takes those of the function's arguments that it needs, under the same names.
        mutates: names of the arguments that the function writes to.
        key: the dispatch key of the function. With "CPU" the dispatcher refuses tensors of other devices.

    Raises:
        TypeError: `allocate` has an argument that the function does not have.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        signature, needed = inspect.signature(function), inspect.signature(allocate).parameters
        if unknown := needed.keys() - signature.parameters.keys():
            raise TypeError(f"{name}: {allocate.__name__} takes {', '.join(sorted(unknown))}, which {name} does not")

        def fake(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return allocate(**{argument: bound.arguments[argument] for argument in needed})

        functions[name] = function
        _LIBRARY.define(torch.library.infer_schema(function, op_name=name, mutates_args=mutates), tags=_TAGS)
        _LIBRARY.impl(name, function, key)
        torch.library.register_fake(f"astroco_fast::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.astroco_fast, name).default

    return register
