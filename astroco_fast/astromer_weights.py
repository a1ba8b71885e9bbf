"""Astromer's weights as its authors save them, read into `astroco_fast.Astromer` without TensorFlow.

    from astroco_fast.astromer_weights import convert
    convert("macho_a0", "astromer-v1-macho")  # then: astroco probe --model astromer-v1-macho ...

The authors' code (github.com/astromer-science, main-code and python-library) calls Keras' `save_weights`. It writes a
TensorFlow checkpoint (`weights.index`, `weights.data-00000-of-00001`), as in their released archives, or one HDF5 file
if the name ends with .h5. Both give the same list of arrays, layer by layer: the magnitude projection, the blocks, the
head. Neither is a pickle.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from astroco_fast.baselines import Astromer
from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.pretrained import CONFIG_FILE
from astroco_fast.reference.config import AstromerConfig

Array = NDArray[np.float32]

_HDF5 = (".h5", ".hdf5")
_INDEX = ".index"
_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")  # the end of a LevelDB table
_FLOAT32 = 1  # TensorFlow's number of the type
_DENSE, _NORM = ("kernel", "bias"), ("gamma", "beta")


def is_keras(source: str | Path) -> bool:
    """Whether this is a file or folder of Keras weights rather than a model that this package saved."""
    path = Path(source)
    if path.is_dir():
        return not (path / CONFIG_FILE).exists() and any(path.glob(f"*{_INDEX}"))
    return path.suffix in (*_HDF5, _INDEX)


def convert(source: str | Path, out: str | Path) -> None:
    """Read Keras weights and save them as `Astromer.save_pretrained` does. Arguments and errors are those of `read`."""
    read(source).save_pretrained(out, notes=f"Astromer's weights, converted from Keras ({Path(source).name}).")


def read(source: str | Path, heads: int = 4) -> Astromer:
    """Astromer with the weights of a Keras file, in evaluation mode, on the CPU.

    Widths and depths follow from the arrays' shapes. Weights with leak projections are of version 2, others of 1.

    Args:
        source: an HDF5 file (.h5, .hdf5), a checkpoint's .index file, or the folder that holds it.
        heads: attention heads, which the weights do not tell; all published models have four.

    Raises:
        UserError: the file cannot be read, or holds weights of something else.
        MissingExtraError: an HDF5 file without h5py.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob(f"*{_INDEX}"))
        if len(found) != 1:
            raise UserError(f"{path}: {len(found)} files *{_INDEX}; name the one of a checkpoint of Astromer")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    arrays = _read_hdf5(path) if path.suffix in _HDF5 else _read_checkpoint(path)
    return _build(arrays, path, heads)


def _build(arrays: Sequence[Array], path: Path, heads: int) -> Astromer:
    """The model of these arrays: perhaps a mask token, then layer by layer the kernel or scale and the bias."""
    token = arrays[0] if arrays and arrays[0].size == 1 else None
    arrays = arrays[1:] if token is not None else arrays
    blocks = arrays[2:-4]
    matrices = sum(array.ndim == 2 for array in blocks)
    layers = (len(blocks) - 2 * matrices) // 4  # a block has two norms, and a bias for each matrix
    leak = layers > 0 and matrices == 8 * layers
    try:
        config = AstromerConfig(
            width=arrays[0].shape[1],
            heads=heads,
            layers=layers,
            feed_forward=blocks[8].shape[1],
            leak=leak,
            mask_logit=-1e9 if leak else 1.0,
            mask_queries=not leak,
            hidden_magnitude="token" if token is not None else "zero" if leak else "shown",
        )
        model = Astromer(config)
        layers_of_model = list(_layers(model))
        for layer, first, second in zip(layers_of_model, arrays[::2], arrays[1::2], strict=True):
            _copy(layer.weight, first.T if isinstance(layer, nn.Linear) else first)
            _copy(layer.bias, second)
        if token is not None and model.mask_token is not None:
            _copy(model.mask_token, token.reshape(()))
    except (IndexError, ValueError, UserError) as error:
        shapes = ", ".join(str(array.shape) for array in arrays[:4])
        raise UserError(
            f"{path}: not weights of Astromer with one input, the magnitude, and {heads} heads: {len(arrays)} arrays "
            f"of shapes {shapes} ..."
        ) from error
    return model.eval()


def _layers(model: Astromer) -> Iterator[Any]:
    """The layers with weights, in the order in which Keras lists them."""
    yield model.magnitude
    blocks: Any = model.blocks
    for block in blocks:
        attention = block.attention
        yield from (attention.query, attention.key, attention.value, attention.out)
        yield from (block.feed_forward[0], block.feed_forward[2], block.norm_attention, block.norm_feed_forward)
        if block.leak_attention is not None:
            yield from (block.leak_attention, block.leak_feed_forward)
    yield from (model.head, model.norm)


