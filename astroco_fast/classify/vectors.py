"""Vectors with ids: of light curves, embedded here, or of a table that `astroco embed` wrote."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from astroco_fast.classify.config import FitConfig
from astroco_fast.commands import tell
from astroco_fast.data.clean import CleanConfig, because, clean
from astroco_fast.data.metadata import Text
from astroco_fast.data.seen import Seen
from astroco_fast.data.sources import Source
from astroco_fast.digest import DIGEST, MODEL, model_digest
from astroco_fast.embedding import choose_parts, dimensions, embed_batch, layout
from astroco_fast.embedding_formats import KEY, SIMULATED
from astroco_fast.errors import UserError
from astroco_fast.machine import pick_device
from astroco_fast.pretrained import PretrainedEncoder, require_local
from astroco_fast.probe.embeddings import Describer, Embeddings, extract
from astroco_fast.probe.stars import Stars, choose, read_survey, relabel
from astroco_fast.registry import load
from astroco_fast.vector_tables import EMBEDDING, WORDS, VectorTable, matrix_of, plain

NOT_FINITE = "light curves without a finite vector"


@dataclass(frozen=True)
class Model:
    """A model with the parts of its vectors.

    Attributes:
        name: as the user gave it; a folder's is made absolute.
        encoder: the model, on its device, in evaluation mode.
        parts: the parts of its vectors.
        digest: the hash of both.
    """

    name: str
    encoder: PretrainedEncoder
    parts: tuple[str, ...]
    digest: str

    @staticmethod
    def open(name: str, parts: list[str] | None, device: str) -> "Model":
        """Load a model.

        Raises:
            UserError: there is no such model, part or device.
        """
        require_local(name)
        encoder = load(name).to(pick_device(device)).eval()
        chosen = tuple(choose_parts(encoder, parts=parts))
        absolute = str(Path(name).resolve()) if Path(name).is_dir() else name
        return Model(absolute, encoder, chosen, model_digest(encoder, layout(encoder, chosen)))


@dataclass(frozen=True)
class Labelled:
    """The vectors (n, D) of n stars with their ids and labels (n,), sorted by id, and the model that made them."""

    ids: Text
    labels: Text
    vectors: NDArray[np.float32]
    model: str
    digest: str
    parts: tuple[str, ...]
    simulated: bool


class Chunk:
    """Some light curves' ids, bands and labels (n,) and vectors (n, D), and how many points were read for them."""

    def __init__(self, ids: Any, bands: Any, labels: Any, vectors: NDArray[np.float32], n_points: int = 0) -> None:
        self.ids, self.bands, self.labels, self.vectors = list(ids), list(bands), list(labels), vectors
        self.n_points = n_points

    def __len__(self) -> int:
        return len(self.ids)


class EmbeddingTable:
    """A table that `astroco embed` wrote.

    Args:
        path: a file of one of its formats, or a folder of such (not of .npz).
        model: the model that made the vectors, for a table that does not say it; CSV has no place for it.
        model_parts: the vectors' parts, if they are not the model's own.

    Attributes:
        model, digest: the name and the hash of the model that made the vectors, and of their parts.
        parts: the vectors' parts.
        simulated: whether the light curves are simulated.
        taken: the user's model, where the table does not say which made it; None: it says so.

    Raises:
        UserError: it does not say which model made it, or does not hold one vector for each whole light curve.
    """

    def __init__(self, path: str, model: str | None = None, model_parts: list[str] | None = None) -> None:
        self.path = path
        self._table = VectorTable(Path(path))
        schema = self._table.schema
        told = {
            key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for key, value in (schema.metadata or {}).items()
        }
        settings = plain(told.get(KEY, "")).get("settings")
        settings = settings if isinstance(settings, dict) else {}
        for name, wanted in (("windows", "mean"), ("output", "embedding")):
            if settings.get(name, wanted) != wanted:
                raise UserError(f"{path}: made by astroco embed --{name} {settings[name]}; --{name} {wanted} is needed")
        self.simulated = told.get(SIMULATED) == "true"
        self.model, self.digest = told.get(MODEL, ""), told.get(DIGEST, "")
        self.parts: tuple[str, ...] = tuple(plain((schema.field(EMBEDDING).metadata or {}).get(b"parts", b"")))
        self.taken = None if self.digest else self._take_model(model, model_parts)

    def _take_model(self, name: str | None, parts: list[str] | None) -> Model:
        """Believe the user which model made the vectors, if they have as many numbers as its own."""
        if name is None:
            raise UserError(
                f"{self.path}: does not say which model made its vectors (CSV has no place for it); name it by --model"
            )
        model = Model.open(name, parts, "cpu")
        wanted = dimensions(model.encoder, model.parts)
        for batch in self._table.batches([EMBEDDING]):
            if (found := matrix_of(batch.column(0), self._table.path).shape[1]) != wanted:
                raise UserError(
                    f"{self.path}: its vectors have {found} numbers, those of {name} {wanted}; give the --model that "
                    "made them"
                )
            break
        self.model, self.digest, self.parts = model.name, model.digest, model.parts
        return model

    def chunks(self, dropped: Counter[str], band: str | None) -> Iterator[Chunk]:
        """The rows in bounded memory. Rows without a finite vector are left out, and counted in `dropped`.

        Raises:
            UserError: a column is missing or of another type, or the file is damaged.
        """
        size = None
        try:
            known = [name for name in WORDS if name in self._table.schema.names]  # LSDB's catalogues may lack a label
            for rows in self._table.batches([*known, EMBEDDING]):
                vectors = matrix_of(rows.column(EMBEDDING), self._table.path, size)
                size = vectors.shape[1]
                texts = {name: rows.column(name).cast(pa.string()).to_pylist() for name in known}
                none = [""] * rows.num_rows
                ids, bands, labels = ([text or "" for text in texts.get(name, none)] for name in WORDS)
                good = np.asarray(np.isfinite(vectors).all(1))
                _count(dropped, good)
                kept = [i for i in np.flatnonzero(good) if band is None or bands[i] == band]
                ids, bands, labels = ([column[i] for i in kept] for column in (ids, bands, labels))
                yield Chunk(ids, bands, labels, vectors[kept])
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: not a table of embeddings that can be read ({reason})") from error


