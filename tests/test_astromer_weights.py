"""Astromer's Keras weights: small files made here give back the model that they were made of."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import astroco_fast as af
from astroco_fast import astromer_weights
from astroco_fast.astromer_weights import convert, is_keras, read
from astroco_fast.errors import MissingExtraError, UserError

SHARED = Path(__file__).resolve().parents[2] / "shared"
V1: dict[str, Any] = {"leak": False, "mask_logit": 1.0, "mask_queries": True, "hidden_magnitude": "shown"}
VERSIONS = pytest.mark.parametrize("version", [V1, {}], ids=["v1", "v2"])
FILES = pytest.mark.parametrize("kind", ["hdf5", "checkpoint"])


def model(version: dict[str, Any]) -> af.Astromer:
    torch.manual_seed(0)
    made = af.Astromer(af.AstromerConfig(width=16, heads=4, layers=2, feed_forward=24, **version)).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # initial biases and token are zero, which would hide a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def named_arrays(m: af.Astromer) -> Iterator[tuple[str, np.ndarray]]:
    """The weights as the authors' code has them: paths of attributes, in the order of Keras' list."""
    if m.mask_token is not None:
        yield "layer_with_weights-0/msk_token", m.mask_token.detach().numpy().reshape(1, 1)
    encoder, head = "layer_with_weights-1", "layer_with_weights-2"
    layers = {f"{encoder}/inp_transform": m.magnitude}
    for i, block in enumerate(m.blocks):
        attention, place = block.attention, f"{encoder}/enc_layers/{i}"
        layers |= {f"{place}/mha/wq": attention.query, f"{place}/mha/wk": attention.key}
        layers |= {f"{place}/mha/wv": attention.value, f"{place}/mha/dense": attention.out}
        layers |= {f"{place}/ffn/layer_with_weights-{k}": block.feed_forward[2 * k] for k in (0, 1)}
        layers |= {f"{place}/layernorm1": block.norm_attention, f"{place}/layernorm2": block.norm_feed_forward}
        if block.leak_attention is not None:
            layers |= {f"{place}/reshape_leak_1": block.leak_attention}
            layers |= {f"{place}/reshape_leak_2": block.leak_feed_forward}
    layers |= {f"{head}/reg_layer": m.head, f"{head}/bn_0": m.norm}
    for name, layer in layers.items():
        dense = isinstance(layer, torch.nn.Linear)
        first = layer.weight.detach().numpy()
        yield f"{name}/{'kernel' if dense else 'gamma'}", first.T if dense else first
        yield f"{name}/{'bias' if dense else 'beta'}", layer.bias.detach().numpy()


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A weights file of Keras 2: a group for each layer of the model."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        layers = dict.fromkeys(name.split("/")[0] for name in arrays)
        file.attrs["layer_names"] = [b"input", *(layer.encode() for layer in layers)]
        file.create_group("input").attrs["weight_names"] = []
        for layer in layers:
            names = [name for name in arrays if name.startswith(f"{layer}/")]
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name in names:
                group.create_dataset(f"{name}:0", data=arrays[name])


def varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block of a LevelDB table; keys share what they begin with."""
    out, last = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + struct.pack("<II", 0, 1)


