"""Nearest neighbours of vectors, by faiss: exact, or by a graph (HNSW); kept in one file with the ids.

Distances are Euclidean, of standardised vectors (`vectors.Scale`).

The file is a safetensors file: the index as faiss serialises it, the scale, and the stars' ids, bands and labels as an
Arrow table. HNSW is the graph of Malkov and Yashunin (2020, IEEE TPAMI 42, 824, arXiv 1603.09320).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.files import whole_file
from astroco_fast.vectors import Scale, Text, Vectors

Kind = Literal["exact", "hnsw"]

_FORMAT = "astroco neighbours 1"
_LINKS, _BUILD, _SEARCH = 32, 100, 128  # HNSW: links of a star, and candidates kept while building and searching
_DAMAGED = "make it again with `astroco neighbours EMBEDDINGS --index FILE`"


def require_faiss() -> Any:
    """The module faiss.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss-cpu", "explore", "the search of neighbours") from None
    return faiss


def nearest(matrix: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k nearest other rows of each row of a matrix (n, D), exact.

    Returns:
        Distances (n, k) and row numbers (n, k), nearest first; k is at most n - 1.
    """
    k = min(k, len(matrix) - 1)
    index = require_faiss().IndexFlatL2(matrix.shape[1])
    index.add(matrix)
    squares, rows = index.search(matrix, k + 1)
    return _without_self(squares, rows, np.arange(len(matrix)), k)


def _without_self(
    squares: NDArray[np.float32], rows: NDArray[np.int64], own: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first k of k + 1 neighbours, without a query's own row; that of a twin may come before it."""
    other = rows != own[:, None]
    other[other.all(1), -1] = False
    shape = (len(rows), k)
    return np.sqrt(np.maximum(squares[other], 0)).reshape(shape), rows[other].reshape(shape)


@dataclass
class VectorIndex:
    """An index of n light curves.

    Attributes:
        kind: exact, or hnsw.
        ids, band, label: (n,) object arrays of str.
        scale: the standardisation of the vectors.
        metadata: text by name: what the vectors' table said of itself.
        index: the faiss index of the standardised vectors.
    """

    kind: Kind
    ids: Text
    band: Text
    label: Text
    scale: Scale
    metadata: dict[str, str]
    index: Any

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimensions(self) -> int:
        """D, the numbers of a vector."""
        return int(self.index.d)

    @classmethod
    def build(cls, vectors: Vectors, kind: Kind) -> VectorIndex:
        """Index vectors (n, D). An exact index is a copy of them; a graph takes longer and answers faster."""
        faiss, size = require_faiss(), vectors.matrix.shape[1]
        if kind == "exact":
            index = faiss.IndexFlatL2(size)
        else:
            index = faiss.IndexHNSWFlat(size, _LINKS)
            index.hnsw.efConstruction = _BUILD
        scale = Scale.of(vectors.matrix)
        index.add(scale(vectors.matrix))
        told = {
            f"embeddings {key.decode(errors='replace')}": value.decode(errors="replace")
            for key, value in vectors.metadata.items()
            if not key.startswith((b"pandas", b"ARROW"))
        }
        return cls(kind, vectors.ids, vectors.band, vectors.label, scale, told, index)

    @property
    def simulated(self) -> bool:
        """Whether the light curves are simulated rather than observed."""
        return self.metadata.get("embeddings simulated") == "true"

    def rows_of(self, star: str) -> NDArray[np.int64]:
        """The rows of a star: one for each of its bands; none if it is unknown."""
        return np.flatnonzero(self.ids == star)

    def search(self, matrix: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest stars of new vectors (m, D): distances (m, k) and rows (m, k), -1 where a graph finds fewer.

        Raises:
            UserError: the vectors have another length.
        """
        if matrix.shape[1] != self.dimensions:
            raise UserError(
                f"the light curves' vectors have {matrix.shape[1]} numbers, those of the index {self.dimensions}; "
                "give the --model that made the index's"
            )
        return self._search(self.scale(matrix), min(k, len(self)))

    def search_rows(self, rows: NDArray[np.int64], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest other stars of stars of the index, by their rows (m,)."""
        k = min(k, len(self) - 1)
        distances, found = self._search(self.index.reconstruct_batch(rows), k + 1)
        return _without_self(distances**2, found, rows, k)

    def _search(self, standardised: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if self.kind == "hnsw":
            self.index.hnsw.efSearch = max(_SEARCH, 2 * k)
        squares, rows = self.index.search(standardised, k)
        return np.sqrt(np.maximum(squares, 0)), rows

    def save(self, path: Path) -> None:
        """Write the index to a file, which appears once it is whole."""
        from safetensors.numpy import save_file

        stars = pa.table({name: pa.array(getattr(self, name), pa.string()) for name in ("ids", "band", "label")})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, stars.schema) as writer:
            writer.write_table(stars)
        tensors = {
            "index": require_faiss().serialize_index(self.index),
            "stars": np.frombuffer(sink.getvalue(), dtype=np.uint8),
            "mean": self.scale.mean,
            "spread": self.scale.spread,
        }
        told = {**self.metadata, "format": _FORMAT, "kind": self.kind, "sha256": _digest(tensors)}
        with whole_file(path) as partial:
            save_file(tensors, partial, told)

    @classmethod
    def load(cls, path: Path) -> VectorIndex:
        """Read an index that `save` wrote.

        Raises:
            UserError: the file is no such index, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        faiss = require_faiss()
        try:
            with safe_open(path, framework="numpy") as file:
                told = dict(file.metadata() or {})
                if told.get("format") != _FORMAT:
                    raise UserError(f"{path}: not an index that `astroco neighbours` wrote; {_DAMAGED}")
                tensors = {name: file.get_tensor(name) for name in ("index", "mean", "spread", "stars")}
            if told.pop("sha256", "") != _digest(tensors):  # faiss may crash on a damaged index
                raise UserError(f"{path}: damaged (its checksum differs); {_DAMAGED}")
            index = faiss.deserialize_index(tensors["index"])
            stars = pa.ipc.open_file(pa.BufferReader(tensors["stars"])).read_all()
        except (SafetensorError, pa.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise UserError(f"{path}: no such file") from error
            raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}; {_DAMAGED}") from error
        ids, band, label = (np.array(stars[name].to_pylist(), dtype=object) for name in ("ids", "band", "label"))
        kind: Kind = "hnsw" if told.pop("kind", "") == "hnsw" else "exact"
        told.pop("format")
        return cls(kind, ids, band, label, Scale(tensors["mean"], tensors["spread"]), told, index)


def is_index(path: Path) -> bool:
    """Whether a file is an index that `VectorIndex.save` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except (SafetensorError, OSError):
        return False


def _digest(tensors: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
