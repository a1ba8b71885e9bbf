"""Comparison of a backend's op with the reference in float64, by the rule in `astroco_fast.comparison`."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import Layout
from astroco_fast.comparison import Comparison, Results, results, zero_filler
from astroco_fast.kernels import cpu

Call = Callable[..., Any]
Draw = tuple[Results, Results, Results]  # exact, plain and fused
DRAWS = 8  # enough that the largest errors of two equally exact ops differ by less than the factor 2 allowed


class Case(NamedTuple):
    """One combination of shapes, layout, dtype, mode and strides that an op has to handle."""

    length: int  # T
    width: int  # D
    layout: str  # full, packed, padded, empty
    dtype: torch.dtype
    mode: str  # inference, evaluation (with gradients), training
    strides: str  # contiguous, sliced (inputs), expanded (gradients)


AXES: dict[str, Sequence[Any]] = {
    "length": (33, 200, 1, 31, 32, 199, 201),
    "width": (64, 276, 256),
    "layout": ("packed", "padded", "empty", "full"),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "mode": ("training", "inference", "evaluation"),
    "strides": ("contiguous", "sliced", "expanded"),
}


SHAPES = list(product(AXES["length"], AXES["width"]))  # the slow tests take a shape's cases together: fewer to collect

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

# The cases that Triton's interpreter runs by default. It takes its time by rows and widths, so wide rows are in short
# windows. Every two values of layout, dtype, mode and strides meet, and every length and width occurs.
INTERPRETED = [
    Case(200, 64, "packed", F32, "training", "contiguous"),
    Case(33, 276, "packed", BF16, "inference", "sliced"),
    Case(32, 64, "packed", F16, "evaluation", "expanded"),
    Case(199, 64, "padded", F32, "inference", "expanded"),
    Case(31, 64, "padded", BF16, "evaluation", "contiguous"),
    Case(33, 64, "padded", F16, "training", "sliced"),
    Case(1, 256, "empty", F32, "evaluation", "sliced"),
    Case(33, 276, "empty", BF16, "training", "expanded"),
    Case(32, 256, "empty", F16, "inference", "contiguous"),
    Case(1, 64, "full", F32, "training", "contiguous"),
    Case(31, 64, "full", BF16, "inference", "sliced"),
    Case(201, 64, "full", F16, "evaluation", "expanded"),
]


def cases() -> list[Any]:
    """Parameters `fused` and `case` of a test: `pairwise` for each backend, `INTERPRETED` for Triton without a GPU."""
    of_triton = pairwise() if torch.cuda.is_available() else INTERPRETED
    both = [("triton", case) for case in of_triton] + [("cpu", case) for case in pairwise()]
    return [pytest.param(*pair, id=f"{pair[0]}-{name(pair[1])}") for pair in both]


def pairs(case: Case) -> set[tuple[int, Any, int, Any]]:
    """Every two values of the case, each with its axis's number."""
    return {(a, case[a], b, case[b]) for a, b in combinations(range(len(case)), 2)}


@cache
def pairwise() -> list[Case]:
    """Cases in which every two values of different axes meet at least once. `every_case` has the other combinations."""
    candidates = {case: pairs(case) for case in every_case()}
    missing = set().union(*candidates.values())
    chosen = []
    while missing:
        chosen.append(max(candidates, key=lambda case: len(candidates[case] & missing)))
        missing -= candidates[chosen[-1]]
    return chosen


def every_case() -> list[Case]:
    """Every combination of the axes' values."""
    return [Case(*values) for values in product(*AXES.values())]


def of_shape(shape: tuple[int, int]) -> list[Case]:
    """Every case of one length and width."""
    return [case for case in every_case() if case[:2] == shape]


def fitting(case: Case, backend: str) -> Case:
    """The case, changed to float32 if the backend has no kernels for its dtype."""
    lacks = backend == "cpu" and (case.dtype not in cpu.DTYPES or cpu.lacking(case.dtype) is not None)
    return case._replace(dtype=torch.float32) if lacks else case


def name(case: Case) -> str:
    """The case as the id of a test."""
    return "-".join(str(value).removeprefix("torch.") for value in case)


