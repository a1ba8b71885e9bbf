"""What every command shares: parsing flags and YAML into dataclasses, and one clear line for a user's mistake."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from astroco_fast.errors import UserError

BAD_INPUT = 2

Config = TypeVar("Config")


def is_rank_zero() -> bool:
    """Whether this process speaks for all: rank 0 under torchrun, or a plain process."""
    return os.environ.get("RANK", "0") == "0"


def run(body: Callable[[], int]) -> int:
    """Run a command's body; a `UserError` becomes one line on rank 0's stderr and exit status 2."""
    try:
        return body()
    except UserError as error:
        if is_rank_zero():
            print(f"astroco: error: {error}", file=sys.stderr)
        return BAD_INPUT


def parse(
    config_class: type[Config],
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    positional: Sequence[str] = (),
) -> Config:
    """Parse flags, over an optional `--config FILE.yaml`, into an instance of a dataclass.

    The dataclass's own docstring (its `Args:` section) is the text of `--help`. Fields named in `positional` are given
    by place, without a flag, and must be `str`.

    Raises:
        UserError: an unknown key or flag, or a value of the wrong type; names it.
    """
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags override it")
    for name in positional:
        parser.add_argument(name, type=str)
    parser.add_class_arguments(config_class, skip=set(positional))
    try:
        parsed = parser.parse_args(None if argv is None else list(argv))
    except ArgumentError as error:
        raise UserError(f"{' '.join(str(error).split())} (see {prog} --help)") from error
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    values: dict[str, Any] = vars(instantiate(parsed))
    values.pop("config", None)
    return config_class(**values)
