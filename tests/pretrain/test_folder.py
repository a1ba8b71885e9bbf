"""Run folders: copied, shared, full, of other versions, and their names."""

import shutil

from astroco_fast.pretrain import main
from astroco_fast.pretrain.checkpoint import BEST, LAST, CheckpointFolder
from tests.pretrain.patches import command
from tests.pretrain.ranks import on_ranks
from tests.pretrain.test_checkpoint import write
from tests.pretrain.test_resume import expected, outcome, unbroken

__all__ = ["unbroken"]  # a fixture


def test_a_copy_without_links_goes_on(arguments, unbroken, tmp_path):
    argv = [*arguments, "--train.max_steps", "3"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert not (tmp_path / "copy" / "checkpoints" / LAST).is_symlink()
    (ended,) = on_ranks(None, command, [*arguments, "--out", str(tmp_path / "copy")], tmp_path=tmp_path)
    assert ended.code == 0, ended.err
    assert (tmp_path / "copy" / "checkpoints" / LAST).is_symlink()
    assert outcome(tmp_path / "copy") == expected(unbroken, None, arguments, tmp_path)


def test_a_copied_link_still_names_its_checkpoint(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "a", keep=1)
    checkpoints.link(BEST, write(checkpoints, 1))
    write(checkpoints, 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = CheckpointFolder(tmp_path / "b", keep=1)
    assert (copy.target(BEST), copy.target(LAST)) == ("step-00000001", "step-00000002")
    assert copy.newest()[0] == "step-00000002"
    write(copy, 3)
    assert copy.names() == ["step-00000001", "step-00000003"]
    assert (copy.target(BEST), copy.target(LAST)) == ("step-00000001", "step-00000003")
    copy.link(BEST, "step-00000003")
    assert (tmp_path / "b" / BEST).is_symlink()
    assert not list((tmp_path / "b").glob(".*"))
