"""Odd inputs: valid files with bytes changed, and files that are odd in their values, types, names and layout."""

import io
import json
import struct
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzz import seeds

EDGES = [
    0, 1, 2, 7, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**34, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1,
]  # fmt: skip
NUMBERS = [
    0.0, -0.0, 1.5, -1.0, 15.0, 53000.25, 99.999, -99.0, 1e-45, 1e30, 1e300, float("inf"), float("-inf"),
    float("nan"),
]  # fmt: skip
WORDS = [
    "", " ", "a", "star-0", "V", "EW", "nan", "None", "<NA>", "null", "0", "-1", "007", "1e400", "9" * 400, "1_0",
    "\u0661", "é", "\u202e", "\x1b[31m", "\x00", "\r", "\n", '"', ",", "=1+1", "../../x", "/etc/passwd", "%n", "{}",
    "x" * 5000,
]  # fmt: skip
NAMES = [
    "id", "ID", "objectid", "mjd", "time", "HMJD", "mag", "flux", "err", "magerr", "band", "fid", "label", "Class",
    "survey", "mag.mask", "lightcurve", "n_points", "star_hash", "curve", "embedding", "n", "fold", "split",
    "period", " mjd", "",
]  # fmt: skip
COLUMNS = ("id", "band", "label", "mjd", "mag", "err")
numbers = st.sampled_from(NUMBERS) | st.floats()
words = st.sampled_from(WORDS) | st.text(max_size=6)
names = st.sampled_from(NAMES) | words


# What comes in the place of some bytes; None: the same bytes twice. Made once, because Hypothesis looks into each new
# strategy at length.
_INSTEAD: SearchStrategy[bytes | None] = (
    st.just(b"")
    | st.binary(max_size=8)
    | st.builds(
        lambda number, size, order: (number % 256**size).to_bytes(size, order),
        st.sampled_from(EDGES),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from(["little", "big"]),
    )
    | st.sampled_from([None, b"[" * 20_000, b"\xff" * 16, b"\xff\xfe", "é".encode("latin-1")])
)
_LENGTHS = st.sampled_from([0, 1, 2, 4, 8, 64, 1024])


@st.composite
def damaged(draw: DrawFn, contents: Sequence[bytes]) -> bytes:
    """One of these contents with some bytes changed, added, repeated or cut off."""
    data = bytearray(draw(st.sampled_from(list(contents))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(at + draw(_LENGTHS), len(data))
        new = draw(_INSTEAD)
        data[at:end] = bytes(data[at:end]) * 2 if new is None else new
        if draw(st.integers(0, 7)) == 0:
            del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


odd_values: SearchStrategy[Any] = st.deferred(
    lambda: (
        st.none()
        | st.booleans()
        | st.sampled_from([*EDGES, -1, -(2**63), 10**400])
        | st.integers(-5, 40)
        | numbers
        | words
        | st.lists(odd_values, max_size=3)
        | st.dictionaries(names, odd_values, max_size=3)
    )
)


@st.composite
def changed(draw: DrawFn, content: Any) -> Any:
    """Plain data with one or more of its values, keys or items replaced, removed or added."""
    for _ in range(draw(st.integers(1, 3))):
        content = draw(_changed_once(content))
    return content


@st.composite
def _changed_once(draw: DrawFn, content: Any) -> Any:
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 9)) == 0:
        return draw(odd_values)
    place = draw(st.sampled_from(list(content) if isinstance(content, dict) else range(len(content))))
    action = draw(st.sampled_from(["inside", "inside", "inside", "remove", "add", "rename"]))
    copied = content.copy()
    if action == "inside":
        copied[place] = draw(_changed_once(content[place]))
    elif action == "remove":
        del copied[place]
    elif isinstance(copied, list):
        copied.insert(place, draw(odd_values))
    else:
        copied[draw(names)] = draw(odd_values) if action == "add" else copied.pop(place)
    return copied


def json_files(contents: Sequence[bytes]) -> SearchStrategy[bytes]:
    loaded = [json.loads(content) for content in contents]
    return st.sampled_from(loaded).flatmap(changed).map(lambda content: json.dumps(content).encode())


def json_lines(contents: Sequence[bytes]) -> SearchStrategy[bytes]:
    loaded = [[json.loads(line) for line in content.splitlines()] for content in contents]
    lines = st.sampled_from(loaded).flatmap(changed)
    return lines.map(lambda c: "".join(json.dumps(x) + "\n" for x in (c if isinstance(c, list) else [c])).encode())


