"""Text for the terminal."""

from collections.abc import Iterable, Iterator, Sequence


def rows(cells: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows of equally many cells as lines of aligned columns, indented."""
    table = list(cells)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def first_reason(error: Exception) -> str:
    """Of an error whose message has a heading and then a reason a line, as PyTorch's loading has: the first reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0]) if lines else type(error).__name__
