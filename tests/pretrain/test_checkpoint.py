"""Checkpoints: a kill during a save loses nothing, and a damaged checkpoint is found."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from astroco_fast.errors import UserError
from astroco_fast.pretrain.checkpoint import BEST, LAST, CheckpointFolder
from tests.pretrain.processes import on_ranks

CALLS = ("fsync", "mkdir", "rename", "replace", "symlink", "unlink", "rmdir")


def write(checkpoints: CheckpointFolder, step: int, needed: str | None = None) -> str:
    name = checkpoints.next_name(step)
    checkpoints.write(name, {"step": step}, lambda folder: write_model(folder, step), needed)
    return name


def write_model(folder: Path, step: int) -> None:
    (folder / "model.safetensors").write_bytes(bytes([step]) * 1000)


def save_and_die(folder: str, survived: int) -> int:
    """Write a third checkpoint, and die at the system call after `survived` ones; return 0 if there are fewer calls."""
    left = {"n": survived}

    def before(original: Any) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            if left["n"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left["n"] -= 1
            return original(*args, **keywords)

        return call

    for name in CALLS:
        setattr(os, name, before(getattr(os, name)))
    checkpoints = CheckpointFolder(Path(folder), keep=1)
    checkpoints.link(BEST, write(checkpoints, 3))
    return 0


@pytest.mark.slow
def test_a_kill_at_any_call_of_a_save_loses_nothing(tmp_path):
    for survived in range(200):
        folder = tmp_path / str(survived)
        checkpoints = CheckpointFolder(folder, keep=1)
        write(checkpoints, 1)
        checkpoints.link(BEST, write(checkpoints, 2))
        (ended,) = on_ranks(None, save_and_die, str(folder), survived, tmp_path=tmp_path)
        found = checkpoints.to_resume()
        assert found is not None
        assert found[1]["step"] in (2, 3)
        assert checkpoints.read_state(str(checkpoints.target(BEST)))["step"] in (2, 3)
        if ended.code == 0:
            assert found[1]["step"] == 3
            break
        assert ended.code == -signal.SIGKILL
        # The next save works, and removes the files of the killed one.
        write(checkpoints, 4)
        assert checkpoints.to_resume()[1]["step"] == 4
        assert not list(folder.glob(".*"))
    assert survived > 12  # the loop has killed the save at many places


def test_keeps_what_is_needed(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    best = write(checkpoints, 1)
    checkpoints.link(BEST, best)
    chosen = write(checkpoints, 2)
    for step in (3, 4, 5, 6):
        write(checkpoints, step, needed=chosen)
    assert checkpoints.names() == [best, chosen, "step-00000005", "step-00000006"]
    assert checkpoints.target(LAST) == "step-00000006"


def test_the_same_step_again_gets_a_new_name(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep=5)
    names = [write(checkpoints, 7) for _ in range(3)] + [write(checkpoints, 8)]
    assert names == checkpoints.names() == ["step-00000007", "step-00000007-1", "step-00000007-2", "step-00000008"]


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{}")])
def test_damage_is_found_and_an_older_one_taken(file, damage, tmp_path, capsys):
    checkpoints = CheckpointFolder(tmp_path, keep=5)
    for step in (1, 2, 3):
        write(checkpoints, step)
    damage(tmp_path / "step-00000003" / file)
    name, state = checkpoints.to_resume()
    assert (name, state["step"]) == ("step-00000002", 2)
    assert file in capsys.readouterr().err
    for older in ("step-00000001", "step-00000002"):
        damage(tmp_path / older / file)
    with pytest.raises(UserError, match="none of 3 checkpoints is complete"):
        checkpoints.to_resume()


def test_no_checkpoint_to_resume_from(tmp_path):
    assert CheckpointFolder(tmp_path / "absent", keep=1).to_resume() is None
