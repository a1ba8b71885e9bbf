"""Wheel, editable install and bare checkout each provide the whole package, from any directory."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.wheels import copy_checkout

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"astroco_fast": "astroco_fast", "kernels": "astroco_fast/kernels", "reference": "astroco_fast/reference"}

FOLDERS_WITHIN = ("kernels", "reference", "kernels/cpu")

# Modules are only found, not imported, because importing the reference would load torch each time.
WHERE = """
import importlib.util, json
import astroco_fast
names = ("astroco_fast", "astroco_fast.kernels", "astroco_fast.reference", "astroco_fast.kernels.cpu")
print(json.dumps([importlib.util.find_spec(name).origin for name in names]))
"""


def python_files(root: Path) -> set[str]:
    return {
        str(Path(FOLDERS[folder]) / path.relative_to(root / folder))
        for folder in FOLDERS
        for path in (root / folder).rglob("*.py")
    }


def native_sources(folder: Path) -> set[str]:
    """The sources from which the CPU's kernels are compiled in the user's environment."""
    found = {path.name for path in (folder / "csrc").iterdir()}
    assert "main.cpp" in found
    return found


def run(*command: object, cwd: Path, **environment: str) -> str:
    """The output of a command, in an environment whose only variables about Python are those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def bare_environment(folder: Path) -> Path:
    """A new environment that sees this one's packages, except an `astroco_fast` that may be installed here.

    The packages are linked. With this environment's folder on the path instead, pip would find that installation and
    uninstall it.

    Returns:
        The folder of its programs.
    """
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    packages = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    entries = {entry.name: entry for folder in packages for entry in Path(folder).iterdir()}
    for name, entry in entries.items():
        if "astroco" not in name:
            (site / name).symlink_to(entry)
    return folder / "bin"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that a build leaves nothing behind in the real checkout."""
    return copy_checkout(tmp_path_factory.mktemp("work") / "checkout")


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", "wheel", *options, checkout, cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module", params=["wheel", "editable", "bare"])
def installed(
    request: pytest.FixtureRequest, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The kind of installation, and the folder of programs of an environment that has it."""
    programs = bare_environment(tmp_path_factory.mktemp(request.param) / "environment")
    if request.param != "bare":
        what = [request.getfixturevalue("wheel")] if request.param == "wheel" else ["--editable", checkout]
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--no-compile")
        run(programs / "python", "-m", "pip", "install", *options, *what, cwd=programs)
    return request.param, programs


def test_every_part_is_found_from_any_directory(installed: tuple[str, Path], checkout: Path, tmp_path: Path) -> None:
    kind, programs = installed
    for cwd in (tmp_path, checkout, checkout / "kernels"):
        environment = {"PYTHONPATH": str(checkout)} if kind == "bare" else {}
        files = [Path(file) for file in json.loads(run(programs / "python", "-c", WHERE, cwd=cwd, **environment))]
        if kind == "wheel" and cwd != checkout:
            package = files[0].parent
            assert programs.parent in package.parents
            assert files == [package / "__init__.py", *(package / p / "__init__.py" for p in FOLDERS_WITHIN)]
        else:  # a checkout in the working directory hides an installed wheel, so every part must be the checkout's
            assert files == [checkout / p / "__init__.py" for p in ("astroco_fast", *FOLDERS_WITHIN)]
        assert native_sources(files[-1].parent) == native_sources(ROOT / "kernels" / "cpu")


def test_a_bare_checkout_needs_no_path_in_its_root(checkout: Path, tmp_path: Path) -> None:
    programs = bare_environment(tmp_path / "environment")
    assert str(checkout) in run(programs / "python", "-c", WHERE, cwd=checkout)


def test_the_wheel_holds_every_source_and_no_foreign_name(wheel: Path, checkout: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"astroco_fast"}
    assert {name for name in names if name.endswith(".py")} == python_files(checkout)
    assert {"astroco_fast/py.typed", "astroco_fast/scale/slurm.sh"} <= names


def test_the_command_helps_without_loading_torch(installed: tuple[str, Path], checkout: Path, tmp_path: Path) -> None:
    kind, programs = installed
    if kind == "bare":
        assert "commands:" in run(programs / "python", "-m", "astroco_fast", "--help", cwd=checkout)
    else:
        assert "commands:" in run(programs / "astroco", "--help", cwd=tmp_path)
    script = "import sys; from astroco_fast.cli import main; main(['--help']); print('torch' in sys.modules)"
    loaded = run(programs / "python", "-c", script, cwd=checkout)
    assert loaded.splitlines()[-1] == "False"


def test_works_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, astroco_fast as af\n"
        "x = torch.randn(2, 20)\n"
        "assert af.AstroCo.from_preset('tiny').eval()(x, x, x).embedding.isfinite().all()\n"
        "selection = af.ops.select('attention', torch.device('cuda'), torch.bfloat16, False)\n"
        "assert selection.backend == 'reference'\n"
        "print(selection.reasons['triton'])\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stderr
    assert "pip install 'astroco_fast[triton]'" in told.stdout
