"""Tiles over rows, and the precision of matrix products on a GPU; `kernels.tensors` describes the rows."""

import torch
from torch import Tensor

from astroco_fast.kernels.tensors import pitch
from astroco_fast.kernels.triton.launch import architecture

# bench.roofline sets it: CPU tensors without data then stand in for a GPU's.
modelled = False


def chunk(width: int) -> int:
    """Columns of a tile: the whole half row if its pitch is a power of two, else 128.

    At 128 the last of a row's chunks has idle lanes, for D = 276 a quarter of all; 9 chunks of 32 would have none, but
    took 13 s to compile, unrolled as they are to keep a chunk in registers from one pass to the next.
    """
    columns = pitch(width)
    return columns if columns & (columns - 1) == 0 else 128


def split(width: int) -> tuple[int, int]:
    """Columns of a main and a tail tile, powers of two that cover a half row: (256, 32) for 276, (256, 0) for 256."""
    columns = pitch(width)
    main = 1 << (columns.bit_length() - 1)
    rest = columns - main
    return main, 1 << (rest - 1).bit_length() if rest else 0


def on_gpu(x: Tensor) -> bool:
    """Whether x is a GPU's tensor, or one without data that stands in for it."""
    return modelled or x.device.type in ("cuda", "meta")


def dot_precision(x: Tensor) -> str:
    """`tl.dot`'s input_precision on x's device: as exact as IEEE float32, unless torch's own switch allows TF32."""
    exact = architecture(x.device).matrix_fp32
    return "tf32" if exact == "tf32x3" and x.is_cuda and tf32_allowed() else exact


def tf32_allowed() -> bool:
    """torch's switch for products of float32 on a GPU."""
    matmul = torch.backends.cuda.matmul
    try:
        return matmul.allow_tf32
    except RuntimeError:  # torch does not read the old setting once the new one was set
        return matmul.fp32_precision == "tf32"


# `torch.mm(out_dtype=...)` exists since torch 2.8, but not for ROCm, and torch.compile accepts it since 2.10.
_MM_TO_FLOAT32 = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10) and torch.version.hip is None


def weight_gradient(upstream: Tensor, x: Tensor) -> Tensor:
    """A weight's gradient, upstream^T x in float32: (N, F) and (N, P) half rows to (F, P)."""
    if x.dtype == torch.float32:
        return torch.mm(upstream.t(), x)
    if on_gpu(x) and _MM_TO_FLOAT32:
        return torch.mm(upstream.t(), x, out_dtype=torch.float32)
    return torch.mm(upstream.t(), x).float()
