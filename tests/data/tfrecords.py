"""TFRecord files, written by Google's own library, for the tests."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from astroco_fast.data.curves import CurveBatch


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


def old_style(batch: CurveBatch, i: int, classes: Sequence[str]) -> bytes:
    """A record of the first generation, whose label is the number of its class."""
    lists = dict(zip(("dim_0", "dim_1", "dim_2"), curve(batch, i), strict=True))
    number = classes.index(batch.label[i])
    return example({"id": batch.ids[i], "label": number, "length": len(lists["dim_0"])}, lists)


def new_style(batch: CurveBatch, i: int) -> bytes:
    """A record of the second generation."""
    lists = dict(zip(("mjd", "mag", "errmag"), curve(batch, i), strict=True))
    return example({"ID": batch.ids[i], "Class": batch.label[i], "Band": "V", "Label": -1, "shard": 2**40}, lists)
