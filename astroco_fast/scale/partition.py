"""The work of one worker: a piece of a catalogue in, the same rows with vectors in place of light curves out."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from astroco_fast.pretrained import PretrainedEncoder

_PLACE = "row of the partition"  # takes the ids' part, so that rows are found again whatever the ids are


def embed_partition(
    frame: pd.DataFrame,
    model: str | None = None,
    *,
    columns: Columns | None = None,
    prefix: str = "",
    threads: int = 1,
    **settings: Any,
) -> pd.DataFrame:
    """Embed the light curves of a frame whose rows are stars.

    Args:
        frame: n stars. The light curves are nested columns (nested-pandas) or list columns; the names of times,
            magnitudes, uncertainties and bands are found, or given by `columns`. The ids are not needed.
        model: the name of a released model or the folder of saved weights, which every worker can read; None: the best
            released model. A process loads it once.
        columns: names of columns that are not found by themselves.
        prefix: put before the names of the new columns.
        threads: of PyTorch in this process. An engine runs a worker for each core, and more threads would compete.
        settings: of `model.embed` (windows, views, parts, precision, batch_size, min_points, band, short). By default
            every light curve has a row: one with too few good points, of NaN (`short="nan"`).

    Returns:
        The frame's rows and index, each row once for each band, with the columns that are no lists, and the new ones:
        band, n_points (int64), period (float64, days; only if the vector depends on it), window (int32, only with
        `windows="all"`), embedding (a list of float32). A frame without rows gives the same columns and types.

    Raises:
        UserError: a new column's name is taken, or the light curves cannot be read or embedded.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import torch

    torch.set_num_threads(threads)
    kept = _plain(frame)
    light_curves = frame.assign(**{_PLACE: np.arange(len(frame))})
    names = replace(columns or Columns(), id=_PLACE)
    found = _encoder(model).embed(light_curves, columns=names, **{"short": "nan", **settings})
    rows = frame[kept].iloc[found["id"].astype(np.int64).to_numpy()]
    vectors = pa.array(list(found["embedding"]), pa.list_(pa.float32()))
    new = {name: found[name].array for name in found.columns if name not in ("id", "label", "embedding")}
    new["embedding"] = pd.array(vectors, dtype=pd.ArrowDtype(vectors.type))
    new = {f"{prefix}{name}": values for name, values in new.items() if name != "band" or "band" not in kept}
    if taken := sorted(set(new) & set(kept)):
        raise UserError(f"the catalogue has a column {taken[0]!r} already; give another prefix, such as prefix='fast_'")
    return rows.assign(**new)


def provenance(
    model: str | None, source: str, *, columns: Columns | None = None, band: str | None = None, **settings: Any
) -> str:
    """What `astroco embed` writes beside vectors, as JSON: version, the model and its digest, settings, and parts.

    Without what only embedding tells, such as counts. The precision is that of this machine.

    Args:
        model, columns, band, settings: as for `embed_partition`.
        source: the light curves' name.
    """
    from astroco_fast.embedding import choose, layout
    from astroco_fast.embedding_formats import provenance_of

    encoder = _encoder(model)
    others = ("prefix", "threads", "progress")  # which change no vector
    choice = choose(encoder, **{"short": "nan", **{key: settings[key] for key in settings if key not in others}})
    facts = {
        **provenance_of(_name(model), encoder, choice, source, columns or Columns(), band),
        "parts": {part: [place.start, place.stop] for part, place in layout(encoder, choice.parts).items()},
    }
    return json.dumps(facts, sort_keys=True, ensure_ascii=False)


def _plain(frame: pd.DataFrame) -> list[str]:
    """The columns that are no lists, and so no light curves."""
    import pyarrow as pa

    schema = pa.Schema.from_pandas(frame.iloc[:0], preserve_index=False)
    return [name for name in frame.columns if not pa.types.is_nested(schema.field(name).type)]


@lru_cache(maxsize=2)
def _encoder(model: str | None) -> PretrainedEncoder:
    from astroco_fast.registry import load

    return load(_name(model))


def _name(model: str | None) -> str:
    from astroco_fast.released import names

    return model or names()[0]
