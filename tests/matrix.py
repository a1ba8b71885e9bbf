"""`python -m tests.matrix`: tests on other versions of Python, PyTorch and Triton, and the page of their results.

Each row has an environment of its own: the versions of requirements-dev.lock, except those that the row names. It takes
some gigabytes, and is removed after its tests.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "versions.md"


class Row(NamedTuple):
    """Versions to test.

    Attributes:
        python: of the interpreter, as "3.10".
        torch: the release of PyTorch.
        triton: the release of Triton.
        others: requirements in place of the lock's.
    """

    python: str
    torch: str
    triton: str
    others: tuple[str, ...] = ()


ROWS = (
    Row("3.10", "2.11.0", "3.6.0", ("numpy==2.2.6",)),  # newer NumPy breaks Triton's interpreter before 3.7
    Row("3.11", "2.13.0", "3.7.1"),
    Row("3.13", "2.15.0", "3.9.0"),
)
# What depends on versions most: the kernels in Triton's interpreter and on the CPU, and the compiler.
TESTS = (
    "tests/reference",
    "tests/test_model.py",
    "tests/test_ops.py",
    "tests/kernels/test_graphs.py",
    "tests/kernels/test_native_calls.py",
)


def interpreter(version: str) -> Path | None:
    """A Python of this version: the one that runs this, one on the path, or one of pyenv's; None: there is none."""
    if version == "{}.{}".format(*sys.version_info):
        return Path(sys.executable)
    if (found := shutil.which(f"python{version}")) and subprocess.run(
        [found, "-V"], capture_output=True
    ).returncode == 0:
        return Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return next(iter(sorted(pyenv.glob(f"{version}.*/bin/python{version}"))), None)


def environment(row: Row, folder: Path) -> Path:
    """Make the row's environment in a folder; returns its Python."""
    subprocess.run([str(interpreter(row.python)), "-m", "venv", "--clear", str(folder)], check=True)
    python = folder / "bin" / "python"
    named = {"triton", *(re.findall(r"^[\w.-]+", other)[0] for other in row.others)}
    locked = [block for block in _pins((ROOT / "requirements-dev.lock").read_text()) if _name(block) not in named]
    pins = folder / "pins.txt"
    pins.write_text("\n".join(locked) + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", str(pins)], check=True)
    # The machine's own settings of pip may hold other versions back.
    settings = os.environ | {"PIP_CONFIG_FILE": os.devnull}
    versions = [f"torch=={row.torch}", f"triton=={row.triton}", *row.others]
    subprocess.run([*pip, *versions], env=settings, check=True)
    return python


def _pins(lock: str) -> list[str]:
    return re.findall(r"^[\w.-]+==.*(?:\n[ ].*)*", lock, re.MULTILINE)


def _name(block: str) -> str:
    return block.partition("==")[0]


def counts(python: Path, work: Path, tests: list[str]) -> tuple[dict[str, int], str]:
    """Run the tests; returns how many ended in each way, and pytest's last lines."""
    told = work / "results.xml"
    told.unlink(missing_ok=True)  # of an environment that was kept
    command = [str(python), "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", f"--junitxml={told}", *tests]
    settings = os.environ | {"ASTROCO_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    if not told.is_file():
        return {}, done.stdout[-2000:] + done.stderr[-2000:]
    suites = list(ET.parse(told).getroot().iter("testsuite"))
    total, failed, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    )
    found = {"passed": total - failed - errors - skipped, "failed": failed + errors, "skipped": skipped}
    return found, "\n".join(line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")))


def cells(row: Row, found: dict[str, int], today: str) -> str:
    """The row's line of the page."""
    numbers = [str(found[key]) for key in ("passed", "failed", "skipped")] if found else ["none ran", "", ""]
    return f"| {' | '.join([row.python, row.torch, row.triton, ', '.join(row.others), *numbers, today])} |"


def written(page: str, line: str) -> str:
    """The page with this line in place of the one for the same versions, or after the table's last."""
    key = line.split("|")[1:5]
    lines = page.splitlines()
    for number, old in enumerate(lines):
        if old.split("|")[1:5] == key:
            return "\n".join([*lines[:number], line, *lines[number + 1 :]]) + "\n"
    last = max(number for number, old in enumerate(lines) if old.startswith("|"))
    return "\n".join([*lines[: last + 1], line, *lines[last + 1 :]]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", help="test only the rows with this release of PyTorch")
    parser.add_argument(
        "--keep", action="store_true", help="leave the environments in build/matrix, and use what is there"
    )
    parser.add_argument("tests", nargs="*", default=list(TESTS), help="default: those of the page")
    options = parser.parse_args()
    failed = False
    for row in (row for row in ROWS if options.torch in (None, row.torch)):
        if interpreter(row.python) is None:
            print(f"torch {row.torch}: no Python {row.python} here", flush=True)
            failed = True
            continue
        work = ROOT / "build" / "matrix" / row.torch
        python = work / "bin" / "python"
        if not (options.keep and python.is_file()):
            python = environment(row, work)
        found, told = counts(python, work, options.tests)
        line = cells(row, found, datetime.date.today().isoformat())
        print(line, told, sep="\n", flush=True)
        failed |= not found or found["failed"] > 0
        if tuple(options.tests) == TESTS:
            PAGE.write_text(written(PAGE.read_text(), line))
        if not options.keep:
            shutil.rmtree(work)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
