"""The switch that has products with weights computed in int8, for the thread that sets it."""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from astroco_fast.kernels.tensors import compute_dtype

OPS = ("attention", "convolution", "feed_forward")  # those with products that int8 is for


class _Here(threading.local):
    """Whether int8 is on in this thread; an attribute of the instance, which torch.compile watches."""

    def __init__(self) -> None:
        self.on = False


here = _Here()


@contextlib.contextmanager
def int8(enabled: bool = True) -> Iterator[None]:
    """Compute the encoder's products with weights in int8, in this thread, until the `with` block ends.

    For inference on CPUs with AVX512-VNNI and AVX512-BF16. Weights are rounded to whole numbers from -127 to 127 times
    a scale for each output channel, activations likewise times a scale for each row; the sums are exact. All else is
    computed as under `torch.autocast("cpu", torch.bfloat16)`, which the context contains. Inside, an op raises a
    `UserError` where it cannot run in int8: on this CPU, for its module, or because a gradient may be wanted.

    Args:
        enabled: False switches int8 off inside the block, and leaves autocast as it is.
    """
    before, here.on = here.on, enabled
    try:
        with torch.autocast("cpu", torch.bfloat16) if enabled else contextlib.nullcontext():
            yield
    finally:
        here.on = before


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which an op of `OPS` multiplies x with weights: int8, or `compute_dtype`."""
    return torch.int8 if here.on else compute_dtype(x)
