"""`astroco export`: a graph that computes what its model computes, for any number and length of windows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import astroco_fast as af
from astroco_fast import export, graphs
from astroco_fast.digest import model_digest
from astroco_fast.errors import UserError
from astroco_fast.registry import build


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model = af.AstroCo.from_preset("tiny", width=16, heads=2, layers=1, window=20, kernel=4)
    model.views = "folded"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """Trace each model once: both formats, and a graph that differs, come from the same program."""
    programs, to_program = {}, graphs.to_program

    def traced(model):
        digest = model_digest(model)
        if digest not in programs:
            programs[digest] = to_program(model)
        return programs[digest]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "to_program", traced)
        yield


@pytest.fixture(scope="module")
def graph(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graph") / "model.onnx"
    assert export.main([str(out), "--model", str(saved), "--format", "onnx"]) == 0
    return out


def given(batch: int, length: int, lengths: list[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    inputs = list(graphs.example(batch, length, lengths, seed=3))
    return inputs, torch.arange(length) < inputs[3][:, None]


@pytest.mark.parametrize("shape", [(1, 1, [1]), (2, 31, [31, 5]), (4, 8, [0, 1, 7, 8])])
def test_onnx_gives_the_model_s_outputs_whatever_stands_at_padding(graph, saved, shape):
    inputs, real = given(*shape)
    model = af.load(saved)
    with torch.no_grad():
        right = model(*inputs[:3], real)
    run = graphs.onnx_runner(graph.read_bytes())
    padded = [values.masked_fill(~real, 7.0) for values in inputs[:3]]
    for got, wanted in zip(
        run(*padded, inputs[3]), (right.embedding, right.sequence, right.reconstruction), strict=True
    ):
        np.testing.assert_allclose(got, wanted.numpy(), atol=2e-5)


def test_the_file_says_what_it_is(graph, saved):
    import onnx

    file = onnx.load(graph)
    told = {entry.key: entry.value for entry in file.metadata_props}
    assert told["model"] == str(saved)
    assert told["architecture"] == "AstroCo"
    assert json.loads(told["config"])["width"] == 16
    assert len(told["model_sha256"]) == 64
    assert "order of phase" in told["inputs"]
    assert [node.name for node in file.graph.input] == list(graphs.INPUTS)
    assert [node.name for node in file.graph.output] == list(graphs.OUTPUTS)


def test_a_program_of_torch_export_takes_any_shape(saved, tmp_path):
    out = tmp_path / "model.pt2"
    assert export.main([str(out), "--model", str(saved)]) == 0
    facts = {export.FACTS: ""}
    program = torch.export.load(out, extra_files=facts)
    assert json.loads(facts[export.FACTS])["model"] == str(saved)
    inputs, real = given(3, 41, [41, 40, 3])
    with torch.no_grad():
        right = af.load(saved)(*inputs[:3], real)
    torch.testing.assert_close(program.module()(*inputs)[0], right.embedding, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.onnx", "--format", "torch"], "model.onnx: the name must end in .pt2 for --format torch"),
        (["model.bin"], r"must end in one of .onnx \(onnx\), .pt2 \(torch\)"),
        (["nowhere/model.onnx", "--model", "absent"], "absent: no such folder"),
        (["there.onnx", "--model", "fold-small"], "there.onnx: exists; give another name, or --overwrite true"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_lost(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_text("mine")
    assert export.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert Path("there.onnx").read_text() == "mine"


def test_a_graph_that_differs_is_not_written(saved, tmp_path, monkeypatch, capsys):
    out = tmp_path / "model.onnx"
    monkeypatch.setattr(graphs, "to_onnx", lambda *_, **__: b"")
    wrong = graphs.Windows(af.load(saved))
    with torch.no_grad():
        wrong.model.head.bias.add_(1.0)
    monkeypatch.setattr(graphs, "onnx_runner", lambda _: wrong)
    assert export.main([str(out), "--model", str(saved)]) == 2
    assert "differ from the model's by" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(graphs, "package_version", lambda name: None if name == "onnxscript" else "1")
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'astroco_fast\[export\]'"):
        graphs.require_onnx()


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "megabytes"), [("S", 24), ("astromer-v2", None)])
def test_presets_export_at_their_size(preset, megabytes, tmp_path):
    build(preset).save_pretrained(tmp_path / "model")
    out = tmp_path / "model.onnx"
    assert export.main([str(out), "--model", str(tmp_path / "model")]) == 0
    assert megabytes is None or abs(out.stat().st_size / 1e6 - megabytes) < 1
