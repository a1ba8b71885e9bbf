"""The files that `astroco embed` writes: the suffix decides the format; without one it is Parquet.

Each writer streams: it takes rows in batches, so that memory stays bounded. The provenance is in the file's own
metadata: key `astroco_fast` of an Arrow schema (Parquet, Feather), card ASTROCO of a FITS file's first header, array
`astroco_fast` of an .npz file. CSV has no place for it.
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

import astroco_fast
from astroco_fast.digest import DIGEST, MODEL, model_facts
from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.files import require_place

if TYPE_CHECKING:
    from astroco_fast.data.columns import Columns
    from astroco_fast.embedding import Choice
    from astroco_fast.pretrained import PretrainedEncoder

KEY, SIMULATED = "astroco_fast", "simulated"
_ROW_GROUP = 32 << 20  # bytes of rows that are written at a time


@dataclass(frozen=True)
class Rows:
    """Rows to write, which can be read more than once.

    Attributes:
        schema: the columns; its metadata are written where the format has a place for them.
        count: how many rows there are.
        read: the rows in order, in record batches; of these columns only, if any are named.
    """

    schema: pa.Schema
    count: int
    read: Callable[[list[str] | None], Iterator[pa.RecordBatch]]


def check(out: Path, output: str) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises:
        UserError: it has no place; its suffix names no format, or one that cannot hold lists of different lengths; or
            an extra is missing.
    """
    require_place(out)
    suffix = out.suffix.lower()
    if suffix not in _WRITERS:
        raise UserError(f"{out}: its suffix decides the format; there are: {', '.join(filter(None, _WRITERS))}")
    if output != "embedding" and suffix and suffix not in _LISTS:
        raise UserError(
            f"{out}: output {output!r} has as many numbers as a light curve has points, which {suffix} files cannot "
            f"hold; name the file {' or '.join(_LISTS)}"
        )
    if suffix == ".fits":
        try:
            import astropy  # noqa: F401
        except ImportError:
            raise MissingExtraError("astropy", "fits", f"{out}: writing FITS") from None


def write(path: Path, suffix: str, rows: Rows) -> None:
    """Write rows to a file, in the format of a suffix that `check` accepts."""
    _WRITERS[suffix.lower()](path, rows)


def _groups(rows: Rows) -> Iterator[pa.Table]:
    """The rows in tables of `_ROW_GROUP` bytes or more, but for the last."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in rows.read(None):
        waiting.append(batch)
        size += batch.nbytes
        if size >= _ROW_GROUP:
            yield pa.Table.from_batches(waiting, rows.schema)
            waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, rows.schema)


def _parquet(path: Path, rows: Rows) -> None:
    with pyarrow.parquet.ParquetWriter(path, rows.schema, write_page_checksum=True) as writer:
        for table in _groups(rows):
            writer.write_table(table)


def _feather(path: Path, rows: Rows) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema, options=options) as writer:
        for table in _groups(rows):
            writer.write_table(table.combine_chunks())


def _csv(path: Path, rows: Rows) -> None:
    names = rows.schema.names[:-1]
    width = rows.schema[-1].type.list_size
    numbers = [f"{rows.schema.names[-1]}_{i}" for i in range(width)]
    schema = pa.schema([*(rows.schema.field(name) for name in names), *((name, pa.float32()) for name in numbers)])
    with pyarrow.csv.CSVWriter(str(path), schema) as writer:
        for batch in rows.read(None):
            vectors = _vectors(batch)
            columns = [*batch.columns[:-1], *(pa.array(np.ascontiguousarray(vectors[:, i])) for i in range(width))]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _fits(path: Path, rows: Rows) -> None:
    from astropy.io import fits

    widths = _text_widths(rows, ascii_only=True)
    kinds = {"int64": ">i8", "int32": ">i4", "double": ">f8"}
    columns = [
        (f.name, f"S{max(widths[f.name], 1)}") if f.name in widths else (f.name, kinds[str(f.type)])
        for f in rows.schema
        if not pa.types.is_fixed_size_list(f.type)
    ]
    vector = rows.schema[-1]
    dtype = np.dtype([*columns, (vector.name, ">f4", (vector.type.list_size,))])
    first = fits.PrimaryHDU()
    first.header["ASTROCO"] = (rows.schema.metadata or {}).get(KEY.encode(), b"").decode()
    header = fits.BinTableHDU(np.empty(0, dtype=dtype), name="EMBEDDINGS").header
    header["NAXIS2"] = rows.count
    first.writeto(path, overwrite=True)
    stream = fits.StreamingHDU(str(path), header)
    for batch in rows.read(None):
        table = np.empty(batch.num_rows, dtype=dtype)
        for name in batch.schema.names[:-1]:
            values = batch.column(name).to_numpy(zero_copy_only=False)
            table[name] = values.astype(dtype[name]) if name in widths else values
        table[vector.name] = _vectors(batch)
        if len(table):
            stream.write(table.view(np.uint8))
    stream.close()


def _npz(path: Path, rows: Rows) -> None:
    widths = _text_widths(rows)
    kinds = {"int64": "<i8", "int32": "<i4", "double": "<f8"}
    with zipfile.ZipFile(path, "w") as archive:
        told = (rows.schema.metadata or {}).get(KEY.encode(), b"").decode()
        _member(archive, KEY, np.dtype(f"<U{max(len(told), 1)}"), (), [np.array(told)])
        for field in rows.schema:
            if pa.types.is_fixed_size_list(field.type):
                values = (_vectors(batch) for batch in rows.read([field.name]))
                _member(archive, field.name, np.dtype("<f4"), (rows.count, field.type.list_size), values)
                continue
            kind = f"<U{max(widths[field.name], 1)}" if field.name in widths else kinds[str(field.type)]
            plain = (batch.column(0).to_numpy(zero_copy_only=False) for batch in rows.read([field.name]))
            _member(archive, field.name, np.dtype(kind), (rows.count,), plain)


def _member(archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple[int, ...], values: Any) -> None:
    """Write one array of an .npz file; its time of day is left out, so that equal arrays give equal files."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, described)
        for array in values:
            file.write(np.ascontiguousarray(array.astype(dtype)).tobytes())


