"""Files of settings, and messages that name the file and the setting that is wrong."""

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from astroco_fast.errors import UserError

_LONGEST, _DEEPEST = 500_000, 100  # letters and brackets of settings
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def read(path: str | Path, config_class: type) -> dict[str, Any]:
    """The settings in a YAML file. Each must be a field of the dataclass, or of a dataclass in it.

    Raises:
        UserError: the file cannot be read or is not YAML, or has an unknown setting, which the message names.
    """
    way_out = "give a YAML file of settings; --print_config shows how such a file looks"
    content = read_yaml(path, way_out, may_be_empty=True)
    known = dict(kinds(config_class))
    for name, value in _settings(content, known):
        if is_dataclass(known.get(name)) and not isinstance(value, Mapping):
            raise UserError(f"{path}: {name} must be a group of settings, not {value!r}")
        if name not in known:
            like = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {like[0]!r}?" if like else "--print_config shows all"
            raise UserError(f"{path}: unknown setting {name!r}; {hint}")
    return content


def read_yaml(path: str | Path, way_out: str, may_be_empty: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file.
        way_out: the advice in messages about a file that cannot be used.
        may_be_empty: whether an empty file is an empty mapping, rather than an error.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if is_excessive(text):
            raise UserError(f"{path}: too long or nested too deeply for settings; {way_out}")
        # Aliases can nest without end, and no setting needs them.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UserError(f"{path}: has YAML aliases (*name), which settings cannot have; {way_out}")
        content = yaml.safe_load(text)
        str(content)  # what Python cannot print, no message could quote: hexadecimal numbers of 5,000 digits
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {way_out}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply; {way_out}") from error
    except (yaml.YAMLError, ValueError) as error:  # a number of 5,000 digits, a 13th month, or no text
        why = getattr(error, "problem", None) or ("not text" if isinstance(error, UnicodeError) else str(error)[:200])
        raise UserError(f"{path}{_line(error)}: not YAML: {why}; {way_out}") from error
    if content is None and may_be_empty:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no settings, such as 'seed: 1'; {way_out}")
    return content


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raise `UserError` unless a seed is a whole number that every generator here takes."""
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"{name} must be a whole number from 0 to 2^63 - 1, not {seed}")


def check_classes(classes: Sequence[str] | None) -> None:
    """Raise `UserError` unless the classes to tell apart are all of a table's (None), or two or more different ones."""
    if classes is not None and len({*classes}) < max(2, len(classes)):
        raise UserError(f"classes must be two or more different labels, not {classes}")


def is_excessive(text: str) -> bool:
    """Whether a text is too long, or its brackets too deep, to be settings: YAML takes hours to read such a text."""
    depth = deepest = 0
    for letter in text[:_LONGEST]:
        depth += (letter in "[{") - (letter in "]}")
        deepest = max(deepest, depth)
    return len(text) > _LONGEST or deepest > _DEEPEST


def wanted(name: str, config_class: type) -> str | None:
    """The type of value that the setting of this dotted name takes, in words; None: there is no such setting."""
    kind = dict(kinds(config_class)).get(name)
    return None if kind is None else words(kind)


def find(name: str, content: Mapping[str, Any]) -> str | None:
    """The value of the setting of this dotted name, as text; None: it is not in `content`."""
    value: Any = content
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return str(value)


def kinds(config_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the type of each setting, groups of settings included."""
    hints = get_type_hints(config_class)
    for field in fields(config_class):
        kind = hints[field.name]
        yield prefix + field.name, kind
        if is_dataclass(kind):
            yield from kinds(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]


def _settings(content: Mapping[Any, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each of a file's settings, groups included; free dictionaries stay whole."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, Mapping) and is_dataclass(known.get(name)):
            yield from _settings(value, known, f"{name}.")


def may_be_null(kind: Any) -> bool:
    """Whether a setting of this type takes null."""
    return type(None) in get_args(kind)


def words(kind: Any) -> str:
    """A type of setting in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(map(words, parts))
    if origin is list:
        return f"a list [{words(parts[0])}, ...]"
    if origin is tuple:
        return f"a list [{', '.join(map(words, parts))}]"
    return _WORDS.get(kind, "a group of settings")


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""