SNIPPETS = [
    "&a [*a, *a]", "!!python/object/apply:os.system [id]", "!!binary xyz", "2020-01-01", "0x_", "1:2:3", "9" * 5000,
    "? x",
    "[" * 3000, "!!set {a, b}", "<<: {a: 1}", "'", "\t", "{a: &b [x], c: *b}", ".nan", "-.inf", "~", "0o9", "1e999",
    "&a [x,x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b], d: [*c,*c,*c,*c,*c,*c]",
]  # fmt: skip


@st.composite
def yaml_files(draw: DrawFn, contents: Sequence[bytes]) -> bytes:
    content = draw(st.sampled_from([yaml.safe_load(content) for content in contents]).flatmap(changed))
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    if draw(st.booleans()):
        lines = text.splitlines() or [""]
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = lines[at].split(":")[0] + ": " + draw(st.sampled_from(SNIPPETS))
        text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def text_tables(draw: DrawFn, columns: Sequence[str], delimiter: str = ",") -> bytes:
    """A text table with (mostly) these columns, in odd words, quotes, line ends and encodings."""
    heading = [draw(st.just(name) | names) if draw(st.integers(0, 5)) == 0 else name for name in columns]
    cell = numbers.map(repr) | words | st.sampled_from(["1", "2", "train", "test", "val", "a", "b"])
    rows = [[draw(cell) for _ in heading] for _ in range(draw(st.integers(0, 5)))]
    if rows and draw(st.integers(0, 3)) == 0:
        rows[-1] = rows[-1][: draw(st.integers(0, len(heading)))]
    quote = draw(st.sampled_from([lambda text: text, lambda text: f'"{text}"', lambda text: f" {text} "]))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = end.join(delimiter.join(map(quote, row)) for row in [heading, *rows]) + draw(st.sampled_from([end, ""]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, "replace")


_TYPES: list[tuple[Any, SearchStrategy[Any]]] = [
    *((kind, st.sampled_from([0, 1, 5])) for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.uint16())),
    (pa.int64(), st.sampled_from([0, 1, 2, -1, 2**53 + 1, 2**63 - 1])),
    (pa.uint64(), st.sampled_from([0, 1, 2**64 - 1])),
    (pa.float16(), st.sampled_from([np.float16(1.5), np.float16("nan")])),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), numbers),
    (pa.float64(), st.floats(10, 20)),
    (pa.string(), words),
    (pa.string(), st.sampled_from(["a", "b"])),
    (pa.large_string(), words),
    (pa.string_view(), words),
    (pa.binary(), st.binary(max_size=4)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
    (pa.decimal128(20, 3), st.sampled_from([Decimal("1.5"), Decimal("-99")])),
    (pa.decimal256(70, 3), st.sampled_from([Decimal("1.5"), Decimal(10) ** 60])),
    (pa.date32(), st.sampled_from([datetime(2020, 1, 1).date()])),
    (pa.timestamp("us", "UTC"), st.sampled_from([datetime(2020, 1, 1, tzinfo=timezone.utc)])),
    (pa.duration("s"), st.integers(0, 9)),
    (pa.time64("us"), st.integers(0, 9)),
    (pa.struct([("mjd", pa.float64()), ("mag", pa.float64())]), st.just({"mjd": 1.0, "mag": 2.0})),
    (pa.map_(pa.string(), pa.float64()), st.just([("mjd", 1.0)])),
]
_WRAPS: list[Callable[[Any], Any]] = [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2), pa.list_view]


@st.composite
def arrays(draw: DrawFn, rows: int, usual: tuple[Any, SearchStrategy[Any]] | None = None) -> Any:
    """An Arrow array of an odd type, with nulls; `usual`: a type, with its values, that comes more often."""
    kind, values = usual if usual is not None and draw(st.integers(0, 2)) else draw(st.sampled_from(_TYPES))
    if draw(st.integers(0, 3)) == 0:
        values = st.none() | values
    if draw(st.integers(0, 3)) == 0:
        wrap = draw(st.sampled_from(_WRAPS))
        kind, values = wrap(kind), st.lists(values, min_size=2, max_size=2)
        if draw(st.integers(0, 3)) == 0 and not pa.types.is_fixed_size_list(kind):
            values = st.none() | st.lists(_values(kind), max_size=3)
    array = pa.array([draw(values) for _ in range(rows)], kind)
    if draw(st.integers(0, 5)) == 0 and (pa.types.is_string(kind) or pa.types.is_integer(kind)):
        array = array.dictionary_encode()
    return array.slice(1) if rows and draw(st.integers(0, 9)) == 0 else array


