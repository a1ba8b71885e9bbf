"""`python -m tests.wheel`: the source distribution and its wheel, built and installed, and tests run against them.

The wheel is built from the source distribution, and installed in an environment that sees this one's packages, except
for an `astroco_fast` that may be installed here. The tests lie in a folder without any source of the package.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import wheels
from tests.test_install import ROOT, bare_environment, run

# Some of each part: the encoder and its kernels, light curves and stores, released weights, commands.
TESTS = (
    "tests/reference/test_astroco.py",
    "tests/test_model.py",
    "tests/test_released.py",
    "tests/test_commands.py",
    "tests/data/test_clean.py",
    "tests/data/test_store.py",
)
_WHERE = "import astroco_fast, astroco_fast.kernels, astroco_fast.reference as r; print(astroco_fast.__file__)"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="astroco-wheel-") as name:
        work = Path(name)
        _, wheel = wheels.pure(work)
        programs = bare_environment(work / "environment")
        run(programs / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=work)
        place = work / "elsewhere"
        shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", place)  # pytest's settings
        found = run(programs / "python", "-c", _WHERE, cwd=place).strip()
        if not Path(found).is_relative_to(programs.parent):
            raise RuntimeError(f"the tests would run against {found}")
        print(f"{wheel.name}: running {len(TESTS)} files of tests against {found}", flush=True)
        pytest = [programs / "python", "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(pytest, cwd=place, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
