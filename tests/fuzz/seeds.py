"""Valid files of every kind that the package reads, each a few kB, made anew by the package or by the file's library.

Each function returns contents of files, by name where several lie in one folder.
"""

import contextlib
import csv
import functools
import gzip
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from astroco_fast import embedding_formats, registry
from astroco_fast.checksums import write_manifest
from astroco_fast.classify.classifier import Classifier
from astroco_fast.data import points, writer
from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.convert import convert
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periods import Periods
from astroco_fast.data.store import Store
from astroco_fast.pretrain.checkpoint import STATE, State
from astroco_fast.pretrain.config import PretrainConfig
from astroco_fast.probe.embeddings import Embeddings
from astroco_fast.probe.splits import Split, write_splits
from tests.data.curve_factory import as_long, as_nested, make_batch

Files = dict[str, bytes]
SMALL_MODEL = {"width": 8, "heads": 2, "layers": 1, "window": 12}
DIGEST = "0" * 64


def curves() -> CurveBatch:
    return make_batch(4, lengths=[6, 5, 4, 7], bands=("V", "I"))


def made(make: Callable[[Path], Any]) -> Files:
    """The files that `make` writes to an empty folder, by their names relative to it."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        return content(Path(name))


def content(folder: Path) -> Files:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def csv_files() -> list[bytes]:
    frame = as_long(curves())
    names = {"id": "objectid", "mjd": "HMJD", "err": "magerr", "label": "Class"}
    other = frame.rename(columns=names)
    other.loc[3, "mag"] = np.nan
    quoted = frame.to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    few = frame[["id", "mjd", "mag", "err"]].head(9).to_csv(index=False).replace(",", ", ")
    return [frame.to_csv(index=False).encode(), other.to_csv(index=False).encode(), quoted.encode(), few.encode()]


def tsv_files() -> list[bytes]:
    return [as_long(curves()).to_csv(index=False, sep="\t").encode()]


def csv_gz_files() -> list[bytes]:
    return [gzip.compress(content, mtime=0) for content in csv_files()[:1]]


def parquet(table: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def parquet_files() -> list[bytes]:
    long, nested = pa.Table.from_pandas(as_long(curves())), as_nested(curves())
    lists = [nested[name].combine_chunks() for name in ("mjd", "mag", "err")]
    structs = pa.StructArray.from_arrays([values.values for values in lists], ["mjd", "mag", "err"])
    lightcurve = pa.ListArray.from_arrays(lists[0].offsets, structs)
    hats = pa.table({"objectid": pa.array([7, 8, 9, 2**60]), "lightcurve": lightcurve})
    words = long.set_column(0, "id", long["id"].dictionary_encode())
    return [
        parquet(long, compression="none"),
        parquet(words, row_group_size=7, write_page_checksum=True),
        parquet(nested, compression="zstd"),
        parquet(nested, compression="none", row_group_size=1, use_dictionary=False, data_page_version="2.0"),
        parquet(hats, compression="none"),
    ]


def arrow(table: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as file:
        file.write_table(table, max_chunksize=7)
    return sink.getvalue()


def arrow_files() -> list[bytes]:
    long, nested = pa.Table.from_pandas(as_long(curves())), as_nested(curves())
    words = long.set_column(0, "id", long["id"].dictionary_encode())
    return [arrow(long), arrow(words), arrow(nested), arrow(nested, compression="lz4")]


def json_files() -> list[bytes]:
    tables = (as_long(curves()), as_nested(curves()).to_pandas())
    return [table.to_json(orient="records", lines=True).encode() for table in tables]


def astropy_files(kind: str) -> list[bytes]:
    """The light curves in a text format of astropy, with units and a masked value."""
    from astropy.table import Table

    table = Table.from_pandas(as_long(curves()), units={"mjd": "d", "mag": "mag"})
    table = Table(table, masked=True)
    table["mag"].mask[3] = True
    sink = io.BytesIO() if kind == "votable" else io.StringIO()
    table.write(sink, format=kind)
    text = sink.getvalue()
    return [text if isinstance(text, bytes) else text.encode()]


def dat_files() -> list[bytes]:
    batch = curves()
    rows = zip(batch.time, batch.mag, batch.err, strict=True)
    return ["".join(f" {t:.5f}  {m:.3f} {e:.3f}\n" for t, m, e in rows).encode(), b"# HJD I err\n1 2 0.1\n3 nan 0.1\n"]


def fits_files() -> list[bytes]:
    from astropy.io import fits
    from astropy.table import MaskedColumn, Table

    long = Table.from_pandas(as_long(curves()))
    long["mjd"].unit = "d"
    long["mag"] = MaskedColumn(long["mag"], mask=np.arange(len(long)) % 5 == 0)
    batch = curves()
    cells = {
        name: np.array(
            [values[a:b].astype(float) for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)],
            dtype=object,
        )
        for name, values in (("mjd", batch.time), ("mag", batch.mag), ("err", batch.err))
    }
    nested = fits.BinTableHDU.from_columns(
        [
            fits.Column("id", "K", array=np.arange(len(batch)), null=-99),
            *(fits.Column(name, "PD()", array=values) for name, values in cells.items()),
        ]
    )
    text = fits.TableHDU.from_columns(
        [
            fits.Column("id", "A8", array=batch.ids.astype("S8")),
            *(fits.Column(n, "E15.7", array=batch.mag[:4]) for n in cells),
        ]
    )
    sinks = [io.BytesIO() for _ in range(3)]
    long.write(sinks[0], format="fits")
    nested.writeto(sinks[1])
    text.writeto(sinks[2])
    return [sink.getvalue() for sink in sinks]


def varint(number: int) -> bytes:
    """A whole number as protocol buffers write it."""
    groups = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes(group | 128 for group in groups[:-1]) + bytes(groups[-1:])


def message(*fields: tuple[int, bytes | int]) -> bytes:
    """A protocol buffer of these fields (number, value)."""
    parts = []
    for number, value in fields:
        whole = isinstance(value, int)
        parts.append(varint(number << 3 | (0 if whole else 2)))
        parts.append(varint(value) if isinstance(value, int) else varint(len(value)) + value)
    return b"".join(parts)


def feature(value: Any) -> bytes:
    """A `tf.train.Feature` of text, of a whole number, or of floats."""
    if isinstance(value, str):
        return message((1, message((1, value.encode()))))
    if isinstance(value, int):
        return message((3, message((1, value % (1 << 64)))))
    return message((2, message((1, np.asarray(value, "<f4").tobytes()))))


def record(context: dict[str, Any], lists: dict[str, Any]) -> bytes:
    """A `tf.train.SequenceExample`."""
    one = [(1, message((1, name.encode()), (2, feature(value)))) for name, value in context.items()]
    many = [(1, message((1, name.encode()), (2, message((1, feature(v)))))) for name, v in lists.items()]
    return message((1, message(*one)), (2, message(*many)))


def framed(records: list[bytes]) -> bytes:
    """A TFRecord file."""
    return b"".join(struct.pack("<QI", len(data), 0) + data + bytes(4) for data in records)


def tfrecord_files() -> list[bytes]:
    batch = curves()
    points = [slice(a, b) for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    old, new = [], []
    for i, part in enumerate(points):
        values = (batch.time[part], batch.mag[part], batch.err[part])
        context = {"id": str(batch.ids[i]), "label": i, "length": len(values[0])}
        old.append(record(context, dict(zip(("dim_0", "dim_1", "dim_2"), values, strict=True))))
        context = {"ID": str(batch.ids[i]), "Class": "RRab", "Band": "V", "Label": -1}
        new.append(record(context, dict(zip(("mjd", "mag", "errmag"), values, strict=True))))
    return [framed(old), framed(new)]


def yaml_files() -> list[bytes]:
    small = "preset: tiny\nmodel: {width: 16, heads: 2}\ntrain: {max_steps: 2, betas: [0.9, 0.99]}  # few\nseed: 3\n"
    return [yaml.safe_dump(PretrainConfig().to_dict(), sort_keys=False).encode(), small.encode()]


@functools.cache
def model() -> Files:
    return made(registry.build("tiny", **SMALL_MODEL).save_pretrained)


@functools.cache
def astromer() -> Files:
    return made(registry.build("astromer-v2", **SMALL_MODEL, feed_forward=8).save_pretrained)


def checkpoint() -> Files:
    """The newer of two checkpoints, in which `manifest.json` and `state.json` lie."""

    def make(folder: Path) -> None:
        for name, content in model().items():
            (folder / name).write_bytes(content)
        (folder / STATE).write_text(json.dumps({"state": State(step=3).to_dict(), "store": DIGEST}))
        write_manifest(folder)

    return made(make)


@functools.cache
def store() -> Files:
    def make(folder: Path) -> None:
        convert(curves(), folder / "out", clean=CleanConfig(min_points=1), provenance={"seed": 0})
        opened = Store.open(folder / "out")
        opened.write_periods([Periods.empty(opened.n_curves)])

    return {name.removeprefix("out/"): content for name, content in made(make).items()}


@contextlib.contextmanager
def in_small_steps() -> Iterator[None]:
    """Points are spilled to files of a few, and conversions recorded after each batch."""
    with (
        mock.patch.object(points, "BUFFER_POINTS", 5),
        mock.patch.object(points, "PARTITION_POINTS", 8),
        mock.patch.object(writer, "STEP_POINTS", 1),
    ):
        yield


def convert_points(folder: Path, out: str) -> None:
    with in_small_steps():
        convert(folder / "points.csv", folder / out, clean=CleanConfig(min_points=1))


class _StoppedError(Exception):
    pass


def partial(folder: Path) -> Files:
    """A conversion of `points.csv` in this empty folder to `out`, stopped after its first recorded step."""
    stop_conversion(folder)
    return content(folder)


def set_time(path: Path) -> None:
    """Give a file a fixed time of change, by which a conversion knows its input."""
    os.utime(path, ns=(10**18, 10**18))


def stop_conversion(folder: Path) -> None:
    (folder / "points.csv").write_bytes(csv_files()[0])
    set_time(folder / "points.csv")
    record_step = writer.StoreWriter.record

    def record_one(self: Any) -> None:
        if self.steps:
            raise _StoppedError
        record_step(self)

    with mock.patch.object(writer.StoreWriter, "record", record_one), contextlib.suppress(_StoppedError):
        convert_points(folder, "out")


def cache_files() -> list[bytes]:
    def make(folder: Path) -> None:
        cache = Embeddings(folder / "cache", DIGEST)
        cache.add(["a", "b"], ["1" * 32, "2" * 32], np.arange(8, dtype=np.float32).reshape(2, 4))
        cache.save()

    return list(made(make).values())


PROVENANCE = {
    "version": "1",
    "model": {"name": "m", "architecture": "AstroCo", "sha256": DIGEST},
    "settings": {"windows": "mean", "output": "embedding", "parts": ["time_mean"]},
    "parts": {"time_mean": [0, 4]},
    "simulated": True,
}


def vector_table() -> pa.Table:
    """Two vectors of four numbers, as `astroco embed` makes them."""
    values = pa.array(np.arange(8, dtype=np.float32))
    columns = {
        "id": pa.array(["a", "b"]),
        "band": pa.array(["V", ""]),
        "label": pa.array(["EW", ""]),
        "n_points": pa.array([5, 7]),
        "embedding": pa.FixedSizeListArray.from_arrays(values, 4),
    }
    return pa.table(columns, schema=embedding_formats.with_provenance(pa.table(columns).schema, PROVENANCE))


def vector_files(suffix: str) -> list[bytes]:
    table = vector_table()
    rows = embedding_formats.Rows(
        table.schema, table.num_rows, lambda names: iter(table.select(names or table.schema.names).to_batches())
    )
    return list(made(lambda folder: embedding_formats.write(folder / "vectors", suffix, rows)).values())


def vector_catalogue() -> Files:
    """The same as a HATS catalogue, as LSDB writes it."""
    return {
        "vectors/hats.properties": properties(json.dumps(PROVENANCE).encode()),
        "vectors/dataset/Norder=0/Dir=0/Npix=4.parquet": parquet(vector_table().replace_schema_metadata(None)),
    }


def properties(provenance: bytes) -> bytes:
    """The properties of a catalogue of vectors with this provenance, JSON."""
    return b"dataproduct_type=object\n%s=%s\n" % (embedding_formats.KEY.encode(), provenance)


def classifier() -> Files:
    """A classifier of two classes by four numbers."""
    made_up = Classifier(
        classes=("EA", "EW"),
        mean=np.zeros(4),
        scale=np.ones(4),
        weight=np.ones((2, 4)),
        bias=np.zeros(2),
        frequency=np.array([0.5, 0.5]),
        model="m",
        digest=DIGEST,
        parts=("time_mean",),
    )
    return made(made_up.save)


def splits_files() -> list[bytes]:
    def make(folder: Path) -> None:
        splits = [Split(n, fold, ("a", "b"), ("c",), ("d",)) for n in (1, 2) for fold in (0, 1)]
        write_splits(folder / "splits.csv", splits, dict.fromkeys("abcd", "EW"))

    return list(made(make).values())


def label_files() -> list[bytes]:
    return [b"id,label\nstar-0,EW\nstar-1,RRab\n", b"star_id,Class\n1,\n2,x\n"]


def period_files() -> list[bytes]:
    return [b"id,period\nstar-0,0.5\nstar-1,\n"]


def metadata_files() -> list[bytes]:
    ids = [f"star-{i}" for i in range(4)]
    columns = {"ID": ids, "newID": list(range(4)), "Class": ["EW"] * 4, "Band": ["V", None, "I", "V"]}
    return [parquet(pa.table(columns), compression="none")]


def metrics_files() -> list[bytes]:
    train = {"split": "train", "step": 2, "windows_seen": 20, "windows_per_s": 3.5, "loss": 0.5}
    validation = {"split": "validation", "step": 2, "rmse": 0.25, "r2": 0.1}
    return ["".join(json.dumps(line) + "\n" for line in (train, validation)).encode()]
