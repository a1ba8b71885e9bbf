"""Whether a model is as it was, for what was recorded of its calls: a CPU's plan, or a GPU's graph."""

import operator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import TensorBase
from torch.nn.modules.module import _has_any_global_hook

from astroco_fast.kernels import prepared
from astroco_fast.kernels.fitness import transformed

_VERSION: Any = TensorBase._version.__get__  # type: ignore[attr-defined]
_WANTS_GRADIENT: Any = TensorBase.requires_grad.__get__  # type: ignore[attr-defined]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def watched() -> bool:
    """Whether modes, transforms or hooks see every op or every module's call, so that none may be left out."""
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    return bool(modes) or transformed() or _has_any_global_hook()


class Snapshot:
    """What inference by a model depends on, apart from the numbers of its weights; it is compared in every call.

    It refers to the model's parts and not to the model, which can be freed.
    """

    @staticmethod
    def of(model: nn.Module) -> "Snapshot | None":
        """The model as it is; None: hooks want to see its calls, or its tensors do not count their changes."""
        if next(model.parameters()).is_inference():  # so are the others, as a rule, and this is soon known
            return None
        found = Snapshot(model)
        if any(found._hooks) or any(tensor.is_inference() for tensor in found._tensors):
            return None
        found._addresses, found._changes = list(map(Tensor.data_ptr, found._tensors)), found.changes()
        return found

    def __init__(self, model: nn.Module) -> None:
        parts = [part for part in model.modules() if part is not model]
        own = (model._modules, model._parameters, model._buffers)
        self._places: list[dict[str, Any]] = [
            *own, *(d for part in parts for d in (part.__dict__, part._modules, part._parameters, part._buffers))
        ]  # fmt: skip
        self._values = list(chain.from_iterable(map(dict.values, self._places)))
        self._hooks = [getattr(part, name) for part in parts for name in _HOOKS]
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._parts = parts
        self._kinds: list[Any] = list(map(type, parts))
        self._forwards = [(kind, kind.forward) for kind in set(self._kinds)]
        self._addresses: list[int] = []
        self._changes: list[int] = []

    def holds(self) -> bool:
        """Whether the model is as it was."""
        return self.stands() and self.changes() == self._changes

    def stands(self) -> bool:
        """Whether the model has the same parts, attributes and tensors as it had, though perhaps with other numbers."""
        if sum(map(len, self._places)) != len(self._values) or any(self._hooks):
            return False
        now = chain.from_iterable(map(dict.values, self._places))
        if not all(map(operator.is_, now, self._values)):
            return False
        if list(map(type, self._parts)) != self._kinds or any(kind.forward is not f for kind, f in self._forwards):
            return False
        return list(map(Tensor.data_ptr, self._tensors)) == self._addresses

    def wants_gradient(self) -> bool:
        return any(map(_WANTS_GRADIENT, self._tensors))

    def training(self) -> bool:
        """Whether a part was in training mode."""
        return any(part.training for part in self._parts)

    def changes(self) -> list[int]:
        """What PyTorch counts of changes of the tensors' numbers."""
        return [prepared.steps(), *map(_VERSION, self._tensors)]
