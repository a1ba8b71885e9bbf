"""A trainer's tensors to files and back, to the bit; safetensors only, nothing is unpickled."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from astroco_fast.errors import UserError
from astroco_fast.pretrain.trainer import Trainer
from astroco_fast.text import first_reason

MODEL, LIVE, OPTIMIZER = "model.safetensors", "live.safetensors", "optimizer.safetensors"


def save_weights(trainer: Trainer, folder: Path, notes: str) -> None:
    """Write the model as `save_pretrained` does, and what training needs besides.

    Args:
        trainer: whose tensors.
        folder: an existing one.
        notes: for the model card.
    """
    model: Any = trainer.evaluated
    model.save_pretrained(folder, notes=notes)
    if trainer.average is not None:
        save_file(_on_cpu(trainer.model.state_dict()), folder / LIVE)
    save_file(_on_cpu(_optimizer_tensors(trainer)), folder / OPTIMIZER)


def load_weights(trainer: Trainer, folder: Path) -> None:
    """Read what `save_weights` wrote.

    Raises:
        UserError: a file does not fit this model; names it.
    """
    file = folder
    try:
        file = folder / (MODEL if trainer.average is None else LIVE)
        trainer.model.load_state_dict(load_file(file))
        if trainer.average is not None:
            file = folder / MODEL
            trainer.average.load_state_dict(load_file(file))
        file = folder / OPTIMIZER
        _load_optimizer(trainer, load_file(file))
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(f"{file}: does not fit this run's model: {first_reason(error)}") from error


def _optimizer_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """AdamW's state as `PARAMETER/exp_avg` and so on."""
    state = trainer.optimizer.state
    return {
        f"{name}/{key}": value
        for name, parameter in trainer.model.named_parameters()
        for key, value in state.get(parameter, {}).items()
    }


def _load_optimizer(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(name, {})[entry] = value
    # The optimiser knows its parameters by number, in the order of its groups.
    order = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    packed = trainer.optimizer.state_dict()
    packed["state"] = {i: state[name] for i, name in enumerate(order) if name in state}
    trainer.optimizer.load_state_dict(packed)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
