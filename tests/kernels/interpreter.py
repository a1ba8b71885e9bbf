"""Triton's interpreter, made quicker, and exact where it does not compute as GPUs do."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from astroco_fast.kernels.tensors import cdiv
from astroco_fast.kernels.triton import convolution_weights


def patch() -> None:
    """Change the interpreter for the rest of the process."""
    look_once()
    remember_types()
    prepare_tall_tiles()
    round_bfloat16()


def look_once() -> None:
    """Look through `triton.language` once a module: Triton's interpreter does so in every call of a device function.

    Every launch has replaced the functions of `triton.language` by the interpreter's; those of `triton.language.core`,
    which Triton's own device functions use, stay replaced from the first call on.
    """
    call, seen = InterpretedFunction.__call__, set()

    def quick(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if self.fn.__module__ in seen:
            return self.rewrite()(*args, **kwargs)
        seen.add(self.fn.__module__)
        return call(self, *args, **kwargs)

    InterpretedFunction.__call__ = quick


def remember_types() -> None:
    """Remember what Triton's interpreter makes of each shape and type: it would make it anew for every number."""
    shape_of_block, shape_of_tensor = {}, {}
    make_block, make_tensor = core.block_type.__init__, core.tensor.__init__
    np_dtype = cache(interpreter._get_np_dtype)

    def block_type(self, element_ty, shape):  # type: ignore[no-untyped-def]
        sizes = tuple(core._unwrap_if_constexpr(size) for size in shape)
        if sizes not in shape_of_block:
            make_block(self, element_ty, shape)
            shape_of_block[sizes] = self.shape, self.numel, str(self.shape)
        self.element_ty = element_ty
        self.shape, self.numel, text = shape_of_block[sizes]
        self.name = f"<{text}, {element_ty}>"

    def tensor(self, handle, type):  # type: ignore[no-untyped-def]
        sizes = tuple(type.shape) if type.is_block() else ()
        if sizes not in shape_of_tensor:
            make_tensor(self, handle, type)
            shape_of_tensor[sizes] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_of_tensor[sizes]

    def get_np_dtype(type):  # type: ignore[no-untyped-def]
        return np.dtype(np.uint64) if type.scalar.is_ptr() else np_dtype(type.scalar)

    core.block_type.__init__, core.tensor.__init__, interpreter._get_np_dtype = block_type, tensor, get_np_dtype


def prepare_tall_tiles() -> None:
    """Let the interpreter prepare a wide convolution's weights by tiles of 1024 rows instead of 32.

    The 252 tiles of 276 columns would take as long as the convolution itself.
    """
    launch = convolution_weights.launch

    def launch_tall(kernel, grid, *args, config, **constants):  # type: ignore[no-untyped-def]
        if (wide := constants["P"]) > 64:
            config = replace(config, blocks={**config.blocks, "BLOCK_R": 1024})
            grid = (cdiv(3 * wide + constants["K"], 1024) * (wide // config.blocks["BLOCK_C"]),)
        launch(kernel, grid, *args, config=config, **constants)

    convolution_weights.launch = launch_tall


def round_bfloat16() -> None:
    """Make Triton's interpreter compute bfloat16 as GPUs do.

    The interpreter stores bfloat16 as bits and would multiply the bits. It truncates where GPUs round: truncation errs
    to one side, which doubled the error of sums over rows. It rounds a multiply-add twice, GPUs once.
    """

    def values(operand: TensorHandle) -> np.ndarray:
        if operand.dtype.scalar == tl.bfloat16:
            return (operand.data.astype(np.uint32) << 16).view(np.float32)
        return operand.data.astype(np.float32)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):  # type: ignore[no-untyped-def]
        return TensorHandle(np.matmul(values(a), values(b)) + d.data, d.dtype.scalar)

    cast_impl = InterpreterBuilder.cast_impl

    def rounding_cast(self, src, dst_type):  # type: ignore[no-untyped-def]
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cast_impl(self, src, dst_type)
        rounded = torch.from_numpy(np.array(src.data)).bfloat16()
        return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    def create_fma(self, x, y, z):  # type: ignore[no-untyped-def]
        if x.dtype.scalar != tl.float32:
            return fma(self, x, y, z)
        exact = x.data.astype(np.float64) * y.data + z.data
        return TensorHandle(exact.astype(np.float32), x.dtype.scalar)

    fma = InterpreterBuilder.create_fma
    InterpreterBuilder.create_fma = create_fma
    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = rounding_cast
