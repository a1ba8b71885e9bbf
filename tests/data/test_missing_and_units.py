"""Values that are masked or null, and columns that have units, in every kind of input that may hold them."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from astroco_fast import AstroCo
from astroco_fast.data.arrays import arrow_array
from astroco_fast.data.clean import CleanConfig, clean
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.sources import open_source
from astroco_fast.errors import UserError

pytest.importorskip("astropy")
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time, TimeDelta
from astropy.utils.masked import Masked

TIME = 58000 + 1.5 * np.arange(8.0)
MAG = 15 + 0.1 * np.arange(8.0)
ERR = 0.01 * np.arange(1.0, 9.0)
HIDDEN = np.arange(8) % 3 == 1
POINTS = {"mjd": TIME, "mag": MAG, "err": ERR}


def read(source, **columns):
    """The times, magnitudes and errors of a source with one light curve, cleaned."""
    (batch,) = open_source(source, Columns(**columns)).batches()
    batch, _ = clean(batch, CleanConfig(min_points=1))
    return np.stack([batch.time, batch.mag, batch.err])


def expected(keep=slice(None)):
    return np.stack([TIME, MAG.astype("f4"), ERR.astype("f4")])[:, keep]


def masked_columns(role):
    """Every way of saying that some values of a column are missing, with nonsense where they are."""
    values = np.where(HIDDEN, 50.0, POINTS[role])
    return {
        "numpy": Table({**POINTS, role: np.ma.array(values, mask=HIDDEN)}),
        "numpy, other byte order": Table({**POINTS, role: np.ma.array(values.astype(">f8"), mask=HIDDEN)}),
        "column": Table({**POINTS, role: MaskedColumn(values, mask=HIDDEN)}),
        "astropy's arrays": Table({**POINTS, role: Masked(values, mask=HIDDEN)}),
        "quantity": QTable({**POINTS, role: Masked(values * (u.d if role == "mjd" else u.mag), mask=HIDDEN)}),
        "pandas": pd.DataFrame({"id": "0", **POINTS, role: pd.arrays.FloatingArray(values, HIDDEN)}),
        "pandas text": pd.DataFrame({"id": "0", **POINTS, role: pd.Series(values).astype("string").mask(HIDDEN)}),
        "pandas sparse": pd.DataFrame(
            {"id": "0", **POINTS, role: pd.arrays.SparseArray(np.where(HIDDEN, np.nan, values))}
        ),
        "arrow": pa.table({"id": ["0"] * 8, **POINTS, role: pa.array(values, mask=HIDDEN)}),
        "arrow lists": pa.table(
            {"id": ["0"], **{k: [pa.array(v, mask=HIDDEN if k == role else None).to_pylist()] for k, v in
             {**POINTS, role: values}.items()}}
        ),
        "cells": Table(
            {k: np.array([np.ma.array(v, mask=HIDDEN if k == role else False), None], dtype=object)[:1]
             for k, v in {**POINTS, role: values}.items()}
        ),
        "2-d": Table({k: np.ma.array([v], mask=[HIDDEN if k == role else HIDDEN & False])
                      for k, v in {**POINTS, role: values}.items()}),
        "cells of a frame": pd.DataFrame(
            {"id": ["0"], **{k: [np.ma.array(v, mask=HIDDEN if k == role else False)] for k, v in
             {**POINTS, role: values}.items()}}
        ),
        "tensors in cells": pd.DataFrame(
            {"id": ["0"], **{k: [torch.tensor(np.where(HIDDEN & (k == role), np.nan, v), requires_grad=True)]
                             for k, v in POINTS.items()}}
        ),
        "(L, 3)": [np.ma.array([{**POINTS, role: values}[k] for k in POINTS],
                               mask=[HIDDEN if k == role else HIDDEN & False for k in POINTS]).T],
        "rows": [[np.ma.array(row, mask=[gone and k == role for k in POINTS]) for row, gone in
                  zip(np.stack([*{**POINTS, role: values}.values()], 1), HIDDEN, strict=True)]],
    }  # fmt: skip


@pytest.mark.parametrize("role", POINTS)
@pytest.mark.parametrize("form", masked_columns("mag"))
def test_masked_values_are_no_points(form, role):
    np.testing.assert_array_equal(read(masked_columns(role)[form]), expected(~HIDDEN))


def test_masked_arrays_of_a_batch():
    masked = {
        k: np.ma.array(v, mask=HIDDEN & (k == "mag"))
        for k, v in zip(["time", "mag", "err"], POINTS.values(), strict=True)
    }
    batch = CurveBatch(ids=["0"], band=[""], label=[""], offsets=[0, 8], **masked)
    np.testing.assert_array_equal(read(batch), expected(~HIDDEN))


def test_masked_text_is_missing():
    names = MaskedColumn(["a", "b"], mask=[False, True])
    table = Table({"id": ["s", "t"], "label": names, "mjd": [1.0, 2.0], "mag": [1.0, 2.0], "err": [0.1, 0.1]})
    (batch,) = open_source(table).batches()
    assert batch.label.tolist() == ["a", ""]
    with pytest.raises(UserError, match="column 'id', row 2: no value"):
        list(open_source(Table({**table, "id": names})).batches())


def fits_table(path, **columns):
    """Write a FITS file; a column is (format, values) or (format, values, null)."""
    made = [fits.Column("id", "1A", array=["s"] * 8)]
    for name, (code, values, *null) in {"mjd": ("D", TIME), "mag": ("D", MAG), "err": ("D", ERR), **columns}.items():
        made.append(fits.Column(name, code, array=values, **dict(zip(("null", "unit"), null, strict=False))))
    fits.BinTableHDU.from_columns(made).writeto(path)
    return path


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("kind", ["J", "K", "I", "B"])
def test_nulls_of_fits(kind, opened, tmp_path):
    days = np.where(HIDDEN, 99, np.arange(8))
    path = fits_table(tmp_path / "a.fits", mjd=(kind, days, 99))
    found = read(Table.read(path) if opened else path)
    np.testing.assert_array_equal(found[0], np.arange(8)[~HIDDEN])


def test_nulls_of_scaled_and_unsigned_fits_columns(tmp_path):
    days = np.where(HIDDEN, 99, np.arange(8)).astype(np.uint16)
    unsigned = fits.Column("mjd", "I", bzero=32768, array=days, null=99 - 32768)
    plain = [fits.Column(name, "D", array=values) for name, values in (("mag", MAG), ("err", ERR))]
    table = fits.BinTableHDU.from_columns([fits.Column("id", "1A", array=["s"] * 8), unsigned, *plain])
    table.writeto(tmp_path / "unsigned.fits")
    np.testing.assert_array_equal(read(tmp_path / "unsigned.fits")[0], np.arange(8)[~HIDDEN])
    scaled = fits.Column("mjd", "I", array=days.astype("i2"), null=99)
    table = fits.BinTableHDU.from_columns([scaled, fits.Column("id", "1A", array=["s"] * 8), *plain])
    table.header["TSCAL1"], table.header["TZERO1"] = 0.5, 10.0
    table.writeto(tmp_path / "scaled.fits")
    np.testing.assert_array_equal(read(tmp_path / "scaled.fits")[0], 10 + 0.5 * np.arange(8)[~HIDDEN])


def test_plain_columns_of_fits_are_not_converted(tmp_path, monkeypatch):
    """Astropy's conversion of some rows takes time in proportion to all columns, a third of a second for 400."""
    path = fits_table(tmp_path / "a.fits", mjd=("J", np.arange(8), 3))
    monkeypatch.setattr("astropy.io.fits.FITS_rec.__getitem__", lambda *args: pytest.fail("converted"))
    np.testing.assert_array_equal(read(path)[0], np.delete(np.arange(8), 3))


