"""The dispatcher: names, help, versions, and one line for an unknown name."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from astroco_fast import __version__, cli


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, summary in cli.COMMANDS.items():
        assert [line for line in lines if line.split()[:1] == [name] and line.endswith(summary)]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_listed_exists(name: str) -> None:
    assert find_spec(f"astroco_fast.{name}") is not None


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"astroco_fast {__version__}\n"


def test_an_unknown_command_is_one_line_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretain"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'pretain'" in line
    assert all(name in line for name in cli.COMMANDS)


def test_no_command_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().err


def test_the_rest_of_the_line_goes_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    class Command:
        @staticmethod
        def main(argv: list[str]) -> int:
            seen.append(argv)
            return 75

    monkeypatch.setattr(cli, "import_module", {"astroco_fast.doctor": Command}.__getitem__)
    assert cli.main(["doctor", "--json", "x"]) == 75
    assert seen == [["--json", "x"]]


def test_help_loads_no_heavy_library() -> None:
    """Parsing needs no heavy library; torch alone takes longer to load than all other modules."""
    code = (
        "import sys\nfrom astroco_fast.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try:\n        main([name, '--help'])\n    except SystemExit as left:\n        assert left.code == 0\n"
        "    loaded = {'torch', 'pandas', 'triton', 'sklearn', 'matplotlib'} & {*sys.modules}\n"
        "    assert not loaded, (name, loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(cli.COMMANDS)
