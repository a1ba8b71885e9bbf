"""The rivals of the probed model (`--against`): what their vectors are, and which rows of the tables they give."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astroco_fast import machine
from astroco_fast.astromer_weights import is_keras, read
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periods import PeriodRule, find_periods
from astroco_fast.digest import model_digest
from astroco_fast.embedding import embed_batch, layout
from astroco_fast.errors import UserError
from astroco_fast.machine import pick_device
from astroco_fast.pretrained import PretrainedEncoder, require_local
from astroco_fast.probe import features
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.embeddings import Describer
from astroco_fast.registry import load

FEATURES, STATISTICS = "features", "statistics"
_CHECKPOINTS = ("checkpoints", "best")  # folders below a run's, which names it


@dataclass(frozen=True)
class Row:
    """Vectors of the probed stars, with a name for the tables.

    Attributes:
        name: the vectors' name.
        vectors: (n, D) float32, row i for star i.
        made_by_hand: whether they hold features rather than an embedding alone. Such vectors may lack numbers (NaN),
            and are also probed by a forest.
    """

    name: str
    vectors: NDArray[np.float32]
    made_by_hand: bool = False


def describers(config: ProbeConfig) -> list[Describer]:
    """The describers of the probed model, which comes first, and of its rivals.

    Raises:
        UserError: a model cannot be loaded, comes twice, or an extra is missing.
    """
    sources = [config.model, *config.against]
    names = dict(zip(sources, _names(sources), strict=True))
    found = [
        _of_function(source, names[source]) if source in _FUNCTIONS else _of_model(source, names[source], config)
        for source in sources
    ]
    for i, describer in enumerate(found):
        twins = [names[sources[j]] for j in range(i) if found[j].digest == describer.digest]
        if twins:
            raise UserError(f"{sources[i]} has the weights of {twins[0]}; leave it out of --against")
    return found


def _names(sources: Sequence[str]) -> list[str]:
    """Short names: the last part of each path, without a run's checkpoints/best; the path itself where two agree."""
    short = []
    for source in sources:
        parts = Path(source).parts
        short.append((parts[:-2] if parts[-2:] == _CHECKPOINTS and len(parts) > 2 else parts)[-1])
    return [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]


def _of_model(source: str, name: str, config: ProbeConfig) -> Describer:
    model = _loaded(source).to(pick_device(config.device)).eval()
    parts = config.parts if source == config.model else None
    digest = model_digest(model, layout(model, parts))
    file = "embeddings.parquet" if source == config.model else f"embeddings-{digest[:12]}.parquet"
    return Describer(name, digest, lambda curves: embed_batch(model, curves, config.batch_size, parts), file)


def _loaded(source: str) -> PretrainedEncoder:
    if is_keras(source):
        return read(source)
    require_local(source)
    return load(source)


def _of_function(source: str, name: str) -> Describer:
    if source == FEATURES:
        features.require_light_curve()
    code = f"{source}{inspect.getsource(features)}{machine.package_version('light-curve')}{PeriodRule()}"
    return Describer(name, hashlib.sha256(code.encode()).hexdigest(), _FUNCTIONS[source], f"{source}.parquet")


def _features(curves: CurveBatch) -> NDArray[np.float32]:
    """The features without a period, and those of the curves folded at their periods."""
    periods = find_periods(curves).fold_period
    return np.concatenate([features.features(curves), features.folded_features(curves, periods)], axis=1)


_FUNCTIONS: Mapping[str, Callable[[CurveBatch], NDArray[np.float32]]] = {
    FEATURES: _features,
    STATISTICS: features.statistics,
}


def rows(config: ProbeConfig, found: Sequence[Describer], vectors: Sequence[NDArray[np.float32]]) -> list[Row]:
    """The rows of the tables: the probed model, and one row for each rival, but three for the features.

    These are the features without a period, all features, and all features with the model's embedding beside them.
    """
    main = Row(found[0].name, vectors[0])
    made = [main]
    for source, describer, values in zip(config.against, found[1:], vectors[1:], strict=True):
        if source == FEATURES:
            made.append(Row(f"{FEATURES}, no period", values[:, : features.WITHOUT_PERIOD], True))
            made.append(Row(FEATURES, values, True))
            made.append(Row(f"{FEATURES} + {main.name}", np.concatenate([values, main.vectors], axis=1), True))
        else:
            made.append(Row(describer.name, values, source in _FUNCTIONS))
    return made


def pairs(made: Sequence[Row]) -> list[tuple[str, str]]:
    """The pairs of rows to compare: the model with each rival, and the features beside the model with the features."""
    main, both = made[0].name, f"{FEATURES} + {made[0].name}"
    names = [row.name for row in made[1:]]
    return [(main, name) for name in names if name != both] + [(both, FEATURES)] * (both in names)
