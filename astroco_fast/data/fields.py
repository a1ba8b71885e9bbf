"""What the columns of one table mean: role -> place in the table, a point a row or a star a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from astroco_fast.data.columns import Columns, resolve
from astroco_fast.data.columns import listed as listed_names
from astroco_fast.data.tables import Table, is_list
from astroco_fast.data.values import Place, constant_text, to_text
from astroco_fast.errors import UserError

_MOST_BANDS_KEPT = 1000


@dataclass(frozen=True)
class Field:
    """A column, or one field of a column of structs or of lists of structs; `kind` is the Arrow type of its values."""

    name: str
    column: str
    sub: str | None
    listed: bool
    kind: Any

    def array(self, batch: Any) -> Any:
        """The values of a column that holds one value a row."""
        array = batch.column(self.column)
        return array if self.sub is None else pc.struct_field(array, [self.sub])

    def lists(self, batch: Any) -> tuple[Any, NDArray[np.int64]]:
        """The values of a column of lists, end to end, and the (rows,) length of each; a missing list has length 0."""
        array = batch.column(self.column)
        if self.sub is not None and pa.types.is_struct(array.type):
            array = pc.struct_field(array, [self.sub])
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        values = pc.list_flatten(array)
        if self.sub is not None and pa.types.is_struct(values.type):
            values = pc.struct_field(values, [self.sub])
        return values, lengths.astype(np.int64)


def fields(schema: Any) -> dict[str, Field]:
    """Every name a user may give for a column of this Arrow schema.

    Fields of a nested column are known as `column.field`, and as `field` where no other column has that name.
    """
    named = {f.name: Field(f.name, f.name, None, is_list(f.type), _value_type(f.type)) for f in schema}
    short: dict[str, list[Field]] = {}
    for column in schema:
        in_list = is_list(column.type)
        structs = _value_type(column.type)
        if pa.types.is_struct(structs):
            for sub in structs:
                name, listed = f"{column.name}.{sub.name}", in_list or is_list(sub.type)
                found = Field(name, column.name, sub.name, listed, _value_type(sub.type))
                named[found.name] = found
                short.setdefault(sub.name, []).append(found)
    for name, candidates in short.items():
        if len(candidates) == 1:
            named.setdefault(name, candidates[0])
    return named


def _value_type(kind: Any) -> Any:
    return kind.value_type if is_list(kind) else kind


@dataclass
class BandFilter:
    """Keeps one band, and remembers which bands there were."""

    wanted: str | None = None
    seen: set[str] = field(default_factory=set)
    matched: bool = False

    def mask(self, bands: Any) -> NDArray[np.bool_] | None:
        """Which of these (an Arrow string array) are wanted; None where all are."""
        if self.wanted is None:
            return None
        if len(self.seen) < _MOST_BANDS_KEPT:
            self.seen.update(pc.unique(bands).to_pylist())
        mask = np.asarray(pc.equal(bands, self.wanted).to_numpy(zero_copy_only=False), dtype=bool)
        self.matched = self.matched or bool(mask.any())
        return mask

    def check(self, source: str) -> None:
        """Raises UserError where the wanted band never came."""
        if self.wanted is not None and not self.matched and self.seen:
            raise UserError(
                f"{source}: no light curve in band {self.wanted!r}; bands found: {listed_names(sorted(self.seen))}"
            )


@dataclass
class MappedTable:
    """A table and the place of each role in it.

    `fixed_id` names the only star of a table without an id column.
    """

    table: Table
    roles: dict[str, Field]
    zero_point: float | None = None
    fixed_id: str | None = None

    @property
    def star_a_row(self) -> bool:
        """Whether a row holds a light curve (lists), rather than a point."""
        return self.roles["time"].listed

    @property
    def columns(self) -> list[str]:
        """The table's columns that have to be read."""
        return list(dict.fromkeys(role.column for role in self.roles.values()))

    @property
    def value(self) -> str:
        return "mag" if self.zero_point is None else "flux"

    @property
    def error(self) -> str:
        return "err" if self.zero_point is None else "flux_err"

    def place(self, role: str, first_row: int) -> Place:
        return Place(self.table.name, self.roles[role].name, first_row)

    @property
    def notes(self) -> list[str]:
        """What the user should know of the table's form."""
        if self.roles["time"].kind != pa.float32():
            return []
        return [
            f"{self.table.name}: times in {self.roles['time'].name!r} are single precision: "
            "an MJD of 58000 is known to no better than 6 minutes; float64 is better"
        ]

    def text(self, role: str, batch: Any, first_row: int) -> Any:
        """(rows,) Arrow string array of `id`, `band` or `label`; "" where the table has no such column."""
        if role not in self.roles:
            return constant_text(self.fixed_id or "" if role == "id" else "", batch.num_rows)
        return to_text(self.roles[role].array(batch), self.place(role, first_row), required=role == "id")


def map_table(table: Table, columns: Columns, fixed_id: str | None = None) -> MappedTable:
    """Find each role's column; see `columns.resolve`.

    Raises:
        UserError: a column is missing, or time, magnitude and error are not all lists or all plain.
    """
    known = fields(table.schema)
    names = resolve(list(known), columns, table.name, need_id=fixed_id is None)
    roles = {role: known[name] for role, name in names.items()}
    mapped = MappedTable(table, roles, columns.zero_point, fixed_id)
    twice = [name for name in mapped.columns if table.schema.names.count(name) > 1]
    if twice:
        raise UserError(f"{table.name}: has more than one column {twice[0]!r}; rename or remove one of them")
    for role in (mapped.value, mapped.error):
        if roles[role].listed != mapped.star_a_row:
            one, other = ("lists", "single values") if mapped.star_a_row else ("single values", "lists")
            raise UserError(
                f"{table.name}: column {roles['time'].name!r} holds {one} but {roles[role].name!r} holds {other}; "
                f"name the right ones by --columns.time and --columns.{role}"
            )
    return mapped


def photometry(
    value: NDArray[np.float64], error: NDArray[np.float64], zero_point: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Magnitude and its error from a magnitude, or from a flux where there is a zero point.

    mag = zero_point - 2.5 log10(flux), err = 2.5 / ln(10) * flux_err / flux. A flux that is not positive has no
    magnitude: it becomes +inf, which the cleaning counts apart from other bad values.
    """
    if zero_point is None:
        return np.where(np.isinf(value), np.nan, value), error
    with np.errstate(divide="ignore", invalid="ignore"):
        mag = zero_point - 2.5 * np.log10(value)
        err = 2.5 / np.log(10) * error / value
    mag[value <= 0] = np.inf
    return mag, err
