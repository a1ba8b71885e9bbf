"""Registration of kernels with `torch.library`, so that `torch.compile` and `opcheck` know their schema and shapes."""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("astroco_fast", "DEF")
# Inductor must not hand a kernel other strides than eager mode would: all of them take contiguous tensors.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)

# What each op runs, by name, for who wants to see its launches: the dispatcher hands out an op only, and runs its fake
# where tensors have no data.
functions: dict[str, Callable[..., Any]] = {}


def kernel_op(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as `torch.ops.astroco_fast.<name>` and give that op in its place.

    Args:
        schema: as in "name(Tensor x, float p) -> (Tensor, Tensor)".
        fake: takes the same arguments and allocates the outputs; stands in where tensors have no data.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        functions[name] = function
        _LIBRARY.define(schema, tags=_TAGS)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"astroco_fast::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.astroco_fast, name).default

    return register
