"""Backends: the ops that each has, where they can run, and the versions that a verdict about them depends on.

A backend is one object. Its ops are functions named after the op, each in a module of the same name: `attention` of
the backend in `kernels/cpu` is the function `attention` of `kernels/cpu/attention.py`, with the arguments of the
function of that name in `astroco_fast.ops`. A fused backend returns zeros for rows that are not real points.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from astroco_fast.reference.layout import Layout
from astroco_fast.reference.loss import masked_loss

OPS = ("input_embed", "attention", "convolution", "feed_forward", "mix_pool", "masked_loss")

F = TypeVar("F", bound=Callable[..., Any])


def constant_while_tracing(function: F) -> F:
    """Have torch.compile call the decorated function while it traces, and make the result a constant of the graph.

    `torch.compiler.assume_constant_result` sets the same mark, but first imports torch._dynamo, which costs an import
    of this package more time and memory than all of its other modules together.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Backend:
    """One way to run the ops.

    Attributes:
        name: the backend's name, as in `ASTROCO_BACKEND`.
        package: the package of its ops' modules.
        ops: those of `OPS` that it has.
    """

    name: str
    package: str
    ops: tuple[str, ...] = OPS

    _functions: dict[str, Callable[..., Any]]

    def unsupported(
        self, op: str, device: torch.device, dtype: torch.dtype, training: bool, module: nn.Module | None = None
    ) -> str | None:
        """The reason why the op cannot run here, in a few words for the user; None: it can.

        Args:
            op: a name from `OPS`.
            device: the device of the op's tensors.
            dtype: the dtype of the computation: the tensors' own, or autocast's.
            training: whether the op's module is in training mode.
            module: the op's module; None: any module that `astroco_fast` builds.
        """
        return self.refusal(op, device, dtype, training, module) if op in self.ops else f"no kernels for {op}"

    def refusal(
        self, op: str, device: torch.device, dtype: torch.dtype, training: bool, module: nn.Module | None
    ) -> str | None:
        """The answer of `unsupported` for an op that the backend has. A backend with limits overrides this."""
        return None

    def function(self, op: str) -> Callable[..., Any]:
        """The op's function. The ops' modules are imported at the first call."""
        self._load()
        return self._functions[op]

    @constant_while_tracing  # torch.compile cannot trace an import
    def _load(self) -> None:
        if not hasattr(self, "_functions"):
            self._functions = {op: getattr(importlib.import_module(f"{self.package}.{op}"), op) for op in self.ops}

    def versions(self) -> tuple[str, ...]:
        """The compilers (with versions) and switches that the kernels, and so the self-check's verdicts, depend on.

        Raises:
            RuntimeError: the kernels cannot be compiled here.
        """
        return ()

    def folder(self) -> Path | None:
        """The folder of its sources, on which the self-check's verdicts depend too; None: it is not on disk."""
        found = sys.modules[self.package].__file__
        return None if found is None else Path(found).parent

    def dropout_mask(self, layout: Layout, salt: int, p: float, width: int) -> Tensor | None:
        """The factors by which this salt's dropout multiplies the batch's rows, (N, D) float32: 0 or 1 / (1 - p).

        None: the backend does not expose them, and its self-check runs without dropout.
        """
        return None


class Reference(Backend):
    """Plain PyTorch, on any device and in any dtype: an op calls its module."""

    name = "reference"
    package = "astroco_fast.reference"

    def function(self, op: str) -> Callable[..., Any]:
        return masked_loss if op == "masked_loss" else _call


def _call(module: nn.Module, *arguments: Any) -> Any:
    return module(*arguments)
