"""AstroCo as users call it: equal to the reference, saved, loaded, compiled."""

import copy
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import astroco_fast as af
from astroco_fast import cli, pretrained
from astroco_fast.errors import UserError
from astroco_fast.reference.astroco import ReferenceAstroCo
from tests.windows import make_windows

ABLATIONS = [{}, {"convolution": False}, {"gate": False}, {"mix": False}]


def tiny(**overrides: object) -> af.AstroCo:
    return af.AstroCo.from_preset("tiny", **{"width": 16, "heads": 2, "dropout": 0.0, **overrides})


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_same_state_dict_and_outputs_as_the_reference(ablation: dict[str, bool]) -> None:
    fast = tiny(**ablation)
    slow = ReferenceAstroCo(fast.config)
    assert list(slow.state_dict()) == list(fast.state_dict())
    slow.load_state_dict(fast.state_dict())
    w = make_windows([12, 5, 0], 12)
    for a, b in zip(
        fast(w.time, w.mag, w.err, w.mask, hidden=w.hidden),
        slow(w.time, w.mag, w.err, w.mask, hidden=w.hidden),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("training", [False, True])
def test_hidden_points_may_hold_anything(training: bool) -> None:
    model, w = tiny(dropout=0.0).train(training), make_windows([12, 5], 12)
    found = []
    for placeholder in (0.0, float("nan")):
        points = [values.masked_fill(w.hidden, placeholder) for values in (w.time, w.mag)]
        model.zero_grad()
        out = model(*points, w.err, w.mask, hidden=w.hidden)
        (out.sequence.square().sum() + out.reconstruction.square().sum()).backward()
        found.append([*out, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_recomputed_activations_give_the_same_gradients_and_statistics() -> None:
    model = tiny(dropout=0.3).train()
    again = copy.deepcopy(model)
    again.recompute = True
    w = make_windows([12, 5, 0], 12)
    for candidate in (model, again):
        torch.manual_seed(1)
        out = candidate(w.time, w.mag, w.err, w.mask, hidden=w.hidden)
        (out.sequence.square().sum() + out.reconstruction.square().sum()).backward()
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for a, b in zip(model.buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b)  # the recomputation does not count as a pass


def test_outputs_have_the_shapes_promised() -> None:
    w = make_windows([12, 5], 12)
    out = tiny()(w.time, w.mag, w.err, w.mask)
    assert [tuple(x.shape) for x in out] == [(2, 12, 16), (2, 16), (2, 12)]
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in out)


def test_non_contiguous_inputs_give_the_same() -> None:
    w = make_windows([12, 5, 9, 9], 24)
    model = tiny().eval()
    sliced = model(w.time[::2, :12], w.mag[::2, :12], w.err[::2, :12], w.mask[::2, :12])
    copied = model(*(x[::2, :12].clone() for x in (w.time, w.mag, w.err, w.mask)))
    assert torch.equal(sliced.embedding, copied.embedding)
    expanded = model(w.time[:1, :12].expand(3, 12), w.mag[:1, :12].expand(3, 12), w.err[:1, :12].expand(3, 12))
    assert torch.equal(expanded.embedding[0], expanded.embedding[2])


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_save_and_load(tmp_path: Path, ablation: dict[str, bool]) -> None:
    model = tiny(hide="magnitude", **ablation).eval()
    model.save_pretrained(tmp_path / "m", notes="Trained on nothing.")
    loaded = af.AstroCo.from_pretrained(tmp_path / "m")
    assert loaded.config == model.config
    assert not loaded.training
    w = make_windows([12], 12)
    assert torch.equal(loaded(w.time, w.mag, w.err).embedding, model(w.time, w.mag, w.err).embedding)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "Trained on nothing." in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card


def damage_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda f: damage_config(f, model="Bert"), r"not an AstroCo configuration \('model' is 'Bert'\)"),
        (lambda f: damage_config(f, format=99), "upgrade astroco_fast"),
        (lambda f: damage_config(f, wings=2), "config.json: unknown model setting 'wings'"),
        (lambda f: damage_config(f, layers=2**63), r"model\.layers must be at most 1,024"),
        (lambda f: damage_config(f, window=10**9), r"model\.window must be at most"),
        (lambda f: damage_config(f, layers=1000), "tensors for 1000 layers"),  # seen before a layer is built
        (lambda f: damage_config(f, width=2**16), r"is needed"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json: not JSON: nested too deeply"),
        (lambda f: damage_config(f, width=32), "does not hold this model's weights"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), "does not hold this model's weights"),
    ],
)
def test_broken_folders_are_named(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    tiny().save_pretrained(tmp_path)
    (tmp_path / "manifest.json").unlink()  # as folders had none once; with it, any change is found by its checksum
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        af.AstroCo.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_changed_bit_of_a_saved_model_is_found(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    for name in ("model.safetensors", "config.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(UserError, match=f"{name} is damaged"):
            af.load(tmp_path)
        (tmp_path / name).write_bytes(content)
    af.load(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors: .* not finite"):
        af.load(tmp_path)


def test_saving_replaces_no_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(UserError, match=r"README\.md: not a file of a saved model"):
        tiny().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    for width in (16, 32):
        tiny(width=width).save_pretrained(tmp_path / "model")
        assert af.load(tmp_path / "model").config.width == width


@pytest.mark.parametrize(("gone", "width"), [(False, 16), (True, 32)])
def test_a_link_is_followed_once(gone: bool, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in progress may point `best` to another checkpoint while it is read, and remove the first."""
    for name in ("one", "two"):
        tiny(width=16 if name == "one" else 32).save_pretrained(tmp_path / name)
    (tmp_path / "best").symlink_to("one")

    def switch(path: Path) -> dict[str, object]:
        values = read(path)
        (tmp_path / "best").unlink()
        (tmp_path / "best").symlink_to("two")
        if gone:
            shutil.rmtree(tmp_path / "one", ignore_errors=True)
        return values

    read = pretrained.read_config
    monkeypatch.setattr(pretrained, "read_config", switch)
    assert af.AstroCo.from_pretrained(tmp_path / "best").config.width == width


def test_the_network_is_asked_only_where_the_hub_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(f"{name} {revision}")
        return str(tmp_path / "model")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained("model")
    Path("runs").mkdir()
    for source in ("runs/bset", "rusn/best", "somebody/model"):
        with pytest.raises(UserError, match=f"{source}: no such folder.*of the Hub is hub:{source}"):
            af.load(source)
    for command in (["embed", "in.csv", "out.parquet"], ["probe", "--data", "in.csv", "--out", "out"]):
        Path("in.csv").write_text("id,mjd,mag,err,label\na,1,2,3,b\n")
        assert cli.main([*command, "--model", "rusn/best"]) == 2
        assert "rusn/best: no such folder, and no released model" in capsys.readouterr().err
    assert asked == []
    af.load("hub:somebody/other")
    af.load("hub:somebody/other@v1.0")
    assert asked == ["somebody/other None", "somebody/other v1.0"]


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/such/folder"])
def test_a_folder_that_is_not_there(source: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        af.AstroCo.from_pretrained(source)


def test_autocast_is_respected() -> None:
    model = tiny().eval()
    w = make_windows([12, 7], 12)
    exact = model(w.time, w.mag, w.err, w.mask).embedding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(w.time, w.mag, w.err, w.mask).embedding
    difference = (rounded.float() - exact).abs().max()
    assert 0 < difference < 0.05


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    model = tiny().eval()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    w = make_windows([12, 7, 0], 12)
    holes = w.mask & (torch.rand(3, 12) < 0.7)
    for arguments in ({"mask": w.mask}, {"mask": holes}, {"lengths": w.lengths}):
        expected = model(w.time, w.mag, w.err, hidden=w.hidden, **arguments)
        got = compiled(w.time, w.mag, w.err, hidden=w.hidden, **arguments)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_training_step_has_every_gradient() -> None:
    model, w = tiny(layers=1).train(), make_windows([12, 7], 12)
    compiled = copy.deepcopy(model)
    holes = w.mask & (torch.arange(12) % 3 > 0)
    arguments = (w.time, w.mag, w.err, holes)
    with af.backend("reference"):
        for candidate, call in (
            (model, model),
            (compiled, torch.compile(compiled, fullgraph=True, backend="aot_eager")),
        ):
            out = call(*arguments, hidden=w.hidden)
            (out.sequence.square().sum() + out.embedding.sum() + out.reconstruction.square().sum()).backward()
            assert all(parameter.grad is not None for parameter in candidate.parameters())
    for (name, a), b in zip(model.named_parameters(), compiled.parameters(), strict=True):
        assert a.grad.abs().max() > 0, name
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-3 * a.grad.abs().max().item(), msg=name)


def test_autocast_does_not_round_magnitudes() -> None:
    """Magnitudes that are equal in bfloat16 stay different in the input, and the output has no steps."""
    model = tiny().eval()
    time, err = torch.linspace(-9, 9, 64)[None], torch.full((1, 64), 0.05)
    mag = torch.linspace(3.0, 3.004, 64)[None]  # within one bfloat16 step
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = model.input_embed.photometry(torch.stack([mag, err], -1))  # as under autocast
        assert len(rows[0].unique(dim=0)) < 3
        seen = []
        hook = model.input_embed.photometry.register_forward_hook(lambda module, inputs, output: seen.append(output))
        out = model(time, mag, err, centered=True)
        hook.remove()
    assert len(seen[0].unique(dim=0)) == 64
    assert out.reconstruction.dtype == torch.float32
    assert (out.reconstruction != out.reconstruction.bfloat16().float()).any()


def test_residual_stream_stays_float32_under_autocast() -> None:
    model = tiny().eval()
    w = make_windows([12, 7], 12)
    seen = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
        for name, module in model.named_modules()
        if "norm" in name
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(w.time, w.mag, w.err, w.mask)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks) == 11
    assert {output for _, output in seen} == {torch.float32}
    assert out.sequence.dtype == out.embedding.dtype == torch.float32