def _text_widths(rows: Rows, ascii_only: bool = False) -> dict[str, int]:
    """The longest text of each column of text, in characters.

    Raises:
        UserError: it is to be ASCII only, and is not.
    """
    names = [f.name for f in rows.schema if pa.types.is_string(f.type)]
    widths = dict.fromkeys(names, 0)
    for batch in rows.read(names):
        for name in names:
            column = batch.column(name)
            if ascii_only and batch.num_rows and not pc.all(pc.string_is_ascii(column)).as_py():
                odd = column.filter(pc.invert(pc.string_is_ascii(column)))[0].as_py()
                raise UserError(f"{name} {odd!r}: FITS holds ASCII text only; choose another format")
            widths[name] = max(widths[name], pc.max(pc.utf8_length(column)).as_py() or 0)
    return widths


def _vectors(batch: pa.RecordBatch) -> np.ndarray[Any, Any]:
    """The vectors (n, D) in a batch's last column."""
    column = batch.column(batch.num_columns - 1)
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), column.type.list_size)


_WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".parquet": _parquet,
    "": _parquet,
    ".feather": _feather,
    ".arrow": _feather,
    ".csv": _csv,
    ".fits": _fits,
    ".npz": _npz,
}
_LISTS = (".parquet", ".feather", ".arrow")  # formats that hold lists of different lengths


def provenance_of(
    name: str, model: "PretrainedEncoder", choice: "Choice", source: str, columns: "Columns", band: str | None
) -> dict[str, Any]:
    """What stands beside results, as plain data: version, the model with its name and digest, source, settings."""
    return {
        "version": astroco_fast.__version__,
        "model": model_facts(name, model, choice.parts),
        "source": source,
        "settings": {"columns": asdict(columns), "band": band, **choice.settings()},
    }


def with_provenance(schema: pa.Schema, provenance: dict[str, Any]) -> pa.Schema:
    """A schema with the provenance in its metadata, and by itself what others look for: the model, its digest
    (`astroco_fast.digest`), and whether the light curves are simulated."""
    told = {MODEL: provenance["model"]["name"], DIGEST: provenance["model"]["sha256"]}
    if provenance[SIMULATED]:
        told[SIMULATED] = "true"
    return schema.with_metadata({KEY: json.dumps(provenance, sort_keys=True), **told})
