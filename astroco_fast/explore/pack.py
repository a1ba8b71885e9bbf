"""Arrays as text in a page: described by JSON, deflated, and written in base64, which needs no escaping.

A pack's bytes are: the length of the JSON (uint32), the JSON (UTF-8), padding to a multiple of 8, and the arrays end to
end, each padded so. The JSON is {"content": ..., "arrays": {name: [type, offset, length]}}, with offsets from the end
of the first padding, and types as JavaScript calls them. All numbers are little-endian.

`unpack` is what `page/unpack.js` does in the browser.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {"Float64": "<f8", "Float32": "<f4", "Uint32": "<u4", "Uint16": "<u2", "Uint8": "u1"}
_ALIGN = 8


def pack(content: Any, arrays: Mapping[str, NDArray[Any]]) -> str:
    """The text of plain data and of arrays of the types above; texts may hold anything, lone surrogates too."""
    parts: list[bytes] = []
    places: dict[str, tuple[str, int, int]] = {}
    offset = 0
    for name, array in arrays.items():
        kind = next(kind for kind, code in _TYPES.items() if np.dtype(code) == array.dtype)
        data = _padded(np.ascontiguousarray(array, dtype=_TYPES[kind]).tobytes())
        places[name] = (kind, offset, array.size)
        offset += len(data)
        parts.append(data)
    head = json.dumps({"content": content, "arrays": places}, separators=(",", ":"), allow_nan=False).encode()
    whole = _padded(struct.pack("<I", len(head)) + head) + b"".join(parts)
    return base64.b64encode(zlib.compress(whole, 9)).decode("ascii")


def unpack(text: str) -> tuple[Any, dict[str, NDArray[Any]]]:
    """The inverse of `pack`; arrays come back flat."""
    whole = zlib.decompress(base64.b64decode(text))
    (length,) = struct.unpack_from("<I", whole)
    head = json.loads(whole[4 : 4 + length])
    first = -(-(4 + length) // _ALIGN) * _ALIGN
    arrays = {
        name: np.frombuffer(whole, _TYPES[kind], size, first + offset)
        for name, (kind, offset, size) in head["arrays"].items()
    }
    return head["content"], arrays


def planes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of whole numbers, the lowest byte of all first, then the next: equal bytes lie together and deflate."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, values.dtype.itemsize).T).reshape(-1)


def whole_planes(data: NDArray[np.uint8], kind: str) -> NDArray[Any]:
    """The inverse of `planes`, for whole numbers of a type such as "<u4"."""
    size = np.dtype(kind).itemsize
    return np.ascontiguousarray(data.reshape(size, -1).T).reshape(-1).view(kind)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGN)
