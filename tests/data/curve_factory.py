"""Small light curves, and tables of them, for the tests of the data modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from astroco_fast.data.convert import convert
from astroco_fast.data.curves import CurveBatch, offsets_of
from astroco_fast.data.sources import open_source

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def make_batch(n=5, seed=0, lengths=None, first=0, bands=("V",)):
    """n light curves with sorted times and good magnitudes and errors; their ids are star-<number>."""
    rng = np.random.default_rng([seed, first])
    lengths = rng.integers(10, 40, n) if lengths is None else np.asarray(lengths)
    offsets = offsets_of(lengths)
    time = rng.uniform(50_000, 58_000, offsets[-1])
    curve = np.repeat(np.arange(n), lengths)
    return CurveBatch(
        ids=np.array([f"star-{first + i}" for i in range(n)], dtype=object),
        band=np.array([bands[i % len(bands)] for i in range(n)], dtype=object),
        label=np.array([("RRab", "EW", "")[i % 3] for i in range(n)], dtype=object),
        offsets=offsets,
        time=time[np.lexsort((time, curve))],
        mag=rng.normal(15, 1, len(time)).astype(np.float32),
        err=rng.uniform(0.01, 0.2, len(time)).astype(np.float32),
        source="test",
    )


def as_long(batch):
    """The batch as a table with one row a point."""
    star = np.repeat(np.arange(len(batch)), batch.lengths)
    return pd.DataFrame(
        {
            "id": batch.ids[star],
            "band": batch.band[star],
            "label": batch.label[star],
            "mjd": batch.time,
            "mag": batch.mag,
            "err": batch.err,
        }
    )


def as_nested(batch):
    """The batch as an Arrow table with one row a light curve, and list columns."""
    lists = {
        name: pa.ListArray.from_arrays(pa.array(batch.offsets, pa.int32()), pa.array(values))
        for name, values in (("mjd", batch.time), ("mag", batch.mag), ("err", batch.err))
    }
    return pa.table({"id": batch.ids, "band": batch.band, "label": batch.label, **lists})


def write_nested(batch, path, **options):
    pq.write_table(as_nested(batch), path, **options)
    return path


def read_curves(source, columns=None, band=None):
    """The light curves of a source, uncleaned."""
    yield from open_source(source, columns, band).batches()


def gather(batches):
    """The light curves of all batches, (id, band) -> (label, time, mag, err)."""
    found = {}
    for batch in batches:
        for i in range(len(batch)):
            points = slice(batch.offsets[i], batch.offsets[i + 1])
            key = (batch.ids[i], batch.band[i])
            assert key not in found
            found[key] = (batch.label[i], batch.time[points], batch.mag[points], batch.err[points])
    return found


def assert_same_curves(one, other, rtol=0.0):
    one, other = gather(one), gather(other)
    assert one.keys() == other.keys()
    for key, (label, *arrays) in one.items():
        assert label == other[key][0]
        for ours, theirs in zip(arrays, other[key][1:], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=0)


def sine_store(path):
    """Write a store of 70 sine waves of 12 to 70 points."""
    rng = np.random.default_rng(0)
    curves = []
    for _ in range(70):
        time = np.sort(rng.uniform(0, 300, int(rng.integers(12, 70))))
        mag = 15 + rng.uniform(0.1, 1) * np.sin(2 * np.pi * time / rng.uniform(1, 20)) + rng.normal(0, 0.05, len(time))
        curves.append(np.stack([time, mag, np.full(len(time), 0.05)], axis=1))
    convert(curves, path)
    return path


def shuffled(batch, seed=0):
    """The rows in random order, in which each curve's points stay sorted by time."""
    frame = as_long(batch).sample(frac=1, random_state=seed)
    return frame.sort_values("mjd", kind="stable").reset_index(drop=True)