def _values(kind: Any) -> SearchStrategy[Any]:
    return next((values for known, values in _TYPES if known == kind.value_type), st.none())


_TEXT = (pa.string(), st.sampled_from(["a", "b", "V", "1" * 32]))
_USUAL: dict[str, tuple[Any, SearchStrategy[Any]]] = {
    **dict.fromkeys(("id", "band", "label", "curve", "ID", "Class", "Band"), _TEXT),
    **dict.fromkeys(("mjd", "mag", "err", "period"), (pa.float64(), st.floats(10, 20))),
    "n_points": (pa.int64(), st.sampled_from([0, 1, 5, 22, -1, 2**63 - 1])),
    "newID": (pa.int64(), st.integers(0, 3)),
    "star_hash": (pa.uint64(), st.sampled_from([0, 1, 2**64 - 1])),
    "embedding": (pa.list_(pa.float32(), 4), st.lists(st.floats(width=32), min_size=4, max_size=4)),
}


@st.composite
def arrow_tables(draw: DrawFn, columns: Sequence[str], metadata: dict[bytes, bytes] | None = None) -> Any:
    """An Arrow table with (mostly) these columns, of odd types, some of them lists."""
    rows = draw(st.integers(0, 5))
    as_lists = draw(st.booleans())
    found: dict[str, Any] = {}
    for name in columns:
        array = draw(arrays(rows, _USUAL.get(name)))
        if as_lists and name in ("mjd", "mag", "err") and draw(st.integers(0, 9)):
            array = pa.array(
                [draw(st.lists(numbers, min_size=3, max_size=3)) for _ in range(rows)], pa.list_(pa.float64())
            )
        found[draw(names) if draw(st.integers(0, 9)) == 0 else name] = array
    shortest = min((len(array) for array in found.values()), default=0)
    chosen = {name: array.slice(0, shortest) for name, array in found.items()}
    fields = [
        pa.field(name, array.type, metadata={"unit": draw(words)} if draw(st.integers(0, 9)) == 0 else None)
        for name, array in chosen.items()
    ]
    return pa.table(list(chosen.values()), schema=pa.schema(fields, metadata))


def _to_parquet(table: Any) -> bytes | None:
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink, compression="none")
    except (pa.ArrowException, OSError):  # types that Parquet has not
        return None
    return sink.getvalue()


def parquet_files(columns: Sequence[str], metadata: dict[bytes, bytes] | None = None) -> SearchStrategy[bytes]:
    written = arrow_tables(columns, metadata).map(_to_parquet)
    return written.filter(lambda content: content is not None)  # type: ignore[return-value]


@st.composite
def fits_files(draw: DrawFn) -> bytes:
    """A FITS table with odd formats, units, nulls, scales and shapes of cells."""
    from astropy.io import fits

    rows = draw(st.integers(0, 4))
    columns = []
    for name in ("id", "mjd", "mag", "err", "band"):
        kind = draw(st.sampled_from(["D", "E", "K", "J", "I", "B", "L", "8A", "C", "2D", "4A", "PD()", "X", "0D"]))
        kind = {"id": "K", "band": "4A"}.get(name, "D") if draw(st.integers(0, 2)) or not rows else kind
        if kind.endswith("A"):
            values: Any = np.array([draw(words).encode()[:8] for _ in range(rows)], "S8")
        elif kind == "PD()":
            values = np.empty(rows, dtype=object)
            for i in range(rows):
                values[i] = np.array(draw(st.lists(numbers, max_size=3)), float)
        else:
            cell = {"2D": 2, "0D": 0}.get(kind, 1)
            drawn = [[draw(st.sampled_from(NUMBERS[:6]) | numbers) for _ in range(cell)] for _ in range(rows)]
            values = np.array(drawn, float).reshape((rows,) if cell == 1 else (rows, cell))
            if kind in "KJIBLX":
                values = np.nan_to_num(values, posinf=9, neginf=0).clip(0, 100).astype(int)
        unit = draw(st.sampled_from(["d", "s", "mag", "mmag", "Jy", "furlong", "10**(-3) mag"]) | st.none())
        extra: dict[str, Any] = {"unit": unit if draw(st.booleans()) else None}
        if kind in ("K", "J", "I") and draw(st.booleans()):
            extra["null"] = draw(st.sampled_from([0, 1, -99]))
        if kind == "D" and draw(st.integers(0, 4)) == 0:
            extra |= {"bscale": 0.5, "bzero": draw(st.sampled_from([0.0, 3.0]))}
        columns.append(fits.Column(name, kind, array=values, **extra))
    sink = io.BytesIO()
    fits.BinTableHDU.from_columns(columns).writeto(sink)
    return sink.getvalue()


