"""The search for a table's columns of times, magnitudes, errors, star ids, bands and labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from astroco_fast.data import units
from astroco_fast.errors import UserError
from astroco_fast.text import printable

if TYPE_CHECKING:  # the settings of every command hold `Columns`: they are parsed without Arrow
    from astroco_fast.data.tables import Field, Table

# The usual column names of each role, in order of preference: if a table has several, the first is used.
ALIASES: dict[str, tuple[str, ...]] = {
    "time": ("mjd", "hjd", "hmjd", "jd", "bjd", "time", "t", "midpointMjdTai"),
    "mag": ("mag", "magnitude", "psfMag", "m"),
    "err": ("err", "magerr", "errmag", "mag_err", "e_mag", "sigma", "error", "psfMagErr"),
    "flux": ("flux", "psfFlux", "pdcsap_flux", "sap_flux"),
    "flux_err": (
        *("flux_err", "fluxerr", "psfFluxErr", "e_flux", "flux_error", "pdcsap_flux_err", "sap_flux_err"),
        *("err", "error", "sigma"),
    ),
    "id": (
        *("id", "objectid", "newID", "sourceid", "star_id", "ID", "object_id", "source_id"),
        *(
            "oid",
            "objid",
            "diaObjectId",
            "asas_sn_id",
            "ticid",
            "kepid",
            "kepler_id",
            "star",
            "name",
            "object",
            "target",
        ),
    ),
    "snr": ("flux_over_error",),
    "band": (
        *("band", "filter", "passband", "filtercode", "filterid", "fid", "filtername", "bandname", "band_name"),
        *("filter_name", "filter_id", "bandpass", "filt", "flt", "phot_filter"),
    ),
    "label": ("label", "class", "Class"),
}
# What a row says of the star rather than of a point: text, which may also come from the names of folders.
_TEXT = ("id", "band", "label")
# Columns of text or whole numbers with such names are no bands.
_NO_BANDS = ("flag", "qual", "cadence", "ccd", "field", "survey", "exp", "rcid", "num", "index", "unnamed")
_MEANING = {"mag": "magnitude", "err": "error", "flux_err": "flux error"}
# Words in the name of a column that may hold ids, and words beside "id" that say of what else.
_ID_WORDS = {"id", "ids", "name", "star", "object", "obj", "objname", "source", "target", "kic", "tic", "epic", "objid"}
_NO_ID_WORDS = {"image", "exposure", "exp", "transit", "obs", "observation", "run", "ccd", "field", "frame", "filter"}
_NO_ID_WORDS |= {"band", "detector", "solution", "visit", "camera", "cam", "filename", "file", "observer", "reference"}


@dataclass(frozen=True)
class _Band:
    """The columns of one band in a table that has a set of columns for each."""

    time: str
    mag: str
    snr: str
    flux: str
    flux_err: str


# Epoch photometry of Gaia DR3 in its raw structure, one row a star (Gaia Archive, DataLink product EPOCH_PHOTOMETRY).
_GAIA = {
    "G": _Band(*(f"g_transit_{name}" for name in ("time", "mag", "flux_over_error", "flux", "flux_error"))),
    "BP": _Band("bp_obs_time", "bp_mag", "bp_flux_over_error", "bp_flux", "bp_flux_error"),
    "RP": _Band("rp_obs_time", "rp_mag", "rp_flux_over_error", "rp_flux", "rp_flux_error"),
}
_MOST_NAMES_SHOWN = 30


@dataclass(frozen=True)
class Columns:
    """Column names chosen by the user; columns that are left out are found by their usual names.

    Args:
        time: column of times, in days.
        mag: column of magnitudes.
        err: column of magnitude errors (one standard deviation).
        id: column of star ids.
        band: column of bands; a light curve is one (id, band).
        label: column of classes.
        flux: column of fluxes, to be turned into magnitudes; needs a zero point.
        flux_err: column of flux errors.
        zero_point: magnitude of unit flux; when given, fluxes are read: mag = zero_point - 2.5 log10(flux).
        snr: column of fluxes over their errors, from which magnitude errors follow where no column has these.
        quality: column of quality flags; points whose flag is not 0 (or false) are dropped.
        star: id of the star, for a table of one star that has no column of ids; by default what its header says, or the
            file's name.

    Raises:
        UserError: the zero point is not a finite number.
    """

    time: str | None = None
    mag: str | None = None
    err: str | None = None
    id: str | None = None
    band: str | None = None
    label: str | None = None
    flux: str | None = None
    flux_err: str | None = None
    zero_point: float | None = None
    snr: str | None = None
    quality: str | None = None
    star: str | None = None

    def __post_init__(self) -> None:
        if self.zero_point is not None and not abs(self.zero_point) < float("inf"):
            raise UserError(f"columns.zero_point must be a finite number, not {self.zero_point}")


@dataclass(frozen=True)
class MappedTable:
    """A table and the place of each role in it.

    Attributes:
        table: the table.
        fields: role -> place: `time`, the names in `value` and `error`, and `id`, `band`, `label`, `quality` where
            present.
        constants: `id`, `band`, `label` -> text, where all rows have the same and there is no column.
        value, error: "mag" and "err" (or "snr", a flux over its error), or "flux" and "flux_err" where there is a zero
            point.
        zero_point: magnitude of unit flux, or None.
        factors: what the values of a role are multiplied by, to be in days, magnitudes or the fluxes' unit.
        star_a_row: whether a row holds a light curve (lists), rather than a point.
        columns: the table's columns that have to be read.
        is_ab: whether the zero point is that of AB magnitudes, because the fluxes' unit says so.
    """

    table: Table
    fields: dict[str, Field]
    constants: dict[str, str]
    value: str
    error: str
    zero_point: float | None
    factors: dict[str, float]
    star_a_row: bool
    columns: tuple[str, ...]
    is_ab: bool = False

    @property
    def has_bands(self) -> bool:
        """Whether the bands are known."""
        return "band" in self.fields or "band" in self.constants

    @property
    def is_one_star(self) -> bool:
        """Whether the table is of one star, without a column of ids."""
        return "id" not in self.fields and "id" not in self.table.folders

    def perhaps_bands(self) -> list[str]:
        """Columns that are not read and might hold the bands of points: of text or of whole numbers, one a point."""
        read = {field.name for field in self.fields.values()}
        kinds = ("string", "large_string", "dictionary", "int", "uint")
        return [
            field.name
            for field in self.table.fields().values()
            if field.name.strip()
            and field.listed == self.star_a_row
            and field.name not in read
            and str(field.kind).startswith(kinds)
            and not any(word in field.name.lower() for word in _NO_BANDS)
        ]


def map_tables(table: Table, columns: Columns) -> list[MappedTable]:
    """Find each role's column, once, or for each band of a table with a set of columns for each (Gaia's).

    Raises:
        UserError: see `map_table`.
    """
    given = columns.zero_point
    columns = _with_ab(table, columns)
    if columns.zero_point != given:
        return [replace(map_table(table, columns), is_ab=True)]
    folded = {name.lower(): name for name in table.fields()}
    chosen = (columns.time, columns.mag, columns.err, columns.flux, columns.band)
    bands = {band: names for band, names in _GAIA.items() if names.time in folded and names.mag in folded}
    if not bands or any(name is not None for name in chosen):
        return [map_table(table, columns)]
    mapped = []
    for band, names in bands.items():
        roles = ("time", "mag", "snr") if columns.zero_point is None else ("time", "flux", "flux_err")
        own = {role: folded.get(getattr(names, role), getattr(names, role)) for role in roles}
        one = map_table(table, replace(columns, **own))
        mapped.append(replace(one, constants={**one.constants, "band": band}))
    return mapped


def _with_ab(table: Table, columns: Columns) -> Columns:
    """The choice of columns with the zero point of AB magnitudes, for a table of fluxes whose unit has one."""
    known = table.fields()
    if columns.zero_point is not None or columns.mag is not None or find("mag", list(known), None) is not None:
        return columns
    flux = known.get(columns.flux or find("flux", list(known), None) or "")
    return columns if flux is None else replace(columns, zero_point=units.ab_zero_point(flux.unit, table.name))


def map_table(table: Table, columns: Columns) -> MappedTable:
    """Find each role's column; see `resolve`.

    Raises:
        UserError: a column is missing, time, magnitude and error are not all lists or all plain, one has a unit that
            cannot be converted, or several nested columns hold light curves.
    """
    known = table.fields()
    columns = columns if columns.quality is not None else replace(columns, quality=table.quality)
    try:
        names = resolve(list(known), columns, table.name, folders=list(table.folders))
        _check_one_star(names, known, columns, table)
    except UserError as missing:
        raise UserError("; ".join([str(missing), *table.remarks])) from missing
    fields = {role: known[name] for role, name in names.items() if name in known}
    constants = {role: table.folders[name] for role, name in names.items() if name not in known}
    if "id" not in names:
        constants["id"] = columns.star or table.star or table.called
    needed = tuple(dict.fromkeys(name for f in fields.values() for name in (f.column, f.mask) if name is not None))
    twice = [name for name in needed if table.schema.names.count(name) > 1]
    if twice:
        raise UserError(f"{table.name}: has more than one column {twice[0]!r}; rename or remove one of them")
    for name in needed:
        if problem := (table.schema.field(name).metadata or {}).get(b"problem"):
            raise UserError(f"{table.name}: column {name!r} cannot be read: {problem.decode()}")
    star_a_row = fields["time"].listed
    value, error = value_roles(columns)
    error = "snr" if error not in fields else error
    bands = [role for role in ("band",) if role in fields and fields[role].listed]  # else they are one a row
    for role in (value, error, *bands, *(["quality"] if "quality" in fields else [])):
        if fields[role].listed != star_a_row:
            one, other = ("lists", "single values") if star_a_row else ("single values", "lists")
            raise UserError(
                f"{table.name}: column {fields['time'].name!r} holds {one} but {fields[role].name!r} holds {other}; "
                f"name the right ones by --columns.time and --columns.{role}"
            )
    _check_nested(known, fields, columns, (value, error), table.name)
    factors = units.factors(fields, value, error, table.name)
    return MappedTable(table, fields, constants, value, error, columns.zero_point, factors, star_a_row, needed)


def _check_one_star(names: Mapping[str, str], known: Mapping[str, Field], columns: Columns, table: Table) -> None:
    """Refuse a table without ids that may be of several stars: their points would become one light curve."""
    if "id" in names or columns.star is not None:
        return
    perhaps = [name for name in known if _may_hold_ids(name) and name not in names.values()]
    if perhaps or (known[names["time"]].listed and table.rows > 1):
        raise UserError(
            _missing("id", list(known), table.name)
            + (", or, if all rows are of one star, say which by --columns.star NAME" if perhaps else "")
        )


def _may_hold_ids(name: str) -> bool:
    words = {*re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())}
    return bool(words & _ID_WORDS) and not words & _NO_ID_WORDS


def _check_nested(
    known: Mapping[str, Field], fields: Mapping[str, Field], columns: Columns, roles: tuple[str, str], source: str
) -> None:
    """Refuse a table in which several columns hold light curves, unless the user named the one to read."""
    value, error = roles
    used = {fields[role].column if fields[role].sub is not None else "" for role in ("time", value, error)}
    if columns.time is not None and (len(used) == 1 or getattr(columns, value) is not None):
        return
    inside: dict[str, list[str]] = {}
    for field in known.values():
        if field.sub is not None:
            inside.setdefault(field.column, []).append(field.sub)
    whole = {column for column, names in inside.items() if all(find(role, names, None) for role in ("time", value))}
    if len(used) > 1 or whole - used:
        found = listed(f"{fields[role].name!r}" for role in ("time", value, error))
        others = listed(map(repr, sorted((whole - used) or used - {""})))
        raise UserError(
            f"{source}: more than one column holds light curves: beside {found} there are the fields of {others}; name "
            f"those to read by --columns.time, --columns.{value} and --columns.{error}"
        )


def resolve(names: Sequence[str], columns: Columns, source: str, *, folders: Sequence[str] = ()) -> dict[str, str]:
    """Find the column of each role among a table's column names.

    A column that the user chose comes first, then the first alias that matches exactly, then the first that matches
    but for case and surrounding blanks.

    Args:
        names: the table's column names.
        columns: the user's choice.
        source: the table's name in messages.
        folders: columns that the names of folders give, where the table has no such column itself.

    Returns:
        Role -> column name, for `time`, `mag`, `err` (`snr` where there is no `err`; `time`, `flux` and `flux_err` when
        `columns` has a zero point), and `id`, `band`, `label`, `quality` where present.

    Raises:
        UserError: a column is missing (the message lists the names found and tried, and the option that names it), or
            there are fluxes without a zero point.
    """
    value, error = value_roles(columns)
    _check_flux_choice(columns, source)
    found = {}
    for role in ("time", value, error, "id", "band", "label", "quality"):
        chosen = getattr(columns, role)
        if role == "err" and chosen is None and (ratio := _ratio(names, columns, source)) is not None:
            found["snr"] = ratio
            continue
        by_folder = role in _TEXT and (chosen in folders if chosen is not None else find(role, names, None) is None)
        name = find(role, folders if by_folder and chosen not in names else names, chosen, source)
        if name is not None:
            found[role] = name
        elif role in ("time", value, error):
            raise UserError(_missing(role, names, source))
    return found


def _ratio(names: Sequence[str], columns: Columns, source: str) -> str | None:
    """The column of fluxes over their errors, if magnitude errors have to be found from it."""
    if columns.snr is None and find("err", names, None) is not None:
        return None
    return find("snr", names, columns.snr, source)


def value_roles(columns: Columns) -> tuple[str, str]:
    """The roles of a point's value and its error: magnitudes, or fluxes where there is a zero point."""
    return ("mag", "err") if columns.zero_point is None else ("flux", "flux_err")


