"""TFRecord files of light curves, as Astromer's public code writes them, decoded without TensorFlow.

A file is a sequence of (8 bytes length, 4 bytes checksum, record, 4 bytes checksum). A record is a serialised
`tf.train.SequenceExample`: its context holds the star's id and label, its feature lists hold one list of floats each
for time, magnitude and uncertainty. Both generations are decoded (github.com/astromer-science/main-code): that of
`src/data/zero.py` (id, label, length; dim_0, dim_1, dim_2) and that of `src/data/record.py` (ID, Class, Band, Label;
mjd, mag, errmag). Their numbers are single precision, so that an MJD is known to no better than 6 minutes. Checksums
are not compared.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from astroco_fast.errors import UserError

# Context (one value each: str, int or float) and feature lists (float32 arrays).
Record = tuple[dict[str, Any], dict[str, Any]]

# What the first generation's lists are called in the second.
POINTS = {"mjd": "dim_0", "mag": "dim_1", "errmag": "dim_2"}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def read(path: Path, skip: int = 0) -> Iterator[Record]:
    """Decode the records of a file, except for the first `skip`.

    Raises:
        UserError: the file is cut short, or a record is not a `tf.train.SequenceExample`; names file and record.
    """
    for number, data in enumerate(_records(path), start=1):
        if number <= skip:
            continue
        try:
            context, lists = _sequence_example(data)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{path}, record {number}: not a light curve as Astromer writes them ({error}); write Parquet or CSV "
                "tables with the columns id, label, mjd, mag, err to the same folders"
            ) from error
        if lists.keys() >= {*POINTS.values()}:
            lists |= {name: lists.pop(old) for name, old in POINTS.items()}
        yield context, lists


def count(path: Path) -> int:
    """The number of records of a file."""
    return sum(1 for _ in _records(path))


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
