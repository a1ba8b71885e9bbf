"""Rows of any table in one form: text for the star, float arrays for its points.

Numbers may come as numbers, as text or as decimals, ids as text or as numbers, values as magnitudes or as fluxes, in
plain columns, in lists or in lists of structs. After `read_rows` there is one form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from astroco_fast.data.columns import MappedTable, listed
from astroco_fast.data.curves import MOST_POINTS, CurveBatch, offsets_of, to_float32, too_long
from astroco_fast.data.tables import Field, Table
from astroco_fast.data.words import NO_WORD, Place, check_text, plain_array, to_objects, to_text
from astroco_fast.errors import UserError

# Spellings of "no value" in number columns of text files, in lower case.
_NO_VALUE = pa.array([*NO_WORD, "na"])
_MOST_BANDS_KEPT = 1000
_TEXT_ROWS = 200_000

# (ids, bands or None, labels) -> (bands, labels), Arrow string arrays of one length: fills in what is known otherwise.
Complete = Callable[[Any, Any, Any], tuple[Any, Any]]


@dataclass
class Rows:
    """n rows of a table, with P points in all.

    Attributes:
        ids, bands, labels: (n,) Arrow string arrays; "" where unknown.
        lengths: (n,) int64, points of each row's light curve; None where each row is a point, so that n = P.
        time: (P,) float64, days.
        mag, err: (P,) float32, magnitudes.
    """

    ids: Any
    bands: Any
    labels: Any
    lengths: NDArray[np.int64] | None
    time: NDArray[np.float64]
    mag: NDArray[np.float32]
    err: NDArray[np.float32]

    def points(self) -> Any:
        """Rows that are points, as an Arrow record batch: id, band, label, time, mag, err."""
        points = [pa.array(values) for values in (self.time, self.mag, self.err)]
        return pa.RecordBatch.from_arrays(
            [self.ids, self.bands, self.labels, *points], names=["id", "band", "label", "time", "mag", "err"]
        )

    def curves(self, source: str, simulated: bool) -> CurveBatch:
        """Rows that are light curves, as a batch."""
        return CurveBatch(
            ids=to_objects(self.ids),
            band=to_objects(self.bands),
            label=to_objects(self.labels),
            offsets=offsets_of(cast(NDArray[np.int64], self.lengths)),
            time=self.time,
            mag=self.mag,
            err=self.err,
            source=source,
            simulated=simulated,
        )


@dataclass
class BandFilter:
    """Selects the rows of one band, and records all bands seen.

    Args:
        wanted: the band to keep; None keeps all.
    """

    wanted: str | None = None
    seen: set[str] = field(default_factory=set)
    matched: bool = False

    def __post_init__(self) -> None:
        if self.wanted is not None:
            self.wanted = self.wanted.strip()  # as the bands of a table

    def mask(self, bands: Any) -> NDArray[np.bool_] | None:
        """The mask of the wanted bands among these (an Arrow string array); None if all are wanted."""
        if self.wanted is None:
            return None
        if len(self.seen) < _MOST_BANDS_KEPT:
            self.seen.update(pc.unique(bands).to_pylist())
        mask = np.asarray(pc.equal(bands, self.wanted).to_numpy(zero_copy_only=False), dtype=bool)
        self.matched = self.matched or bool(mask.any())
        return mask

    def check(self, source: str) -> None:
        """Raise a UserError if the wanted band never occurred."""
        if self.wanted is not None and not self.matched and self.seen:
            raise UserError(
                f"{source}: no light curve in band {self.wanted!r}; bands found: {listed(sorted(self.seen))}"
            )


def read_rows(
    batch: Any, first_row: int, mapped: MappedTable, wanted: BandFilter, complete: Complete | None = None
) -> Rows:
    """The rows of a record batch, of the wanted band.

    Where the bands are a list beside the points, the rows are points, although the table has a star a row.

    Args:
        batch: an Arrow record batch with the columns of `mapped`.
        first_row: the number of its first row in the table, from 0, for error messages.
        mapped: the table, and what its columns are.
        wanted: the band to keep.
        complete: fills in bands and labels that the table lacks.

    Raises:
        UserError: a value of the wanted band is not a number, an id is missing, or lists of a row differ in length.
    """
    ids, labels = (_star_text(role, batch, first_row, mapped) for role in ("id", "label"))
    band_a_point = "band" in mapped.fields and mapped.fields["band"].listed
    bands: Any = None if band_a_point else _star_text("band", batch, first_row, mapped)
    if complete is not None:
        bands, labels = complete(ids, bands, labels)
    rows = np.arange(batch.num_rows)
    mask = None if bands is None else wanted.mask(bands)
    if mask is not None:
        rows, keep = rows[mask], pa.array(mask)
        batch, ids, bands, labels = (array.filter(keep) for array in (batch, ids, bands, labels))
    lengths, values = _point_values(batch, first_row, mapped, rows, ids)
    row_of_point = rows if lengths is None else np.repeat(rows, lengths)
    values[mapped.value], limits = _without_limits(values[mapped.value])
    time, value, error = (
        to_numbers(values[role], _place(mapped, role, first_row), row_of_point) * mapped.factors.get(role, 1.0)
        for role in ("time", mapped.value, mapped.error)
    )
    if mapped.error == "snr":
        mag, err = photometry(value, _error_of_ratio(error), None)
    else:
        mag, err = photometry(value, error, mapped.zero_point)
    if limits is not None:
        mag[limits] = -np.inf
    if "quality" in mapped.fields:
        err[_flagged(values["quality"], _place(mapped, "quality", first_row), row_of_point)] = -np.inf
    found = Rows(ids, bands, labels, lengths, time, to_float32(mag), to_float32(err))
    if band_a_point:
        return _split_by_band(found, to_text(values["band"], _place(mapped, "band", first_row), any_word=True), wanted)
    return found


def _split_by_band(rows: Rows, bands: Any, wanted: BandFilter) -> Rows:
    """A row for each point of light curves, given the band of each point."""
    lengths = cast(NDArray[np.int64], rows.lengths)
    row = np.repeat(np.arange(len(lengths)), lengths)
    mask = wanted.mask(bands)
    kept = np.arange(len(row)) if mask is None else np.flatnonzero(mask)
    star = pa.array(row[kept])
    ids, labels = rows.ids.take(star), rows.labels.take(star)
    return Rows(ids, bands.take(pa.array(kept)), labels, None, rows.time[kept], rows.mag[kept], rows.err[kept])


def _point_values(
    batch: Any, first_row: int, mapped: MappedTable, rows: NDArray[np.int64], ids: Any
) -> tuple[NDArray[np.int64] | None, dict[str, Any]]:
    """Points per row (None: one each), and the Arrow values of each role of a point, end to end."""
    roles = ["time", mapped.value, mapped.error]
    roles += ["quality"] if "quality" in mapped.fields else []
    if not mapped.star_a_row:
        return None, {role: _column(batch, mapped.fields[role]) for role in roles}
    if "band" in mapped.fields and mapped.fields["band"].listed:
        roles.append("band")
    lists = {role: _lists(batch, mapped.fields[role]) for role in roles}
    lengths = lists["time"][1]
    if lengths.max(initial=0) > MOST_POINTS:
        raise too_long(mapped.table.name, ids[int(lengths.argmax())].as_py())
    for role, (_, other) in lists.items():
        if (lengths != other).any():
            i = int(np.argmax(lengths != other))
            raise UserError(
                f"{mapped.table.name}: row {first_row + rows[i] + 1} (id {ids[i].as_py()!r}) has {lengths[i]} values "
                f"in {mapped.fields['time'].name!r} but {other[i]} in {mapped.fields[role].name!r}; a point needs all"
            )
    return lengths, {role: values for role, (values, _) in lists.items()}


def _column(batch: Any, field: Field) -> Any:
    """The values of a column that holds one value a row."""
    array = batch.column(field.column)
    if field.mask is not None:
        array = pc.if_else(batch.column(field.mask), pa.scalar(None, array.type), array)
    return array if field.sub is None else pc.struct_field(array, [field.sub])


def _lists(batch: Any, field: Field) -> tuple[Any, NDArray[np.int64]]:
    """The values of a column of lists, end to end, and the (rows,) length of each; a missing list has length 0."""
    array = batch.column(field.column)
    if field.sub is not None and pa.types.is_struct(array.type):
        array = pc.struct_field(array, [field.sub])
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    values = pc.list_flatten(array)
    if field.sub is not None and pa.types.is_struct(values.type):
        values = pc.struct_field(values, [field.sub])
    return values, lengths.astype(np.int64)


def _star_text(role: str, batch: Any, first_row: int, mapped: MappedTable) -> Any:
    """(rows,) Arrow string array of `id`, `band` or `label`; "" where the table says nothing of it."""
    options = {"required": role == "id", "any_word": role == "band"}
    if role in mapped.fields:
        return to_text(_column(batch, mapped.fields[role]), _place(mapped, role, first_row), **options)
    constant = to_text(pa.array([mapped.constants.get(role, "")]), Place(mapped.table.name, role), **options)
    return pa.repeat(constant[0], batch.num_rows)


def read_text(table: Table, names: Mapping[str, str], required: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Columns of a table as text, a piece at a time.

    Args:
        table: such as a table of labels.
        names: what to call the columns, and their names in the table.
        required: those of which no value may be missing.

    Yields:
        (rows,) Arrow string arrays by what the columns are to be called; "" where a value is missing.

    Raises:
        UserError: a value of a required column is missing, or a column does not hold text or numbers.
    """
    for first_row, batch in table.batches(list(dict.fromkeys(names.values())), _TEXT_ROWS):
        yield {
            role: to_text(
                batch.column(name),
                Place(table.name, name, first_row),
                required=role in required,
                any_word=role == "band",
            )
            for role, name in names.items()
        }


