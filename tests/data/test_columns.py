"""Columns: a table's names are matched to roles, and a missing column is named with the way out."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from astroco_fast.data import columns as columns_module
from astroco_fast.data.columns import ALIASES, Columns
from astroco_fast.errors import UserError
from tests.data.curve_factory import read_curves

DESIGN = {
    "time": "mjd hjd hmjd jd bjd time t midpointMjdTai",
    "mag": "mag magnitude psfMag m",
    "err": "err magerr errmag mag_err e_mag sigma",
    "id": "id objectid newID sourceid star_id ID",
    "band": "band filter passband",
    "label": "label class Class",
}


def resolve(names, columns=None, source="table"):
    return columns_module.resolve(names, columns or Columns(), source)


@pytest.mark.parametrize(
    ("role", "alias"), [(role, alias) for role, names in DESIGN.items() for alias in names.split()]
)
def test_every_alias_is_found_in_any_case(role, alias):
    usual = {"time": "mjd", "mag": "mag", "err": "err", "id": "id"}
    for spelling in (alias, alias.upper(), f" {alias} "):
        names = [name for r, name in usual.items() if r != role] + [spelling]
        assert resolve(names)[role] == spelling


def test_exact_match_goes_before_another_case():
    assert resolve(["MJD", "time", "mag", "err", "id"])["time"] == "time"
    assert resolve(["ID", "newID", "mjd", "mag", "errmag"])["id"] == "newID"


def test_first_alias_wins_where_several_match():
    assert resolve(["hjd", "mjd", "mag", "err", "id"])["time"] == "mjd"


def test_explicit_choice_wins_and_optional_roles_may_be_absent():
    found = resolve(["mjd", "when", "mag", "err", "id"], Columns(time="when"))
    assert found == {"time": "when", "mag": "mag", "err": "err", "id": "id"}


def test_missing_column_says_what_was_found_and_tried():
    with pytest.raises(UserError) as error:
        resolve(["mjd", "brightness", "id"], source="stars.csv")
    message = str(error.value)
    assert "\n" not in message
    for part in ("stars.csv", "no magnitude column", "mjd, brightness, id", *ALIASES["mag"], "--columns.mag"):
        assert part in message


def test_missing_error_column_says_the_way_out():
    with pytest.raises(UserError, match=r"no error column.*tried: err, magerr.*--columns\.err.*such a column added"):
        resolve(["mjd", "mag", "id"])


def test_missing_chosen_column():
    with pytest.raises(UserError, match=r"no column 'when', asked for by --columns\.time; found: mjd, mag"):
        resolve(["mjd", "mag", "err", "id"], Columns(time="when"))


def test_flux_is_read_only_with_a_zero_point():
    names = ["time", "flux", "flux_err", "id"]
    with pytest.raises(UserError, match=r"--columns\.zero_point to read the fluxes in 'flux'"):
        resolve(names)
    with pytest.raises(UserError, match="zero point"):
        resolve(names, Columns(flux="flux"))
    assert resolve(names, Columns(zero_point=25.0))["flux_err"] == "flux_err"
    with pytest.raises(UserError, match=r"leave the zero point out"):
        resolve([*names, "mag"], Columns(zero_point=25.0, mag="mag"))


def test_rows_that_may_be_of_several_stars_are_refused_without_a_column_of_ids():
    time = np.arange(12.0)
    points = pd.DataFrame({"mjd": 53000 + time, "mag": 15 + np.sin(time), "err": np.full(12, 0.1)})
    assert len(next(read_curves(points.assign(image_id=time, CCDName="a")))) == 1
    with pytest.raises(UserError, match=r"--columns\.star"):
        list(read_curves(points.assign(StarName="a")))
    lists = pa.table({name: [values.tolist()] for name, values in points.items()})
    assert len(next(read_curves(lists))) == 1
    with pytest.raises(UserError, match=r"no column of ids|no id column"):
        list(read_curves(pa.concat_tables([lists, lists])))
