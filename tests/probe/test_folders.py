"""Folders of given splits, as Astromer's are: tables and TFRecord files."""

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from astroco_fast import probe
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.readers import read_curves
from astroco_fast.errors import UserError
from astroco_fast.probe.records import RecordFiles
from astroco_fast.probe.stars import open_portions, read_stars
from tests.data.curve_factory import as_long, as_nested
from tests.probe.survey import CLASSES, survey, tiny_model

PARTS = {"train": slice(0, 12), "val": slice(12, 24), "test": slice(24, 36)}


def portion(part: slice) -> CurveBatch:
    batch = survey()
    chosen = np.zeros(len(batch), dtype=bool)
    chosen[part] = True
    return batch.select(chosen)


def as_tables(root: Path, batch: CurveBatch, folder: str) -> None:
    (root / folder).mkdir(parents=True)
    pq.write_table(as_nested(batch), root / folder / "part.parquet")


def tree(root: Path, sizes: tuple[int, ...] = (4,), folds: int = 2) -> Path:
    for n in sizes:
        for fold in range(folds):
            for name, part in PARTS.items():
                as_tables(root, portion(part), f"fold_{fold}/alcock_{n}/{name}")
    return root


def found(root: Path) -> list[tuple[int, int, str]]:
    return [p.place for p in open_portions(str(root), Columns(), None) if p.place]


def test_folders_of_splits_are_read_as_they_are(tmp_path: Path) -> None:
    root = tree(tmp_path / "alcock", sizes=(4, 20))
    assert found(root) == [
        (n, fold, part) for fold in (0, 1) for n in (20, 4) for part in ("test", "train", "validation")
    ]
    splits = read_stars(open_portions(str(root), Columns(), None), 1).splits()
    assert [(split.n, split.fold) for split in splits] == [(4, 0), (4, 1), (20, 0), (20, 1)]
    assert splits[0].train == tuple(sorted(survey().ids[:12]))
    assert splits[0].validation == tuple(sorted(survey().ids[12:24]))
    assert splits[0].test == tuple(sorted(survey().ids[24:36]))


def test_the_other_order_of_folders_is_read_too(tmp_path: Path) -> None:
    as_tables(tmp_path, portion(PARTS["train"]), "alcock/20/fold_3/train")
    as_tables(tmp_path, portion(PARTS["test"]), "alcock/20/fold_3/test")
    as_tables(tmp_path, portion(PARTS["test"]), "alcock/all/fold_3/test")  # no size: not used
    assert found(tmp_path) == [(20, 3, "test"), (20, 3, "train")]


def test_an_ordinary_folder_is_none_of_splits(tmp_path: Path) -> None:
    as_tables(tmp_path, survey(), "train")
    (one,) = open_portions(str(tmp_path), Columns(), None)
    assert one.place is None


