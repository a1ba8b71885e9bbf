"""Which backend runs what."""

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch

import astroco_fast as af
from astroco_fast import ops
from astroco_fast.errors import UserError
from astroco_fast.reference import backend as reference_backend
from tests.windows import make_windows

CPU, F32 = torch.device("cpu"), torch.float32


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A backend that runs the feed-forward, in float32 evaluation only; gives the list of its calls."""
    calls: list[str] = []

    def unsupported(op: str, device: torch.device, dtype: torch.dtype, training: bool) -> str | None:
        if op != "feed_forward":
            return "not written"
        return "inference only" if training else None if dtype == F32 else f"no {dtype}"

    def feed_forward(module: Any, x: Any, layout: Any) -> Any:
        calls.append("feed_forward")
        return module(x, layout)

    fake = cast(ModuleType, SimpleNamespace(unsupported=unsupported, feed_forward=feed_forward))
    monkeypatch.setattr(ops, "BACKENDS", {"picky": fake, "reference": reference_backend})
    yield calls
    af.set_backend(None)


def test_best_backend_per_op_and_reasons(picky: list[str]) -> None:
    assert ops.select("feed_forward", CPU, F32, False) == ("picky", {})
    assert ops.select("attention", CPU, F32, False) == ("reference", {"picky": "not written"})
    assert ops.select("feed_forward", CPU, F32, True) == ("reference", {"picky": "inference only"})


def test_model_runs_ops_on_the_selected_backend(picky: list[str]) -> None:
    model = af.AstroCo.from_preset("tiny").eval()
    w = make_windows([5], 5)
    arguments = (w.time, w.mag, w.err)
    expected = model(*arguments)
    assert picky == ["feed_forward"] * 2
    with af.backend("reference"):
        got = model(*arguments)
    assert torch.equal(got.embedding, expected.embedding)
    assert len(picky) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the dtype that counts is the one computed in
        model(*arguments)
    assert len(picky) == 2
    model.train()(*arguments)
    assert len(picky) == 2


def test_callers_choice_and_its_scope(picky: list[str]) -> None:
    af.set_backend("reference")
    assert ops.select("feed_forward", CPU, F32, False).backend == "reference"
    with af.backend("picky"):
        assert ops.select("feed_forward", CPU, F32, False).backend == "picky"
        assert ops.select("attention", CPU, F32, False).backend == "reference"
    assert ops.select("feed_forward", CPU, F32, False).backend == "reference"


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(UserError, match="no backend 'cuda'; there are: reference"):
        af.set_backend("cuda")
    with pytest.raises(UserError, match="no backend 'x'"), af.backend("x"):
        pass


def test_every_op_has_a_reference() -> None:
    for op in ops.OPS:
        assert callable(getattr(ops, op))
        assert callable(getattr(reference_backend, op))
