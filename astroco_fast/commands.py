"""The part that all commands share: flags and YAML parsed into dataclasses, and one clear line for a user's mistake."""

import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from astroco_fast import settings
from astroco_fast.errors import UserError
from astroco_fast.text import printable

# This process, and its parent when it began: noted early, because torchrun may end while a rank still imports PyTorch.
_BEGAN = os.getpid(), os.getppid()

BAD_INPUT = 2
INTERRUPTED_BY_USER = 130  # as a shell says of a process that SIGINT ended

Config = TypeVar("Config")


def is_rank_zero() -> bool:
    """Whether this process prints for all: rank 0 under torchrun, or a process without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def launcher() -> int | None:
    """The process id of torchrun, which started this process; 0: it has ended already; None: there is no torchrun.

    Only torchrun is of interest: other parents, such as a shell or nohup, may well end before their children.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = _BEGAN[1] if os.getpid() == _BEGAN[0] else os.getppid()
    with suppress(OSError):  # where /proc tells: a process whose parent has ended is given another one, such as init
        if not Path(os.readlink(f"/proc/{parent}/exe")).name.startswith("python"):
            return 0
    return parent


def run(body: Callable[[], int]) -> int:
    """Run a command's body; errors that a user can mend become one line on rank 0's stderr and a status.

    Returns:
        The body's status; 2 for a `UserError`, for what the system refuses and for too little memory; 130 after Ctrl-C.
    """
    try:
        return body()
    except UserError as error:
        _say(f"error: {error}")
    except BrokenPipeError:  # the reader of the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _say(f"error: {system_error(error)}")
    except MemoryError as error:
        _say(f"error: too little memory{f': {error}' * bool(str(error))}; use a machine with more, or a smaller input")
    except ValueError as error:
        if "null byte" not in str(error):  # the system's functions say so of a path
            raise
        _say("error: a path has a null byte, which no file's name has")
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # PyTorch's word for it
            raise
        _say("error: too little memory; use a machine with more, or a smaller model or batch")
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED_BY_USER
    return BAD_INPUT


def system_error(error: OSError) -> str:
    """What the system refused, with the file's name if there is one."""
    name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{name}{error.strerror or error}"


def _say(text: str) -> None:
    if is_rank_zero():
        print(f"astroco: {one_line(text)}", file=sys.stderr)


def one_line(message: str) -> str:
    """A message without line breaks and control characters, which text quoted from a file may contain."""
    return printable(" ".join(message.split()))


def tell(notes: Iterable[str]) -> None:
    """Print notes on the input, a line each, on rank 0's stderr."""
    if is_rank_zero():
        for note in notes:
            print(f"note: {one_line(note)}", file=sys.stderr, flush=True)


def parse(
    config_class: type[Config],
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    positional: Sequence[str] = (),
) -> Config:
    """Parse flags, over an optional `--config FILE.yaml`, into an instance of a dataclass.

    The `Args:` section of the dataclass's docstring is the text of `--help`. Fields named in `positional` are
    positional arguments and must be `str`; one with a default may be left out. A flag of a bool needs no value.

    Raises:
        UserError: names an unknown key or flag, a value of the wrong type, or a file that is not YAML.
    """
    parser = _parser(config_class, prog, description, tuple(positional))  # type: ignore[arg-type]
    switches = {f"--{field.name}" for field in fields(config_class) if field.type in (bool, "bool")}  # type: ignore[arg-type]
    words = _config_first(_with_values(sys.argv[1:] if argv is None else list(argv), switches))
    if any(settings.is_excessive(word) for word in words):
        raise UserError(f"a setting is too long or nested too deeply (see {prog} --help)")
    files = {file: settings.read(file, config_class) for file in _config_files(words)}
    try:
        parsed = parser.parse_args(words)
    except ArgumentError as error:
        raise UserError(f"{_explain(str(error), config_class, files)} (see {prog} --help)") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # numbers of 5,000 digits, nested brackets
        raise UserError(f"a setting cannot be read: {str(error)[:200]} (see {prog} --help)") from error
    if refused := _refused(parsed, config_class, files):
        raise UserError(f"{refused} (see {prog} --help)")
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    values: dict[str, Any] = vars(instantiate(parsed))
    values.pop("config", None)
    return config_class(**values)


@cache
def _parser(config_class: type, prog: str, description: str, positional: tuple[str, ...]) -> ArgumentParser:
    """The parser of a command's flags, which takes four times as long to build as to use."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, formatter_class=_Lines)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags override it")
    defaults = {field.name: field.default for field in fields(config_class)}
    texts = {entry.arg_name: entry.description for entry in docstring_parser.parse(config_class.__doc__ or "").params}
    for name in positional:
        optional: dict[str, Any] = {} if defaults[name] is MISSING else {"nargs": "?", "default": defaults[name]}
        parser.add_argument(name, type=str, help=texts.get(name), **optional)
    parser.add_class_arguments(config_class, skip=set(positional))
    return parser


class _Lines(DefaultHelpFormatter):
    """The form of `--help`, in which a description keeps its lines, such as those of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(super(_Lines, self)._fill_text(line, width, indent) for line in text.splitlines())


def _with_values(words: Sequence[str], switches: Collection[str]) -> list[str]:
    """The words with the value "true" after each switch that has none."""
    valued: list[str] = []
    for place, word in enumerate(words):
        bare = word in switches and list(words[place + 1 : place + 2]) not in (["true"], ["false"])
        valued += [word, "true"] if bare else [word]
    return valued


def _config_first(words: Sequence[str]) -> list[str]:
    """The words with `--config` and its files moved to the front, so that flags override settings of the files."""
    chosen = {i + shift for i, word in enumerate(words[:-1]) if word == "--config" for shift in (0, 1)}
    chosen |= {i for i, word in enumerate(words) if word.startswith("--config=")}
    first = [word for i, word in enumerate(words) if i in chosen]
    return first + [word for i, word in enumerate(words) if i not in chosen]


def _config_files(words: Sequence[str]) -> list[str]:
    """The files that `--config FILE` and `--config=FILE` name."""
    apart = [value for flag, value in pairwise(words) if flag == "--config"]
    return apart + [word.removeprefix("--config=") for word in words if word.startswith("--config=")]


def _explain(message: str, config_class: type, files: dict[str, dict[str, Any]]) -> str:
    """The parser's error message in one line; for a value of the wrong type, our own message, which names the file."""
    message = " ".join(message.split())
    wrong = re.match(r'Parser key "([\w.]+)":.*(?:Got|Given) value: ?(.*)', message)
    wanted = wrong and settings.wanted(wrong[1], config_class)
    if not wrong or not wanted:
        return message
    key, value = wrong.groups()
    return f"{_place(key, value, files)} must be {wanted}, not {value!r}"


def _refused(parsed: Any, config_class: type, files: dict[str, dict[str, Any]]) -> str | None:
    """What is wrong with a setting that the parser let pass: null where it has no meaning, or an endless number."""
    for key, kind in settings.kinds(config_class):
        value = parsed.get(key)
        if value is None and not settings.may_be_null(kind):
            return f"{_place(key, str(value), files)} must be {settings.words(kind)}, not null"
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, int) and abs(number) >= 2**63 for number in numbers):
            return f"{_place(key, str(value), files)} must be a whole number below 2^63"
    return None


def _place(key: str, value: str, files: dict[str, dict[str, Any]]) -> str:
    """Where a setting was given: the file that holds this value, or the flag."""
    file = next((file for file, content in files.items() if settings.find(key, content) == value), None)
    return f"--{key}" if file is None else f"{file}: {key}"
