"""The one registry of models: a name, a configuration, a learning rate and how to build it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from astroco_fast.config import AstroCoConfig
from astroco_fast.errors import UserError
from astroco_fast.model import AstroCo


@dataclass(frozen=True)
class Preset:
    """A model by name.

    Attributes:
        name: as given to `--preset`.
        config: its hyperparameters.
        learning_rate: AdamW's, for a global batch of 256.
        model: the class, called with the configuration.
    """

    name: str
    config: AstroCoConfig
    learning_rate: float
    model: Callable[[AstroCoConfig], nn.Module] = AstroCo


_S = AstroCoConfig(width=276, heads=4, layers=4)
_PRESETS = {
    preset.name: preset
    for preset in (
        Preset("S", _S, 7.5e-4),
        Preset("L", AstroCoConfig(width=256, heads=4, layers=12), 7.5e-5),
        Preset("S-no-conv", replace(_S, convolution=False), 7.5e-4),
        Preset("S-no-gate", replace(_S, gate=False), 7.5e-4),
        Preset("S-no-mix", replace(_S, mix=False), 7.5e-4),
        Preset("tiny", AstroCoConfig(width=64, heads=4, layers=2), 1e-3),
    )
}


def names() -> tuple[str, ...]:
    """The presets' names."""
    return tuple(_PRESETS)


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: there is none; lists those there are.
    """
    if name not in _PRESETS:
        raise UserError(f"no preset {name!r}; there are: {', '.join(_PRESETS)}")
    return _PRESETS[name]


def configure(name: str, overrides: Mapping[str, Any] | None = None) -> AstroCoConfig:
    """A preset's configuration with some fields replaced.

    Raises:
        UserError: no such preset, an unknown field, or a value out of range.
    """
    base = preset(name).config
    return type(base).from_dict({**base.to_dict(), **(overrides or {})})


def build(name: str, **overrides: Any) -> nn.Module:
    """A freshly initialised model of a preset; `overrides` replace fields of its configuration.

    Raises:
        UserError: no such preset, an unknown field, or a value out of range.
    """
    return preset(name).model(configure(name, overrides))
