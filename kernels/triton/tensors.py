"""Shapes and strides that all kernels agree on.

- *Rows*, between ops: (N, D) float32, contiguous. D = 276 has a row of 1104 bytes, a multiple of 16.
- *Half rows*, inside ops: (N, P) in the compute dtype, contiguous, P = `pitch(D)`; the columns from D on are zero. So
  every row starts at a multiple of 16 bytes and loads stay 16 bytes wide: at a pitch of 276 a bfloat16 row would start
  at a multiple of 8 only.

Rows that are not real points are zero in every output.
"""

import torch
from torch import Tensor, nn

from astroco_fast.kernels.triton.launch import architecture

# 32 columns are 64 bytes of half precision: whole memory sectors, and a depth that every tensor core takes.
PITCH = 32

# bench.roofline sets it: CPU tensors, which have no data there, then stand for a GPU's.
modelled = False


def pitch(width: int) -> int:
    """The columns that a half row of `width` channels takes up."""
    return -(-width // PITCH) * PITCH


def chunk(width: int) -> int:
    """The columns of a tile: a whole half row where its pitch is a power of two, else 128.

    At 128 the last of a row's chunks has idle lanes, for D = 276 a quarter of all; 9 chunks of 32 would have none, but
    took 13 s to compile, unrolled as they are to keep a chunk in registers from one pass to the next.
    """
    columns = pitch(width)
    return columns if columns & (columns - 1) == 0 else 128


def split(width: int) -> tuple[int, int]:
    """Two powers of two that cover a half row of `width` channels: (256, 32) for 276, (256, 0) for 256."""
    columns = pitch(width)
    main = 1 << (columns.bit_length() - 1)
    rest = columns - main
    return main, 1 << (rest - 1).bit_length() if rest else 0


def new(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An output to be, contiguous, not initialised, on like's device; default like's dtype."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def on_gpu(x: Tensor) -> bool:
    """Whether x takes the way of a GPU's tensors: where one stands in for them it has no data."""
    return modelled or x.device.type in ("cuda", "meta")


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products are computed in: the autocast dtype, else x's own."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def rows_of(x: Tensor) -> Tensor:
    """Rows as kernels take them: copied where they are sliced, or where a gradient arrives expanded, with stride 0."""
    return x.contiguous()


def dot_precision(x: Tensor) -> str:
    """`tl.dot`'s input_precision on x's device: IEEE float32 or its equal, unless torch's own switch allows TF32."""
    exact = architecture(x.device).matrix_fp32
    return "tf32" if exact == "tf32x3" and x.is_cuda and _tf32_allowed() else exact


def _tf32_allowed() -> bool:
    matmul = torch.backends.cuda.matmul
    try:
        return matmul.allow_tf32
    except RuntimeError:  # torch refuses to answer by the old name once the new one was set
        return matmul.fp32_precision == "tf32"


# `torch.mm(out_dtype=...)`: from 2.8 on, but torch.compile takes it from 2.10 on only, and ROCm has none.
_MM_TO_FLOAT32 = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10) and torch.version.hip is None


def weight_gradient(upstream: Tensor, x: Tensor) -> Tensor:
    """upstream^T x in float32: (N, F) and (N, P) half rows to (F, P)."""
    if x.dtype == torch.float32:
        return torch.mm(upstream.t(), x)
    if on_gpu(x) and _MM_TO_FLOAT32:
        return torch.mm(upstream.t(), x, out_dtype=torch.float32)
    return torch.mm(upstream.t(), x).float()


def wants_gradient(module: nn.Module, *inputs: Tensor) -> bool:
    """Whether a gradient may be asked for what `module` makes of `inputs`."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *module.parameters()))


def no_autocast(x: Tensor) -> torch.autocast:
    """Switches autocast off on x's device; tensors without data have none, and stand for any."""
    return torch.autocast("cpu" if x.device.type == "meta" else x.device.type, enabled=False)