def write_checkpoint(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A TensorFlow checkpoint of one shard, with a step counter besides the weights."""
    data, entries = b"", [(b"", b"\x08\x01")]
    values = {**arrays, "optimizer/iter": np.array(7, dtype=np.int64)}
    for name, array in sorted(values.items()):
        raw = np.ascontiguousarray(array).tobytes()
        sizes = b"".join(b"\x12" + varint(len(dim)) + dim for dim in (b"\x08" + varint(n) for n in array.shape))
        kind = 9 if array.dtype == np.int64 else 1
        entry = bytes([8, kind, 18]) + varint(len(sizes)) + sizes
        entry += b"\x20" + varint(len(data)) + b"\x28" + varint(len(raw)) + b"\x35" + bytes(4)
        entries.append((f"{name}/.ATTRIBUTES/VARIABLE_VALUE".encode(), entry))
        data += raw
    body = block(entries)
    table, trailer = body + bytes(5), bytes(5)
    listing = block([(b"z", varint(0) + varint(len(body)))])
    footer = varint(0) + varint(0) + varint(len(table)) + varint(len(listing))
    path.with_suffix(".index").write_bytes(
        table + listing + trailer + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    )
    path.with_suffix(".data-00000-of-00001").write_bytes(data)


def write(kind: str, folder: Path, m: af.Astromer) -> Path:
    folder.mkdir()
    arrays = dict(named_arrays(m))
    if kind == "hdf5":
        write_hdf5(folder / "weights.h5", arrays)
        return folder / "weights.h5"
    write_checkpoint(folder / "weights.index", arrays)
    return folder


@FILES
@VERSIONS
def test_a_file_gives_back_the_model(kind: str, version: dict[str, Any], tmp_path: Path) -> None:
    m = model(version)
    path = write(kind, tmp_path / "keras", m)
    assert is_keras(path)
    found = read(path)
    assert found.config == m.config
    assert not found.training
    for name, value in m.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=0, atol=0)


@FILES
def test_converted_weights_are_a_saved_model(kind: str, tmp_path: Path) -> None:
    m = model(V1)
    convert(write(kind, tmp_path / "keras", m), tmp_path / "out")
    assert not is_keras(tmp_path / "out")
    loaded = af.load(tmp_path / "out")
    assert isinstance(loaded, af.Astromer)
    torch.testing.assert_close(loaded.blocks[1].attention.key.weight, m.blocks[1].attention.key.weight)


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("hdf5", tmp_path / "keras", model(V1))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"weights.h5: reading HDF5 needs h5py: pip install .*rivals"):
        read(path)


def test_file_that_is_not_hdf5(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(UserError, match=r"text.h5: not an HDF5 file of Keras weights"):
        read(tmp_path / "text.h5")
    (tmp_path / "text.index").write_text("no table" * 20)
    with pytest.raises(UserError, match=r"text.index: not the index of a TensorFlow checkpoint"):
        read(tmp_path / "text.index")
    with pytest.raises(UserError, match=r"nowhere.h5: no such file"):
        read(tmp_path / "nowhere.h5")
    arrays = dict(named_arrays(model(V1)))
    write_hdf5(tmp_path / "less.h5", dict(list(arrays.items())[:-2]))
    with pytest.raises(UserError, match=r"less.h5: not weights of Astromer with one input"):
        read(tmp_path / "less.h5")
    write_checkpoint(tmp_path / "less.index", {k: v for k, v in arrays.items() if "/mha/wk/" not in k})
    with pytest.raises(UserError, match=r"less.index: not weights of Astromer: 0 arrays of the layer .*0/mha/wk"):
        read(tmp_path / "less.index")
    write_checkpoint(tmp_path / "cut.index", arrays)
    (tmp_path / "cut.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(UserError, match=r"cut.index: not the index of a TensorFlow checkpoint, or its data is missing"):
        read(tmp_path / "cut.index")


@pytest.mark.skipif(not (SHARED / "fixtures").is_dir(), reason="../shared/fixtures is not here")
@pytest.mark.parametrize("number", [1, 2])
def test_outputs_are_those_of_the_original_code(number: int, tmp_path: Path) -> None:
    with np.load(SHARED / "fixtures" / f"astromer_v{number}_tiny.npz") as file:
        arrays = {name: file[name] for name in file.files}
    weights = {f"astromer/{name.removeprefix('w/')}": value for name, value in arrays.items() if name.startswith("w/")}
    write_hdf5(tmp_path / "tiny.h5", weights)
    m = read(tmp_path / "tiny.h5", heads=2)
    time, mag, masked = (torch.from_numpy(arrays[name]).squeeze(-1) for name in ("times", "input", "mask_in"))
    if m.config.hidden_magnitude == "zero":  # this input was saved behind the layer that replaces hidden magnitudes
        m = m.__class__(af.AstromerConfig(**{**m.config.to_dict(), "hidden_magnitude": "shown"})).eval()
        m.load_state_dict(read(tmp_path / "tiny.h5", heads=2).state_dict())
    with torch.no_grad():
        out = m(time, mag, torch.zeros_like(mag), hidden=masked > 0, centered=True)
    torch.testing.assert_close(out.reconstruction, torch.from_numpy(arrays["output"]).squeeze(-1), rtol=0, atol=1e-5)


def test_the_order_of_layers_covers_every_parameter() -> None:
    m = model({})
    of_layers = sum(p.numel() for layer in astromer_weights._layers(m) for p in layer.parameters())
    assert of_layers + 1 == sum(p.numel() for p in m.parameters())
