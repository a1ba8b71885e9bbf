"""Parsing of flags and files into settings."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from astroco_fast.commands import parse
from astroco_fast.errors import UserError


@dataclass
class Part:
    """A part of the settings.

    Args:
        size: how large.
    """

    size: int = 1


@dataclass
class Settings:
    """Settings.

    Args:
        source: what to read.
        name: what to call it.
        part: a part.
    """

    source: str
    name: str = "default"
    part: Part = field(default_factory=Part)


def read(*argv: str) -> Settings:
    return parse(Settings, "astroco test", "A test.", argv, positional=("source",))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text("name: of the file\npart:\n  size: 5\n")
    return str(path)


def test_defaults_flags_and_places() -> None:
    assert read("x", "--part.size", "3") == Settings("x", "default", Part(3))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_flags_override_the_file_wherever_they_stand(file: str, order: int) -> None:
    config, flags = ["--config", file], ["--part.size", "3"]
    argv = [["x", *config, *flags], ["x", *flags, *config], [*flags, f"--config={file}", "x"]][order]
    assert read(*argv) == Settings("x", "of the file", Part(3))


def test_help_says_what_each_setting_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        read("--help")
    assert left.value.code == 0
    assert "what to call it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "source"),
        (("x", "--nmae", "y"), "--nmae"),
        (("x", "--part.size", "big"), r"part\.size must be"),
        (("x", "--config", "no/such.yaml"), "no/such.yaml"),
        (("x", "--config"), "config"),
    ],
)
def test_mistakes_are_named(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(*argv)


@dataclass
class WithOutput:
    """Settings.

    Args:
        source: what to read.
        out: what to write.
    """

    source: str
    out: str | None = None


def test_places_with_a_default_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    places = ("source", "out")
    assert parse(WithOutput, "astroco test", "A test.", ["x"], places) == WithOutput("x", None)
    assert parse(WithOutput, "astroco test", "A test.", ["x", "y"], places) == WithOutput("x", "y")
    with pytest.raises(SystemExit):
        parse(WithOutput, "astroco test", "A test.", ["--help"], places)
    assert "what to write" in capsys.readouterr().out
