"""The baselines run with the same commands, run folders and files as AstroCo."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import astroco_fast as af
from astroco_fast import embed, presets, report
from astroco_fast.data.convert import convert
from astroco_fast.data.masking import HIDDEN
from astroco_fast.data.simulate import simulate_survey
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData, upload
from astroco_fast.errors import UserError
from astroco_fast.pretrain import main
from astroco_fast.reference.loss import masked_loss

SMALL = {"width": 16, "heads": 2, "layers": 1, "feed_forward": 24, "window": 40}
TRAIN = {"global_batch": 32, "warmup_steps": 2, "learning_rate": 0.01, "device": "cpu", "plots": "false"}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("survey") / "store"
    convert(simulate_survey(40, seed=3), path, provenance={"simulated": True})
    return path


def command(preset: str, survey: Path, out: Path, steps: int) -> list[str]:
    settings = {"preset": preset, "data": survey, "out": out, "train.max_steps": steps}
    settings |= {f"model.{name}": value for name, value in SMALL.items()}
    settings |= {f"train.{name}": value for name, value in TRAIN.items()}
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


@pytest.mark.parametrize("preset", ["astromer-v1", "astromer-v2"])
def test_a_run_is_resumed_embeds_and_is_reported(
    preset: str, survey: Path, tmp_path: Path, unrendered: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, best = tmp_path / "run", tmp_path / "run" / "checkpoints" / "best"
    assert main(command(preset, survey, out, 2)) == 0
    assert main(command(preset, survey, out, 6)) == 0
    assert "Going on from" in capsys.readouterr().out
    assert main(command(preset, survey, tmp_path / "unbroken", 6)) == 0
    for file in ("model.safetensors", "optimizer.safetensors"):
        at_last = f"checkpoints/last/{file}"
        assert (out / at_last).read_bytes() == (tmp_path / "unbroken" / at_last).read_bytes()

    model = af.load(best)
    assert isinstance(model, af.Astromer)
    assert model.config == presets.configure(preset, SMALL)
    assert "# Astromer encoder" in (best / "README.md").read_text()

    assert embed.main([str(survey), str(tmp_path / "out.parquet"), "--model", str(best)]) == 0
    vectors = np.stack(pq.read_table(tmp_path / "out.parquet").to_pandas()["embedding"])
    assert vectors.shape == (40, 16)
    np.testing.assert_allclose(vectors, np.stack(model.embed(survey)["embedding"]), rtol=1e-4, atol=1e-5)

    capsys.readouterr()
    assert report.main([str(out)]) == 0
    drawn = {Path(line).name for line in capsys.readouterr().out.splitlines() if line.endswith(".png")}
    assert drawn == {"training.png", "reconstructions.png"}


@pytest.mark.parametrize("preset", ["astromer-v1", "astromer-v2"])
def test_it_learns_a_batch_by_heart(preset: str, survey: Path) -> None:
    torch.manual_seed(0)
    model = af.Astromer.from_preset(preset, **SMALL, dropout=0.0)
    data = TrainingData(Store.open(survey), size=40, seed=0, global_batch=8, micro_batch=None)
    with data.steps(1, 0) as steps:
        batch = upload(next(steps).micro[0], torch.device("cpu"))
    positional, keywords = batch.inputs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        squared, count = masked_loss(model(*positional, **keywords).reconstruction, batch.target, batch.role)
        loss = (squared.sum() / count.sum()).sqrt()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    trivial = batch.target[batch.role > 0].square().mean().sqrt()
    assert losses[-1] < 0.75 * trivial


def test_figures_come_from_truly_hidden_points(survey: Path) -> None:
    """Version 1 sees the magnitudes that it must predict in training, but not in evaluation."""
    torch.manual_seed(0)
    model = af.Astromer.from_preset("astromer-v1", **SMALL).eval()
    data = TrainingData(Store.open(survey), size=40, seed=0, global_batch=32, micro_batch=None)
    with data.steps(1, 0) as steps, data.evaluation() as evaluation:
        training, evaluated = next(steps).micro[0], next(evaluation)
    for batch, leaks in ((training, True), (evaluated, False)):
        hidden = batch.role == HIDDEN
        assert bool((batch.mag[hidden] == batch.target[hidden]).all()) is leaks
        on_device = upload(batch, torch.device("cpu"))
        positional, keywords = on_device.inputs()
        assert model(*positional, **keywords).reconstruction.isfinite().all()


def test_models_are_loaded_by_the_name_that_they_were_saved_under(tmp_path: Path) -> None:
    af.Astromer.from_preset("astromer-v2", **SMALL).save_pretrained(tmp_path)
    assert isinstance(af.load(tmp_path), af.Astromer)
    with pytest.raises(UserError, match="not an AstroCo configuration") as caught:
        af.AstroCo.from_pretrained(tmp_path)
    assert "'model' is 'Astromer'" in str(caught.value)
    af.AstroCo.from_preset("tiny").save_pretrained(tmp_path)
    assert isinstance(af.load(tmp_path), af.AstroCo)


@pytest.mark.parametrize("name", ["Bert", None, ["AstroCo"]])
def test_an_unknown_name_is_one_clear_line(
    name: object, survey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    af.Astromer.from_preset("astromer-v2", **SMALL).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": name}))
    (tmp_path / "model" / "manifest.json").unlink()  # it would tell of any change of the model
    assert embed.main([str(survey), str(tmp_path / "out.parquet"), "--model", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert f"config.json: 'model' is {name!r}; there are: AstroCo, Astromer" in error
    assert error.count("\n") == 1
