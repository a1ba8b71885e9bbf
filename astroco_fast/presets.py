"""Presets: hyperparameters and a learning rate under a name. The hyperparameters' type determines the model's class."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from astroco_fast.errors import UserError
from astroco_fast.reference.config import AstroCoConfig, AstromerConfig, ModelConfig


@dataclass(frozen=True)
class Preset:
    """Hyperparameters and a learning rate.

    Attributes:
        name: the value of `--preset`.
        config: the model's hyperparameters.
        learning_rate: AdamW's learning rate, for a global batch of 256.
    """

    name: str
    config: ModelConfig
    learning_rate: float


_S = AstroCoConfig(width=276, heads=4, layers=4)
# The authors' learning rate, constant over a run: the default of the script that pretrains either version
# (github.com/astromer-science/main-code), intended for 1.5 million light curves. The settings of a run that they
# published (github.com/cridonoso/astromer, astromer_1/pretraining) have it too, with batches of 2,500 windows.
_ASTROMER_RATE = 1e-5
_V1 = AstromerConfig(
    layers=2, feed_forward=128, leak=False, mask_logit=1.0, mask_queries=True, hidden_magnitude="shown"
)
_V2 = AstromerConfig()
_PRESETS = {
    preset.name: preset
    for preset in (
        Preset("S", _S, 7.5e-4),
        Preset("L", AstroCoConfig(width=256, heads=4, layers=12), 7.5e-5),
        Preset("S-no-conv", replace(_S, convolution=False), 7.5e-4),
        Preset("S-no-gate", replace(_S, gate=False), 7.5e-4),
        Preset("S-no-mix", replace(_S, mix=False), 7.5e-4),
        Preset("tiny", AstroCoConfig(width=64, heads=4, layers=2), 1e-3),
        Preset("astromer-v1", _V1, _ASTROMER_RATE),
        Preset("astromer-v2", _V2, _ASTROMER_RATE),
        Preset("astromer-v2-paper", replace(_V2, feed_forward=976), _ASTROMER_RATE),
    )
}


def names() -> tuple[str, ...]:
    """The presets' names."""
    return tuple(_PRESETS)


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: there is no such preset; the message lists the presets.
    """
    if name not in _PRESETS:
        raise UserError(f"no preset {name!r}; there are: {', '.join(_PRESETS)}")
    return _PRESETS[name]


def configure(name: str, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """A preset's configuration with some fields replaced.

    Raises:
        UserError: there is no such preset, a field is unknown, or a value is out of range.
    """
    base = preset(name).config
    return type(base).from_dict({**base.to_dict(), **(overrides or {})})
