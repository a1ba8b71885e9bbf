"""Light curves under the names and in the forms that surveys give them."""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroco_fast.data.clean import clean
from astroco_fast.data.columns import Columns
from astroco_fast.data.sources import open_source
from astroco_fast.errors import UserError
from tests.data.curve_factory import gather, read_curves

fits = pytest.importorskip("astropy.io.fits")
N = 12
TIME = 2000.0 + np.arange(N)
FACTOR = 2.5 / np.log(10)


def only(source, **columns):
    """The only light curve of a source: (id, band), (label, time, mag, err)."""
    ((key, values),) = gather(read_curves(source, Columns(**columns))).items()
    return key, values


def gaia_rows():
    """Two stars in the raw structure of DR3, one of them not seen in RP."""
    names = ("time", "mag", "flux", "flux_error", "flux_over_error")
    prefixes = {"G": "g_transit_", "BP": "bp_", "RP": "rp_"}
    table = {"source_id": np.array([4295806720, 38655544960]), "n_transits": np.array([N, N], np.int16)}
    table["transit_id"] = [np.arange(N)] * 2
    for shift, (band, prefix) in enumerate(prefixes.items()):
        values = [TIME + shift, np.full(N, 15.0 + shift), np.full(N, 1e4), np.full(N, 100.0), np.full(N, 100.0)]
        for name, column in zip(names, values, strict=True):
            name = "obs_time" if name == "time" and band != "G" else name
            table[f"{prefix}{name}"] = [column, column if band != "RP" else column[:0]]
    return pa.table(table)


def test_gaia_a_row_a_star(tmp_path):
    pq.write_table(gaia_rows(), tmp_path / "raw.parquet")
    for source in (gaia_rows(), tmp_path / "raw.parquet"):
        found = {key: values for key, values in gather(read_curves(source)).items() if len(values[1])}
        stars = ("4295806720", "38655544960")
        assert {*found} == {(star, band) for star in stars for band in ("G", "BP", "RP")} - {(stars[1], "RP")}
        for shift, band in enumerate(("G", "BP", "RP")):
            _, time, mag, err = found[stars[0], band]
            np.testing.assert_array_equal(time, TIME + shift)
            np.testing.assert_array_equal(mag, 15 + shift)
            np.testing.assert_allclose(err, FACTOR / 100, rtol=1e-6)
        assert {band for _, band in gather(read_curves(source, band="BP"))} == {"BP"}
        flux = gather(read_curves(source, Columns(zero_point=25.0)))[stars[0], "G"]
        np.testing.assert_allclose(flux[2:], [np.full(N, 15.0), np.full(N, FACTOR / 100)], rtol=1e-6)
        one = Columns(time="bp_obs_time", mag="bp_mag", snr="bp_flux_over_error")
        assert {band for _, band in gather(read_curves(source, one))} == {""}


def test_gaia_a_row_a_point(tmp_path):
    rows = {
        "source_id": 4295806720,
        "transit_id": np.arange(N),
        "band": ["G"] * 6 + ["BP"] * 6,
        "time": TIME,
        "mag": 15.0,
        "flux": 1e4,
        "flux_error": 50.0,
        "flux_over_error": 200.0,
        "rejected_by_photometry": [False] * 5 + [True] + [False] * 6,
        "solution_id": 7,
    }
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    for source in (frame, tmp_path / "a.csv"):
        found = gather(read_curves(source))
        assert {key: len(values[1]) for key, values in found.items()} == {
            ("4295806720", "G"): 6,
            ("4295806720", "BP"): 6,
        }
        np.testing.assert_allclose(found["4295806720", "G"][3], FACTOR / 200, rtol=1e-6)
    (batch,) = read_curves(frame, Columns(quality="rejected_by_photometry"))
    dropped = clean(batch)[1]
    assert dropped["points: flagged by their survey"] == 1
    with pytest.raises(UserError, match="'rejected_by_photometry', row 1: not a number: 'false'"):
        list(read_curves(frame.assign(rejected_by_photometry="false"), Columns(quality="rejected_by_photometry")))


