"""Floating-point operations of an op, counted as is usual by its matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from astroco_fast.flops import forward_flops

aten = torch.ops.aten

# By kernel op of the project, the arguments that are matrices (or taps) which every row is multiplied by: each of their
# elements is one multiplication and one addition a row. An argument that is None multiplies nothing.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "batch_norm_merge": (),
    "batch_norm_silu": (),
    "batch_norm_silu_gradient": (),
    "batch_norm_silu_sums": (),
    "column_sums": (),
    "convolution_weights": (),
    "deliver": (),
    "depthwise_input_gradient": ("taps",),
    "depthwise_silu": ("taps",),
    "depthwise_statistics": ("taps",),
    "depthwise_tap_gradient": ("taps",),
    "feed_forward_fused": ("w_up", "w_out"),
    "feed_forward_training": ("w_up", "w_out"),
    "fetch": (),
    "gated_linear": ("w_val", "w_gate"),
    "gated_linear_backward": ("w_val", "w_gate"),  # v and g again
    "gated_linear_onto": ("w", "w"),  # v and g again, and back
    "gelu_norm": (),
    "gelu_norm_backward": (),
    "linear": ("w",),
    "linear_onto": ("w",),
    "linear_residual_norm": ("w",),
    "mix": (),
    "mix_backward": (),
    "norm_backward": (),
    "point_features": ("w_points",),
    "product_residual_norm": ("w",),
    "residual_norm": (),
    "residual_norm_backward": (),
    "residual_norm_product_backward": ("w",),
    "rows_and_tiles": (),
    "rows_with_ones": (),
    "squared_error": (),
    "squared_error_backward": (),
}

# Fused attention: its products for every pair of points of a window, at 2 operations a channel.
PAIRWISE = {
    "_flash_attention_forward": 2,
    "_flash_attention_backward": 5,
    "_efficient_attention_forward": 2,
    "_efficient_attention_backward": 5,
    "efficient_attention_backward": 5,
    "_scaled_dot_product_flash_attention_for_cpu": 2,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 5,
}

# Ops of more than one launch: the row sums of gradient times output, the gradients, the conversion of dq.
LAUNCHES = {"_flash_attention_backward": 3, "_efficient_attention_backward": 2}


def counter(pairs: int) -> Callable[[Any, tuple, dict, Any], float]:
    """A function from an op, its arguments, its keyword arguments and its result to floating-point operations.

    Args:
        pairs: the sum over windows of the squared number of real points, which a tensor without data cannot tell.
    """

    def flops(func: Any, args: tuple, kwargs: dict, result: Any) -> float:
        name = func._schema.name.partition("::")[2]
        if name in PAIRWISE:
            heads, size = args[0].shape[-2:]
            if name.startswith("_scaled_dot_product"):  # (B, H, T, d), where the others have (N, H, d)
                heads = args[0].shape[1]
            return 2.0 * PAIRWISE[name] * pairs * heads * size
        if func.namespace == "astroco_fast":
            return _of_rows(func, name, args, kwargs)
        if func.overloadpacket is aten.convolution_backward:
            return 2.0 * sum(args[-1][:2]) * _of_convolution(args[0], args[2])
        if func.overloadpacket is aten.convolution:
            return 2.0 * _of_convolution(result, args[1])
        formula = flop_registry.get(func.overloadpacket)
        return 0.0 if formula is None else float(formula(*args, **kwargs, out_val=result))

    return flops


class Product(NamedTuple):
    """Matrix products of a library: `count` of (rows, depth) by (depth, columns), of so many bytes a number."""

    count: int
    rows: int
    columns: int
    depth: int
    size: int
    out_size: int

    def moved(self, rows: int, columns: int) -> int:
        """Bytes through the second-level cache, by tiles of so many rows and columns that each load their operands."""
        left = self.rows * self.depth * self.size * -(-self.columns // columns)
        right = self.depth * self.columns * self.size * -(-self.rows // rows)
        return self.count * (left + right + self.rows * self.columns * self.out_size)


def product(func: Any, args: tuple, result: Any) -> Product | None:
    """The products that an op of PyTorch makes; None: none, or of another form."""
    if func.overloadpacket not in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm):
        return None
    a, b = [value for value in args if isinstance(value, Tensor)][-2:]
    count = a.shape[0] if a.dim() == 3 else 1
    return Product(count, a.shape[-2], b.shape[-1], a.shape[-1], a.element_size(), result.element_size())


def _of_convolution(output: Tensor, weight: Tensor) -> int:
    """Multiplications of one convolution; torch's own formula for its gradient ignores groups."""
    return output.numel() * weight[0].numel()


def _of_rows(func: Any, name: str, args: tuple, kwargs: dict) -> float:
    """Operations of one of the project's kernel ops."""
    if name not in PRODUCTS:
        raise KeyError(f"bench.roofline: add the kernel op {name!r} to PRODUCTS in bench/roofline/flops.py")
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    matrices = [given[product] for product in PRODUCTS[name] if given[product] is not None]
    if not matrices:
        return 0.0
    source = next(value for value in given.values() if isinstance(value, Tensor))
    # The depthwise convolution's kernels take the number of taps that each channel has.
    sizes = [matrix.numel() if isinstance(matrix, Tensor) else matrix * source.shape[1] for matrix in matrices]
    return forward_flops(sum(sizes), source.shape[0])
