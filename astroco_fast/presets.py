"""The one registry of models: by preset, to build one, and by architecture, to load one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astroco_fast.baselines import Astromer
from astroco_fast.errors import UserError
from astroco_fast.model import AstroCo
from astroco_fast.pretrained import CONFIG_FILE, PretrainedEncoder, local_folder, read_config
from astroco_fast.reference.config import AstroCoConfig, AstromerConfig, ModelConfig

# By the name that a saved model's config.json gives.
MODELS: dict[str, type[PretrainedEncoder]] = {model.name: model for model in (AstroCo, Astromer)}


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
    config: ModelConfig
    learning_rate: float
    model: Callable[[Any], PretrainedEncoder] = AstroCo


_S = AstroCoConfig(width=276, heads=4, layers=4)
# The authors' learning rate: the default of the script that pretrains either version, and constant
# (github.com/astromer-science/main-code); meant for 1.5 million light curves. A run's settings that they kept
# (github.com/cridonoso/astromer, astromer_1/pretraining) have it too, with batches of 2,500 windows.
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
        Preset("astromer-v1", _V1, _ASTROMER_RATE, Astromer),
        Preset("astromer-v2", _V2, _ASTROMER_RATE, Astromer),
        Preset("astromer-v2-paper", replace(_V2, feed_forward=976), _ASTROMER_RATE, Astromer),
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


def configure(name: str, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """A preset's configuration with some fields replaced.

    Raises:
        UserError: no such preset, an unknown field, or a value out of range.
    """
    base = preset(name).config
    return type(base).from_dict({**base.to_dict(), **(overrides or {})})


def build(name: str, **overrides: Any) -> PretrainedEncoder:
    """A freshly initialised model of a preset; `overrides` replace fields of its configuration.

    Raises:
        UserError: no such preset, an unknown field, or a value out of range.
    """
    return preset(name).model(configure(name, overrides))


def load(source: str | Path) -> PretrainedEncoder:
    """A saved model of any architecture, in evaluation mode, on the CPU.

    Args:
        source: a folder that `save_pretrained` wrote (a run's `checkpoints/best` is one), or a Hugging Face Hub id.

    Raises:
        UserError: no such folder, a missing or broken file, or an architecture that is not in `MODELS`.
    """
    folder = local_folder(source)
    name = read_config(folder / CONFIG_FILE).get("model")
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"{folder / CONFIG_FILE}: 'model' is {name!r}; there are: {', '.join(MODELS)}")
    return MODELS[name].from_pretrained(folder)
