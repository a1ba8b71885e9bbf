"""Folders of results: marked, and nothing in them replaced but what was written there before."""

import json
from pathlib import Path

import pytest

from astroco_fast.errors import UserError
from astroco_fast.files import scratch_folder
from astroco_fast.folders import MARK, result_folder


def opened(path: Path, command: str = "probe", unmarked=lambda path: None):  # type: ignore[no-untyped-def]
    return result_folder(path, command, "busy", unmarked)


def replace(path: Path, **texts: str) -> None:
    with opened(path) as folder, scratch_folder(path / "new") as made:
        for name, text in texts.items():
            (made / name).write_text(text)
        folder.replace(made, keep=["kept"])


def content(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir() if file.name != MARK}


def test_results_replace_those_written_before_and_no_others(tmp_path: Path) -> None:
    replace(tmp_path / "out", a="1", b="1", kept="1")
    (tmp_path / "out" / "mine").write_text("mine")
    replace(tmp_path / "out", a="2", c="2")
    assert content(tmp_path / "out") == {"a": "2", "c": "2", "kept": "1", "mine": "mine"}
    with pytest.raises(UserError, match="mine: not written by astroco probe"):
        replace(tmp_path / "out", a="3", mine="3")
    assert content(tmp_path / "out") == {"a": "2", "c": "2", "kept": "1", "mine": "mine"}


def test_a_folder_that_holds_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(UserError, match=r"holds 'thesis\.tex', so it is not a folder of astroco probe's results"),
        opened(tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    replace(tmp_path / "out", a="1")
    with pytest.raises(UserError, match="holds the results of astroco probe"), opened(tmp_path / "out", "pretrain"):
        pass
    (tmp_path / "out" / MARK).write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"), opened(tmp_path / "out"):
        pass


def test_a_folder_to_which_nothing_was_written_stays_empty(tmp_path: Path) -> None:
    (tmp_path / ".gitkeep").touch()
    with opened(tmp_path):
        assert (tmp_path / MARK).exists()
    assert [path.name for path in tmp_path.iterdir()] == [".gitkeep"]


def test_unmarked_folder_of_an_earlier_version(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("1")
    with opened(tmp_path, unmarked=lambda path: (["old"], ["old"])), scratch_folder(tmp_path / "new"):
        pass
    assert json.loads((tmp_path / MARK).read_text())["names"] == ["old"]
    replace(tmp_path, a="1")
    assert content(tmp_path) == {"a": "1"}


def test_output_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(UserError, match="cannot be the folder of results"), opened(place):
            pass
