"""Presets: hyperparameters and a recipe for pretraining under a name.

The hyperparameters' type determines the model's class. S and L have the paper's recipe; `fold-small` and `fold-S` have
the recipe of the released weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from astroco_fast.data.views import Views
from astroco_fast.errors import UserError
from astroco_fast.reference.config import AstroCoConfig, AstromerConfig, ModelConfig


@dataclass(frozen=True)
class Preset:
    """Hyperparameters and a recipe.

    Attributes:
        name: the value of `--preset`.
        config: the model's hyperparameters.
        learning_rate: AdamW's learning rate, for a global batch of 256 unless `train` names another.
        views: the views of light curves to pretrain on.
        train: defaults of other settings of training, by name; see `pretrain.config.TrainConfig`.
    """

    name: str
    config: ModelConfig
    learning_rate: float
    views: Views = "time"
    train: Mapping[str, Any] = field(default_factory=dict)


_S = AstroCoConfig(width=276, heads=4, layers=4)
# The authors' learning rate, constant over a run: the default of the script that pretrains either version
# (github.com/astromer-science/main-code), intended for 1.5 million light curves. The settings of a run that they
# published (github.com/cridonoso/astromer, astromer_1/pretraining) have it too, with batches of 2,500 windows.
_ASTROMER_RATE = 1e-5
_V1 = AstromerConfig(
    layers=2, feed_forward=128, leak=False, mask_logit=1.0, mask_queries=True, hidden_magnitude="shown"
)
_V2 = AstromerConfig()
# Both inputs of a hidden point are hidden, because a survey's quoted uncertainty follows from the measured magnitude,
# noise included. The last layer alone is the embedding. docs/results says what each choice was measured to be worth.
_FOLDED = replace(_S, mix=False, hide=("magnitude", "uncertainty"))
_FOLDED_TRAIN = {"global_batch": 32, "loss": "curve", "max_steps": 12_000, "decay_steps": 3_000}
_PRESETS = {
    preset.name: preset
    for preset in (
        Preset("S", _S, 7.5e-4),
        Preset("L", AstroCoConfig(width=256, heads=4, layers=12), 7.5e-5),
        Preset("S-no-conv", replace(_S, convolution=False), 7.5e-4),
        Preset("S-no-gate", replace(_S, gate=False), 7.5e-4),
        Preset("S-no-mix", replace(_S, mix=False), 7.5e-4),
        Preset("fold-small", replace(_FOLDED, width=128), 3e-3, "folded", _FOLDED_TRAIN),
        Preset("fold-S", _FOLDED, 1.5e-3, "folded", _FOLDED_TRAIN),
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
