"""TFRecord files of both of Astromer's generations, read as tables."""

import struct
from pathlib import Path

import numpy as np
import pytest

from astroco_fast.data.columns import Columns
from astroco_fast.data.convert import convert
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.sources import open_source
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from tests.data.curve_factory import make_batch, read_curves
from tests.data.tfrecords import curve, example, new_style, old_style, write_records

CLASSES = ("EW", "LPV", "RRab")


def survey(n: int) -> CurveBatch:
    batch = make_batch(n)
    batch.label = np.array([CLASSES[i % 3] for i in range(n)], dtype=object)
    return batch


def assert_equal(batch: CurveBatch, expected: CurveBatch, labels: list[str]) -> None:
    assert batch.ids.tolist() == expected.ids.tolist()
    assert batch.label.tolist() == labels
    np.testing.assert_array_equal(batch.offsets, expected.offsets)
    np.testing.assert_array_equal(batch.time, expected.time.astype(np.float32))
    np.testing.assert_array_equal(batch.mag, expected.mag)
    np.testing.assert_array_equal(batch.err, expected.err)


def test_records_of_the_new_style(tmp_path: Path) -> None:
    batch = survey(6)
    write_records(tmp_path / "0.record", [new_style(batch, i) for i in range(4)])
    write_records(tmp_path / "1.record", [new_style(batch, i) for i in range(4, 6)])
    first, second = read_curves(tmp_path, band="V")
    assert_equal(first, batch.select(np.arange(6) < 4), batch.label[:4].tolist())
    assert_equal(second, batch.select(np.arange(6) >= 4), batch.label[4:].tolist())


def test_records_of_the_old_style_have_their_class_from_the_folder(tmp_path: Path) -> None:
    batch = survey(6)
    for name in CLASSES:
        rows = [i for i in range(len(batch)) if batch.label[i] == name]
        write_records(tmp_path / name / "chunk_0.record", [old_style(batch, i, CLASSES) for i in rows])
    read = list(read_curves(tmp_path))
    order = np.argsort(batch.label, kind="stable")
    assert [name for part in read for name in part.ids] == batch.ids[order].tolist()
    assert [name for part in read for name in part.label] == batch.label[order].tolist()
    write_records(tmp_path / "all.record", [old_style(batch, i, CLASSES) for i in range(6)])
    (read,) = read_curves(tmp_path / "all.record")
    assert_equal(read, batch, [str(CLASSES.index(label)) for label in batch.label])


def test_negative_numbers_of_a_record(tmp_path: Path) -> None:
    batch = survey(1)
    lists = dict(zip(("mjd", "mag", "err"), curve(batch, 0), strict=True))
    write_records(tmp_path / "0.record", [example({"id": -7, "label": 2**40}, lists)])
    (read,) = read_curves(tmp_path / "0.record")
    assert (read.ids[0], read.label[0]) == ("-7", str(2**40))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"id,mag\n1,2\n", "cut short, or not a TFRecord file"),
        (struct.pack("<QI", 9, 0) + b"\xff" * 9 + b"\0" * 4, "record 1: not a light curve as Astromer writes them"),
        (struct.pack("<QI", 50, 0) + b"abc", "cut short"),
        (struct.pack("<QI", 2, 0) + b"\x08\x01" + b"\0" * 4, "record 1: not a light curve"),  # a number for the context
        (struct.pack("<QI", 4, 0) + b"\x0a\x02\x0a\x00" + b"\0" * 4, "record 1: not a light curve"),  # no name
    ],
)
def test_other_files_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "0.record").write_bytes(data)
    with pytest.raises(UserError, match=rf"0\.record.*{message}"):
        list(read_curves(tmp_path / "0.record"))


def test_a_folder_of_a_part_is_no_class(tmp_path: Path) -> None:
    batch = survey(6)
    for part, rows in (("train", range(4)), ("val", range(4, 6))):
        write_records(tmp_path / part / "0.record", [old_style(batch, i, CLASSES) for i in rows])
    read = list(read_curves(tmp_path))
    assert [label for part in read for label in part.label] == [str(CLASSES.index(label)) for label in batch.label]


def test_tables_beside_records_and_empty_shards_are_left_alone(tmp_path: Path) -> None:
    batch = survey(3)
    write_records(tmp_path / "EW" / "0.record", [])
    write_records(tmp_path / "LPV" / "0.record", [new_style(batch, i) for i in range(3)])
    (tmp_path / "objects.csv").write_text("survey,number\n1,2\n")
    (read,) = read_curves(tmp_path)
    assert read.ids.tolist() == batch.ids.tolist()


