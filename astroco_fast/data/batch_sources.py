"""Light curves that are batches or arrays already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.extent import Extent
from astroco_fast.data.notes import Notes
from astroco_fast.data.rows import BandFilter
from astroco_fast.data.words import Place, to_objects, to_text
from astroco_fast.errors import UserError

_BLURRED = 2.0**14  # days: from here on, float32 times are 0.001 days apart or more
_ARRAYS_A_BATCH, _POINTS_A_BATCH = 2048, 500_000  # of which the first that is reached ends a batch
SINGLE_PRECISION = (
    "single precision: an MJD of 58000 is known to 6 minutes, a JD of 2458000 to 6 hours; float64 is better"
)


class BatchSource:
    """Light curves that are batches already.

    Args:
        start: returns the batches from the start.
        band: read only this band.
        name: the input's name in error messages.
        identity: plain data that identify the input.
        curves: how many light curves there are, if it is known.
    """

    def __init__(
        self,
        start: Callable[[], Iterator[CurveBatch]],
        band: str | None,
        name: str = "light curves",
        identity: Any = None,
        curves: int | None = None,
    ) -> None:
        self.name = name
        self.extent = Extent(total=curves)
        self.identity = identity
        self.notes = Notes()
        self.inputs: Sequence[Path] = ()
        self._start = start
        self._band = band

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        wanted = None if self._band is None else BandFilter(self._band)
        self.extent.done = 0
        for index, batch in enumerate(self._start()):
            if not isinstance(batch, CurveBatch):
                raise UserError(f"light curves cannot be read from an iterable of {type(batch).__name__}")
            if index >= skip:
                tidy = self._tidy(batch)
                mask = None if wanted is None else wanted.mask(pa.array(tidy.band, type=pa.string()))
                yield tidy if mask is None else tidy.select(mask)
            self.extent.done += len(batch)
        if wanted is not None and not skip:
            wanted.check(self.name)

    def _tidy(self, batch: CurveBatch) -> CurveBatch:
        """A batch with its ids, bands and labels in the form that those of tables get (`words`)."""
        source = batch.source or "light curves"
        ids, band, label = (pa.array(words, pa.string()) for words in (batch.ids, batch.band, batch.label))
        return replace(
            batch,
            ids=to_objects(to_text(ids, Place(source, "ids"), required=True)),
            band=to_objects(to_text(band, Place(source, "band"), any_word=True)),
            label=to_objects(to_text(label, Place(source, "label"))),
        )


class NamedArrays(BatchSource):
    """(L, 3) arrays by the ids of their stars.

    Args:
        start: returns the ids and arrays from the start.
        name: the input's name in error messages.
    """

    def __init__(self, start: Callable[[], Iterable[tuple[str, Any]]], name: str) -> None:
        super().__init__(self._batches, None, name)
        self._items = start

    def _batches(self) -> Iterator[CurveBatch]:
        ids: list[str] = []
        arrays: list[Any] = []
        points = 0
        for star, array in self._items():
            ids.append(star)
            arrays.append(array)
            points += len(array) if hasattr(array, "__len__") and getattr(array, "ndim", 1) > 0 else 1
            if len(ids) == _ARRAYS_A_BATCH or points >= _POINTS_A_BATCH:
                yield self._batch(ids, arrays)
                ids, arrays, points = [], [], 0
        if ids:
            yield self._batch(ids, arrays)

    def _batch(self, ids: Sequence[str], arrays: Sequence[Any]) -> CurveBatch:
        batch = CurveBatch.from_arrays(arrays, ids, source=self.name)
        single = np.repeat([_is_single(array) for array in arrays], batch.lengths)
        if (np.abs(batch.time[single]) >= _BLURRED).any():
            self.notes.add(self.name, f"times are {SINGLE_PRECISION}")
        return batch


class ArraySource(NamedArrays):
    """(L, 3) arrays in a list or from a generator, whose ids are their positions. Its length is how many were read."""

    def __init__(self, start: Callable[[], Iterable[Any]]) -> None:
        super().__init__(self._numbered, "list of arrays")
        self._arrays = start
        self._read = 0

    def __len__(self) -> int:
        return self._read

    def _numbered(self) -> Iterator[tuple[str, Any]]:
        self._read = 0
        for place, array in enumerate(self._arrays()):
            self._read += 1
            yield str(place), array

    def _tidy(self, batch: CurveBatch) -> CurveBatch:
        return batch  # which has its positions for ids, and neither bands nor labels


def _is_single(array: Any) -> bool:
    """Whether an array or a tensor holds floats of less than 64 bits."""
    return str(getattr(array, "dtype", "")).endswith(("float32", "float16"))