def test_ztf_and_snad():
    frame = pd.DataFrame({"oid": 680113300005170, "fid": 2, "filtercode": "zr", "hmjd": TIME, "mag": 15.0})
    key, values = only(frame.assign(magerr=0.02))
    assert key == ("680113300005170", "zr")
    np.testing.assert_array_equal(values[1], TIME)
    assert only(frame.assign(magerr=0.02).drop(columns="filtercode"))[0][1] == "2"
    rows = pa.table({"oid": [7], "filtercode": ["zg"], "hmjd": [TIME], "mag": [TIME], "magerr": [TIME]})
    assert only(rows)[0] == ("7", "zg")


SKY_PATROL = """HJD,UT Date,Camera,FWHM,Limit,mag,mag_err,flux(mJy),flux_err,Filter
2457007.1,2014-12-15.6,be,1.56,16.9,15.432,0.02,2.9,0.06,V
2457008.1,2014-12-16.6,be,1.56,16.9,>16.9,99.99,0.4,0.06,V
2457009.1,2014-12-17.6,be,1.56,16.9,15.5,0.02,2.9,0.06,V
2457010.1,2014-12-18.6,bf,1.56,16.9, >16.2 ,99.99,0.4,0.06,g
"""


def test_asas_sn(tmp_path):
    """Its upper limits are counted as such, and its file of one star bears the star's name."""
    (tmp_path / "ASASSN-V J0001.csv").write_text(SKY_PATROL)
    source = open_source(tmp_path / "ASASSN-V J0001.csv")
    (batch,) = source.batches()
    assert batch.ids.tolist() == ["ASASSN-V J0001"] * 2
    assert batch.band.tolist() == ["V", "g"]
    assert clean(batch)[1] == {
        "points: upper limits": 2,
        "curves: too few points": 2,
        "points: in curves that are too short": 2,
    }
    lists = pa.table({"id": ["a"], "jd": [TIME[:2]], "mag": [["<15.1", "14.9"]], "mag_err": [[0.1, 0.1]]})
    (batch,) = read_curves(lists)
    assert batch.mag.tolist() == [-np.inf, np.float32(14.9)]
    frame = pd.DataFrame({"asas_sn_id": 1, "jd": TIME, "mag": 15.0, "mag_err": 0.1, "phot_filter": "g", "camera": "ba"})
    assert only(frame)[0] == ("1", "g")
    (tmp_path / "ASASSN-V J0001.csv").write_text(SKY_PATROL.replace(">16.2", ">bright"))
    with pytest.raises(UserError, match="column 'mag', row 4: not a number: '>bright'"):
        list(read_curves(tmp_path))


def write_mission(path, telescope, **cards):
    """Write a light curve as the missions' pipelines do."""
    prefix = "SAP_" if telescope == "Kepler" else ""
    zero = {"Kepler": "BJD - 2454833", "TESS": "BJD - 2457000, days"}.get(telescope, "d")
    flux = np.linspace(990, 1010, N).astype(np.float32)
    flags = np.zeros(N, np.int32)
    flags[3] = 128
    columns = [
        fits.Column("TIME", "D", unit=zero, array=TIME),
        fits.Column("CADENCENO", "J", array=np.arange(N)),
        fits.Column("SAP_FLUX", "E", unit="e-/s", array=flux * 2),
        fits.Column("SAP_FLUX_ERR", "E", unit="e-/s", array=flux / 50),
        fits.Column("PDCSAP_FLUX", "E", unit="e-/s", array=flux),
        fits.Column("PDCSAP_FLUX_ERR", "E", unit="e-/s", array=flux / 100),
        fits.Column(f"{prefix}QUALITY", "J", array=flags),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="LIGHTCURVE")
    primary = fits.PrimaryHDU()
    for key, value in {"TELESCOP": telescope, **cards}.items():
        primary.header[key] = value
    fits.HDUList([primary, table]).writeto(path)
    return path


