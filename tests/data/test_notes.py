"""Notes on inputs that can be read, but perhaps not as the user thinks."""

import numpy as np
import pandas as pd
import pytest

from astroco_fast.data.columns import Columns
from astroco_fast.data.convert import convert
from astroco_fast.data.notes import Notes
from astroco_fast.data.sources import open_source
from astroco_fast.errors import UserError
from tests.data.curve_factory import as_long, as_nested, make_batch

fits = pytest.importorskip("astropy.io.fits")


@pytest.fixture
def frame():
    return as_long(make_batch(6, bands=("V", "I")))


def notes_on(source, columns=None):
    opened = open_source(source, columns)
    for _ in opened.batches():
        pass
    return list(opened.notes)


def test_a_remark_is_told_once_without_control_characters():
    notes, other = Notes(), Notes()
    assert not notes
    for table in ("a", "b", "a"):
        notes.add(table, "odd")
    other.add("c", "odd")
    other.add("c\x1b[31m", "even")
    notes.update(other)
    assert list(notes) == ["a and 2 more: odd", "c?[31m: even"]


def test_ordinary_tables_have_no_notes(frame):
    assert not notes_on(frame)
    assert not notes_on(frame.drop(columns="band"))
    assert not notes_on(as_nested(make_batch(3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_times_of_single_precision(frame, tmp_path, dtype):
    frame["mjd"] = (frame["mjd"] - 50_000).astype(dtype)
    if dtype == np.float32:
        for name in ("a", "b"):
            frame.to_parquet(tmp_path / f"{name}.parquet")
        (note,) = notes_on(tmp_path)
        assert note.startswith(f"{tmp_path / 'a.parquet'} and 1 more: times in 'mjd' are single precision")
        assert "a JD of 2458000 to 6 hours" in note
    else:
        assert "single precision" in notes_on(frame)[0]


def test_columns_that_might_be_bands(frame, tmp_path):
    frame["colour_of_light"] = frame.pop("band")
    (note,) = notes_on(frame)
    assert "no band column is known: all points of an id are one light curve" in note
    assert "'colour_of_light'" in note
    assert not notes_on(frame, Columns(band="colour_of_light"))
    assert "'n'" in notes_on(frame.rename(columns={"colour_of_light": "n"}).assign(catflags=0))[0]
    frame = frame.drop(columns="colour_of_light").assign(ra=1.5, catflags=0)
    assert not notes_on(frame)
    frame[::2].to_csv(tmp_path / "a.csv")  # with the frame's index
    frame[::2].to_parquet(tmp_path / "b.parquet")
    assert not [*notes_on(tmp_path / "a.csv"), *notes_on(tmp_path / "b.parquet")]


def test_lists_that_might_be_bands():
    table = as_nested(make_batch(2, lengths=[2, 2])).to_pandas().drop(columns="band")
    assert not notes_on(table.assign(camera="x"))  # one a light curve, of which an id has one
    assert "'camera'" in notes_on(table.assign(camera=[["g", "r"], ["g", "r"]]))[0]


def test_a_fits_file_of_several_tables(frame, tmp_path):
    from astropy.table import Table

    table = fits.BinTableHDU(Table.from_pandas(frame))
    fits.HDUList([fits.PrimaryHDU(), table, table]).writeto(tmp_path / "a.fits")
    assert "only the first of its 2 tables is read" in notes_on(tmp_path / "a.fits")[0]
    other = fits.BinTableHDU(Table({"x": [1.0]}))
    fits.HDUList([fits.PrimaryHDU(), other, table]).writeto(tmp_path / "b.fits")
    with pytest.raises(UserError, match=r"no time column; found: x; .*only the first of its 2 tables"):
        open_source(tmp_path / "b.fits")


@pytest.mark.parametrize("star_a_row", [False, True])
def test_metadata_that_match_in_part_or_not_at_all(tmp_path, star_a_row):
    batch = make_batch(4)
    frame = as_nested(batch).to_pandas() if star_a_row else as_long(batch)
    frame.drop(columns="label").to_parquet(tmp_path / "part.parquet")
    metadata = pd.DataFrame({"id": batch.ids, "Class": "EW"})
    metadata.to_parquet(tmp_path / "metadata.parquet")
    assert not notes_on(tmp_path)
    metadata[:2].to_parquet(tmp_path / "metadata.parquet")
    (note,) = notes_on(tmp_path)
    assert "some stars are not in metadata.parquet, such as 'star-2'" in note
    assert convert(tmp_path, tmp_path.with_suffix(".store")).notes == [note]
    metadata.assign(id=[f"0{i}" for i in range(4)]).to_parquet(tmp_path / "metadata.parquet")
    with pytest.raises(UserError, match=r"metadata\.parquet: none of its stars has a light curve.*'star-0'"):
        notes_on(tmp_path)


def test_arrays_of_single_precision():
    torch = pytest.importorskip("torch")
    array = np.array([[58000.0, 15, 0.1], [58001.0, 15, 0.1]])
    for single in (array.astype(np.float32), torch.tensor(array, dtype=torch.float32, requires_grad=True)):
        assert "times are single precision" in notes_on([array, single])[0]
        assert not notes_on([single - 58000])
    assert not notes_on([array, np.empty((0, 3), np.float32), array.tolist()])


def test_stars_in_several_tables_without_bands(tmp_path):
    batch = make_batch(4)
    for name, some in (("g", batch), ("r", batch), ("late", make_batch(4, first=10))):
        as_long(some).drop(columns="band").to_csv(tmp_path / f"{name}.csv", index=False)
    assert not notes_on([tmp_path / "g.csv", tmp_path / "late.csv"])
    (note,) = notes_on(tmp_path)
    assert "no band is known, and stars, such as 'star-" in note
    frame = as_long(batch)
    assert not notes_on([frame.assign(band="g"), frame.assign(band="r")])
    assert "have points in several tables" in notes_on([frame.drop(columns="band")] * 2)[0]
