"""Continued pretraining: a run that begins with the weights of a saved model."""

import signal
from pathlib import Path

import pytest
import torch

import astroco_fast as af
from astroco_fast.pretrain import main
from tests.pretrain.patches import command, signal_at
from tests.pretrain.processes import on_ranks
from tests.pretrain.test_resume import outcome

SETTINGS = {"width": 16, "heads": 2, "layers": 1, "window": 24, "kernel": 4}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("start") / "model"
    af.AstroCo.from_preset("tiny", **SETTINGS).save_pretrained(folder)
    return folder


def test_the_run_begins_with_the_saved_weights(arguments, saved, tmp_path):
    out = tmp_path / "run"
    # So low a learning rate leaves the weights where they were.
    still = ["--train.max_steps", "1", "--train.learning_rate", "1e-12", "--train.ema_decay", "null"]
    assert main([*arguments, *still, "--start_from", str(saved), "--out", str(out)]) == 0
    begun, model = af.load(saved).state_dict(), af.load(out / "checkpoints" / "last")
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, begun[name], atol=1e-9, rtol=0)
    assert f"began with the weights of {saved}" in (out / "checkpoints" / "last" / "README.md").read_text()


def test_a_stopped_run_goes_on_exactly_although_the_saved_model_is_gone(arguments, saved, tmp_path):
    copy = tmp_path / "copy"
    af.load(saved).save_pretrained(copy)
    argv = [*arguments, "--start_from", str(copy)]
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    stopped = [*argv, "--out", str(tmp_path / "stopped")]
    (ended,) = on_ranks(None, command, stopped, (signal_at, ("forward", 8, 0, signal.SIGTERM)), tmp_path=tmp_path)
    assert ended.code == 75, ended.err
    (copy / "model.safetensors").unlink()
    assert main(stopped) == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--start_from", "absent"], "absent: no such folder, and no released model"),
        (["--start_from", "fold-small"], "give --preset fold-small"),
        (["--start_from", "SAVED", "--model.layers", "2"], "of preset tiny (layers); give its settings by --model"),
        (["--start_from", "SAVED", "--views", "folded"], "was pretrained on the view time; give --views time"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    flags, message, arguments, saved, tmp_path, capsys
):
    flags = [str(saved) if word == "SAVED" else word for word in flags]
    assert main([*arguments, *flags, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
