"""What is known of each star on a page, as columns that can colour its point: words, or numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from astroco_fast.data.columns import ALIASES, Columns, find, listed
from astroco_fast.data.formats import open_table
from astroco_fast.data.rows import read_text
from astroco_fast.data.tables import Table
from astroco_fast.data.words import to_objects
from astroco_fast.errors import UserError
from astroco_fast.vectors import Text, Vectors

_FEW = 12  # different whole numbers up to which a column of them is shown as classes
_MOST_WORDS = 1000  # different words from which on a column is not shown: it names stars rather than classes

_FOUND_PERIOD = "period found"  # what a table of embeddings calls `period`; a catalogue's own may stand beside it


@dataclass(frozen=True)
class Column:
    """One column of n stars.

    Attributes:
        name: what the page calls it.
        words: the classes, most frequent first, or None for a column of numbers. "" stands for stars without one.
        values: (n,) uint16, the place of each star's word in `words`; or float32, NaN where missing.
    """

    name: str
    words: tuple[str, ...] | None
    values: NDArray[Any]


def of_vectors(vectors: Vectors) -> Iterator[Column]:
    """The columns that the table of embeddings has."""
    for name, text in (("label", vectors.label), ("band", vectors.band)):
        if any(text):
            yield words_column(name, text)
    for name in vectors.columns.column_names:
        shown = _FOUND_PERIOD if name == "period" else name
        column = column_of_text(shown, _as_text(vectors.columns[name]))
        if column is not None:
            yield column


def _as_text(array: Any) -> Text:
    return to_objects(pc.fill_null(pc.cast(array, pa.string()), "").combine_chunks())


def words_column(name: str, text: Text) -> Column:
    """A column of words."""
    counts = Counter(text.tolist())
    words = sorted(counts, key=lambda word: (-counts[word], word))
    place = {word: i for i, word in enumerate(words)}
    return Column(name, tuple(words), np.array([place[word] for word in text], dtype=np.uint16))


def column_of_text(name: str, text: Text) -> Column | None:
    """A column of numbers where all values are, else of words; None for one that is empty or names each star."""
    known = [word for word in text if word != ""]
    if not known:
        return None
    different = set(known)
    numbers = {word: _number(word) for word in different}
    if all(number is not None for number in numbers.values()) and not _are_classes(different):
        values = np.array([numbers.get(word, math.nan) for word in text], dtype=np.float64)
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        values[~np.isfinite(values)] = np.nan
        return Column(name, None, values) if np.isfinite(values).any() else None
    if len(different) > _MOST_WORDS or (len(different) == len(text) and len(text) > _FEW):
        return None
    return words_column(name, text)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _are_classes(words: set[str]) -> bool:
    """Whether numbers are few whole ones, such as the numbers of filters or clusters."""
    return len(words) <= _FEW and all(word.lstrip("-").isdigit() for word in words)


def of_table(
    path: Path,
    ids: Text,
    band: Text,
    columns: Columns | None = None,
    only_band: str | None = None,
    rows_once: bool = True,
) -> dict[str, Text]:
    """The columns of single values of a table with a row a star, as text, "" for stars that it lacks.

    A table with a column of bands is read by id and band, if the stars' bands are known.

    Args:
        path: the table.
        ids, band: (n,) the stars'.
        columns: the user's names of the columns of ids and bands.
        only_band: take only the rows of this band.
        rows_once: whether a second row of a star is an error; else the last one counts.

    Raises:
        UserError: it cannot be read, has no column of ids, or two rows for a star.
    """
    table, chosen = open_table(path), columns or Columns()
    names = table.schema.names
    id_column = find("id", names, chosen.id, str(path))
    band_column = find("band", names, chosen.band, str(path))
    if id_column is None:
        raise UserError(f"{path}: no column of ids; found: {listed(names)}; tried: {', '.join(ALIASES['id'])}")
    by_band = band_column is not None and any(band)
    rows: dict[tuple[str, str], list[int]] = {}
    for i, (star, name) in enumerate(zip(ids, band, strict=True)):
        rows.setdefault((star, name if by_band else ""), []).append(i)
    keys = {"id": id_column} | ({} if band_column is None else {"band": band_column})
    others = {f"column {name}": name for name in _plain(table) if name not in keys.values()}
    found = {name: np.full(len(ids), "", dtype=object) for name in others.values()}
    filled: set[tuple[str, str]] = set()
    for text in read_text(table, {**keys, **others}, ("id",)):
        bands = text["band"].to_pylist() if "band" in text else [""] * len(text["id"])
        taken, places = [], []
        for i, (star, name) in enumerate(zip(text["id"].to_pylist(), bands, strict=True)):
            key = (star, name if by_band else "")
            if key not in rows or (only_band is not None and name != only_band):
                continue
            if key in filled and rows_once:
                raise UserError(f"{path}: id {star!r} has two rows; keep one for each star")
            filled.add(key)
            taken.append(i)
            places.append(rows[key])
        for role, name in others.items():
            for value, place in zip(text[role].take(pa.array(taken, pa.int64())).to_pylist(), places, strict=True):
                found[name][place] = value
    return found


def _plain(table: Table) -> list[str]:
    """The columns of single values that can be read as text."""
    names = []
    for field in table.schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if (text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)) and (
            table.schema.names.count(field.name) == 1
        ):
            names.append(field.name)
    return names


def curves_columns(
    files: Sequence[Path], ids: Text, band: Text, columns: Columns, only_band: str | None
) -> dict[str, Text]:
    """The columns of single values of the table of light curves, if it is one file with a light curve a row."""
    if len(files) != 1 or not files[0].is_file():
        return {}
    if not any(field.listed for field in open_table(files[0]).fields().values()):
        return {}
    return of_table(files[0], ids, band, columns, only_band, rows_once=False)


def joined(tables: Mapping[str, Mapping[str, Text]], known: Iterable[Column]) -> list[Column]:
    """All columns, those known first. A name that comes again has its table's name in brackets."""
    columns = {column.name: column for column in known}
    for table, texts in tables.items():
        for name, text in texts.items():
            free = name if name not in columns else f"{name} ({table})"
            column = column_of_text(free, text)
            same = column is not None and name in columns and _equal(column, columns[name])
            if column is not None and not same:
                columns[free] = column
    return list(columns.values())


def _equal(one: Column, other: Column) -> bool:
    return one.words == other.words and np.array_equal(one.values, other.values, equal_nan=one.words is None)


def periods(tables: Iterable[Mapping[str, Text]], n: int) -> NDArray[np.float64]:
    """(n,) the periods (days) of the first table that gives a star one; NaN where none does.

    A column of them is called `period`, in letters of any case.
    """
    period = np.full(n, np.nan)
    for words in (words for table in tables for name, words in table.items() if name.strip().lower() == "period"):
        for i, word in enumerate(words):
            number = _number(word)
            if np.isnan(period[i]) and number is not None and math.isfinite(number) and number > 0:
                period[i] = number
    return period