def _copy(parameter: Any, values: Array) -> None:
    if tuple(parameter.shape) != values.shape:
        raise ValueError(f"{values.shape} is not {tuple(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(values.copy()))


def _read_hdf5(path: Path) -> list[Array]:
    """The arrays of a Keras 2 weights file: the root lists its layers, and each layer its weights."""
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "rivals", f"{path}: reading HDF5") from None
    try:
        with h5py.File(path) as file:
            groups = [file[_text(name)] for name in file.attrs["layer_names"]]
            return [
                np.asarray(group[_text(name)], dtype=np.float32)
                for group in groups
                for name in group.attrs["weight_names"]
            ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not an HDF5 file of Keras weights: {error}") from error


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _read_checkpoint(path: Path) -> list[Array]:
    """The arrays of a TensorFlow checkpoint, in Keras' order. Keys are the paths of attributes in the authors' code."""
    try:
        arrays = _checkpoint_arrays(path)
    except (IndexError, ValueError, OSError) as error:
        raise UserError(f"{path}: not the index of a TensorFlow checkpoint, or its data is missing: {error}") from error

    def pair(layer: str, names: tuple[str, str]) -> list[Array]:
        found = [key for name in names for key in arrays if key.endswith(f"/{layer}/{name}")]
        if len(found) != len(names):
            raise UserError(f"{path}: not weights of Astromer: {len(found)} arrays of the layer {layer}, not 2")
        return [arrays[key] for key in found]

    numbers = {int(match[1]) for key in arrays if (match := re.search(r"/enc_layers/(\d+)/", key))}
    ordered = [value for key, value in arrays.items() if key.endswith("/msk_token")]
    ordered += pair("inp_transform", _DENSE)
    for number in sorted(numbers):
        block = f"enc_layers/{number}"
        for layer in ("mha/wq", "mha/wk", "mha/wv", "mha/dense", *(f"ffn/layer_with_weights-{i}" for i in (0, 1))):
            ordered += pair(f"{block}/{layer}", _DENSE)
        for layer in ("layernorm1", "layernorm2"):
            ordered += pair(f"{block}/{layer}", _NORM)
        if any(f"/{block}/reshape_leak_1/" in key for key in arrays):
            for layer in ("reshape_leak_1", "reshape_leak_2"):
                ordered += pair(f"{block}/{layer}", _DENSE)
    return ordered + pair("reg_layer", _DENSE) + pair("bn_0", _NORM)


def _checkpoint_arrays(path: Path) -> dict[str, Array]:
    """The float32 variables of a checkpoint of one shard, without the optimiser's.

    The index is a LevelDB table (github.com/google/leveldb, doc/table_format.md) of protocol buffers: BundleEntryProto
    in tensorflow/core/protobuf/tensor_bundle.proto.
    """
    index = path.read_bytes()
    if index[-8:] != _TABLE_MAGIC:
        raise ValueError("no table's end")
    data = path.with_suffix(".data-00000-of-00001").read_bytes()
    footer = index[-48:]
    numbers, place = [], 0
    for _ in range(4):  # offset and size of two blocks: the table's metadata, and the list of its blocks
        number, place = _varint(footer, place)
        numbers.append(number)
    arrays = {}
    for _, handle in _entries(index, *numbers[2:]):
        offset, place = _varint(handle, 0)
        for key, value in _entries(index, offset, _varint(handle, place)[0]):
            name = key.decode().removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
            fields = _message(value)
            if not name.endswith("OBJECT_GRAPH") and ".OPTIMIZER_SLOT" not in name and fields.get(1) == [_FLOAT32]:
                shape = [_message(size).get(1, [0])[0] for size in _message(fields.get(2, [b""])[0]).get(2, [])]
                start = fields.get(4, [0])[0]
                arrays[name] = np.frombuffer(data, "<f4", int(np.prod(shape)), start).reshape(shape)
    return arrays


def _entries(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block of a LevelDB table. A key is given by how much of the last one it begins with."""
    if table[offset + size] != 0:
        raise ValueError("the index is compressed")
    block = table[offset : offset + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


def _message(data: bytes) -> Mapping[int, list[Any]]:
    """The fields of a protocol buffer by number: whole numbers, and bytes for what has a length."""
    fields: dict[int, list[Any]] = {}
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        value: Any
        if tag & 7 == 0:
            value, place = _varint(data, place)
        elif tag & 7 == 2:
            length, place = _varint(data, place)
            value, place = data[place : place + length], place + length
        elif tag & 7 == 5:
            value, place = data[place : place + 4], place + 4
        else:
            raise ValueError(f"a field of wire type {tag & 7}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, the lowest first, and the place after it."""
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
