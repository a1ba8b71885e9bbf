"""Files and folders that appear whole or not at all, and the lock on a folder."""

import errno
import multiprocessing
import os
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from astroco_fast import files
from astroco_fast.errors import UserError

_context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)


def content(folder: Path) -> dict[str, str]:
    """The text of every file, hidden ones included, by its path."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_on_disk_before_it_replaces_another(monkeypatch, tmp_path):
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def noting(*args, name=name, original=original):
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(os, name, noting)
    files.write_text(tmp_path / "file", "new\n")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder's list of names
    assert content(tmp_path) == {"file": "new\n"}


def test_a_folder_is_on_disk_before_it_has_its_name(monkeypatch, tmp_path):
    flushed: list[str] = []
    monkeypatch.setattr(files, "flush", lambda path: flushed.append(path.name))
    with files.whole_folder(tmp_path / "folder") as partial:
        (partial / "b").write_text("b")
        (partial / "inner").mkdir()
        (partial / "inner" / "a").write_text("a")
        assert not (tmp_path / "folder").exists()
    assert flushed == ["a", "inner", "b", partial.name, tmp_path.name]
    assert content(tmp_path) == {"folder/b": "b", "folder/inner/a": "a"}


@pytest.mark.parametrize("error", [KeyError("other"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there(error, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder/file"):
        (tmp_path / name).write_text("old")

    def fail(writing: AbstractContextManager[Path], name: str) -> None:
        with writing as partial:
            (partial / name).write_text("new")
            raise error

    told = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(told) as caught:
        fail(files.whole_file(tmp_path / "file", "make room"), "")
    if told is UserError:
        assert str(caught.value) == f"{tmp_path / 'file'}: cannot be written: No space left on device; make room"
    with pytest.raises(told):
        fail(files.whole_folder(tmp_path / "folder"), "file")
    assert content(tmp_path) == {"file": "old", "folder/file": "old"}


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("old", "new"):
        with files.whole_folder(tmp_path / "up" / "folder") as partial:
            (partial / text).write_text(text)
    assert content(tmp_path) == {"up/folder/new": "new"}
    assert len(list((tmp_path / "up").iterdir())) == 1


def test_publishing_does_not_replace_a_folder(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match=r"not empty|exists"):
        files.publish(tmp_path / "new", tmp_path / "old")
    assert content(tmp_path) == {"new/file": "new", "old/file": "old"}


def test_concurrent_writers_use_separate_files(tmp_path):
    with files.whole_file(tmp_path / "file") as first, files.whole_file(tmp_path / "file") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert content(tmp_path) == {"file": "first"}  # its block ended last


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_a_file_has_the_mode_of_any_new_file(tmp_path):
    files.write_text(tmp_path / "file", "")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(("place", "words"), [("", "is a folder"), ("absent/file", "no folder")])
def test_a_place_that_cannot_be_written_is_named(place, words, tmp_path):
    with pytest.raises(UserError, match=words):
        files.write_text(tmp_path / place, "")


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / ".hidden").touch()
    files.temporary_name(tmp_path / "file").touch()
    files.temporary_name(tmp_path / "link").symlink_to("kept")
    folder = files.temporary_name(tmp_path / "folder")
    folder.mkdir()
    (folder / "file").touch()
    files.remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "kept"]


def write_and_wait(path: str) -> None:
    with files.whole_file(Path(path)) as partial:
        partial.write_text("half")
        Path(path).with_name("begun").touch()
        time.sleep(60)


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    pytest.importorskip("fcntl")
    writer = _context.Process(target=write_and_wait, args=(str(tmp_path / "file"),))
    writer.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    (left,) = tmp_path.glob(".file.*.partial")
    names = (".file.partial", ".notes.file.01234567.partial", ".file.01234567.txt")
    for name in names:
        (tmp_path / name).touch()
    files.write_text(tmp_path / "file", "new")
    assert left.read_text() == "half"  # its writer lives
    writer.kill()
    writer.join()
    files.write_text(tmp_path / "file", "newer")
    assert not left.exists()
    assert all((tmp_path / name).exists() for name in names)
    folder = files.temporary_name(tmp_path / "folder")
    (folder / "inner").mkdir(parents=True)
    with files.whole_folder(tmp_path / "folder"):
        assert not folder.exists()


def test_threads_that_write_one_file_write_it_whole(tmp_path):
    """Each has a temporary file of its own, which the others leave alone."""
    texts = [letter * 100_000 for letter in "abcd"]

    def write(text: str) -> None:
        for _ in range(20):
            files.write_text(tmp_path / "file", text)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, texts))
    assert (tmp_path / "file").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unreadable_input_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path / 'input'}: No such file"), files.whole_file(tmp_path / "out"):
        (tmp_path / "input").read_text()


def test_inputs_are_not_overwritten_by_outputs(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for name in ("file", "folder/inner/file", "other"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("folder/inner/file")
    os.link(tmp_path / "file", tmp_path / "hard")
    inputs = [tmp_path / "file", tmp_path / "folder"]
    for name, words in (
        ("file", "holds the stars"),
        ("folder/../file", "holds the stars"),
        ("hard", "holds the stars"),
        ("folder/inner/file", "is a file of .*folder, which holds the stars"),
        ("link", "is a file of"),
    ):
        with pytest.raises(UserError, match=words):
            files.refuse_input(tmp_path / name, inputs, "the stars")
    for name in ("other", "folder/new", "new"):
        files.refuse_input(tmp_path / name, inputs, "the stars")


def hold_and_note(folder: str, seconds: float) -> None:
    with files.locked(Path(folder), None):
        (Path(folder) / "held").touch()
        time.sleep(seconds)
        (Path(folder) / "done").touch()


def test_a_folder_is_held_by_one_process(tmp_path):
    """A second process raises an error, or waits until the first has ended."""
    pytest.importorskip("fcntl")
    holder = _context.Process(target=hold_and_note, args=(str(tmp_path), 0.5))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match="busy here"), files.locked(tmp_path, "busy here"):
        pass
    with files.locked(tmp_path, None):
        assert (tmp_path / "done").exists()
    holder.join()


def test_without_locks_nothing_is_held(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with files.locked(tmp_path, "busy"), files.locked(tmp_path, "busy"):
        pass


def test_an_old_folder_is_put_back_if_the_new_one_cannot_be_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")

    def refuse(partial: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "publish", refuse)
    with pytest.raises(UserError, match="No space left"), files.whole_folder(path) as partial:
        (partial / "new").write_text("new")
    assert [(p.name, p.read_text()) for p in path.iterdir()] == [("old", "old")]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
