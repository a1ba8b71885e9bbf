"""The registry of models: each class with its configuration, to build a model or to load one.

A new architecture is added to `MODELS` here, and its presets in `astroco_fast.presets`.
"""

from pathlib import Path
from typing import Any

from astroco_fast import presets
from astroco_fast.baselines import Astromer
from astroco_fast.errors import UserError
from astroco_fast.model import AstroCo
from astroco_fast.pretrained import CONFIG_FILE, PretrainedEncoder, read_config, read_saved

MODELS: tuple[type[PretrainedEncoder], ...] = (AstroCo, Astromer)

_BY_CONFIG = {model.config_class: model for model in MODELS}
_BY_NAME = {model.name: model for model in MODELS}  # as a saved model's config.json gives it


def build(name: str, **overrides: Any) -> PretrainedEncoder:
    """A newly initialised model of a preset; `overrides` replace fields of its configuration.

    Raises:
        UserError: there is no such preset, a field is unknown, or a value is out of range.
    """
    config = presets.configure(name, overrides)
    return _BY_CONFIG[type(config)](config)


def load(source: str | Path) -> PretrainedEncoder:
    """A saved model of any architecture, in evaluation mode, on the CPU.

    Args:
        source: the name of a released model (`astroco models` lists them), a folder that `save_pretrained` wrote (a
            run's `checkpoints/best` is one), or a repository of the Hugging Face Hub
            (`PretrainedEncoder.from_pretrained` says how it is named).

    Raises:
        UserError: there is no such model or folder, a file is missing or broken, or the architecture is not in the
            registry.
    """
    return read_saved(source, _read)


def _read(folder: Path) -> PretrainedEncoder:
    name = read_config(folder / CONFIG_FILE).get("model")
    if not isinstance(name, str) or name not in _BY_NAME:
        raise UserError(f"{folder / CONFIG_FILE}: 'model' is {name!r}; there are: {', '.join(_BY_NAME)}")
    return _BY_NAME[name].from_pretrained(folder)
