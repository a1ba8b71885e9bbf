"""How often the periods found are those of a catalogue, by class: P, P/2, 2P, other multiples, aliases of the day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.metadata import read_text_table
from astroco_fast.errors import UserError
from astroco_fast.text import cell

KINDS = ("P", "P/2", "2P", "thirds", "day alias", "other", "none")
_NONE = KINDS.index("none")
# Frequencies over that of the catalogue, in the order of KINDS.
_MULTIPLES = ((0, 1.0), (1, 2.0), (2, 0.5), (3, 3.0), (3, 1 / 3), (3, 4.0), (3, 1.5), (3, 0.25))
_DAY_ALIAS = 4
_DAYS = (0.5, 0.50137, 1.0, 1.00273791, 2.0, 2.00547)  # cycles a day


def catalogue_periods(path: str | Path) -> dict[str, float]:
    """The column `period` of a table with a row for each star or light curve, by id; stars without one are left out.

    Raises:
        UserError: the table cannot be read, has no column of ids or `period`, or a period that is not a number.
    """
    text = read_text_table(path, {"id": None}, optional=("period",))
    if "period" not in text:
        raise UserError(f"{path}: no column 'period' to compare with; rename the column of periods (days) to that")
    periods = {}
    for star, value in zip(text["id"], text["period"], strict=True):
        try:
            number = float(value or "nan")
        except ValueError as error:
            raise UserError(f"{path}: id {star!r} has the period {value!r}; it must be a number of days") from error
        if np.isfinite(number) and number > 0:
            periods[star] = number
    return periods


def recovery(
    found: NDArray[np.float64], catalogue: NDArray[np.float64], span: NDArray[np.float64]
) -> NDArray[np.int64]:
    """How each of n found periods is related to the catalogue's.

    Two frequencies agree within 0.3 % or 1 / span, whichever is more, but no more than 2 % and 1 / span.

    Args:
        found: days; NaN where no period was found.
        catalogue: days.
        span: days from the first to the last point of the light curve.

    Returns:
        The relations' places in `KINDS`: the first that holds. "thirds" are the periods at 1/4, 1/3, 2/3, 3 and 4 times
        the catalogue's. "day alias" has a frequency off by half a cycle, one or two cycles a (solar or sidereal) day
        from the catalogue's, its half or its double.
    """
    with np.errstate(invalid="ignore"):
        frequency, true = 1 / found, 1 / catalogue
    kind = np.full(len(found), KINDS.index("other"))
    kind[np.isnan(found)] = _NONE
    tolerance = np.maximum(0.003 * true, 1 / span)

    def mark(place: int, target: NDArray[np.float64]) -> None:
        near = np.abs(frequency - target) < np.minimum(tolerance, 0.02 * target + 1 / span)
        kind[near & (kind == KINDS.index("other"))] = place

    for place, multiple in _MULTIPLES:
        mark(place, multiple * true)
    for multiple in (1, 2, 0.5):
        for day in _DAYS:
            mark(_DAY_ALIAS, np.abs(multiple * true + day))
            mark(_DAY_ALIAS, np.abs(multiple * true - day))
    return kind


def recovery_table(labels: Sequence[str], kinds: NDArray[np.int64]) -> list[list[str]]:
    """Rows of text, a heading first: class, number of light curves, and the share of each kind in percent."""
    names = np.asarray(labels, dtype=object)
    rows = [["class", "n", *KINDS]]
    classes = sorted(set(labels), key=lambda name: (-int((names == name).sum()), name))
    for name, chosen in [*((name, names == name) for name in classes), ("all", np.ones(len(names), dtype=bool))]:
        count = np.bincount(kinds[chosen], minlength=len(KINDS))
        rows.append([name or "(unknown)", f"{chosen.sum()}", *(f"{100 * c / max(chosen.sum(), 1):.1f}" for c in count)])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table, its first row the heading."""
    heading, *rest = rows
    yield f"| {' | '.join(map(cell, heading))} |"
    yield "|---" + "|---:" * (len(heading) - 1) + "|"
    yield from (f"| {' | '.join(map(cell, row))} |" for row in rest)
