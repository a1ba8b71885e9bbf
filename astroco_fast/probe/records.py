"""TFRecord files of light curves, as Astromer's public code writes them, read without TensorFlow.

A file is a sequence of (8 bytes length, 4 bytes checksum, record, 4 bytes checksum); a record is a serialised
`tf.train.SequenceExample`. Its context has the star's id and label, its feature lists one list of floats for each of
time, magnitude and uncertainty. Both generations are read (github.com/astromer-science/main-code): `src/data/zero.py`
(id, label, length; dim_0, dim_1, dim_2) and `src/data/record.py` (ID, Class, Band, Label; mjd, mag, errmag). Numbers
are single precision there, so that an MJD is known to no better than 6 minutes. Checksums are not compared.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from astroco_fast.data.columns import Columns, find, resolve
from astroco_fast.data.curves import CurveBatch, offsets_of
from astroco_fast.errors import UserError

SUFFIXES = (".record", ".records", ".tfrecord", ".tfrecords")
_DIMENSIONS = {"time": "dim_0", "mag": "dim_1", "err": "dim_2"}
_CURVES_A_BATCH = 2048
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


class RecordFiles:
    """The light curves of TFRecord files, as batches, each time anew; `open_source` takes it.

    Args:
        root: folder of the files; a file's class, where the record has a number only, is the folder that it lies in.
        files: the files.
        columns: the user's choice of features; the rest is found by the aliases of columns.
    """

    def __init__(self, root: Path, files: Sequence[Path], columns: Columns) -> None:
        self._root, self._files, self._columns = root, files, columns

    def __iter__(self) -> Iterator[CurveBatch]:
        curves: list[tuple[str, str, str, Any]] = []
        for file in self._files:
            folder = file.parent.name if file.parent != self._root else None
            for index, record in enumerate(_records(file)):
                curves.append(self._curve(f"{file}, record {index + 1}", record, folder))
                if len(curves) == _CURVES_A_BATCH:
                    yield self._batch(curves)
                    curves = []
        if curves:
            yield self._batch(curves)

    def _curve(self, where: str, record: bytes, folder: str | None) -> tuple[str, str, str, Any]:
        """Id, band, label, and the points (3, L)."""
        try:
            context, lists = _sequence_example(record)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{where}: not a light curve as Astromer writes them ({error}); write Parquet or CSV tables with the "
                "columns id, label, mjd, mag, err to the same folders"
            ) from error
        if lists.keys() >= {*_DIMENSIONS.values()}:
            names = dict(_DIMENSIONS)
        else:
            names = resolve(list(lists), self._columns, where, need_id=False)
        values: dict[str, Any] = {}
        for role in ("id", "band", "label"):
            name = find(role, list(context), getattr(self._columns, role), where)
            values[role] = "" if name is None else context[name]
        label = folder if folder is not None and not isinstance(values["label"], str) else str(values["label"])
        points = [lists[names[role]] for role in _DIMENSIONS]
        if len({len(values) for values in points}) != 1 or values["id"] == "":
            raise UserError(f"{where}: no id, or times, magnitudes and uncertainties that differ in number")
        return str(values["id"]), str(values["band"]), label, np.stack(points)

    def _batch(self, curves: list[tuple[str, str, str, Any]]) -> CurveBatch:
        ids, bands, labels, points = zip(*curves, strict=True)
        time, mag, err = np.concatenate(points, axis=1)
        return CurveBatch(
            ids=np.array(ids, dtype=object),
            band=np.array(bands, dtype=object),
            label=np.array(labels, dtype=object),
            offsets=offsets_of([array.shape[1] for array in points]),
            time=time.astype(np.float64),
            mag=mag,
            err=err,
            source=str(self._root),
        )


def _records(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            left = path.stat().st_size
            while header := file.read(12):
                length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else left
                left -= length + 16
                if left < 0:
                    raise UserError(f"{path}: cut short, or not a TFRecord file; copy it again")
                yield file.read(length)
                file.read(4)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _sequence_example(record: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Context (one value each) and feature lists (float32 arrays) of a serialised `tf.train.SequenceExample`."""
    context: dict[str, Any] = {}
    lists: dict[str, Any] = {}
    for number, features in _fields(memoryview(record)):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            name = bytes(parts[1]).decode()
            if number == 1:
                values = _feature(parts.get(2, b""))
                context[name] = values[0] if len(values) else ""
            elif number == 2:
                values = [_feature(feature) for _, feature in _fields(parts.get(2, b""))]
                lists[name] = np.concatenate([np.empty(0, np.float32), *values]).astype(np.float32)
    return context, lists


def _feature(feature: Any) -> Any:
    """The values of a `tf.train.Feature`: a list of str or of int, or a float32 array."""
    values: list[Any] = []
    for kind, content in _fields(feature):
        for _, value in _fields(content):
            if kind == _BYTES_LIST:
                values.append(bytes(value).decode())
            elif kind == _FLOAT_LIST:
                values.append(np.frombuffer(value, "<f4"))
            elif kind == _INT64_LIST:
                values += [value] if isinstance(value, int) else _varints(value)
        if kind == _FLOAT_LIST:
            return np.concatenate([np.empty(0, np.float32), *values])
    return [value - (1 << 64) if isinstance(value, int) and value >> 63 else value for value in values]


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """Number and content of each field of a protobuf message: int for varints, memoryview for all else."""
    message = memoryview(message)
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"unknown protobuf wire type {kind}")
        if at + length > len(message):
            raise ValueError("a field goes beyond the record's end")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: Any, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varints(packed: Any) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return values
