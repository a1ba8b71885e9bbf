"""Released weights: the index is true, the files are whole, and they load by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import astroco_fast as af
from astroco_fast import checksums, embed, models, released
from astroco_fast.errors import UserError
from tests.embedding.curves import curve, long_table

FACTS = {
    "name": "little",
    "summary": "tests",
    "views": "folded",
    "surveys": ["simulated"],
    "windows": 3,
    "macro_f1": {"20": 50.0, "100": 60.04},
}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> af.AstroCo:
    """A folder of weights with one model, untrained, in place of the package's; returns the model."""
    torch.manual_seed(0)
    model = af.AstroCo.from_preset("tiny", width=16, heads=2, window=20).eval()
    model.views = "folded"
    folder = tmp_path / "weights"
    model.save_pretrained(folder / "little", notes="For tests.", half=True)
    checksums.write_manifest(folder / "little")
    parameters = sum(p.numel() for p in model.parameters())
    (folder / "index.json").write_text(json.dumps([{**FACTS, "parameters": parameters}]))
    monkeypatch.setattr(released, "FOLDER", folder)
    return model


def test_the_index_and_the_files_agree() -> None:
    for facts in released.released():
        checksums.check_files(facts.folder)
        model = af.load(facts.name)
        assert sum(p.numel() for p in model.parameters()) == facts.parameters
        assert model.views == facts.views
        card = (facts.folder / "README.md").read_text()
        assert facts.name in card
        assert all(survey.split()[0] in card for survey in facts.surveys)
        assert facts.size < 20e6


def test_a_model_loads_by_name_in_half_precision_on_disk(shelf: af.AstroCo) -> None:
    loaded = af.load("little")
    assert loaded.views == "folded"
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for (name, one), other in zip(shelf.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one.half().float(), other), name
    curves = [curve(45), curve(20, 1)]
    np.testing.assert_allclose(loaded.embed(curves), shelf.embed(curves), atol=0.01)


def test_changed_weights_are_refused(shelf: af.AstroCo) -> None:
    weights = released.FOLDER / "little" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        af.load("little")


def test_a_folder_of_that_name_comes_first(shelf: af.AstroCo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    af.AstroCo.from_preset("tiny", width=8, heads=2).save_pretrained("little")
    assert af.load("little").config.width == 8


def test_a_folder_of_that_name_without_a_model_does_not_hide_it(
    shelf: af.AstroCo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("little").mkdir()  # such as the folder of a probe's results, which is named after its model
    assert af.load("little").config.width == 16


def test_the_command_lists_models_and_prints_a_card(shelf: af.AstroCo, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main([]) == 0
    header, row, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["name", "for", "views"]
    assert row.split()[:4] == ["little", "tests", "folded", "simulated"]
    assert "50.0 / 60.0" in row
    assert models.main(["--card", "little"]) == 0
    assert "For tests." in capsys.readouterr().out
    assert models.main(["--card", "large"]) == 2
    assert "no released model 'large'; there are: little" in capsys.readouterr().err


def test_embed_takes_the_best_model_by_default_and_says_which(
    shelf: af.AstroCo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_table([curve(45), curve(20, 1)]).to_csv(tmp_path / "in.csv", index=False)
    assert embed.main([str(tmp_path / "in.csv"), str(tmp_path / "out.parquet")]) == 0
    assert "taking little, the best released one" in capsys.readouterr().err