def test_nulls_of_fits_arrays(tmp_path):
    lists = np.empty(2, dtype=object)
    lists[:] = [np.array([1, 2, 99], "i4"), np.array([4], "i4")]
    columns = [fits.Column("id", "1A", array=["s", "t"]), fits.Column("mjd", "PJ()", array=lists, null=99)]
    columns += [fits.Column(name, "PD()", array=np.array([v[:3], v[:1]], dtype=object)) for name, v in POINTS.items()][
        1:
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    (batch,) = open_source(tmp_path / "a.fits").batches()
    np.testing.assert_array_equal(batch.time, [1, 2, np.nan, 4])


def test_blank_numbers_of_ascii_fits(tmp_path):
    columns = [fits.Column("id", "A1", array=["s"] * 4), fits.Column("mjd", "I5", array=[1, 2, 99, 4], null="99")]
    columns += [fits.Column(name, "F8.3", array=v[:4]) for name, v in POINTS.items() if name != "mjd"]
    fits.TableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    assert read(tmp_path / "a.fits")[0].tolist() == [1, 2, 4]
    content = (tmp_path / "a.fits").read_bytes()
    at = content.index(b"15.100")
    (tmp_path / "b.fits").write_bytes(content[:at] + b"      " + content[at + 6 :])
    assert read(tmp_path / "b.fits")[0].tolist() == [1, 4]


UNITS = {
    "time": [
        (24.0, ["h", "hr", "hours", "Hours"]),
        (1440.0, ["min", "minutes"]),
        (86400.0, ["s", "sec", "seconds"]),
        (8.64e7, ["ms"]),
        (1 / 365.25, ["yr", "years", "a"]),
        (1.0, ["d", "day", "Days", "MJD", "HJD", "JD", "BJD - 2457000, days", "BJD - 2454833", "Modified Julian Date"]),
    ],
    "mag": [(1e3, ["mmag", "millimag"]), (1.0, ["mag", "Mag", "magnitudes", "mag(AB)"]), (1e6, ["umag"])],
}
CONVERTED = [(role, n, unit) for role, found in UNITS.items() for n, names in found for unit in names]


def sources_with_units(folder, units, values):
    """A table whose columns have units, in every form that can state them."""
    folder.mkdir(exist_ok=True)
    schema = pa.schema([pa.field("id", pa.string())] + [
        pa.field(k, pa.float64(), metadata={"unit": units[k]} if k in units else None) for k in values
    ])  # fmt: skip
    arrow = pa.table({"id": ["s"] * 8, **values}, schema=schema)
    pq.write_table(arrow, folder / "a.parquet")
    nested = pa.table([["s"], *[[v.tolist()] for v in values.values()]], schema=pa.schema(
        [f if f.name == "id" else pa.field(f.name, pa.list_(pa.float64()), metadata=f.metadata) for f in schema]
    ))  # fmt: skip
    frame = pd.DataFrame({"id": "s", **values})
    frame.attrs["units"] = units
    frame.to_parquet(folder / "pandas.parquet")
    table = Table({"id": ["s"] * 8, **values})
    for name, unit in units.items():
        table[name].unit = u.Unit(unit, parse_strict="silent")
    field = "<FIELD name='{}' unit='{}'/>"
    votable = "<V xmlns='ivo'>" + "".join(field.format(*of) for of in units.items()) + "</V>"
    plain = pa.schema([f.remove_metadata() for f in schema], {"IVOA.VOTable-Parquet.content": votable})
    pq.write_table(arrow.cast(plain).replace_schema_metadata(plain.metadata), folder / "votable.parquet")
    null = dict.fromkeys(values, None)
    return {
        "votable's parquet": folder / "votable.parquet",
        "arrow": arrow,
        "nested": nested,
        "nested, the lists' values": nested.cast(
            pa.schema(
                [
                    f
                    if f.name == "id"
                    else pa.field(f.name, pa.list_(pa.field("item", pa.float64(), metadata=f.metadata)))
                    for f in nested.schema
                ]
            )
        ),
        "parquet": folder / "a.parquet",
        "frame": frame,
        "frame's parquet": folder / "pandas.parquet",
        "astropy": table,
        "fits": fits_table(folder / "a.fits", **{k: ("D", v, null[k], units.get(k)) for k, v in values.items()}),
    }


def test_known_units_are_converted(tmp_path):
    values = {"mjd": TIME * 24, "mag": MAG * 1e3, "err": ERR * 1e3}
    units = {"mjd": "h", "mag": "mmag", "err": "mmag"}
    for form, source in sources_with_units(tmp_path, units, values).items():
        np.testing.assert_allclose(read(source), expected(), rtol=3e-7, err_msg=form)
        assert [note.split(": ")[1] for note in open_source(source).notes] == [
            f"{role!r} is in {unit!r} and was converted" for role, unit in units.items()
        ], form
    for source in sources_with_units(tmp_path / "no", dict.fromkeys(POINTS, ""), POINTS).values():
        np.testing.assert_array_equal(read(source), expected())
        assert not open_source(source).notes


@pytest.mark.parametrize(("role", "factor", "unit"), CONVERTED, ids=[unit for *_, unit in CONVERTED])
def test_spellings_of_units(role, factor, unit):
    names = ["mjd"] if role == "time" else ["mag", "err"]
    fields = [pa.field(k, pa.float64(), metadata={"unit": unit} if k in names else None) for k in POINTS]
    values = [pa.array(v * factor if k in names else v) for k, v in POINTS.items()]
    table = pa.Table.from_arrays(
        [pa.array(["s"] * 8), *values], schema=pa.schema([pa.field("id", pa.string()), *fields])
    )
    np.testing.assert_allclose(read(table), expected(), rtol=3e-7)


@pytest.mark.parametrize(
    ("role", "unit", "way"),
    [("mjd", "mag", "days"), ("mjd", "fortnights", "days"), ("mjd", "1 / d", "days"), ("mag", "Jy", "magnitudes"),
     ("mag", "dex", "magnitudes"), ("err", "%", "magnitudes"), ("err", "furlong2", "magnitudes")],
)  # fmt: skip
def test_other_units_are_refused(role, unit, way, tmp_path):
    flag = "time" if role == "mjd" else role
    for form, source in sources_with_units(tmp_path, {role: unit}, POINTS).items():
        with pytest.raises(UserError) as error:
            read(source)
        said = str(error.value)
        for words in (f"column '{role}' has the unit", unit, f"to {way};", f"--columns.{flag}"):
            assert words in said, form
        assert "\n" not in said, form


@pytest.mark.parametrize(
    ("flux_unit", "err_unit", "factor"),
    [("nJy", "nJy", 1), ("Jy", "uJy", 1e6), ("nJy", "uJy", 1e-3), ("mJy", "microjansky", 1e3), ("counts", "counts", 1),
     ("erg / (s cm2 Hz)", "Jy", 1e23), ("nmgy", "nanomaggies", 1), ("Jy", None, 1), (None, "Jy", 1)],
)  # fmt: skip
def test_flux_errors_are_brought_to_the_flux_s_unit(flux_unit, err_unit, factor, tmp_path):
    values = {"mjd": TIME, "flux": np.arange(10.0, 18.0), "flux_err": np.full(8, 0.1) * factor}
    units = {k: v for k, v in (("flux", flux_unit), ("flux_err", err_unit)) if v}
    found = [read(s, zero_point=20.0) for s in sources_with_units(tmp_path, units, values).values()]
    wanted = [TIME, 20 - 2.5 * np.log10(values["flux"]), 2.5 / np.log(10) * 0.1 / values["flux"]]
    np.testing.assert_allclose(found, [wanted] * len(found), rtol=1e-6)


@pytest.mark.parametrize(("flux_unit", "err_unit"), [("mag", "mag"), ("mag(AB)", "mag"), ("Jy", "mag"), ("e-/s", "Jy")])
def test_units_that_are_not_fluxes_are_refused(flux_unit, err_unit, tmp_path):
    values = {"mjd": TIME, "flux": np.arange(10.0, 18.0), "flux_err": np.full(8, 0.1)}
    for source in sources_with_units(tmp_path, {"flux": flux_unit, "flux_err": err_unit}, values).values():
        with pytest.raises(UserError, match=r"column 'flux.*' has the unit"):
            read(source, zero_point=20.0)


@pytest.mark.parametrize(("unit", "zero"), [("nJy", 31.4), ("uJy", 23.9), ("Jy", 8.9), ("erg / (s cm2 Hz)", -48.6)])
def test_fluxes_of_known_units_become_ab_magnitudes(unit, zero, tmp_path):
    values = {"mjd": TIME, "flux": np.arange(10.0, 18.0), "flux_err": np.full(8, 0.1)}
    wanted = [TIME, zero - 2.5 * np.log10(values["flux"]), 2.5 / np.log(10) * 0.1 / values["flux"]]
    forms = sources_with_units(tmp_path, {"flux": unit}, values)
    for source in (forms[form] for form in forms if form != "fits"):  # which has magnitudes, too
        opened = open_source(source)
        (batch,) = opened.batches()
        np.testing.assert_allclose([batch.time, batch.mag, batch.err], wanted, rtol=1e-4)
        assert "became AB magnitudes" in "".join(opened.notes)
        np.testing.assert_allclose(read(source, zero_point=20.0)[1] - batch.mag, 20 - zero, atol=1e-3)


@pytest.mark.parametrize("unit", ["electron / s", "count", "nmgy", "mag"])
def test_other_fluxes_need_a_zero_point(unit, tmp_path):
    values = {"mjd": TIME, "flux": np.arange(10.0, 18.0), "flux_err": np.full(8, 0.1)}
    forms = sources_with_units(tmp_path, {"flux": unit}, values)
    for source in (forms[form] for form in forms if form != "fits"):
        with pytest.raises(UserError, match=r"give --columns\.zero_point to read the fluxes"):
            open_source(source)


def test_objects_of_astropy_with_units():
    plain = {"mag": MAG * 1e3 * u.mmag, "err": ERR * u.mag}
    days = TIME - 58000
    for times, zero in (
        ((days * 24) * u.hour, 58000),
        (Masked(days * 1440 * u.min, mask=False), 58000),
        (Time(TIME, format="mjd"), 0),
        (Time(TIME + 2400000.5, format="jd"), 0),
        (TimeDelta(days * 86400, format="sec"), 58000),
        (TimeDelta(days * u.d), 58000),
    ):
        found = read(QTable({"time": times, **plain}))
        np.testing.assert_allclose(found[0] + zero, TIME, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found[1:], expected()[1:], rtol=1e-6)
    masked = Time(np.ma.array(TIME, mask=HIDDEN), format="mjd")
    np.testing.assert_allclose(read(QTable({"time": masked, **plain})), expected(~HIDDEN), rtol=1e-6)
    magnitudes = QTable({"time": Time(TIME, format="mjd"), "mag": MAG * u.ABmag, "err": ERR * u.mag})
    np.testing.assert_allclose(read(magnitudes), expected(), rtol=1e-6)


def test_masked_columns_in_parquet_of_astropy(tmp_path):
    table = QTable({"id": ["s"] * 8, **POINTS, "mag": MaskedColumn(np.where(HIDDEN, 50, MAG * 1e3), mask=HIDDEN)})
    table["mag"].unit = u.mmag
    table["mjd"] = (TIME - 58000) * 24 * u.hour
    table.write(tmp_path / "a.parquet")
    for source in (tmp_path / "a.parquet", pq.read_table(tmp_path / "a.parquet")):
        np.testing.assert_allclose(read(source) + np.array([[58000], [0], [0]]), expected(~HIDDEN), rtol=1e-6)


def test_arrays_with_units_are_refused():
    with pytest.raises(UserError, match=r"light curve '0' is not an array of numbers: it has the unit 'h'"):
        read([np.stack([*POINTS.values()], 1) * u.hour])
    lists = pd.DataFrame({"id": ["s"], "mjd": [TIME * u.hour], "mag": [MAG], "err": [ERR]})
    with pytest.raises(UserError, match="cells with the unit 'h'"):
        read(lists)


def test_columns_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(UserError, match=r"Table: column 'mag' cannot be read: .*2 dimensions a row"):
        read(Table({**POINTS, "mag": np.zeros((8, 2, 2))}))
    images = fits_table(tmp_path / "a.fits", image=("4E", np.zeros((8, 4))), wave=("C", np.zeros(8, complex)))
    np.testing.assert_array_equal(read(images), expected())
    with pytest.raises(UserError, match=r"a\.fits: column 'wave' cannot be read"):
        read(images, mag="wave")


def test_one_array_is_one_light_curve():
    torch.manual_seed(0)
    model = AstroCo.from_preset("tiny")
    curve = np.stack([*POINTS.values()], 1)
    wanted = model.embed([curve])
    assert wanted.shape == (1, 64)
    tensor = torch.tensor(curve, requires_grad=True)
    objects = np.empty(1, dtype=object)
    objects[0] = curve
    for source in (curve, tensor, [tensor], np.ma.array(curve), curve[None], tensor[None], (curve,), objects):
        np.testing.assert_array_equal(model.embed(source), wanted)
    assert model.embed(torch.stack([tensor, tensor])).shape == (2, 64)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(3), r"shape \(3,\) holds no light curves; give it the shape \(L, 3\)"),
        (torch.zeros(2, 2, 5, 3), r"shape \(2, 2, 5, 3\) holds no light curves"),
        (np.array(3.0), r"shape \(\) holds no light curves"),
        (np.zeros(3, dtype=[("mjd", "f8"), ("mag", "f8")]), "ndarray: no error column"),
        (np.zeros((5, 3), complex), "its numbers are complex"),
        ([torch.zeros(5, 3, dtype=torch.complex64)], "its numbers are complex"),
        ([torch.zeros(5, 3).to_sparse()], "not an array of numbers: .*to_dense"),
        (torch.zeros(5, 3, device="meta"), "not an array of numbers: .*meta"),
        (pd.Series([1.0]), "iterable of float"),
    ],
    ids=range(9),
)
def test_arrays_of_other_forms(source, message):
    with pytest.raises(UserError, match=message):
        list(open_source(source).batches())


