"""Tables about stars rather than points: text by star, such as labels, bands and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from astroco_fast.data.columns import Columns, find, listed
from astroco_fast.data.formats import open_table
from astroco_fast.data.hashing import star_hash
from astroco_fast.data.rows import read_text, to_objects
from astroco_fast.errors import UserError

METADATA = "metadata.parquet"

Text = NDArray[np.object_]


def read_text_table(path: str | Path, needed: dict[str, str | None], optional: tuple[str, ...] = ()) -> dict[str, Text]:
    """Read columns of a small table as text, without surrounding blanks.

    Args:
        path: the table, of any kind that light curves are read from.
        needed: the columns that must be there, with the name that the user chose, or None. "id" and "label" are found
            by their aliases.
        optional: columns that may be there.

    Returns:
        (rows,) object arrays of str by the names in `needed` and `optional`; "" where an optional column has no value.

    Raises:
        UserError: a column is missing, a value of a needed one is, or the file cannot be read.
    """
    table = open_table(Path(path))
    names = table.schema.names
    columns = {role: _column(role, names, chosen, str(path)) for role, chosen in needed.items()}
    columns |= {name: name for name in optional if name in names}
    parts: dict[str, list[Text]] = {role: [np.empty(0, dtype=object)] for role in columns}
    required = tuple(role for role in needed if role != "label")
    for text in read_text(table, columns, required):
        for role, values in text.items():
            parts[role].append(to_objects(values))
    return {role: np.concatenate(arrays) for role, arrays in parts.items()}


def _column(role: str, names: list[str], chosen: str | None, source: str) -> str:
    if role in ("id", "label"):
        found = find(role, names, chosen if chosen in names else None, source)
    else:
        found = role if role in names else None
    if found is None:
        raise UserError(f"{source}: no column {role!r}; found: {listed(names)}")
    return found


class StarTable:
    """Label and band of each star of a `metadata.parquet`, as in Astromer's folders; 16 bytes a star.

    Args:
        path: the file.
        id_column: the id column of the tables of points. The same is used here where it is present, since such files
            may have a second id (Astromer: `newID` numbers the stars, `ID` is the survey's own).
        columns: the user's choices.

    Raises:
        UserError: no id column, or one id with two different labels or bands.
    """

    def __init__(self, path: Path, id_column: str, columns: Columns) -> None:
        self._path = path
        self._matched = False
        self._unknown: str | None = None
        table = open_table(path)
        names = table.schema.names
        key = id_column if id_column in names else find("id", names, None, str(path))
        if key is None:
            raise UserError(f"{path}: no id column {id_column!r} as in the light curves; found: {', '.join(names)}")
        chosen = {"id": key}
        for role in ("band", "label"):
            name = find(role, names, None) if getattr(columns, role) not in names else getattr(columns, role)
            if name is not None:
                chosen[role] = name
        known: dict[str, dict[str, int]] = {"band": {"": 0}, "label": {"": 0}}
        hashes: list[NDArray[np.uint64]] = []
        codes: dict[str, list[NDArray[np.int32]]] = {"band": [], "label": []}
        for text in read_text(table, chosen, required=("id",)):
            hashes.append(star_hash(text["id"].to_pylist()))
            for role, mapping in known.items():
                values = text[role].to_pylist() if role in text else [""] * len(text["id"])
                codes[role].append(np.array([mapping.setdefault(value, len(mapping)) for value in values], np.int32))
        if not sum(map(len, hashes)):
            raise UserError(f"{path}: the table is empty")
        self._words = {role: pa.array(list(mapping), type=pa.string()) for role, mapping in known.items()}
        self._index(path, np.concatenate(hashes), {role: np.concatenate(parts) for role, parts in codes.items()})

    def complete(self, ids: Any, bands: Any, labels: Any) -> tuple[Any, Any]:
        """Fill the empty bands and labels of these ids (Arrow string arrays; bands may be None: nothing to fill)."""
        stars = ids.dictionary_encode()
        hashes = star_hash(stars.dictionary.to_pylist())
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        found = self._hashes[at] == hashes
        self._matched = self._matched or bool(found.any())
        if self._unknown is None and not found.all():
            self._unknown = stars.dictionary[int(np.argmin(found))].as_py()
        filled: list[Any] = []
        for role, given in (("band", bands), ("label", labels)):
            if given is None:
                filled.append(None)
                continue
            codes = pa.array(np.where(found, self._codes[role][at], 0))
            known = self._words[role].take(codes).take(stars.indices)
            filled.append(pc.if_else(pc.equal(given, ""), known, given))
        return filled[0], filled[1]

    def unmatched(self) -> str:
        """A remark, if stars that `complete` was asked for are not in the table; else "".

        Raises:
            UserError: none of them is.
        """
        if self._unknown is None:
            return ""
        if not self._matched:
            raise UserError(
                f"{self._path}: none of its stars has a light curve, and none of the light curves, such as that of "
                f"{self._unknown!r}, is of its stars; compare the ids"
            )
        return f"some stars are not in {METADATA}, such as {self._unknown!r}: it gives them no band and no label"

    def _index(self, path: Path, hashes: NDArray[np.uint64], codes: dict[str, NDArray[np.int32]]) -> None:
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._codes = {role: values[order] for role, values in codes.items()}
        same_star = self._hashes[1:] == self._hashes[:-1]
        for role, values in self._codes.items():
            conflict = same_star & (values[1:] != values[:-1])
            if conflict.any():
                i = int(np.argmax(conflict))
                one, other = (self._words[role][int(values[j])].as_py() for j in (i, i + 1))
                rows = sorted(int(order[j]) + 1 for j in (i, i + 1))
                raise UserError(
                    f"{path}: rows {rows[0]} and {rows[1]} give one id two {role}s, {one!r} and {other!r}; keep one"
                )
