"""The launches of the ops, recorded and specialised as Triton would compile them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import astroco_fast as af
from astroco_fast import Layout, ops, registry, selfcheck
from astroco_fast.kernels import triton as triton_backend
from astroco_fast.kernels.triton.launch import ARCHITECTURES, Config, recording
from astroco_fast.kernels.triton.mix_term import offer

PRESETS = ("S", "L", "tiny")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MODES = ("inference", "evaluation", "training")  # evaluation: with gradients


class Batch(NamedTuple):
    """The windows that the ops run on."""

    lengths: tuple[int, ...] = (40, 21, 0)
    length: int = 40
    kind: str = "packed"
    capacity: int | None = None

    def layout(self) -> Layout:
        if self.kind == "padded":
            return Layout.padded(torch.tensor(self.lengths), self.length)
        return Layout.packed(torch.tensor(self.lengths), self.length, capacity=self.capacity)


BATCH = Batch()
# More rows than a wave of blocks, which have 256 at most, on a GPU of one multiprocessor: with one, ops take their
# tilings for whole waves.
WAVES = Batch((64, 64, 64, 64, 40), 64)


@dataclass
class Kernel:
    """A kernel as one launch specialises it, for one architecture.

    Attributes:
        function: the `triton.jit` function.
        arch: an architecture's name.
        key: Triton's cache key; a launch with another key is compiled anew.
        arguments: the arguments of `ASTSource` after the function.
        options: the compiler backend's.
        constants: the compile-time constants by name.
        config: numbers of warps and stages.
        users: the ops, presets and dtypes that launch it.
    """

    function: Any
    arch: str
    key: str
    arguments: tuple[Any, Any, Any]
    options: dict[str, Any]
    constants: dict[str, Any]
    config: dict[str, int]
    users: dict[str, set[str]] = field(default_factory=lambda: {"op": set(), "preset": set(), "dtype": set()})

    @property
    def name(self) -> str:
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"

    @property
    def label(self) -> dict[str, Any]:
        """The fields that tell it from other kernels, as text."""
        constants = {**self.constants, **{name.removeprefix("num_"): value for name, value in self.config.items()}}
        return {
            **{what: ",".join(sorted(values)) for what, values in self.users.items()},
            "kernel": self.name,
            "constants": " ".join(f"{name}={value}" for name, value in constants.items()),
            "arch": self.arch,
        }


def specialise(function: Any, args: Sequence[Any], constants: dict[str, Any], config: Config, arch: str) -> Kernel:
    """The kernel that Triton would compile for a recorded launch, by the private functions that a launch uses."""
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import compute_cache_key, create_function_from_signature

    backend = make_backend(target(arch))
    given = {**constants, **config.options}
    bind = create_function_from_signature(function.signature, function.params, backend)
    bound, specialisation, rest = bind(*args, **given)
    options, *arguments = function._pack_args(backend, given, bound, specialisation, rest)
    key = f"{function.__module__}.{function.__name__} {compute_cache_key({}, specialisation, rest)}"
    return Kernel(function, arch, key, tuple(arguments), options.__dict__, constants, config.options)


def kernels(
    arch: str, preset: str, dtype: str, op: str, batch: Batch = BATCH, multiprocessors: int | None = None
) -> list[Kernel]:
    """The kernels that `op` launches for `batch` in all modes, each specialisation once.

    Args:
        multiprocessors: of the GPU; None: as many as the architecture's largest common one has.
    """
    on = ARCHITECTURES[arch]
    on = replace(on, multiprocessors=multiprocessors or on.multiprocessors)
    found: dict[str, Kernel] = {}

    def record(function: Any, grid: Any, args: Sequence[Any], constants: dict[str, Any], config: Config) -> None:
        kernel = specialise(function, args, constants, config, arch)
        kernel = found.setdefault(kernel.key, kernel)
        for what, value in (("op", op), ("preset", preset), ("dtype", dtype)):
            kernel.users[what].add(value)

    half = DTYPES[dtype] != torch.float32
    for mode in MODES:
        model = model_of(preset).train(mode == "training")
        with _on_cpu(), recording(record, on), torch.set_grad_enabled(mode != "inference"):
            with torch.autocast("cpu", dtype=DTYPES[dtype]) if half else contextlib.nullcontext():
                outputs = _run(op, model, batch)
            if mode != "inference":
                wanted = [x for x in outputs if x.requires_grad]
                torch.autograd.backward(wanted, [torch.ones_like(x) for x in wanted])
    return list(found.values())


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """A context in which ops run their kernels on CPU tensors, and no self-check reads their uninitialised results."""
    before = triton_backend.interpreting, selfcheck.enabled
    triton_backend.interpreting, selfcheck.enabled = True, False
    try:
        with af.backend("triton"):
            yield
    finally:
        triton_backend.interpreting, selfcheck.enabled = before


def _run(op: str, model: Any, batch: Batch) -> tuple[Tensor, ...]:
    layout = batch.layout()
    gradients = torch.is_grad_enabled()

    def rows() -> Tensor:
        return torch.zeros(layout.rows, model.config.width, requires_grad=gradients)

    outputs: Tensor | tuple[Tensor, ...]
    block, zeros = model.blocks[0], torch.zeros(layout.rows)
    if op == "input_embed":
        hidden = zeros.bool() if gradients else None  # points are hidden only in pretraining
        outputs = ops.input_embed(model.input_embed, zeros, zeros, zeros, hidden, layout)
    elif op == "mix_pool":
        outputs = ops.mix_pool(model.mix_pool, [rows() for _ in range(len(model.blocks) + 1)], layout)
    elif op == "masked_loss":
        windows = torch.zeros(len(batch.lengths), batch.length)
        outputs = ops.masked_loss(windows.clone().requires_grad_(gradients), windows, windows.to(torch.int8))
    else:
        outputs = getattr(ops, op)(getattr(block, op), rows(), layout)
    if op == "attention" and gradients:  # and of a state that is a term of the layer mix
        term = offer(layout, state := rows(), torch.zeros(1), 0)
        outputs = outputs, ops.attention(block.attention, state, layout), term.output
    return outputs if isinstance(outputs, tuple) else (outputs,)


@cache
def model_of(preset: str) -> Any:
    """The preset's model, built once."""
    return registry.build(preset)


def target(arch: str) -> Any:
    """Triton's target for an architecture."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)