def test_ids_of_frames():
    lists = {"mjd": [TIME, TIME], "mag": [MAG, MAG], "err": [ERR, ERR]}
    for index, ids in (
        (pd.RangeIndex(2, name="id"), ["0", "1"]),
        (pd.RangeIndex(5, 7, name="id"), ["5", "6"]),
        (pd.Index(["a", "b"], name="id"), ["a", "b"]),
        (pd.MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["id", "band"]), ["1", "2"]),
    ):
        (batch,) = open_source(pd.DataFrame(lists, index=index)).batches()
        assert batch.ids.tolist() == ids
    frame = pd.DataFrame({"id": ["x", "y"], **lists}, index=pd.RangeIndex(2, name="id"))
    assert next(open_source(frame).batches()).ids.tolist() == ["x", "y"]


def test_ids_that_are_decimals():
    from decimal import Decimal

    names = ["1.0000", "2.5000", "0.0000", "-3.0100", "9007199254740993.0000"]
    kinds = [pa.decimal128(30, 4), pa.decimal256(60, 30)]
    for kind in kinds:
        ids = pa.array([Decimal(name) for name in names], kind)
        table = pa.table({"id": ids, "mjd": TIME[:5], "mag": MAG[:5], "err": pa.array([Decimal("0.1")] * 5)})
        (batch,) = open_source(table).batches()
        assert batch.ids.tolist() == ["1", "2.5", "0", "-3.01", "9007199254740993"]
        assert batch.err[0] == np.float32(0.1)


def test_tables_that_are_not_in_memory():
    class Lazy:
        columns = ("id", "mjd", "mag", "err")

        def compute(self): ...

        def to_parquet(self): ...

    with pytest.raises(UserError, match=r"Lazy: the table is not in memory; call its \.compute\(\)"):
        open_source(Lazy())


def test_tables_of_other_libraries():
    class Frame:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table({"id": ["s"] * 8, **POINTS}).__arrow_c_stream__(requested_schema)

    np.testing.assert_array_equal(read(Frame()), expected())


def test_arrow_arrays_of_columns():
    assert arrow_array(np.array([[1, 2], [3, 4]], dtype=">i2")).to_pylist() == [[1, 2], [3, 4]]
    assert arrow_array(np.ma.array([b"a", b"b"], mask=[0, 1])).to_pylist() == ["a", None]
    assert arrow_array(np.array([np.arange(2), None, np.arange(0)], dtype=object)).to_pylist() == [[0, 1], None, []]
    assert arrow_array(np.array(["a", np.ma.masked, None], dtype=object)).to_pylist() == ["a", None, None]
