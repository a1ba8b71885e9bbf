"""Embeddings of the stars to probe, cached in a file, keyed by model and light curve."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from astroco_fast.data.curves import CurveBatch
from astroco_fast.embedding import embed_batch
from astroco_fast.errors import UserError
from astroco_fast.files import whole_file
from astroco_fast.pretrained import PretrainedEncoder
from astroco_fast.probe.stars import Portion, Stars

_SAVE_SECONDS = 60.0
_CURVES_AT_ONCE = 256
_MODEL = b"model_sha256"


def model_digest(model: PretrainedEncoder) -> str:
    """One hash of a model's configuration (its window included) and its weights."""
    digest = hashlib.sha256(json.dumps({"model": model.name, **model.config.to_dict()}, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


class Embeddings:
    """One model's embeddings, in a Parquet file with the columns id, curve (a hash of the points) and embedding.

    Args:
        path: the file, which is read if it exists.
        model: the model's digest.

    Raises:
        UserError: the file holds embeddings of another model, or cannot be read.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self._model = path, model
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._ids: dict[str, str] = {}
        if path.exists():
            self._load()

    def __contains__(self, curve: str) -> bool:
        return curve in self._vectors

    def add(self, ids: Sequence[str], curves: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add embeddings (n, D) of light curves with these hashes."""
        self._vectors.update(zip(curves, vectors, strict=True))
        self._ids.update(zip(curves, ids, strict=True))

    def of(self, curves: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings (n, D) of light curves with these hashes."""
        return np.stack([self._vectors[curve] for curve in curves])

    def save(self) -> None:
        """Replace the file, once its new content is whole."""
        curves = sorted(self._vectors, key=lambda curve: (self._ids[curve], curve))
        vectors = self.of(curves)
        columns = {
            "id": pa.array([self._ids[curve] for curve in curves], pa.string()),
            "curve": pa.array(curves, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        }
        table = pa.table(columns).replace_schema_metadata({_MODEL: self._model.encode()})
        with whole_file(self.path) as partial:
            pq.write_table(table, partial)

    def _load(self) -> None:
        try:
            table = pq.read_table(self.path)
            ids, curves = table["id"].to_pylist(), table["curve"].to_pylist()
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            vectors = flat.reshape(len(ids), -1).astype(np.float32)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); remove it, and it is made again") from error
        if (table.schema.metadata or {}).get(_MODEL, b"").decode() != self._model:
            raise UserError(f"{self.path}: embeddings of another model; choose another --out, or remove the file")
        self.add(ids, curves, vectors)


def extract(
    model: nn.Module,
    portions: Sequence[Portion],
    stars: Stars,
    wanted: Sequence[str],
    cache: Embeddings,
    *,
    batch_size: int = 256,
    min_points: int = 1,
) -> int:
    """Embed, as `astroco embed` does, those light curves of the wanted stars that the cache lacks.

    The cache is saved at the end and every minute, so that an interrupted extraction goes on from there.

    Returns:
        The number of light curves embedded.
    """
    missing = {stars.curves[star] for star in wanted} - {curve for curve in stars.curves.values() if curve in cache}
    made, saved = 0, monotonic()
    model.eval()
    with tqdm(total=len(missing), desc="embed", unit=" curves", disable=None) as progress:
        for portion in portions if missing else ():
            for batch, digests in portion.batches(min_points, Counter()):
                for rows in _some(batch, digests, missing):
                    curves = batch.select(rows)
                    names = [digest for digest, kept in zip(digests, rows, strict=True) if kept]
                    cache.add(list(curves.ids), names, embed_batch(model, curves, batch_size))
                    missing -= {*names}
                    made += len(curves)
                    progress.update(len(curves))
                    if monotonic() - saved > _SAVE_SECONDS:
                        cache.save()
                        saved = monotonic()
    if made:
        cache.save()
    return made


def _some(batch: CurveBatch, digests: Sequence[str], missing: set[str]) -> Iterator[NDArray[np.bool_]]:
    """Flags (n,) of the missing light curves of a batch, some at a time."""
    rows = np.flatnonzero([digest in missing for digest in digests])
    for first in range(0, len(rows), _CURVES_AT_ONCE):
        chosen = np.zeros(len(batch), dtype=bool)
        chosen[rows[first : first + _CURVES_AT_ONCE]] = True
        yield chosen