def test_columns_are_named_by_the_user(tmp_path: Path) -> None:
    batch = survey(2)
    lists = [dict(zip(("when", "m_ap", "err"), curve(batch, i), strict=True)) for i in range(2)]
    write_records(tmp_path / "0.record", [example({"star": batch.ids[i]}, lists[i]) for i in range(2)])
    with pytest.raises(UserError, match=r"0\.record: no time column; found: star, "):
        open_source(tmp_path)
    (read,) = read_curves(tmp_path, Columns(time="when", mag="m_ap", id="star"))
    assert_equal(read, batch, ["", ""])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"mjd": [1.0, 2.0], "mag": [1.0], "err": [1.0, 2.0]},
            r"row 2 \(id 'b'\) has 2 values in 'mjd' but 1",
        ),
        ({"mjd": [1.0, 2.0], "mag": [1.0, 2.0]}, r"0\.record, record 2: no 'err'"),
    ],
)
def test_records_that_lack_points(bad: dict[str, list[float]], message: str, tmp_path: Path) -> None:
    good = {name: np.array([1.0, 2.0]) for name in ("mjd", "mag", "err")}
    records = [example({"id": "a"}, good), example({"id": "b"}, {name: np.array(v) for name, v in bad.items()})]
    write_records(tmp_path / "0.record", records)
    with pytest.raises(UserError, match=message):
        list(read_curves(tmp_path / "0.record"))


def test_batches_of_records_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astroco_fast.data.sources.BATCH_POINTS", 60)
    batch = survey(11)
    write_records(tmp_path / "0.record", [new_style(batch, i) for i in range(5)])
    write_records(tmp_path / "1.record", [new_style(batch, i) for i in range(5, 11)])
    every = list(read_curves(tmp_path))
    assert len(every) > 4
    for skip in range(len(every) + 2):
        rest = list(open_source(tmp_path).batches(skip))
        assert [b.ids.tolist() for b in rest] == [b.ids.tolist() for b in every[skip:]]


def test_the_conversion_of_records_notes_the_precision_of_times_once(tmp_path: Path) -> None:
    batch = survey(4)
    for i in range(4):
        write_records(tmp_path / "in" / f"{i}.record", [new_style(batch, i)])
    report = convert(tmp_path / "in", tmp_path / "store")
    (note,) = report.notes
    assert "0.record and 3 more: times in 'mjd' are single precision" in note
    assert Store.open(tmp_path / "store").ids.tolist() == batch.ids.tolist()


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message, written by hand: numbers as varints, all else with its length."""
    return b"".join(
        varint(number << 3) + varint(value) if isinstance(value, int) else
        varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )  # fmt: skip


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def with_label(*feature: tuple[int, int | bytes]) -> bytes:
    """A record of one point whose label is this feature."""
    context = [(1, message((1, name), (2, message(*values)))) for name, values in
               ((b"id", [(1, message((1, b"s")))]), (b"label", feature))]  # fmt: skip
    point = message((1, message((2, message((1, np.ones(1, "<f4").tobytes()))))))
    return message(
        (1, message(*context)), (2, message(*[(1, message((1, b"dim_%d" % i), (2, point))) for i in range(3)]))
    )


def test_numbers_of_a_record(tmp_path: Path) -> None:
    most = 2**63 - 1
    for packed, label in (
        (varint(7), "7"),
        (b"", ""),
        (varint(300) + b"\1" * 400_000, "300"),
        (varint(most), str(most)),
        (varint(2**64 - 1), "-1"),
    ):
        write_records(tmp_path / "a.record", [with_label((3, message((1, packed))))])
        assert next(read_curves(tmp_path / "a.record")).label.tolist() == [label]
    for value, label in ((7, "7"), (2**34, str(2**34)), (2**64 - 3, "-3"), (2**69 + 1, "1")):
        write_records(tmp_path / "a.record", [with_label((3, message((1, value))))])
        assert next(read_curves(tmp_path / "a.record")).label.tolist() == [label]


ENDLESS = b"\xff" * 4_000_000 + b"\1"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (ENDLESS, "within 10 bytes"),
        (b"\x0a" + ENDLESS, "within 10 bytes"),
        (with_label((3, message((1, ENDLESS)))), "within 10 bytes"),
        (with_label((3, message((1, ENDLESS[:-1])))), "within 10 bytes"),
        (with_label((1, message((1, 2**34)))), "a number stands where text should"),
        (message((1, message((1, message((1, 2**34)))))), "a number stands where text should"),
        (b"\x0a" + varint(2**34), "beyond the record's end"),
    ],
    ids=range(7),
)
def test_numbers_that_ask_for_memory_or_time(record: bytes, why: str, tmp_path: Path) -> None:
    write_records(tmp_path / "a.record", [record])
    with pytest.raises(UserError, match=rf"a\.record, record 1: not a light curve .*{why}"):
        list(read_curves(tmp_path / "a.record"))


def test_a_record_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "a.record"
    write_records(path, [with_label((3, message((1, 1))))])
    with path.open("ab") as file:  # a file with a hole, which takes no disk
        file.write(struct.pack("<Q", 2**34) + bytes(4))
        file.truncate(file.tell() + 2**34 + 4)
    with pytest.raises(UserError, match=r"a\.record, record 2: its 17179869184 bytes are more than .* 10000000 points"):
        list(read_curves(path))
