"""`astroco models`: the released weights, with what they were trained on and how good their embeddings are."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from astroco_fast import commands
from astroco_fast.errors import UserError


@dataclass
class ModelsConfig:
    """List the models that ship with the package. Each name is a value of `--model` and of `astroco_fast.load`.

    Args:
        card: print the card of this model instead: its data, figures by survey, credits, and what it is not for.
    """

    card: str | None = None


def describe(card: str | None = None) -> str:
    """The table of released models in Markdown, or one model's card.

    Raises:
        UserError: there is no released model of that name.
    """
    from astroco_fast.released import released

    models = {model.name: model for model in released()}
    if card is not None:
        if card not in models:
            raise UserError(f"card: no released model {card!r}; there are: {', '.join(models)}")
        return (models[card].folder / "README.md").read_text(encoding="utf-8").rstrip()
    rows = [("name", "for", "views", "surveys", "parameters", "windows seen", "macro-F1", "MB")]
    for model in models.values():
        scores = " / ".join(f"{score:.1f}" for score in model.macro_f1.values())
        numbers = (f"{model.parameters:,}", f"{model.windows:,}", scores, f"{model.size / 1e6:.1f}")
        rows.append((model.name, model.summary, model.views, ", ".join(model.surveys), *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sizes = "/".join(next(iter(models.values())).macro_f1) if models else ""
    about = f"macro-F1: percent, logistic regression at {sizes} labels a class, Catalina's six classes."
    return "\n".join([*lines, "", about, "More about one: astroco models --card NAME"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco models`; returns its exit status: 0 done, 2 bad input."""

    def body() -> int:
        config = commands.parse(ModelsConfig, "astroco models", "List the models that ship with the package.", argv)
        print(describe(config.card))
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
