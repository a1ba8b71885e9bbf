"""Text for the terminal."""

from collections.abc import Iterable, Iterator, Sequence


def rows(cells: Iterable[Sequence[str]]) -> Iterator[str]:
    """Indented lines with aligned columns, one line for each row; all rows have equally many cells."""
    table = list(cells)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def first_reason(error: Exception) -> str:
    """The first reason in an error message that has a heading and then one reason a line, as PyTorch's loading has."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0]) if lines else type(error).__name__