@st.composite
def tfrecord_files(draw: DrawFn) -> bytes:
    """A TFRecord file with odd names, kinds and lengths."""
    records = []
    value = (
        words.filter(lambda text: text.isascii())
        | st.sampled_from([*EDGES, -1])
        | st.lists(st.floats(width=32), max_size=4)
    )
    name = st.sampled_from(
        ["id", "ID", "label", "Class", "Band", "length", "mjd", "mag", "errmag", "dim_0", "dim_1", "dim_2", "x"]
    )
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 2)):
            n = draw(st.integers(0, 4))
            lists: dict[str, Any] = {
                key: [draw(st.floats(width=32)) for _ in range(n)] for key in ("mjd", "mag", "errmag")
            }
            context: dict[str, Any] = {"ID": draw(words.filter(str.isascii)), "Label": draw(st.sampled_from(EDGES))}
        else:
            context = draw(st.dictionaries(name, value, max_size=4))
            lists = draw(st.dictionaries(name, value, max_size=4))
        record = seeds.record(context, lists)
        if draw(st.integers(0, 3)) == 0:
            record = draw(damaged([record]))
        records.append(record)
    content = seeds.framed(records)
    if draw(st.integers(0, 5)) == 0:
        content = struct.pack("<QI", draw(st.sampled_from(EDGES)) % 2**64, 0) + content[12:]
    return content


@st.composite
def safetensors_files(draw: DrawFn, contents: Sequence[bytes]) -> bytes:
    """A safetensors file whose header is changed, or whose numbers are."""
    content = draw(st.sampled_from(list(contents)))
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    if draw(st.integers(0, 2)):
        name = draw(st.sampled_from(sorted(header)))
        entry = {**header[name]}
        if draw(st.booleans()) and "dtype" in entry:
            entry["dtype"] = draw(st.sampled_from(["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "é"]))
        else:
            entry = draw(changed(entry))
        header[draw(names) if draw(st.integers(0, 4)) == 0 else name] = entry
    else:
        at = draw(st.integers(0, len(data) // 4)) * 4
        data = data[:at] + struct.pack("<f", draw(st.floats(width=32))) + data[at + 4 :]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@st.composite
def objects(draw: DrawFn) -> Any:
    """Light curves in memory: Arrow, pandas and astropy tables, and lists of arrays."""
    form = draw(st.sampled_from(["arrow", "pandas", "astropy", "arrays"]))
    if form == "arrays":
        return draw(st.lists(_light_curves(), max_size=3))
    table = draw(arrow_tables(COLUMNS))
    if form == "arrow":
        return table
    try:
        frame = table.to_pandas()
        if form == "pandas":
            return frame
        from astropy.table import Table

        return Table.from_pandas(frame)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError):  # types that they have not
        return table


@st.composite
def _light_curves(draw: DrawFn) -> Any:
    """An array, mostly (L, 3), of numbers or words, perhaps masked."""
    shape = (draw(st.integers(0, 4)), draw(st.sampled_from([3, 3, 3, 2, 0])))
    dtype = draw(st.sampled_from(["f8", ">f8", "f4", "f2", "i8", "u1", "?", "c16", "U3", "O", "M8[s]"]))
    values = np.array([draw(st.sampled_from(NUMBERS)) for _ in range(shape[0] * shape[1])], float).reshape(shape)
    with np.errstate(all="ignore"):
        array = (
            np.nan_to_num(values, posinf=9, neginf=0).astype(int).astype(dtype)
            if dtype in ("i8", "u1", "M8[s]")
            else None
        )
        array = values.astype(dtype) if array is None else array
    if draw(st.integers(0, 3)) == 0:
        return np.ma.MaskedArray(array, mask=values > 15)
    return draw(st.sampled_from([array, array.tolist(), array.T.copy().T]))


def number_files(dtype: str, n: int) -> SearchStrategy[bytes]:
    """A file of about n raw numbers."""
    value: SearchStrategy[Any] = (
        numbers if "f" in dtype else st.sampled_from([*range(8), 22, -1, 2**31, 2**63 - 1, -(2**63)])
    )
    return st.lists(value, min_size=n - 1, max_size=n + 1).map(lambda drawn: _raw(drawn, dtype))


def _raw(values: list[Any], dtype: str) -> bytes:
    with np.errstate(over="ignore"):
        return np.array(values).astype(dtype).tobytes()
