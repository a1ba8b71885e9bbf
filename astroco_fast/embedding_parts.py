"""The parts of an embedding that is under way: what was computed survives a kill, and shares of the work are joined.

A source's batches are embedded in pieces (`astroco_fast.embedding.pieces`), each by itself, and each piece becomes one
Parquet file of the folder `OUT.partial`. A piece's name tells its place in the source and its checksum, so that the
folder needs no list: several processes write their shares of the pieces into it at the same time, and in the end the
rows are in the source's order, whoever made them. The last to finish joins them to the output.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from astroco_fast.data.points import DONE
from astroco_fast.errors import UserError
from astroco_fast.files import locked, read_json, scratch_folder, sha256, whole_file, write_text

_PLAN, _JOINED = "plan.json", "joined.json"
_PART = re.compile(r"(\d{9})-(\d{4})of(\d{4})-([0-9a-f]{32})\.parquet")
_SHARE = re.compile(r"share-\d+-of-\d+")
_RECORD = b"part"


@dataclass(frozen=True)
class Share:
    """One of several equal shares of the pieces, taken by turns.

    Attributes:
        number: from 1.
        of: how many shares there are.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """The share that "i/n" names.

        Raises:
            UserError: the text has another form, or i is not one of 1 to n.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        number, of = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= of:
            raise UserError(f"shard: give i/n with i from 1 to n, such as 1/4, not {text!r}")
        return cls(number, of)

    def split(self, number: int, of: int) -> "Share":
        """One of several equal shares of this share."""
        return Share(self.number + self.of * (number - 1), self.of * of)

    def has(self, batch: int, piece: int) -> bool:
        """Whether a piece belongs to it."""
        return (batch + piece) % self.of == self.number - 1

    def __str__(self) -> str:
        return f"share {self.number} of {self.of}"


class Part(NamedTuple):
    """A finished piece: its place, the number of pieces of its batch, and its file."""

    batch: int
    piece: int
    pieces: int
    digest: str
    path: Path


class Parts:
    """The folder of the parts of one output.

    Args:
        out: the output.
        plan: plain data that say what is computed, and how. Parts of another plan are never mixed.
        share: this process's share.
        overwrite: replace the output, and discard parts of another plan.

    Attributes:
        spill: folder for the source's temporary files.
    """

    def __init__(self, out: Path, plan: dict[str, Any], share: Share, overwrite: bool) -> None:
        self.out = out
        self.path = folder_of(out)
        self.spill = self.path / f"share-{share.number}-of-{share.of}" / "spill"
        self._plan = json.loads(json.dumps(plan, default=str))
        self._share = share
        self._overwrite = overwrite
        self._parts: dict[tuple[int, int], Part] = {}

    def finished(self) -> bool:
        """Whether the output is whole already, and a kill prevented no more than the removal of the folder."""
        if not (self.out.exists() and self.path.is_dir()):
            return False
        if not any(self.path.iterdir()):
            return not self._overwrite
        try:
            joined = read_json(self.path / _JOINED)
            return bool(joined == {"plan": _digest(self._plan), "sha256": sha256(self.out)})
        except (OSError, ValueError):
            return False

    @contextmanager
    def opened(self) -> Iterator["Parts"]:
        """Lock this share, and take up its earlier parts. A folder that is left without any part is removed.

        Raises:
            UserError: the output exists; the folder holds parts of another plan or anything else; or another process
                has this share.
        """
        with self._locked_folder():
            self._check_plan()
            self.spill.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.spill.parent, f"another process is embedding {self._share}; wait for it"):
                self._take_up()
                try:
                    yield self
                except UserError:
                    if self._share.of == 1 and self.path.is_dir() and self._are_empty():
                        self.remove()
                    raise
        finally:
            if not self._found() and not (self.spill / DONE).exists():
                shutil.rmtree(self.spill.parent, ignore_errors=True)
                if self.path.is_dir() and {entry.name for entry in self.path.iterdir()} == {_PLAN}:
                    self.remove()

    def _are_empty(self) -> bool:
        """Whether no part has light curves, as with a band that there is not: they would be in the right one's way."""
        return bool(self._parts) and not any(record["curves"] for record in self.records())

    @property
    def count(self) -> int:
        """How many parts of this share there are."""
        return sum(self._share.has(part.batch, part.piece) for part in self._parts.values())

    @property
    def batches_done(self) -> int:
        """How many of the source's first batches need not be read, because all their pieces of this share are done."""
        pieces = {part.batch: part.pieces for part in self._parts.values()}
        batch = 0
        while batch in pieces and not any(self.wants(batch, piece) for piece in range(pieces[batch])):
            batch += 1
        return batch

    def wants(self, batch: int, piece: int) -> bool:
        """Whether this process has to make a piece."""
        return self._share.has(batch, piece) and (batch, piece) not in self._parts

    def add(self, batch: int, piece: int, pieces: int, table: pa.RecordBatch, record: dict[str, Any]) -> None:
        """Write a piece, which survives a kill from then on.

        Args:
            batch, piece: its place: the number of the source's batch, and the piece's in it.
            pieces: how many pieces the batch has.
            table: its rows.
            record: plain data to keep with it.
        """
        metadata = {**(table.schema.metadata or {}), _RECORD: json.dumps(record)}
        content = pa.BufferOutputStream()
        pyarrow.parquet.write_table(pa.Table.from_batches([table.replace_schema_metadata(metadata)]), content)
        data = content.getvalue()
        digest = hashlib.sha256(data).hexdigest()[:32]
        part = Part(batch, piece, pieces, digest, self.path / f"{batch:09d}-{piece:04d}of{pieces:04d}-{digest}.parquet")
        try:
            with whole_file(part.path) as partial, partial.open("wb") as file:
                file.write(data)
        except UserError as error:  # which names a file that the user has not named
            raise UserError(str(error).replace(str(part.path), str(self.out))) from error
        self._parts[batch, piece] = part

    def all_there(self, batches: int) -> bool:
        """Whether all pieces of the source's batches are there, whoever made them."""
        self._parts = self._found()
        pieces = {part.batch: part.pieces for part in self._parts.values()}
        return all(
            batch in pieces and all((batch, piece) in self._parts for piece in range(pieces[batch]))
            for batch in range(batches)
        )

    def read(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of all parts, in the source's order, a batch each.

        Raises:
            UserError: a part is not as it was written.
        """
        for part in self._in_order():
            table = pyarrow.parquet.read_table(pa.BufferReader(_checked(part)), columns=columns)
            schema = table.schema.remove_metadata()
            yield (table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema)])[0]

    def records(self) -> Iterator[dict[str, Any]]:
        """What `add` kept with each part."""
        for part in self._in_order():
            metadata = pyarrow.parquet.read_schema(part.path).metadata
            yield json.loads(metadata[_RECORD])

    @contextmanager
    def joining(self) -> Iterator[Path | None]:
        """Publish the output: the block writes it to the file that it is given; None if another process has done so.

        A kill at any moment leaves the parts, or the whole output.
        """
        with locked(self.path, None):
            if not self.path.exists():
                yield None
                return
            with whole_file(self.out) as partial:
                yield partial
                write_text(self.path / _JOINED, json.dumps({"plan": _digest(self._plan), "sha256": sha256(partial)}))
            self.remove()

    def remove(self) -> None:
        """Remove the folder, that which says that the output is whole at last."""
        for entry in self.path.iterdir():
            if entry.name != _JOINED:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (self.path / _JOINED).unlink(missing_ok=True)
        self.path.rmdir()

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Create the folder and lock it. One that another process has removed meanwhile is created again."""
        while True:
            if self.out.exists() and not self._overwrite:
                raise UserError(f"{self.out}: exists; choose another output, or replace it with --overwrite")
            self._create()
            with locked(self.path, None):
                if self.path.exists():
                    yield
                    return

    def _create(self) -> None:
        """Create the folder with the plan in it, if there is none; one that is empty is left of a finished output."""
        if self.path.is_dir() and any(self.path.iterdir()):
            return
        with scratch_folder(self.path) as made:
            write_text(made / _PLAN, json.dumps(self._plan, indent=1, sort_keys=True))
            try:
                made.rename(self.path)
            except OSError:
                if not self.path.is_dir():  # else another process was faster
                    raise

    def _check_plan(self) -> None:
        """Compare the plan with that of the parts that are there, which are discarded if they may be."""
        for name in sorted({entry.name for entry in self.path.iterdir()} - {_PLAN, _JOINED}):
            if not (_PART.fullmatch(name) or _SHARE.fullmatch(name) or name.endswith(".partial")):
                raise UserError(f"{self.path}: holds {name!r}, which astroco embed did not write; move it away")
        try:
            there = read_json(self.path / _PLAN)
        except (OSError, ValueError):
            there = {}
        if there == self._plan:
            return
        if not self._overwrite:
            wrong = ", ".join(key for key, value in self._plan.items() if there.get(key) != value)
            raise UserError(
                f"{self.path}: holds parts of an embedding with another {wrong}; give the same, choose another "
                "output, or begin anew with --overwrite"
            )
        for entry in self.path.iterdir():
            if entry.name != _PLAN:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_text(self.path / _PLAN, json.dumps(self._plan, indent=1, sort_keys=True))

    def _take_up(self) -> None:
        """Find the parts that are there, and remove those of this share that are not as they were written."""
        for part in self._found().values():
            if self._share.has(part.batch, part.piece):
                try:
                    _checked(part)
                except UserError:
                    part.path.unlink()
        self._parts = self._found()

    def _found(self) -> dict[tuple[int, int], Part]:
        parts = {}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if found := _PART.fullmatch(path.name):
                batch, piece, pieces = (int(text) for text in found.groups()[:3])
                parts[batch, piece] = Part(batch, piece, pieces, found[4], path)
        return parts

    def _in_order(self) -> list[Part]:
        return [self._parts[place] for place in sorted(self._parts)]


def folder_of(out: Path) -> Path:
    """The folder of an output's parts, beside it."""
    return out.with_name(f"{out.name}.partial")


def _checked(part: Part) -> bytes:
    """A part's content.

    Raises:
        UserError: it is not as it was written.
    """
    content = part.path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:32] != part.digest:
        raise UserError(f"{part.path}: damaged (its checksum differs); run the same command again")
    return content


def _digest(plan: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
