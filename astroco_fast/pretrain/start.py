"""The start of a run from saved weights: continued pretraining, on another survey or for longer."""

from typing import Any

from astroco_fast import presets
from astroco_fast.errors import UserError
from astroco_fast.pretrain.config import PretrainConfig
from astroco_fast.pretrained import PretrainedEncoder, require_local
from astroco_fast.reference.config import ModelConfig
from astroco_fast.registry import load


def read_start(config: PretrainConfig) -> PretrainedEncoder:
    """The saved model that a run begins with.

    Args:
        config: the run's settings, with their defaults filled in.

    Raises:
        UserError: there is no such model, or it has another architecture, other settings than the run's, dropout
            excepted, or other views.
    """
    source = str(config.start_from)
    require_local(source)
    saved = load(source)
    wanted = presets.configure(config.preset, config.model)
    told, own = _settings(saved.config), _settings(wanted)
    different = sorted(key for key in {*told, *own} if told.get(key) != own.get(key))
    if type(saved.config) is not type(wanted) or different:
        fitting = [name for name in presets.names() if _settings(presets.preset(name).config) == told]
        way = f"give --preset {fitting[0]} --views {saved.views}" if fitting else "give its settings by --model"
        raise UserError(f"start_from: {source} is not of preset {config.preset} ({', '.join(different)}); {way}")
    if saved.views != config.views:
        raise UserError(f"start_from: {source} was pretrained on the view {saved.views}; give --views {saved.views}")
    return saved


def _settings(config: ModelConfig) -> dict[str, Any]:
    """The hyperparameters that weights depend on."""
    return {**config.to_dict(), "dropout": None}