@pytest.mark.parametrize(
    ("telescope", "cards", "star"),
    [
        ("Kepler", {"OBJECT": "KIC 757076", "KEPLERID": 757076}, "KIC 757076"),
        ("Kepler", {"KEPLERID": 757076}, "757076"),
        ("TESS", {"OBJECT": "TIC 25155310", "TICID": 25155310}, "TIC 25155310"),
        ("TESS", {"TICID": 25155310}, "25155310"),
        ("TESS", {}, "lightcurve"),
    ],
)
def test_kepler_and_tess(telescope, cards, star, tmp_path):
    path = write_mission(tmp_path / "lightcurve.fits", telescope, **cards)
    with pytest.raises(UserError, match=r"give --columns\.zero_point to read the fluxes in 'PDCSAP_FLUX'"):
        open_source(path)
    (batch,) = read_curves(path, Columns(zero_point=20.44))
    assert batch.ids.tolist() == [star]
    kept, dropped = clean(batch)
    assert dropped == {"points: flagged by their survey": 1}
    flux = np.delete(np.linspace(990, 1010, N), 3)
    np.testing.assert_allclose(kept.mag, 20.44 - 2.5 * np.log10(flux), rtol=1e-6)
    np.testing.assert_allclose(kept.err, FACTOR / 100, rtol=1e-5)
    assert next(read_curves(path, Columns(zero_point=20.44, star="mine"))).ids.tolist() == ["mine"]
    sap = Columns(zero_point=20.44, flux="SAP_FLUX", flux_err="SAP_FLUX_ERR")
    np.testing.assert_allclose(np.delete(next(read_curves(path, sap)).mag, 3), kept.mag - 2.5 * np.log10(2), rtol=1e-6)


def test_flags_of_other_surveys_are_read_if_asked_for(tmp_path):
    path = write_mission(tmp_path / "a.fits", "other", OBJECT="x")
    assert not clean(next(read_curves(path, Columns(zero_point=20.0))))[1]
    assert clean(next(read_curves(path, Columns(zero_point=20.0, quality="QUALITY"))))[1] == {
        "points: flagged by their survey": 1
    }
    rows = pa.table({"id": ["a"], "mjd": [TIME], "mag": [TIME], "err": [TIME], "catflags": [[0] * (N - 1) + [4]]})
    batch = next(read_curves(rows, Columns(quality="catflags")))
    assert np.flatnonzero(np.isneginf(batch.err)).tolist() == [N - 1]
    with pytest.raises(UserError, match="'mjd' holds lists but 'flag' holds single values"):
        open_source(rows.append_column("flag", [[0]]), Columns(quality="flag"))


def test_lightkurve_collections():
    """Of objects that have the parts which lightkurve's have."""
    from astropy import units
    from astropy.time import Time
    from astropy.timeseries import TimeSeries

    def curve(label):
        series = TimeSeries(time=Time(TIME, format="mjd"))
        series["flux"] = np.full(N, 100.0) * units.electron / units.s
        series["flux_err"] = np.ones(N) * units.electron / units.s
        series["cadenceno"] = np.arange(N)
        series.meta["LABEL"] = label
        return series

    class LightCurveCollection:
        def __init__(self, data):
            self.data = data

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return self.data[index]

    columns = Columns(zero_point=20.0)
    for collection in (LightCurveCollection([curve("TIC 1"), curve("TIC 2")]), [curve("TIC 1"), curve("TIC 2")]):
        assert [name for name, _ in gather(read_curves(collection, columns))] == ["TIC 1", "TIC 2"]
    with pytest.raises(UserError, match="two are of a star 'TIC 1'"):
        list(read_curves(LightCurveCollection([curve("TIC 1"), curve("TIC 1")]), columns))


@pytest.mark.slow
def test_lightkurve():
    lightkurve = pytest.importorskip("lightkurve")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curves = [
            lightkurve.LightCurve(time=TIME, flux=np.full(N, 100.0), flux_err=np.ones(N), label=f"TIC {i}")
            for i in range(2)
        ]
        collection = lightkurve.LightCurveCollection(curves)
        found = gather(read_curves(collection, Columns(zero_point=20.0)))
    assert [name for name, _ in found] == ["TIC 0", "TIC 1"]
