"""Run folders: copied, shared, on a full disk, of other versions, and their names."""

import shutil
import sys
from typing import Any

import pytest
import yaml
from safetensors import SafetensorError

from astroco_fast import presets
from astroco_fast.errors import UserError
from astroco_fast.folders import MARK, ResultFolder
from astroco_fast.pretrain import PretrainConfig, checkpoint, main, run_folder
from astroco_fast.pretrain.checkpoint import BEST, LAST, CheckpointFolder
from astroco_fast.pretrain.log import Console, MetricsFile
from tests.pretrain.patches import command
from tests.pretrain.processes import on_ranks
from tests.pretrain.test_checkpoint import write
from tests.pretrain.test_resume import expected, outcome, unbroken

__all__ = ["unbroken"]  # a fixture


def test_a_copy_without_links_goes_on(arguments, unbroken, tmp_path):
    argv = [*arguments, "--train.max_steps", "3"]
    (begun,) = on_ranks(None, command, [*argv, "--out", str(tmp_path / "run")], tmp_path=tmp_path)
    assert begun.code == 0, begun.err
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert not (tmp_path / "copy" / "checkpoints" / LAST).is_symlink()
    (ended,) = on_ranks(None, command, [*arguments, "--out", str(tmp_path / "copy")], tmp_path=tmp_path)
    assert ended.code == 0, ended.err
    assert (tmp_path / "copy" / "checkpoints" / LAST).is_symlink()
    assert outcome(tmp_path / "copy") == expected(unbroken, None, arguments, tmp_path)


def test_finished_run_removes_what_a_kill_left(arguments, tmp_path):
    argv = [*arguments, "--train.max_steps", "1", "--out", str(tmp_path / "run")]
    left = tmp_path / "run" / "checkpoints" / ".step-00000001.0123abcd.partial"
    for _ in range(2):
        (ended,) = on_ranks(None, command, argv, tmp_path=tmp_path)
        assert ended.code == 0, ended.err
        assert not left.exists()
        left.mkdir()
        (left / "state.json").write_text("{}")
    assert "this run is finished" in ended.out + ended.err


