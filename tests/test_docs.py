"""Code blocks of the README and the docs that are marked as runnable run as they stand.

`<!-- run -->` on the line above a fenced block marks it; `make test-slow` runs blocks marked `<!-- run: slow -->`.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from astroco_fast import cli

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MARKED = re.compile(
    r"^<!-- run(?P<slow>: slow)? -->\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
SOURCE = re.compile(r"`([\w./]+/[\w.]+\.(?:py|h|cpp))`")
OTHERS = re.compile(r"src/|kernels/(toy|BACKEND)/|kernels/cpu/scale\.py")  # files of Astromer's code, and of examples
LANGUAGES = {"python", "bash"}
COMMANDS = re.compile(r"(astroco [^|&;<>$*?`~\n]+\n)+")  # nothing that only a shell understands


def blocks() -> Iterator[object]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in MARKED.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            marks = [pytest.mark.slow] if found["slow"] else []
            yield pytest.param(found["language"], found["code"], id=f"{page.relative_to(ROOT)}:{line}", marks=marks)


@pytest.mark.parametrize(("language", "code"), list(blocks()))
def test_a_marked_block_runs_in_an_empty_folder(
    language: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python, and commands of astroco alone, run in this process, which has imported PyTorch.
    monkeypatch.chdir(tmp_path)
    if language == "python":
        exec(compile(code, "block", "exec"), {"__name__": "__main__"})
        return
    if COMMANDS.fullmatch(joined := code.replace("\\\n", " ")):
        for line in joined.splitlines():
            assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line
        return
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_mark_stands_above_a_block_that_can_run() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found = list(MARKED.finditer(text))
        assert text.count("\n<!-- run") == len(found), page
        assert {match["language"] for match in found} <= LANGUAGES, page


def test_source_files_that_the_pages_name_exist() -> None:
    for page in PAGES:
        named = {path for path in SOURCE.findall(page.read_text(encoding="utf-8")) if not OTHERS.match(path)}
        assert not {
            path for path in named if not any((base / path).is_file() for base in (ROOT, ROOT / "astroco_fast"))
        }


def test_the_licence_of_every_dependency_is_listed() -> None:
    listed = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    asked = project[project.index("\ndependencies = [") : project.index("[project.urls]")]
    names = {*re.findall(r'"([\w.-]+)', asked)} - {"astroco_fast"}
    assert {"torch", "atheris", "setuptools"} <= names
    assert sorted(name for name in names if f" {name} (" not in listed) == []


def test_every_package_of_the_lock_has_a_hash() -> None:
    lock = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8").replace("\\\n", "")
    packages = [line for line in lock.splitlines() if line and not line.startswith("#")]
    assert len(packages) > 100
    assert [line for line in packages if "==" not in line or " --hash=sha256:" not in line] == [], "run: make lock"
