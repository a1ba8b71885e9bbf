"""Progress bars know how much there is where the input tells it, and end at all of it."""

import io
import re
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from tqdm import tqdm

from astroco_fast.data import extent as extent_module
from astroco_fast.data import points, sources
from astroco_fast.data.convert import convert
from astroco_fast.data.extent import Extent, progress_bar
from astroco_fast.data.sources import open_source
from tests.data.curve_factory import as_long, as_nested, make_batch


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(extent_module, "tqdm", partial(tqdm, file=screen, mininterval=0, miniters=1))
    return screen


@pytest.fixture
def batch():
    return make_batch(30, bands=("V", "I"))


@pytest.mark.parametrize("band", [None, "V"])
@pytest.mark.parametrize("kind", ["nested", "points", "files", "csv", "store"])
def test_all_is_read_in_the_end(kind, band, batch, tmp_path, monkeypatch, terminal):
    path = tmp_path / ("a.csv" if kind == "csv" else "a.parquet")
    total, unit = batch.n_points, " points"
    if kind in ("nested", "store"):
        pq.write_table(as_nested(batch), path, row_group_size=7)
        monkeypatch.setattr(sources, "BATCH_POINTS", batch.n_points // 4)
        total, unit = len(batch), " curves"
    elif kind == "csv":
        as_long(batch).to_csv(path, index=False)
    else:
        as_long(batch).to_parquet(path)
    if kind == "files":
        monkeypatch.setattr(points, "BUFFER_POINTS", 50)
        monkeypatch.setattr(points, "PARTITION_POINTS", batch.n_points // 4)
    if kind == "store":
        convert(path, tmp_path / "store")
        path = tmp_path / "store"
    source = open_source(path, band=band)
    known = kind in ("nested", "store") or (band is None and kind != "csv")
    assert source.extent == Extent(unit, total if known else None)
    done = []
    with progress_bar(source.extent, "test", True) as advance:
        for some in source.batches():
            done.append(source.extent.done)
            advance(some)
    assert done == sorted(done)
    assert done[0] == 0
    if unit == " points" and band is not None:
        total = int(batch.lengths[batch.band == band].sum())
    assert (source.extent.done, source.extent.total) == (total, total)
    last = re.split("[\r\n]", terminal.getvalue().strip())[-1]
    assert f"{total}/{total}" in last.replace(".0", "") or "100%" in last
    # A run that goes on begins where the first ended.
    spill = tmp_path / "spill"
    spill.mkdir()
    again = open_source(path, band=band)
    list(again.batches(spill=spill))
    for skip in range(1, len(done)):
        again = open_source(path, band=band)
        next(again.batches(skip, spill))
        assert again.extent.done == done[skip]


def test_a_bar_never_goes_back_or_beyond(terminal):
    extent = Extent(total=10)
    batch = make_batch(6, bands=("",))
    with progress_bar(extent, "test", True) as advance:
        advance(batch)
        extent.done = 3  # fewer than were shown: rows that held several light curves
        advance(batch)
        extent.done = 10
    shown = [int(n) for n in re.findall(r"(\d+)(?:\.0)?/10", terminal.getvalue())]
    assert shown == sorted(shown)
    assert shown[-1] == 10


def test_nothing_is_shown_where_it_is_not_wanted(terminal):
    with progress_bar(Extent(total=2), "test", False) as advance:
        advance(make_batch(2))
    assert terminal.getvalue() == ""


def test_arrays_are_counted():
    source = open_source([np.ones((4, 3)) * np.arange(1, 5)[:, None]] * 3)
    assert source.extent == Extent(total=None)
    list(source.batches())
    assert source.extent.done == 3