def _place(mapped: MappedTable, role: str, first_row: int) -> Place:
    return Place(mapped.table.name, mapped.fields[role].name, first_row)


def photometry(
    value: NDArray[np.float64], error: NDArray[np.float64], zero_point: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Magnitude and its error, from a magnitude, or from a flux where there is a zero point.

    mag = zero_point - 2.5 log10(flux), err = 2.5 / ln(10) * flux_err / flux. A flux that is not positive has no
    magnitude: it becomes +inf, which the cleaning counts apart from other bad values. Infinite values become NaN.
    """
    value, error = (np.where(np.isinf(numbers), np.nan, numbers) for numbers in (value, error))
    if zero_point is None:
        return value, error
    with np.errstate(divide="ignore", invalid="ignore"):
        mag = zero_point - 2.5 * np.log10(value)
        err = 2.5 / np.log(10) * error / value
    mag[value <= 0] = np.inf
    return mag, err


def _error_of_ratio(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """The error of a magnitude from its flux over the flux's error, to first order: 2.5 / ln(10) / ratio."""
    with np.errstate(divide="ignore"):
        return 2.5 / np.log(10) / ratio


def _without_limits(array: Any) -> tuple[Any, NDArray[np.bool_] | None]:
    """Values with upper limits ('>16.9', '<16.9') made missing, and which they are; None: there are none."""
    array = plain_array(array)
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return array, None
    if not any(pc.any(pc.match_substring(array, sign)).as_py() for sign in "<>"):
        return array, None
    limits = pc.fill_null(pc.match_substring_regex(array, r"^\s*[<>]=?\s*-?[0-9.]+\s*$"), False)
    return pc.if_else(limits, pa.scalar(None, array.type), array), limits.to_numpy(zero_copy_only=False)


def _flagged(array: Any, place: Place, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which flags are set: those that are not 0, false or missing."""
    array = plain_array(array)
    flags = to_numbers(pc.cast(array, pa.int8()) if pa.types.is_boolean(array.type) else array, place, rows)
    return np.nan_to_num(flags) != 0


def to_numbers(array: Any, place: Place, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """A float64 array of an Arrow array's values; missing values become NaN. Text that spells numbers is read.

    Args:
        array: Arrow array or chunked array of any numeric or text type.
        place: the place of the values, for error messages.
        rows: (n,) row of each value, where that is not its position (values of list columns).

    Raises:
        UserError: a value is not a number; names file, column, and the first such row and value.
    """
    array = plain_array(array)
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = _parse(array, place, rows)
    elif not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    ):
        hint = "; give times as days (MJD, JD ...)" if pa.types.is_temporal(kind) else ""
        raise place.error(f"numbers are needed, but it holds {kind}{hint}")
    array = pc.cast(array, pa.float64(), safe=False)
    if array.null_count:
        array = pc.fill_null(array, float("nan"))
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)


def _parse(array: Any, place: Place, rows: NDArray[np.int64] | None) -> Any:
    try:
        return pc.cast(array, pa.float64())
    except pa.ArrowInvalid:
        check_text(array, place)
        trimmed = pc.utf8_trim_whitespace(array)
        no_value = pc.is_in(pc.utf8_lower(trimmed), value_set=_NO_VALUE.cast(trimmed.type))
        trimmed = pc.if_else(no_value, pa.scalar(None, trimmed.type), trimmed)
    try:
        return pc.cast(trimmed, pa.float64())
    except pa.ArrowInvalid:
        for index, value in enumerate(trimmed):
            if value.is_valid and not _is_number(value.as_py()):
                row = index if rows is None else int(rows[index])
                raise place.error(f"not a number: {value.as_py()!r}", row) from None
        raise


def _is_number(text: str) -> bool:
    try:
        pc.cast(pa.scalar(text), pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
