"""Text for the terminal, for Markdown and for figures."""

from collections.abc import Iterable, Iterator, Sequence


def printable(line: str) -> str:
    """A line with `?` for line breaks and control characters, which names from files may hold and terminals obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def cell(name: str) -> str:
    """The text of a cell of a Markdown table."""
    return printable(name).replace("|", "\\|")


def figure_text(name: str) -> str:
    """Text in a figure, where a dollar sign would begin a formula."""
    return printable(name).replace("$", r"\$")


def rows(cells: Iterable[Sequence[str]]) -> Iterator[str]:
    """Indented lines with aligned columns, one line for each row; all rows have equally many cells."""
    table = [[printable(cell) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def first_reason(error: Exception) -> str:
    """The first reason in an error message that has a heading and then one reason a line, as PyTorch's loading has."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0]) if lines else type(error).__name__