def lengths_of(case: Case) -> list[int]:
    """The numbers of real points in a small batch's windows, full, ragged and empty ones."""
    t = case.length
    if case.layout == "empty":
        return [0, t, 0]
    if t == 1:  # with two or three rows, BatchNorm's gradients are mostly rounding errors on every backend
        return 16 * [t]
    if case.layout == "full":
        return [t] if t > 100 else [t, t]
    return [t, (t + 1) // 2, max(1, t // 5)] if t < 100 else [t, 7]


def layout_of(case: Case, device: torch.device) -> Layout:
    """The batch's layout, of the case's kind."""
    t, lengths = case.length, torch.tensor(lengths_of(case))
    if case.layout == "padded":
        return Layout.padded(lengths.to(device), t)
    # Without more filler than positions a batch with one position a window would have as many rows as windows, and
    # embeddings could not be told from rows.
    capacity = 9 if case.layout == "empty" and t == 1 else None
    return Layout.packed(lengths, t, device, capacity)


def real_rows(layout: Layout) -> Tensor:
    """The rows that are real points, (N,) bool."""
    if layout.valid is not None:
        return layout.valid
    return torch.ones(layout.rows, dtype=torch.bool, device=layout.lengths.device)


def sliced(x: Tensor) -> Tensor:
    """x at twice the stride, with NaN between its values."""
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=1).flatten(0, 1)[::2]


def variants(
    call: Call,
    module: nn.Module,
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor] | None,
    dtype: torch.dtype,
    backend: str,
    fused_inputs: Sequence[Tensor] | None = None,
    fused_upstream: Sequence[Tensor] | None = None,
    plain_module: nn.Module | None = None,
) -> Draw:
    """`comparison.results` of the reference in float64 and in `dtype`, and of the backend in `dtype`.

    Args:
        call: calls the op through `astroco_fast.ops`.
        fused_inputs, fused_upstream: the backend's inputs and upstream, if others: the same values with other strides,
            or with NaN where they must have no effect.
        plain_module: the reference's module, if another: the same module with given dropout factors.
    """
    plain_module = module if plain_module is None else plain_module

    def run(
        name: str, model: nn.Module, args: Sequence[Tensor], ups: Sequence[Tensor] | None, to: torch.dtype
    ) -> Results:
        with af.backend(name):
            return results(call, model, args, ups, to)

    exact = run("reference", plain_module, inputs, upstream, torch.float64)
    plain = run("reference", plain_module, inputs, upstream, dtype)
    fused = run(backend, module, fused_inputs or inputs, fused_upstream or upstream, dtype)
    return exact, plain, fused


def upstream(case: Case, rows: int, device: torch.device) -> Tensor:
    """An output's gradient, (rows, D).

    Expanded, it has one number a row. With the same number in all rows, each row would have the same rounding error,
    and the errors' sums in the biases' gradients would be a matter of luck, in plain PyTorch too.
    """
    if case.strides == "expanded":
        return torch.randn(rows, 1, device=device).expand(rows, case.width)
    return torch.randn(rows, case.width, device=device)


def off(draws: Sequence[Draw], real: Tensor | None = None) -> dict[str, str]:
    """By name, the results that break the rule in `astroco_fast.comparison`, over all draws together.

    Args:
        draws: the exact, plain and fused results of each draw.
        real: bool, (N,) rows that are real points: in the others the backend's results are zero. None: every row is
            compared with the reference's.
    """
    comparison = Comparison()
    for exact, plain, fused in draws:
        if real is not None:
            exact, plain = zero_filler(exact, real), zero_filler(plain, real)
        comparison.add(exact, plain, fused)
    return comparison.off()


def assert_close(*draws: Draw, real: Tensor | None = None) -> None:
    """No result is `off`."""
    wrong = off(draws, real)
    assert not wrong, wrong


def check(draw: Callable[[int], tuple[Draw, Tensor | None]]) -> None:
    """The rule holds in the first draw, or in all of `DRAWS` together: plain PyTorch may be exact by luck in one.

    Args:
        draw: from the draw's number to its results and to the rows that are real points, (N,) bool; None: as in `off`.
    """
    first, real = draw(0)
    if off([first], real):
        assert_close(first, *[draw(number)[0] for number in range(1, DRAWS)], real=real)


def check_shape(shape: tuple[int, int], check: Callable[[Case], None]) -> None:
    """Check every case of one length and width, and then fail with the faults of all that are off, by `name`."""
    wrong = []
    for case in of_shape(shape):
        try:
            check(case)
        except Exception as error:  # an op that raises in one case must not hide the others either
            wrong.append(f"{name(case)}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
