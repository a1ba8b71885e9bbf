"""Units of columns: how a table states them, and the factors that bring times to days and errors to magnitudes.

Every table states its units in one way, in the metadata `unit` of its Arrow fields: astropy's columns and FITS headers
are brought to it (`with_unit`), and Arrow and Parquet files may have it themselves. `with_stated_units` finds the units
that astropy, pandas and the Virtual Observatory's VOTables write beside a Parquet file's schema. No unit is guessed
from a column's name or values: a column without one holds days, magnitudes or fluxes, as its role says.
"""

from __future__ import annotations

import json
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from astroco_fast.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from astroco_fast.data.tables import Field

# Spellings in lower case, beside those that astropy knows.
_WORDS = {
    word: unit
    for unit, words in {
        "d": "d day days",
        "h": "hours hrs",
        "min": "minutes mins",
        "s": "seconds sec secs",
        "wk": "week weeks",
        "yr": "years yrs",
        "mag": "mag mags magnitude magnitudes abmag stmag",
        "mmag": "millimag millimags millimagnitude millimagnitudes",
        "Jy": "jansky janskys",
        "mJy": "millijansky millijanskys",
        "uJy": "microjansky microjanskys",
        "nJy": "nanojansky nanojanskys",
        "nmgy": "nanomaggies",
    }.items()
    for word in words.split()
}
_AB_JANSKY = 3631.0  # the flux of AB magnitude 0 (Oke & Gunn 1983)
_MEANING = {"d": "days", "mag": "magnitudes"}
_MAGNITUDE = re.compile("mag(?!g)")  # but no maggies
# Days, counted from any zero: "MJD", "BJD - 2457000, days", "Julian date".
_JULIAN_DAYS = re.compile(
    r"((modified|reduced|heliocentric|barycentric) )*(julian (day|date)s?|[a-z]{0,3}jd)"
    r"( ?\(?(tdb|utc|tai|tt)\)?)?( ?- ?[\d.]+)?(,? ?d(ays?)?)?"
)


def with_unit(field: Any, unit: str | None) -> Any:
    """An Arrow field that states a unit."""
    return field.with_metadata({**(field.metadata or {}), b"unit": unit}) if unit else field


def unit_of(field: Any) -> str | None:
    """The unit that an Arrow field states, or the values of its lists, or None."""
    metadata = field.metadata or getattr(field.type, "value_field", field).metadata or {}
    text = metadata.get(b"unit", metadata.get(b"units", b""))
    return str(text.decode(errors="replace")).strip() or None


def with_stated_units(schema: Any) -> Any:
    """A schema with the units that its metadata state: astropy's, those of a VOTable, pandas' `attrs["units"]`."""
    import pyarrow as pa  # here, because every command imports this module, with the names of columns

    metadata = schema.metadata or {}
    units: dict[str, Any] = {}
    try:
        # This loader makes text of everything and ignores tags, so that nothing but text comes of a file's YAML.
        columns = yaml.load(metadata.get(b"table_meta_yaml", b"{}"), Loader=yaml.BaseLoader).get("datatype", [])
        units |= {column["name"]: column.get("unit") for column in columns}
        votable = ElementTree.fromstring(metadata.get(b"IVOA.VOTable-Parquet.content", b"<none/>"))
        units |= {field.get("name", ""): field.get("unit") for field in votable.iter() if field.tag.endswith("FIELD")}
        units |= json.loads(metadata.get(b"pandas", b"{}")).get("attributes", {}).get("units", {})
    except (yaml.YAMLError, ElementTree.ParseError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return schema  # metadata of another form
    return pa.schema([f if unit_of(f) else with_unit(f, text(units.get(f.name))) for f in schema], metadata)


def text(unit: Any) -> str | None:
    """A unit of astropy, or of a header, as text; None for no unit."""
    return None if unit is None else str(unit).strip() or None


def factors(fields: Mapping[str, Field], value: str, error: str, table: str) -> dict[str, float]:
    """The factors, by role, that turn a table's columns into days, magnitudes, and flux errors in the fluxes' unit.

    A flux keeps its unit, to which the zero point belongs. Of a flux and its error, one may state the unit of both.

    Args:
        fields: the place of each role.
        value, error: "mag" and "err" or "snr", or "flux" and "flux_err".
        table: the table's name in messages.

    Raises:
        UserError: a unit that is unknown, or of something else; names table, column, unit and the way out.
        MissingExtraError: astropy, which knows the units, is not installed.
    """
    wanted = {"time": "d"}
    flux = fields[value].unit if value == "flux" else None
    if value == "mag":
        wanted |= {value: "mag"} | ({} if error == "snr" else {error: "mag"})  # a ratio has no unit
    elif flux is not None:
        if _MAGNITUDE.search(flux.lower()):
            raise UserError(
                f"{table}: column {fields[value].name!r} has the unit {flux!r}, which is no flux; "
                "leave --columns.zero_point out to read magnitudes"
            )
        wanted[error] = flux
    found = {}
    for role, unit in wanted.items():
        stated = fields[role].unit
        factor = 1.0 if stated is None else _factor(stated, unit, table)
        if factor is None:
            raise UserError(
                f"{table}: column {fields[role].name!r} has the unit {stated!r}, which cannot be converted to "
                f"{_MEANING.get(unit, repr(unit))}; convert the column, remove its unit if that is wrong, or name "
                f"another column by --columns.{role}"
            )
        found[role] = factor
    return found


def ab_zero_point(stated: str | None, table: str) -> float | None:
    """The AB magnitude of a flux of one such unit, if it is one per frequency (Jy, nJy, erg / (s cm2 Hz) ...)."""
    if stated is None:
        return None
    factor = _factor(stated, "Jy", table)
    return None if factor is None else 2.5 * math.log10(_AB_JANSKY / factor)


def _factor(stated: str, wanted: str, table: str) -> float | None:
    """What values in the stated unit are multiplied by to be in the wanted one; None if they cannot be converted."""
    stated, wanted = _spelling(stated), _spelling(wanted)
    if stated == wanted:
        return 1.0
    try:
        from astropy import units
    except ImportError as error:
        raise MissingExtraError("astropy", "fits", f"converting the units of {table}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spellings that standards discourage
        try:
            # Magnitudes of a flux, such as mag(AB), differ by magnitudes.
            one, other = (getattr(unit, "function_unit", unit) for unit in map(units.Unit, (stated, wanted)))
            factor = float(one.to(other))
        except (ValueError, TypeError):  # unknown, or of another kind
            return None
    return factor if factor > 0 else None  # a dex is -2.5 magnitudes for astropy


def _spelling(unit: str) -> str:
    """A unit's name as astropy knows it."""
    word = " ".join(unit.lower().split())
    return "d" if _JULIAN_DAYS.fullmatch(word) else _WORDS.get(word, unit.strip())
