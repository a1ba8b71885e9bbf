"""Released weights: the models that ship with the package, each in a folder of `astroco_fast/weights`.

A folder holds what `save_pretrained` writes, in half precision, with checksums. `index.json` lists the models, the best
first, with the facts that `astroco models` shows; each model's card says more.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "weights"
INDEX = "index.json"


@dataclass(frozen=True)
class Released:
    """Facts about a released model.

    Attributes:
        name: the name that `astroco_fast.load` and `--model` take.
        summary: what it is for, in a line.
        views: the views of light curves that it was pretrained on.
        surveys: the surveys it was pretrained on.
        parameters: the number of its parameters.
        windows: how many windows it has seen.
        macro_f1: by labels a class, the macro-F1 in percent of a logistic regression on its vectors of Catalina's six
            classes.
        size: bytes of its weights on disk.
    """

    name: str
    summary: str
    views: str
    surveys: list[str]
    parameters: int
    windows: int
    macro_f1: dict[str, float]
    size: int

    @property
    def folder(self) -> Path:
        """The folder that `from_pretrained` takes."""
        return FOLDER / self.name


def released() -> list[Released]:
    """The released models, the best first."""
    index = json.loads((FOLDER / INDEX).read_text())
    return [Released(**facts, size=(FOLDER / facts["name"] / "model.safetensors").stat().st_size) for facts in index]


def names() -> list[str]:
    """The released models' names, the best first."""
    return [model.name for model in released()]


def given_or_best(name: str | None) -> str:
    """The model that a command takes: the one given, or the best released one, which the command then tells."""
    if name is not None:
        return name
    from astroco_fast.commands import is_rank_zero

    best = names()[0]
    if is_rank_zero():
        print(f"No --model given: taking {best}, the best released one.", file=sys.stderr)
    return best