def test_a_copied_link_still_names_its_checkpoint(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "a", keep=1)
    checkpoints.link(BEST, write(checkpoints, 1))
    write(checkpoints, 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = CheckpointFolder(tmp_path / "b", keep=1)
    assert (copy.target(BEST), copy.target(LAST)) == ("step-00000001", "step-00000002")
    assert copy.to_resume()[0] == "step-00000002"
    write(copy, 3)
    assert copy.names() == ["step-00000001", "step-00000003"]
    assert (copy.target(BEST), copy.target(LAST)) == ("step-00000001", "step-00000003")
    copy.link(BEST, "step-00000003")
    assert (tmp_path / "b" / BEST).is_symlink()
    assert not list((tmp_path / "b").glob(".*"))


def test_a_folder_holds_one_run_at_a_time(arguments, tmp_path):
    pytest.importorskip("fcntl")
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.max_steps", "1"]
    with run_folder.held(tmp_path / "run"):
        for world in (None, 2):
            ended = on_ranks(world, command, argv, tmp_path=tmp_path)
            assert [rank.code for rank in ended] == [2] * (world or 1)
            (line,) = ended[0].err.splitlines()
            assert str(tmp_path / "run") in line
            assert "another process" in line
            assert ended[-1].err == "" or world is None
        assert [path.name for path in (tmp_path / "run").iterdir()] == [MARK]
    assert not (tmp_path / "run").exists()  # nothing was written to it
    assert main(argv) == 0  # and the run releases the folder


def test_without_locks_a_run_goes_without(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with run_folder.held(tmp_path / "run"), run_folder.held(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(arguments, tmp_path, capsys):
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.max_steps", "2"]
    assert main(argv) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for unmarked in (False, True):  # an earlier version left no mark
        if unmarked:
            (tmp_path / "run" / MARK).unlink()
        assert main(argv) == 2
        assert "the checkpoints of this run are gone" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_files_of_the_user_are_not_replaced(arguments, tmp_path, capsys):
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        (tmp_path / name).write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([*arguments, "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path)]) == 2
    assert "is not a folder of astroco pretrain's results" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_without_a_mark_goes_on(arguments, tmp_path, capsys):
    argv = [*arguments, "--out", str(tmp_path / "run")]
    assert main([*argv, "--train.max_steps", "2"]) == 0
    (tmp_path / "run" / MARK).unlink()
    assert main([*argv, "--train.max_steps", "3"]) == 0
    assert "Going on from" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["weights", "metrics"])
def test_a_full_disk_is_one_line(when, arguments, monkeypatch, capsys, tmp_path):
    def no_tensors(*args: Any, **keywords: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def no_bytes(self: MetricsFile) -> None:
        raise OSError(28, "No space left on device")

    if when == "weights":
        monkeypatch.setattr(checkpoint, "save_file", no_tensors)
    else:
        monkeypatch.setattr(MetricsFile, "_write_out", no_bytes)
    assert main([*arguments, "--out", str(tmp_path / "run"), "--train.max_steps", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    assert str(tmp_path / "run") in line
    monkeypatch.undo()
    assert main([*arguments, "--out", str(tmp_path / "run"), "--train.max_steps", "2"]) == 0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no such backend")])
def test_plots_that_fail_do_not_fail_the_run(error, arguments, monkeypatch, capsys, tmp_path):
    figure = pytest.importorskip("matplotlib.figure")

    def fail(*args: Any, **keywords: Any) -> None:
        raise error

    monkeypatch.setattr(figure.Figure, "savefig", fail)
    flags = ["--out", str(tmp_path / "run"), "--train.max_steps", "2", "--train.plots", "true"]
    assert main([*arguments, *flags]) == 0
    captured = capsys.readouterr()
    assert "No plots: " in captured.out
    assert str(error.args[-1]) in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "train: 3\n", "preset: [\n"])
def test_unreadable_settings_of_a_run_are_told(text, tmp_path):
    out, config = tmp_path / "run", PretrainConfig().resolve(presets.preset("tiny"))
    checkpoints = CheckpointFolder(out / "checkpoints", keep=1)
    write(checkpoints, 1)
    (out / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        run_folder.claim(ResultFolder(out, "pretrain"), config, checkpoints, Console(speaks=True))


def test_a_setting_of_a_later_version_has_its_default(tmp_path):
    """A run from before the setting existed has the setting's default."""
    out, config = tmp_path / "run", PretrainConfig().resolve(presets.preset("tiny"))
    checkpoints = CheckpointFolder(out / "checkpoints", keep=1)
    write(checkpoints, 1)
    values = config.to_dict()
    del values["band"], values["train"]["sync_batchnorm"], values["columns"]["flux"]
    (out / "config.yaml").write_text(yaml.safe_dump(values))
    assert run_folder.claim(ResultFolder(out, "pretrain"), config, checkpoints, Console(speaks=True))
    chosen = PretrainConfig(band="V").resolve(presets.preset("tiny"))
    with pytest.raises(UserError, match=r"other settings \(band\)"):
        run_folder.claim(ResultFolder(out, "pretrain"), chosen, checkpoints, Console(speaks=True))
    del values["preset"]  # the default of a model's setting depends on the preset
    values["model"] = {"layers": 3}
    (out / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"other settings \(model.layers\)"):
        run_folder.claim(ResultFolder(out, "pretrain"), config, checkpoints, Console(speaks=True))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("x/survey.parquet", "survey"),
        ("x/survey", "survey"),
        ("survey/*.csv", "survey"),
        ("survey/part-[0-9].csv", "survey"),
        ("survey/**/*.csv", "survey"),
        (".", "here"),
        ("..", "above"),
        ("*.csv", "here"),
        ("x/.hidden", "hidden"),
        ("/", "data"),
    ],
)
def test_the_name_of_a_run_folder(data, name, monkeypatch, tmp_path):
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    assert PretrainConfig(data=data).resolve(presets.preset("tiny")).out == f"runs/tiny-{name}"