def test_the_command_takes_them(tmp_path: Path) -> None:
    root = tree(tmp_path / "alcock")
    tiny_model().save_pretrained(tmp_path / "model")
    flags = ["--data", str(root), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert probe.main([*flags, "--plots", "false", "--head.epochs", "5"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["classes"] == list(CLASSES)
    assert [(entry["probe"], entry["n"], len(entry["runs"])) for entry in results["results"]] == [
        ("linear", 4, 6),
        ("logistic", 4, 2),
        ("knn", 4, 2),
    ]
    assert len(pq.read_table(tmp_path / "out" / "embeddings.parquet")) == 36  # each star once, in both folds


def test_leakage_in_folders_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "alcock")
    as_tables(root, portion(slice(5, 6)), "fold_1/alcock_4/test/more")
    with pytest.raises(UserError, match="leakage: n = 4, fold 1: star 'star-5' in both train and test"):
        read_stars(open_portions(str(root), Columns(), None), 1).splits()


def test_a_star_has_one_light_curve_in_all_folds(tmp_path: Path) -> None:
    root = tree(tmp_path / "alcock")
    other = portion(slice(5, 6))
    other.mag[0] += 1
    as_tables(root, other, "fold_2/alcock_4/train")
    with pytest.raises(UserError, match="star 'star-5' has two light curves, with other points"):
        read_stars(open_portions(str(root), Columns(), None), 1)


# --- TFRecord -----------------------------------------------------------------------------------------------------


def messages() -> type:
    """`tf.train.SequenceExample`, built by Google's own library from TensorFlow's public definition."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    one, many, message = 1, 3, 11

    def add(name: str, *fields: tuple[str, int, int, int, str]) -> None:
        kind = file.message_type.add(name=name)
        for field, number, label, what, of in fields:
            kind.field.add(name=field, number=number, label=label, type=what, type_name=of or None)

    def add_map(name: str, field: str, of: str) -> None:
        add(name, (field, 1, many, message, f".tf.{name}.Entry"))
        entry = file.message_type[-1].nested_type.add(name="Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=one, type=9)
        entry.field.add(name="value", number=2, label=one, type=message, type_name=of)
        file.message_type[-1].field[0].type_name = f".tf.{name}.{field.title().replace('_', '')}Entry"
        entry.name = f"{field.title().replace('_', '')}Entry"

    add("BytesList", ("value", 1, many, 12, ""))
    add("FloatList", ("value", 1, many, 2, ""))
    add("Int64List", ("value", 1, many, 3, ""))
    lists = ("bytes_list", "float_list", "int64_list")
    kinds = (".tf.BytesList", ".tf.FloatList", ".tf.Int64List")
    add("Feature", *((name, i + 1, one, message, kinds[i]) for i, name in enumerate(lists)))
    add_map("Features", "feature", ".tf.Feature")
    add("FeatureList", ("feature", 1, many, message, ".tf.Feature"))
    add_map("FeatureLists", "feature_list", ".tf.FeatureList")
    context = ("context", 1, one, message, ".tf.Features")
    add("SequenceExample", context, ("feature_lists", 2, one, message, ".tf.FeatureLists"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.SequenceExample"))


def example(context: dict[str, str | int], lists: dict[str, np.ndarray]) -> bytes:
    record = messages()()
    for name, value in context.items():
        feature = record.context.feature[name]
        if isinstance(value, str):
            feature.bytes_list.value.append(value.encode())
        else:
            feature.int64_list.value.append(value)
    for name, values in lists.items():
        record.feature_lists.feature_list[name].feature.add().float_list.value.extend(values.tolist())
    data: bytes = record.SerializeToString()
    return data


def write_records(path: Path, examples: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    framed = (struct.pack("<QI", len(data), 0) + data + struct.pack("<I", 0) for data in examples)
    path.write_bytes(b"".join(framed))


def curve(batch: CurveBatch, i: int) -> list[np.ndarray]:
    points = slice(batch.offsets[i], batch.offsets[i + 1])
    return [batch.time[points], batch.mag[points], batch.err[points]]


def old_style(batch: CurveBatch, i: int) -> bytes:
    lists = dict(zip(("dim_0", "dim_1", "dim_2"), curve(batch, i), strict=True))
    number = CLASSES.index(batch.label[i])
    return example({"id": batch.ids[i], "label": number, "length": len(lists["dim_0"])}, lists)


def new_style(batch: CurveBatch, i: int) -> bytes:
    lists = dict(zip(("mjd", "mag", "errmag"), curve(batch, i), strict=True))
    return example({"ID": batch.ids[i], "Class": batch.label[i], "Band": "V", "Label": -1, "shard": 2**40}, lists)


def assert_equal(batch: CurveBatch, expected: CurveBatch, labels: list[str]) -> None:
    assert batch.ids.tolist() == expected.ids.tolist()
    assert batch.label.tolist() == labels
    np.testing.assert_array_equal(batch.offsets, expected.offsets)
    np.testing.assert_array_equal(batch.time, expected.time.astype(np.float32))
    np.testing.assert_array_equal(batch.mag, expected.mag)
    np.testing.assert_array_equal(batch.err, expected.err)


def test_records_of_the_new_style(tmp_path: Path) -> None:
    batch = portion(slice(0, 6))
    write_records(tmp_path / "0.record", [new_style(batch, i) for i in range(4)])
    write_records(tmp_path / "1.record", [new_style(batch, i) for i in range(4, 6)])
    files = RecordFiles(tmp_path, sorted(tmp_path.iterdir()), Columns())
    (read,) = read_curves(files, band="V")
    assert_equal(read, batch, batch.label.tolist())


def test_records_of_the_old_style_have_their_class_from_the_folder(tmp_path: Path) -> None:
    batch = portion(slice(0, 6))
    for name in CLASSES:
        rows = [i for i in range(len(batch)) if batch.label[i] == name]
        write_records(tmp_path / name / "chunk_0.record", [old_style(batch, i) for i in rows])
    (read,) = RecordFiles(tmp_path, sorted(tmp_path.rglob("*.record")), Columns())
    order = np.argsort(batch.label, kind="stable")
    assert read.ids.tolist() == batch.ids[order].tolist()
    assert read.label.tolist() == batch.label[order].tolist()
    write_records(tmp_path / "all.record", [old_style(batch, i) for i in range(6)])
    (read,) = RecordFiles(tmp_path, [tmp_path / "all.record"], Columns())
    assert_equal(read, batch, [str(CLASSES.index(label)) for label in batch.label])


def test_the_command_takes_records(tmp_path: Path) -> None:
    for name, part in PARTS.items():
        batch = portion(part)
        path = tmp_path / "alcock" / "fold_0" / "alcock_4" / name / "0.record"
        write_records(path, [new_style(batch, i) for i in range(len(batch))])
    tiny_model().save_pretrained(tmp_path / "model")
    flags = ["--data", str(tmp_path / "alcock"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert probe.main([*flags, "--plots", "false", "--probes", "[linear]", "--head.epochs", "5"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["classes"] == list(CLASSES)


def test_negative_numbers_of_a_record(tmp_path: Path) -> None:
    batch = portion(slice(0, 1))
    lists = dict(zip(("mjd", "mag", "err"), curve(batch, 0), strict=True))
    write_records(tmp_path / "0.record", [example({"id": -7, "label": 2**40}, lists)])
    (read,) = RecordFiles(tmp_path, [tmp_path / "0.record"], Columns())
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
        list(RecordFiles(tmp_path, [tmp_path / "0.record"], Columns()))


def test_tables_in_the_long_form_are_read_too(tmp_path: Path) -> None:
    for name, part in PARTS.items():
        folder = tmp_path / "fold_0" / "alcock_4" / name
        folder.mkdir(parents=True)
        as_long(portion(part)).to_csv(folder / "points.csv", index=False)
    (split,) = read_stars(open_portions(str(tmp_path), Columns(), None), 1).splits()
    assert len(split.train) == len(split.test) == 12
