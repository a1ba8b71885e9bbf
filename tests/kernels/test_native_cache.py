"""The CPU kernels' library in the cache: compiled once, whole, and the user's own."""

import ctypes
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import IO

import pytest
import torch

from astroco_fast.files import sha256
from astroco_fast.kernels.cpu import build, native
from tests.kernels.small_library import counting, given_away, no_compiling, numbers

pytestmark = pytest.mark.skipif(not build.compilers(), reason="no C++ compiler")


def test_compiled_once_and_kept(
    sources: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = build.library(sources)
    assert capfd.readouterr().err == "astroco_fast: compiling CPU kernels (once, a few seconds) ...\n"
    with monkeypatch.context() as patch:
        no_compiling(patch)
        again = build.library(sources)
    assert again.path == first.path
    assert first.path is not None
    assert capfd.readouterr().err == ""
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


def test_library_is_compiled_anew_when_an_input_changes(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [build.library(sources).path]
    (sources / "part.h").write_text("// a header")
    made.append(build.library(sources).path)
    monkeypatch.setattr(torch, "__version__", "0.0")
    made.append(build.library(sources).path)
    monkeypatch.setattr(build, "wish", "default")
    made.append(build.library(sources).path)
    assert len(set(made)) == 4


@pytest.mark.parametrize("share", [0.5, 0.0, None], ids=["cut", "empty", "gone"])
def test_a_harmed_file_is_replaced(share: float | None, sources: Path) -> None:
    path = build.library(sources).path
    assert path is not None
    whole = path.read_bytes()
    path.unlink()  # not overwritten, because this process has the old file in memory
    if share is not None:
        path.write_bytes(whole[: int(share * len(whole))])
    assert build.library(sources).path == path
    assert path.read_bytes() == whole


def test_a_file_of_another_content_than_its_name_says_is_not_loaded(sources: Path) -> None:
    """The file could be loaded: it is a library followed by other bytes."""
    first = build.library(sources)
    assert first.path is not None
    other = first.path.with_name(f"{first.key}-0000.so")
    other.write_bytes(first.path.read_bytes() + b"more")
    other.chmod(0o700)
    ctypes.CDLL(str(other))
    assert build.library(sources).path == first.path


def test_a_file_that_cannot_be_loaded_does_not_hide_another(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that cannot be loaded has a right name, which comes first."""
    first = build.library(sources)
    assert first.path is not None
    no_compiling(monkeypatch)
    for number in range(10000):
        other = first.path.with_name("other")
        other.write_text(f"not a library {number}")
        if (name := build._name(sha256(other), first.key)) < first.path.name:
            other.chmod(0o700)
            other.rename(first.path.with_name(name))
            break
    assert build.library(sources).path == first.path


@pytest.mark.parametrize("whose", ["group", "others", "another user"])
def test_a_library_that_somebody_else_may_have_written_is_not_loaded(
    whose: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file could be forged, because its name holds the hash of its content, whatever that is."""
    log = counting(tmp_path, monkeypatch)
    path = build.library(sources).path
    assert path is not None
    if whose == "another user":
        given_away(path)
    else:
        path.chmod(0o720 if whose == "group" else 0o702)
    build.library(sources)
    assert log.read_text().split() == ["one", "one"]
    build.library(sources)  # it was replaced
    assert log.read_text().split() == ["one", "one"]


def test_the_cache_folder_is_the_users_own(sources: Path) -> None:
    """Only the user can write to the folder, even if the umask or the folder's old permissions let others write."""
    before = os.umask(0)
    try:
        path = build.library(sources).path
    finally:
        os.umask(before)
    assert path is not None
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.stat().st_mode & 0o022
    path.parent.chmod(0o777)
    assert build.library(sources).path == path
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_another_users_cache_folder_is_not_used(sources: Path) -> None:
    path = build.library(sources).path
    assert path is not None
    given_away(path.parent)
    found = build.library(sources)
    assert found.path is None
    assert "belongs to another user" in found.unkept
    assert [kept.name for kept in path.parent.iterdir()] == [path.name]


def test_a_folder_below_one_that_others_can_write_to_is_not_used(sources: Path, tmp_path: Path) -> None:
    """Another user could put another folder in its place, unless the folder above is sticky, as /tmp is."""
    path = build.library(sources).path
    assert path is not None
    above = tmp_path / "cache"
    above.chmod(0o777)
    found = build.library(sources)
    assert found.path is None
    assert f"other users can write to {above}" in found.unkept
    above.chmod(0o1777)
    assert build.library(sources).path == path
    given_away(above)
    assert build.library(sources).path is None


def test_a_folder_that_is_swapped_after_the_check_is_not_loaded_from(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded is the file that was opened and hashed, not the one that has its name by then."""
    plan = build.plan(sources, build.wanted()[0], build.compilers()[0])
    path = build.library(sources).path
    assert path is not None
    content, digest = path.read_bytes(), build.sha256_of
    loaded: list[bytes] = []

    def swapped(file: IO[bytes]) -> str:
        told = digest(file)
        path.parent.rename(tmp_path / "aside")
        path.parent.mkdir(mode=0o700)
        path.write_bytes(b"another library")
        return told

    def noting(name: str) -> object:
        loaded.append(Path(name).read_bytes())
        return object()

    monkeypatch.setattr(build, "sha256_of", swapped)
    monkeypatch.setattr(ctypes, "CDLL", noting)
    build._load(path, plan)
    assert loaded == [content]


def test_a_link_is_not_loaded(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library(sources).path
    assert path is not None
    path.rename(tmp_path / "library")
    path.symlink_to(tmp_path / "library")
    no_compiling(monkeypatch)
    with pytest.raises(AssertionError, match="compiled again"):
        build.library(sources)


def test_a_folder_that_nothing_can_be_loaded_from(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on a disk mounted noexec is an example."""
    load, kept = ctypes.CDLL, ("/proc/self/fd/", os.environ["ASTROCO_CACHE"])

    def refusing(name: str | None) -> ctypes.CDLL:
        if name is not None and name.startswith(kept):
            raise OSError(f"{name}: failed to map segment from shared object")
        return load(name)

    monkeypatch.setattr(ctypes, "CDLL", refusing)
    found = build.library(sources)
    assert found.path is None
    assert found.unkept.endswith("failed to map segment from shared object")


@pytest.mark.parametrize("where", ["a file", "nowhere"])
def test_without_a_folder_to_write_to(where: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "a file":
        monkeypatch.setenv("ASTROCO_CACHE", str(sources / "main.cpp" / "cache"))
    else:
        monkeypatch.setattr(build, "cache_folder", lambda: None)
    assert native.missing() is None
    assert native.library().path is None
    assert {"a file": "Not a directory", "nowhere": "no cache folder"}[where] in native.library().unkept
    assert numbers(3, 4) == [3, 4]


# --- Many processes -----------------------------------------------------------------------------------------------


def load_and_tell(folder: Path, told: "multiprocessing.Queue[list[int] | str]") -> None:
    reason = native.missing()
    told.put(reason if reason is not None else numbers(1, 2))


def test_concurrent_processes_compile_once(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = counting(tmp_path, monkeypatch)
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    processes = [context.Process(target=load_and_tell, args=(sources, told)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [told.get(timeout=120) for _ in processes] == 4 * [[1, 2]]
    for process in processes:
        process.join()
    assert log.read_text().split() == ["one"]
    assert capfd.readouterr().err.count("compiling") == 1


def test_killed_compilation_releases_its_lock(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = counting(tmp_path, monkeypatch, before=f"echo $$ > {tmp_path / 'pid'}; exec sleep 600")
    context = multiprocessing.get_context("fork")
    stuck = context.Process(target=load_and_tell, args=(sources, context.Queue()))
    stuck.start()
    deadline = time.monotonic() + 60
    while not log.exists() or not (tmp_path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stuck.pid is not None
    os.kill(stuck.pid, signal.SIGKILL)
    stuck.join()
    counting(tmp_path, monkeypatch)
    log.unlink()
    assert native.missing() is None
    assert log.read_text().split() == ["one"]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # its compiler