def _count(dropped: Counter[str], good: NDArray[np.bool_]) -> None:
    if not good.all():
        dropped[NOT_FINITE] += int(np.count_nonzero(~good))


def labelled_table(config: FitConfig) -> Labelled:
    """The labelled stars of a table of embeddings.

    Raises:
        UserError: the table or the labels cannot be used, or another model is asked for; names what is wrong.
    """
    table, stars = EmbeddingTable(config.data, config.model, config.parts), Stars()
    vectors: dict[str, NDArray[np.float32]] = {}
    bands: dict[str, str] = {}
    for chunk in table.chunks(stars.dropped, config.band):
        for star, band, label, vector in zip(chunk.ids, chunk.bands, chunk.labels, chunk.vectors, strict=True):
            if star in vectors:
                which = f"in bands {bands[star]!r} and {band!r}" if band != bands[star] else "with one id"
                raise UserError(f"{config.data}: star {star!r} has two rows, {which}; choose one band by --band")
            vectors[star], bands[star] = vector, band
            stars.curves[star] = hashlib.blake2b(vector.tobytes(), digest_size=16).hexdigest()
            if label:
                stars.labels[star] = label
    if stars.dropped.total():
        tell([f"{config.data}{because(stars.dropped)}"])
    ids, labels = _chosen(config, stars)
    name, parts = config.model or table.model, table.parts
    if table.taken is not None:
        name = table.taken.name
    elif config.model is not None or config.parts is not None:
        model = Model.open(name, config.parts, "cpu")
        if model.digest != table.digest:
            raise UserError(f"{config.data}: its vectors are not those of {name} with these parts; leave --model out")
        name, parts = model.name, model.parts
    matrix = np.stack([vectors[star] for star in ids])
    return Labelled(ids, labels, matrix, name, table.digest, parts, table.simulated)


def labelled_curves(config: FitConfig, model: Model, cache: Path) -> Labelled:
    """Embed labelled light curves. Vectors that are in the cache already, a Parquet file, are not computed again.

    Raises:
        UserError: the light curves or labels cannot be used; names what is wrong.
    """
    portions, stars = read_survey(config.data, config.columns, config.band, config.min_points)
    ids, labels = _chosen(config, stars)
    describer = Describer(
        model.name,
        model.digest,
        lambda curves: embed_batch(model.encoder, curves, config.batch_size, model.parts),
        cache.name,
    )
    kept = Embeddings(cache, model.digest)
    (made,) = extract([(describer, kept)], portions, stars, list(ids), config.min_points)
    print(f"{cache}: {len(ids):,} stars, {made:,} of them embedded now", flush=True)
    vectors = kept.of([stars.curves[star] for star in ids])
    return Labelled(ids, labels, vectors, model.name, model.digest, model.parts, stars.simulated)


def _chosen(config: FitConfig, stars: Stars) -> tuple[Text, Text]:
    """The ids and labels of the stars to use, without copies."""
    if config.labels is not None:
        tell(filter(None, [relabel(stars, config.labels, config.columns)]))
    ids, labels = choose(stars, config.classes)
    if stars.copies:
        tell([f"{config.data}: left out {len(stars.copies):,} stars that equal another star point by point"])
    return ids, labels


def curve_chunks(
    model: Model, source: Source, dropped: Counter[str], batch_size: int, min_points: int
) -> Iterator[Chunk]:
    """Embed light curves in bounded memory. Those without a finite vector are left out, and counted in `dropped`.

    Raises:
        UserError: the light curves cannot be read, or an (id, band) comes twice.
    """
    config, seen = CleanConfig(min_points=min_points), Seen()
    for raw in source.batches(progress=True):
        seen.check(raw)
        batch, reasons = clean(raw, config)
        dropped.update(reasons)
        if len(batch):
            vectors = embed_batch(model.encoder, batch, batch_size, model.parts)
            good = np.asarray(np.isfinite(vectors).all(1))
            _count(dropped, good)
            batch = batch.select(good)
            yield Chunk(batch.ids, batch.band, batch.label, vectors[good], raw.n_points)
