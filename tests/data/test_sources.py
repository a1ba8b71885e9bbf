"""Sources: folders, lists and objects, and the band that is read of them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroco_fast.data import points
from astroco_fast.data.clean import clean
from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError
from tests.data.curve_factory import (
    as_long,
    as_nested,
    assert_same_curves,
    gather,
    make_batch,
    read_curves,
    shuffled,
    write_nested,
)

fits = pytest.importorskip("astropy.io.fits")


def test_folder_pattern_and_list(tmp_path):
    parts = [make_batch(3, first=10 * i) for i in range(3)]
    for i, part in enumerate(parts):
        write_nested(part, tmp_path / f"part{i}.parquet")
    (tmp_path / "_metadata").write_text("not a table")
    (tmp_path / ".hidden.csv").write_text("")
    assert_same_curves(read_curves(tmp_path), parts)
    assert_same_curves(read_curves(str(tmp_path / "part[02].parquet")), [parts[0], parts[2]])
    assert_same_curves(read_curves([tmp_path / "part1.parquet", tmp_path / "part0.parquet"]), parts[:2])


@pytest.mark.parametrize("star_a_row", [False, True])
def test_astromer_folder(tmp_path, star_a_row):
    batch = make_batch(9, bands=("",))
    batch.ids = np.array([str(i) for i in range(9)], dtype=object)
    frame = pd.DataFrame({"newID": range(10), "ID": [f"macho{i}" for i in range(10)]})
    frame["Class"] = [*batch.label, "unseen"]
    frame.to_parquet(tmp_path / "metadata.parquet")
    (tmp_path / "light_curves").mkdir()
    for i, part in enumerate((slice(0, 4), slice(4, 9))):
        keep = np.zeros(9, dtype=bool)
        keep[part] = True
        table = as_nested(batch.select(keep)) if star_a_row else pa.Table.from_pandas(shuffled(batch.select(keep)))
        table = table.drop_columns(["band", "label"])
        table = table.set_column(0, "newID", table["id"].cast(pa.int64()))
        names = [{"err": "errmag"}.get(name, name) for name in table.column_names]
        pq.write_table(table.rename_columns(names), tmp_path / "light_curves" / f"shard_{i}.parquet")
    assert_same_curves(read_curves(tmp_path), [batch])


def test_astromer_metadata_with_two_classes_for_one_star(tmp_path):
    write_nested(make_batch(2), tmp_path / "shard.parquet")
    frame = pd.DataFrame({"id": ["star-0", "star-1", "star-0"], "Class": ["EW", "EA", "RRc"]})
    frame.to_parquet(tmp_path / "metadata.parquet")
    with pytest.raises(UserError, match=r"metadata\.parquet: rows 1 and 3 give one id two labels, 'EW' and 'RRc'"):
        list(read_curves(tmp_path))


def test_lists_of_arrays(batch):
    arrays = np.split(np.column_stack([batch.time, batch.mag, batch.err]), batch.offsets[1:-1])
    batch.ids = np.array([str(i) for i in range(6)], dtype=object)
    batch.band[:] = batch.label[:] = ""
    assert_same_curves(read_curves(arrays), [batch])
    assert_same_curves(read_curves([array.tolist() for array in arrays]), [batch])
    assert len(next(read_curves(np.zeros((4, 7, 3))))) == 4
    assert next(read_curves(np.zeros((7, 3)))).ids.tolist() == ["0"]


def test_frames(batch):
    assert_same_curves(read_curves(as_long(batch)), [batch])
    assert_same_curves(read_curves(as_nested(batch).to_pandas()), [batch])
    assert_same_curves(read_curves(as_nested(batch).to_pandas().set_index("id")), [batch])


def test_astropy_tables(batch):
    from astropy import units
    from astropy.table import MaskedColumn, Table
    from astropy.time import Time
    from astropy.timeseries import TimeSeries

    table = Table.from_pandas(as_long(batch))
    assert_same_curves(read_curves(table), [batch])

    series = TimeSeries(time=Time([58000.5, 58001.5], format="mjd"))
    series["mag"] = MaskedColumn([15.0, 16.0], mask=[False, True])
    series["err"] = [0.1, 0.2] * units.mag
    series.meta["OBJECT"] = "RR Lyr"
    read = next(read_curves(series))
    assert read.ids.tolist() == ["RR Lyr"]
    assert read.time.tolist() == [58000.5, 58001.5]
    np.testing.assert_allclose(read.mag, [15, np.nan])
    np.testing.assert_allclose(read.err, [0.1, 0.2], rtol=1e-6)


def test_lightkurve_like_objects():
    from astropy import units
    from astropy.time import Time

    flux = np.array([100.0, 0.0, 10.0, -5.0])
    curve = SimpleNamespace(
        time=Time(58000 + np.arange(4.0), format="mjd"),
        flux=flux * units.electron,
        flux_err=np.ones(4) * units.electron,
        meta={"LABEL": "TIC 1"},
    )
    with pytest.raises(UserError, match="zero_point"):
        list(read_curves(curve))
    batch = next(read_curves(curve, Columns(zero_point=20.0)))
    assert batch.ids.tolist() == ["TIC 1"]
    np.testing.assert_allclose(batch.mag, [15, np.inf, 17.5, np.inf])
    np.testing.assert_allclose(batch.err[[0, 2]], [0.010857362, 0.10857362], rtol=1e-6)
    assert clean(batch)[1]["points: flux not positive"] == 2
    other = SimpleNamespace(time=curve.time, flux=curve.flux, flux_err=curve.flux_err)
    read = gather(read_curves([curve, other], Columns(zero_point=20.0)))
    assert [name for name, _ in read] == ["TIC 1", "1"]


def test_fits_with_arrays_in_cells(tmp_path, batch):
    lists = as_nested(batch).to_pandas()
    columns = [fits.Column("id", "20A", array=batch.ids), fits.Column("band", "5A", array=batch.band)]
    columns += [fits.Column("label", "9A", array=batch.label)]
    for name, code in (("mjd", "PD()"), ("mag", "PE()"), ("err", "PE()")):
        columns.append(fits.Column(name, code, array=np.array(list(lists[name]), dtype=object)))
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    assert_same_curves(read_curves(tmp_path / "a.fits"), [batch])


def test_band_selects_and_lists_what_there_is(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(points, "BUFFER_POINTS", 20)
    as_long(batch).to_csv(tmp_path / "long.csv", index=False)
    nested = write_nested(batch, tmp_path / "nested.parquet")
    wanted = batch.select(batch.band == "I")
    for source in (tmp_path / "long.csv", nested, as_long(batch), batch, iter([batch])):
        assert_same_curves(read_curves(source, band="I"), [wanted])
    for source in (tmp_path / "long.csv", nested, batch):
        with pytest.raises(UserError, match=r"no light curve in band 'R'; bands found: I, V"):
            list(read_curves(source, band="R"))
    with pytest.raises(UserError, match=r"there is no band column; name it with --columns\.band"):
        list(read_curves(as_long(batch).drop(columns="band"), band="R"))
    with pytest.raises(UserError, match="arrays have no bands"):
        list(read_curves([np.zeros((5, 3))], band="R"))
