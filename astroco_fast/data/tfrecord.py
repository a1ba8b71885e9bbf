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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.curves import MOST_POINTS
from astroco_fast.errors import UserError

# Context (one value each: str, int or float) and feature lists (float32 arrays).
Record = tuple[dict[str, Any], dict[str, Any]]

# What the first generation's lists are called in the second.
POINTS = {"mjd": "dim_0", "mag": "dim_1", "errmag": "dim_2"}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_MOST_VARINT_BYTES, _64_BITS = 10, 2**64 - 1  # seven bits a byte

# Time, magnitude and uncertainty of each point, in at most 12 bytes each, and what is known of the star.
_MOST_BYTES = 36 * MOST_POINTS + 2**20


def read(path: Path, skip: int = 0) -> Iterator[Record]:
    """Decode the records of a file, except for the first `skip`.

    Raises:
        UserError: the file is cut short, or a record is not a `tf.train.SequenceExample`; names file and record.
    """
    for number, data in enumerate(_records(path, skip), start=skip + 1):
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
    with _opened(path) as file:
        return sum(1 for _ in _lengths(path, file))


def _records(path: Path, skip: int) -> Iterator[bytes]:
    """The records of a file, except for the first `skip`."""
    with _opened(path) as file:
        for number, length in enumerate(_lengths(path, file), start=1):
            if number <= skip:
                continue
            if length > _MOST_BYTES:
                raise UserError(
                    f"{path}, record {number}: its {length} bytes are more than a light curve of {MOST_POINTS} points, "
                    "the longest that is read, takes; cut it into shorter ones"
                )
            yield file.read(length)


def _lengths(path: Path, file: BinaryIO) -> Iterator[int]:
    """The number of bytes of each record, at the first of which the file then stands."""
    size, at = path.stat().st_size, 0
    while header := file.read(12):
        length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
        at += 12 + length + 4
        if at > size:
            raise UserError(f"{path}: cut short, or not a TFRecord file; copy it again")
        yield length
        file.seek(at)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _sequence_example(record: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Context (one value each) and feature lists (float32 arrays) of a serialised `tf.train.SequenceExample`."""
    context: dict[str, Any] = {}
    lists: dict[str, Any] = {}
    for number, features in _fields(memoryview(record)):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            name = _text(parts[1])
            if number == 1:
                values = _feature(parts.get(2, b""))
                context[name] = "" if not len(values) else values[0] if isinstance(values, list) else values[0].item()
            elif number == 2:
                values = [_feature(feature) for _, feature in _fields(parts.get(2, b""))]
                lists[name] = np.concatenate([np.empty(0, np.float32), *values]).astype(np.float32)
    return context, lists


def _feature(feature: Any) -> Any:
    """The values of a `tf.train.Feature`: a list of str, an int64 array or a float32 array."""
    words: list[str] = []
    numbers: list[Any] = []
    for kind, content in _fields(feature):
        for _, value in _fields(content):
            if kind == _BYTES_LIST:
                words.append(_text(value))
            elif kind == _FLOAT_LIST:
                numbers.append(np.frombuffer(value, "<f4"))
            elif kind == _INT64_LIST:
                numbers.append(
                    np.array([value], np.uint64).view(np.int64) if isinstance(value, int) else _varints(value)
                )
    return words or np.concatenate(numbers or [np.empty(0, np.float32)])


def _text(value: Any) -> str:
    if isinstance(value, int):  # of which `bytes` would make as many zeros
        raise ValueError("a number stands where text should")
    return bytes(value).decode()


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
    value = 0
    for shift in range(0, 7 * _MOST_VARINT_BYTES, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _64_BITS, at
    raise ValueError(f"a number that does not end within {_MOST_VARINT_BYTES} bytes")


def _varints(packed: Any) -> NDArray[np.int64]:
    """The numbers of a packed list, each of which ends with its first byte below 128."""
    data = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(data < 0x80) + 1
    lengths = np.diff(ends, prepend=0)
    if len(data) and (not len(ends) or ends[-1] < len(data) or lengths.max() > _MOST_VARINT_BYTES):
        raise ValueError(f"a number that does not end within {_MOST_VARINT_BYTES} bytes")
    values = np.zeros(len(ends), np.uint64)
    for byte in range(min(_MOST_VARINT_BYTES, lengths.max(initial=0))):
        has = lengths > byte
        values[has] |= (data[(ends - lengths)[has] + byte] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * byte)
    return values.view(np.int64)
