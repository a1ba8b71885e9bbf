"""Text for the terminal."""

from collections.abc import Iterable, Iterator, Sequence


def rows(cells: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows of equally many cells as lines of aligned columns, indented."""
    table = list(cells)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
