"""Vectors of the stars to probe, cached in a file, keyed by what makes them and by light curve."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from astroco_fast.data.curves import CurveBatch
from astroco_fast.errors import UserError
from astroco_fast.files import whole_file
from astroco_fast.probe.stars import Portion, Stars

_SAVE_SECONDS = 60.0
_CURVES_AT_ONCE = 256
_DIGEST, _CONTENT = b"model_sha256", b"content_sha256"


@dataclass(frozen=True)
class Describer:
    """What turns light curves into vectors: a model, or a function such as those of `astroco_fast.probe.features`.

    Attributes:
        name: what the tables call it.
        digest: a hash of everything that the vectors depend on, besides the light curve.
        describe: the vectors (n, D) float32 of n clean light curves, none of them empty.
        file: name of the file that caches the vectors.
    """

    name: str
    digest: str
    describe: Callable[[CurveBatch], NDArray[np.float32]]
    file: str


class Embeddings:
    """One describer's vectors, in a Parquet file with the columns id, curve (a hash of the points) and embedding.

    The file's metadata have the describer's digest and a hash of the columns.

    Args:
        path: the file, which is read if it exists.
        digest: the describer's digest.

    Raises:
        UserError: the file holds other vectors, cannot be read, or is not as it was written.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self._digest = path, digest
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
        told = {_DIGEST: self._digest.encode(), _CONTENT: _content(columns["id"], columns["curve"], vectors)}
        with whole_file(self.path) as partial:
            pq.write_table(pa.table(columns).replace_schema_metadata(told), partial, write_page_checksum=True)

    def _load(self) -> None:
        remade = "remove it, and it is made again"
        try:
            table = pq.read_table(self.path, page_checksum_verification=True)
            told = table.schema.metadata or {}
            ids, curves = (pc.cast(table[name], pa.string()).combine_chunks() for name in ("id", "curve"))
            lists = table["embedding"].combine_chunks()
            if not pa.types.is_fixed_size_list(lists.type) or lists.type.value_type != pa.float32():
                raise TypeError(f"its embeddings are {lists.type}, not float32 of one length")
            vectors = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), lists.type.list_size)
            if (
                not vectors.shape[1]
                or ids.null_count
                or curves.null_count
                or len(set(curves.to_pylist())) < len(curves)
            ):
                raise ValueError("an id, a curve or a vector is missing, or one comes twice")
        except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{self.path}: cannot be read ({' '.join(str(error).split())}); {remade}") from error
        if _CONTENT in told and told[_CONTENT] != _content(ids, curves, vectors):
            raise UserError(f"{self.path}: not as it was written (its checksum differs); {remade}")
        if told.get(_DIGEST, b"") != self._digest.encode():
            raise UserError(
                f"{self.path}: of another model, version or choice of parts; choose another --out, or remove the file"
            )
        self.add(ids.to_pylist(), curves.to_pylist(), vectors)


def _content(ids: Any, curves: Any, vectors: NDArray[np.float32]) -> bytes:
    """A hash of a file's columns: two Arrow string arrays, and the vectors (n, D)."""
    digest = hashlib.sha256(repr((vectors.shape, ids.to_pylist(), curves.to_pylist())).encode())
    digest.update(np.ascontiguousarray(vectors).data)
    return digest.hexdigest().encode()


def is_cache(path: Path) -> bool:
    """Whether a Parquet file is one that `Embeddings` wrote."""
    try:
        return _DIGEST in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def extract(
    describers: Sequence[tuple[Describer, Embeddings]],
    portions: Sequence[Portion],
    stars: Stars,
    wanted: Sequence[str],
    min_points: int = 1,
) -> list[int]:
    """Compute the vectors of those wanted stars that the caches lack, in one pass over the light curves.

    The caches are saved at the end and every minute, so that an interrupted extraction goes on from there.

    Returns:
        For each describer, the number of stars whose vectors were computed.
    """
    needed = {star: stars.curves[star] for star in wanted}
    missing = [{star for star, curve in needed.items() if curve not in cache} for _, cache in describers]
    made, saved = [0] * len(describers), monotonic()
    with tqdm(total=sum(map(len, missing)), desc="embed", unit=" curves", disable=None) as progress:
        for portion in portions if any(missing) else ():
            for batch, digests in portion.batches(min_points, Counter(), set()):
                for i, (describer, cache) in enumerate(describers):
                    for rows in _some(batch, missing[i]):
                        curves = batch.select(rows)
                        names = [digest for digest, kept in zip(digests, rows, strict=True) if kept]
                        cache.add(list(curves.ids), names, describer.describe(curves))
                        missing[i] -= {*curves.ids}
                        made[i] += len(curves)
                        progress.update(len(curves))
                        if monotonic() - saved > _SAVE_SECONDS:
                            _save(describers, made)
                            saved = monotonic()
    _save(describers, made)
    return made


def _save(describers: Sequence[tuple[Describer, Embeddings]], made: Sequence[int]) -> None:
    for (_, cache), count in zip(describers, made, strict=True):
        if count:
            cache.save()


def _some(batch: CurveBatch, missing: set[str]) -> Iterator[NDArray[np.bool_]]:
    """Flags (n,) of the light curves of missing stars in a batch, some at a time."""
    rows = np.flatnonzero([star in missing for star in batch.ids])
    for first in range(0, len(rows), _CURVES_AT_ONCE):
        chosen = np.zeros(len(batch), dtype=bool)
        chosen[rows[first : first + _CURVES_AT_ONCE]] = True
        yield chosen
