"""What is known of stars apart from their points: a table of labels (and bands) by id, as in Astromer's folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from astroco_fast.data.columns import Columns, find
from astroco_fast.data.fields import Field, MappedTable
from astroco_fast.data.split import star_hash
from astroco_fast.data.tables import open_table
from astroco_fast.errors import UserError

NAME = "metadata.parquet"
_ROWS = 200_000


class StarTable:
    """Label and band of each star of a `metadata.parquet`; 16 bytes a star.

    Args:
        path: the file.
        id_column: the id column of the tables of points; the same is used here where it is present, since such files
            may have a second id (Astromer: `newID` numbers the stars, `ID` is the survey's own).
        columns: the user's choices.

    Raises:
        UserError: no id column, or one id with two different labels or bands.
    """

    def __init__(self, path: Path, id_column: str, columns: Columns) -> None:
        table = open_table(path)
        names = table.schema.names
        key = id_column if id_column in names else find("id", names, None, str(path))
        if key is None:
            raise UserError(f"{path}: no id column {id_column!r} as in the light curves; found: {', '.join(names)}")
        roles = {"id": key}
        for role in ("band", "label"):
            name = find(role, names, None) if getattr(columns, role) not in names else getattr(columns, role)
            if name is not None:
                roles[role] = name
        mapped = MappedTable(table, {role: Field(name, name, None, False, None) for role, name in roles.items()})
        known: dict[str, dict[str, int]] = {"band": {"": 0}, "label": {"": 0}}
        hashes: list[NDArray[np.uint64]] = []
        codes: dict[str, list[NDArray[np.int32]]] = {"band": [], "label": []}
        for first_row, batch in table.batches(mapped.columns, _ROWS):
            hashes.append(star_hash(mapped.text("id", batch, first_row).to_pylist()))
            for role, mapping in known.items():
                text = mapped.text(role, batch, first_row).to_pylist()
                codes[role].append(np.array([mapping.setdefault(value, len(mapping)) for value in text], np.int32))
        self._words = {role: pa.array(list(mapping), type=pa.string()) for role, mapping in known.items()}
        self._index(path, np.concatenate(hashes), {role: np.concatenate(parts) for role, parts in codes.items()})

    def complete(self, ids: Any, bands: Any, labels: Any) -> tuple[Any, Any]:
        """Fill the empty bands and labels of these ids (Arrow string arrays; bands may be None: nothing to fill)."""
        stars = ids.dictionary_encode()
        hashes = star_hash(stars.dictionary.to_pylist())
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        found = self._hashes[at] == hashes
        filled: list[Any] = []
        for role, given in (("band", bands), ("label", labels)):
            if given is None:
                filled.append(None)
                continue
            codes = pa.array(np.where(found, self._codes[role][at], 0))
            known = self._words[role].take(codes).take(stars.indices)
            filled.append(pc.if_else(pc.equal(given, ""), known, given))
        return filled[0], filled[1]

    def _index(self, path: Path, hashes: NDArray[np.uint64], codes: dict[str, NDArray[np.int32]]) -> None:
        if not len(hashes):
            raise UserError(f"{path}: the table is empty")
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


class TableSource:
    """What light curves are read from: one or more tables of one kind, perhaps beside a table of their stars."""

    def __init__(
        self, tables: Sequence[MappedTable], band: str | None, stars: StarTable | None, name: str, identity: Any
    ) -> None:
        self.name = name
        self.identity = identity
        self.notes = [note for mapped in tables for note in mapped.notes]
        self._tables = tables
        self._band = band
        self._stars = stars
