"""Triton's interpreter, made quicker, and exact where it does not compute as GPUs do."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from astroco_fast.kernels.tensors import cdiv
from astroco_fast.kernels.triton import convolution_weights


def patch() -> None:
    """Change the interpreter for the rest of the process."""
    look_once()
    remember_types()
    broadcast_by_numpy()
    skip_overflow()
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
    """Remember what Triton's interpreter makes of each shape and type: it would make it anew for every number.

    Blocks of one shape share the object `shape`, so that its identity tells which shape it is.
    """
    shape_of_block, shape_of_tensor, known = {}, {}, {}
    make_block, make_tensor = core.block_type.__init__, core.tensor.__init__
    np_dtype, equal = cache(interpreter._get_np_dtype), core.dtype.__eq__

    def block_type(self, element_ty, shape):  # type: ignore[no-untyped-def]
        if (found := known.get(id(shape))) is None:
            sizes = tuple(core._unwrap_if_constexpr(size) for size in shape)
            if sizes not in shape_of_block:
                make_block(self, element_ty, shape)
                shape_of_block[sizes] = self.shape, self.numel, str(self.shape)
                known[id(self.shape)] = shape_of_block[sizes]  # it is kept, so that no other object gets its id
            found = shape_of_block[sizes]
        self.element_ty = element_ty
        self.shape, self.numel, text = found
        self.name = f"<{text}, {element_ty}>"

    def tensor(self, handle, type):  # type: ignore[no-untyped-def]
        key = id(type.shape) if type.is_block() else None
        if key not in shape_of_tensor:
            make_tensor(self, handle, type)
            if key is None or key in known:
                shape_of_tensor[key] = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_of_tensor[key]

    def get_np_dtype(type):  # type: ignore[no-untyped-def]
        return np.dtype(np.uint64) if type.scalar.is_ptr() else np_dtype(type.scalar)

    core.block_type.__init__, core.tensor.__init__, interpreter._get_np_dtype = block_type, tensor, get_np_dtype
    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)


def broadcast_by_numpy() -> None:
    """Leave operands of one shape as they are, and let NumPy repeat a number: Triton compares and fills at length."""
    broadcast = TritonSemantic.broadcast_impl_value

    def repeated(self, number, shape):  # type: ignore[no-untyped-def]
        data = np.broadcast_to(number.handle.data, tuple(shape))
        return self.tensor(TensorHandle(data, number.type.scalar), core.block_type(number.type.scalar, shape))

    def quick(self, lhs, rhs):  # type: ignore[no-untyped-def]
        left, right = lhs.type, rhs.type
        if left.is_block() == right.is_block():
            return (lhs, rhs) if not left.is_block() or left.shape is right.shape else broadcast(self, lhs, rhs)
        return (lhs, repeated(self, rhs, left.shape)) if left.is_block() else (repeated(self, lhs, right.shape), rhs)

    TritonSemantic.broadcast_impl_value = quick


def skip_overflow() -> None:
    """Leave out Triton's search for overflow of integers, whose result its interpreter drops without `debug`."""
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=options.debug)


def prepare_tall_tiles() -> None:
    """Let the interpreter prepare a wide convolution's weights by tiles of 1024 rows instead of 32.

    The 252 tiles of 276 columns would take as long as the convolution itself.
    """
    launch = convolution_weights.launch

    def launch_tall(kernel, grid, *args, config, **constants):  # type: ignore[no-untyped-def]
        if (wide := constants["P"]) > 64:
            config = replace(config, blocks={**config.blocks, "BLOCK_R": 1024})
            grid = (cdiv(3 * wide + 512 * constants["CHUNKS"], 1024) * (wide // config.blocks["BLOCK_C"]),)
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
