"""How much there is of an input, and how much of it has been read: what progress bars show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from tqdm import tqdm


class Done(Protocol):
    """Light curves that are done: `len` is their number, `n_points` that of their points."""

    @property
    def n_points(self) -> int: ...

    def __len__(self) -> int: ...


@dataclass
class Extent:
    """How much there is of an input. Its source keeps it up to date while it is read.

    Attributes:
        unit: what is counted.
        total: how many there are; None if only reading tells.
        done: how many come before the batch that was read last; in the end, all that were read.
    """

    unit: Literal[" curves", " points"] = " curves"
    total: int | None = None
    done: int = 0


@contextmanager
def progress_bar(extent: Extent, desc: str, shown: bool) -> Iterator[Callable[[Done], object]]:
    """A progress bar of what is done with an input, on a terminal.

    Args:
        extent: how much there is of the input.
        desc: what is done.
        shown: whether to show it.

    Yields:
        A function to call with each batch, or piece of one, that is done.
    """
    if not shown:
        yield lambda done: None
        return
    with tqdm(desc=desc, unit=extent.unit, unit_scale=True, disable=None) as bar:

        def show(n: int) -> None:
            bar.total = extent.total
            bar.update((n if extent.total is None else min(n, extent.total)) - bar.n)

        def advance(done: Done) -> None:
            show(max(int(bar.n), extent.done) + (done.n_points if extent.unit == " points" else len(done)))

        yield advance
        show(max(int(bar.n), extent.done))