def find(role: str, names: Sequence[str], chosen: str | None, source: str = "table") -> str | None:
    """The column of one role, or None; see `resolve`.

    Raises:
        UserError: the chosen column does not exist.
    """
    if chosen is not None:
        if chosen not in names:
            raise UserError(f"{source}: no column {chosen!r}, asked for by --columns.{role}; found: {listed(names)}")
        return chosen
    present = set(names)
    for alias in ALIASES.get(role, ()):  # flags of quality are only read where the user or the format says so
        if alias in present:
            return alias
    folded = {name.strip().lower(): name for name in reversed(names)}
    for alias in ALIASES.get(role, ()):
        if alias.lower() in folded:
            return folded[alias.lower()]
    return None


def listed(names: Iterable[object]) -> str:
    """Names for a message, cut short where they are many."""
    shown = [printable(str(name)) for name in names]
    more = len(shown) - _MOST_NAMES_SHOWN
    return ", ".join(shown[:_MOST_NAMES_SHOWN]) + (f", and {more} more" if more > 0 else "") if shown else "none"


def _check_flux_choice(columns: Columns, source: str) -> None:
    if columns.zero_point is None and (columns.flux is not None or columns.flux_err is not None):
        raise UserError(f"{source}: fluxes need a zero point to become magnitudes: give --columns.zero_point too")
    if columns.zero_point is not None and (columns.mag is not None or columns.err is not None):
        raise UserError(
            f"{source}: --columns.zero_point means fluxes, but --columns.mag or --columns.err is given too: "
            "use --columns.flux and --columns.flux_err, or leave the zero point out"
        )


def _missing(role: str, names: Sequence[str], source: str) -> str:
    message = (
        f"{source}: no {_MEANING.get(role, role)} column; found: {listed(names)}; tried: {', '.join(ALIASES[role])}; "
        f"name it with --columns.{role} NAME"
    )
    flux = find("flux", names, None) if role == "mag" else None
    if flux is not None:
        message += f", or give --columns.zero_point to read the fluxes in {flux!r}"
    if role == "err":
        message += " (a table without errors needs such a column added: the model uses it)"
    return message
