"""`astroco periods`: into a store, into a table, and beside a catalogue."""

import csv

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from astroco_fast import periods as command
from astroco_fast.data.convert import convert
from astroco_fast.data.periods import Periods
from astroco_fast.data.recovery import KINDS, recovery, recovery_table
from astroco_fast.data.simulated_table import write_table
from astroco_fast.data.store import Store


@pytest.fixture
def survey(tmp_path):
    write_table(tmp_path / "survey.parquet", n_stars=24, seed=2)
    return tmp_path / "survey.parquet"


def test_a_store_keeps_its_periods(survey, tmp_path, capsys):
    convert(survey, tmp_path / "store")
    assert command.main([str(tmp_path / "store"), "--threads", "2"]) == 0
    out = capsys.readouterr().out
    found = Store.open(tmp_path / "store").periods
    assert len(found) == 24
    assert f"24 light curves; period found {found.found.sum()}" in out
    some = tmp_path / "catalogue.parquet"
    pq.write_table(pq.read_table(survey).slice(4), some)
    assert command.main([str(tmp_path / "store"), str(tmp_path / "table.parquet"), "--against", str(some)]) == 0
    assert "catalogue.parquet: 4 of 24 light curves have no period there" in capsys.readouterr().err
    table = pq.read_table(tmp_path / "table.parquet")
    np.testing.assert_array_equal(table["period"], found.period)


def test_periods_command_reports_recovery(survey, tmp_path, capsys):
    out = tmp_path / "periods.parquet"
    assert command.main([str(survey), str(out), "--against", str(survey)]) == 0
    table = pq.read_table(out)
    assert table.column_names[:5] == ["id", "band", "label", "n_points", "span"]
    found = Periods.from_table(table)
    assert len(found) == 24
    assert found.found.sum() > 20
    assert not {"nan", None} & set(map(str, table["log_false_alarm"].to_pylist()))
    with (tmp_path / "periods.recovery.csv").open() as file:
        heading, *rows = csv.reader(file)
    assert heading == ["class", "n", *KINDS]
    assert rows[-1][:2] == ["all", "24"]
    assert sum(map(float, rows[-1][2:5])) > 60, "at P, P/2 or 2P"
    assert "| class | n | P | P/2 |" in capsys.readouterr().out


def test_mistakes_are_one_line(survey, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("id,period\nx,1\n")
    (tmp_path / "words.csv").write_text("id,period\nx,long\n")
    (tmp_path / "no.csv").write_text("id,P\nx,1\n")
    convert(survey, tmp_path / "store")
    out = str(tmp_path / "out.parquet")
    for words, message in (
        ([str(survey)], "not a store"),
        ([str(survey), str(survey)], "holds the light curves"),
        ([str(survey), out, "--threads", "0"], "threads must be at least 1"),
        ([str(survey), out, "--against", str(tmp_path / "other.csv")], "none of the light curves"),
        ([str(survey), out, "--against", str(tmp_path / "words.csv")], "id 'x' has the period 'long'"),
        ([str(survey), out, "--against", str(tmp_path / "no.csv")], "no column 'period'"),
        ([str(tmp_path / "store"), "--band", "V"], "name an output file"),
        ([str(tmp_path / "nothing"), out], "nothing"),
    ):
        assert command.main(words) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_stars_without_a_period_are_in_the_table(tmp_path, capsys):
    rng = np.random.default_rng(0)
    points = pd.DataFrame({"id": "flat", "mjd": np.arange(50.0), "mag": rng.normal(15, 0.1, 50), "err": 0.1})
    points.loc[50] = ["alone", 1.0, 15.0, 0.1]
    pd.concat([points, points[:3]]).to_csv(tmp_path / "in.csv", index=False)
    assert command.main([str(tmp_path / "in.csv"), str(tmp_path / "out.parquet")]) == 0
    assert capsys.readouterr().err.endswith("in.csv; dropped 3 points: exact duplicates\n")
    table = pq.read_table(tmp_path / "out.parquet").to_pandas().set_index("id")
    assert table.period.isna().all()
    assert table.loc["alone", "n_points"] == 1


def test_relations_to_the_catalogue():
    true = 0.6
    found = [0.6, 0.3, 1.2, 1.8, 0.2, 1 / (1 / 0.6 - 1), 1 / (2 / 0.6 + 1.00273791), 0.47, np.nan]
    kinds = recovery(np.array(found), np.full(len(found), true), np.full(len(found), 1000.0))
    expected = ["P", "P/2", "2P", "thirds", "thirds", "day alias", "day alias", "other", "none"]
    assert [KINDS[kind] for kind in kinds] == expected
    rows = recovery_table(["a"] * 4 + [""] * 5, kinds)
    assert rows[1] == ["(unknown)", "5", *["0.0"] * 3, "20.0", "40.0", "20.0", "20.0"]
    assert [row[0] for row in rows[1:]] == ["(unknown)", "a", "all"]
