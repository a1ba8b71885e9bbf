"""Parsing of flags and files into settings."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from astroco_fast.commands import parse, run
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


NESTED = "a: &a [x, x]\nb: &b [*a, *a]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000, "nested too deeply"),
        ("name: " + "x" * 600_000, "too long"),
        (NESTED, "has YAML aliases"),
        ("name: &a [*a]", "has YAML aliases"),
        ("part: {size: " + "9" * 5000 + "}", "not YAML: Exceeds the limit"),
        ("part: {size: 0x" + "f" * 5000 + "}", "not YAML: Exceeds the limit"),
        ("? 0x" + "f" * 5000, "not YAML: Exceeds the limit"),
        ("name: 2020-13-45", "not YAML: month must be in 1..12"),
    ],
)
def test_settings_that_would_take_hours_are_refused_at_once(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"settings\.yaml: .*{words}"):
        read("x", "--config", str(tmp_path / "settings.yaml"))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("value", ["[" * 5000, "{a: " * 2000, "9" * 5000])
def test_flags_that_cannot_be_read_are_refused(value: str) -> None:
    with pytest.raises(UserError):
        read("x", "--part.size", value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("part: {size: null}", r"settings\.yaml: part\.size must be a whole number, not null"),
        ("name: null", r"settings\.yaml: name must be text, not null"),
        (f"part: {{size: {2**63}}}", r"settings\.yaml: part\.size must be a whole number below 2\^63"),
        (f"part: {{size: -1{'0' * 400}}}", r"settings\.yaml: part\.size must be a whole number below 2\^63"),
    ],
)
def test_nulls_and_endless_numbers_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read("x", "--config", str(tmp_path / "settings.yaml"))


def test_settings_that_may_be_null(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("out: null\n")
    argv = ["x", "--config", str(tmp_path / "settings.yaml")]
    assert parse(WithOutput, "astroco test", "A test.", argv, ("source",)).out is None


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("mend this"), 2, "error: mend this"),
        (PermissionError(13, "Permission denied", "survey.csv"), 2, "error: survey.csv: Permission denied"),
        (OSError(30, "Read-only file system"), 2, "error: Read-only file system"),
        (MemoryError("Unable to allocate 8 EiB"), 2, "error: too little memory: Unable to allocate 8 EiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: too little memory"),
        (ValueError("embedded null byte"), 2, "error: a path has a null byte"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> int:
        raise error

    assert run(body) == status
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"astroco: {line}")


@pytest.mark.parametrize("error", [RuntimeError("a mistake of ours"), ValueError("another"), KeyError("x")])
def test_mistakes_of_ours_keep_their_traceback(error: Exception) -> None:
    def body() -> int:
        raise error

    with pytest.raises(type(error)):
        run(body)
