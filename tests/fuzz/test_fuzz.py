"""Every kind of file, damaged and odd: a valid result or a `UserError`, within limits of time and memory."""

from typing import Any

import pytest

pytest.importorskip("resource", reason="limits of this kind are POSIX's")
pytest.importorskip("hypothesis")
pytest.importorskip("astropy")

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from tests.fuzz import strategies
from tests.fuzz.kinds import KINDS, VALID

# Inputs of each sort for each kind, fewer where reading is slow: 2,000 in all. One that fails is not made smaller,
# which would take long.
EXAMPLES, FEW = 26, 12
ODD = [name for name, kind in KINDS.items() if kind.odd is not None]
FILES = [name for name, kind in KINDS.items() if kind.seeds]


def check(name: str, inputs: SearchStrategy[Any]) -> None:
    kind = KINDS[name]

    @settings(
        max_examples=EXAMPLES if kind.share == 1 else FEW,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def each(drawn: Any) -> None:
        kind.outcome(drawn)

    each()


@pytest.mark.parametrize("name", FILES)
def test_valid_files_are_read(name: str) -> None:
    kind = KINDS[name]
    assert {kind.outcome(content) for content in kind.seeds} == {VALID}


@pytest.mark.parametrize("name", FILES)
def test_damaged_bytes(name: str) -> None:
    check(name, strategies.damaged(KINDS[name].seeds))


@pytest.mark.parametrize("name", ODD)
def test_odd_content(name: str) -> None:
    check(name, KINDS[name].odd(KINDS[name].seeds))
