"""Copies between a caller's tensors and a CUDA graph, whose kernels read and write fixed addresses.

The caller's addresses stand in a table on the device, which is the only memory of a graph that the host writes. So a
replayed graph takes its inputs, and leaves its outputs, without a launch for each: the first kernels of the graph fetch
the inputs, the last ones deliver the outputs. The table holds int64 numbers, see `astroco_fast.capture.Table`.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv
from astroco_fast.kernels.triton.launch import Config, launch, named


@triton.jit(repr=named("graph_fetch"), do_not_specialize=["slot", "each", "most"])
def _fetch_kernel(table, copy, slot, each, most, BLOCK: tl.constexpr):
    source = tl.load(table + slot).to(tl.pointer_type(copy.dtype.element_ty))
    count = tl.load(table) * each
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(copy + at, tl.load(source + at, mask=at < count, other=0), mask=at < most)


@triton.jit(repr=named("graph_deliver"), do_not_specialize=["slot", "each"])
def _deliver_kernel(table, result, slot, each, BLOCK: tl.constexpr):
    target = tl.load(table + slot).to(tl.pointer_type(result.dtype.element_ty))
    count = tl.load(table) * each
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(result + at, mask=at < count), mask=at < count)


# 8 numbers a thread; the compiler cannot know that the caller's address is aligned, so loads are of one number.
_CONFIG = Config({"BLOCK": 1024}, warps=4, stages=1)


def _copy(table: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=table.device)


@kernel_op(_copy)
def fetch(table: Tensor, slot: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Copy a caller's windows, (B, ...) contiguous, into a new tensor of room for more; the rest is zero.

    Args:
        table: whose number 0 is B.
        slot: the place in it of the windows' address.
        shape: of the copy; its first axis is at least B.
        dtype: of both; not bool, which Triton has no pointers to.
    """
    copy = _copy(table, shape, dtype)
    most = copy.numel()
    grid = (cdiv(most, _CONFIG.blocks["BLOCK"]),)
    launch(_fetch_kernel, grid, table, copy, slot, most // shape[0], most, config=_CONFIG)
    return copy


def _nothing() -> None:
    return None


@kernel_op(_nothing)
def deliver(table: Tensor, slot: int, result: Tensor) -> None:
    """Copy the first B windows of `result`, contiguous, to the address at the place `slot` of the table."""
    grid = (cdiv(result.numel(), _CONFIG.blocks["BLOCK"]),)
    launch(_deliver_kernel, grid, table, result, slot, result.numel() // result.shape[0], config=_CONFIG)
