"""Copies to and from a GPU, which a list of calls stands in for."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import astroco_fast as af
from astroco_fast.data import copies
from tests.embedding.curves import curve


class Stand:
    """A tensor on a GPU that there is not: it writes down what is done with it."""

    is_cuda, device = True, torch.device("cuda", 1)

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls

    def pin_memory(self) -> "Stand":
        self.calls.append("pinned")
        return self

    def to(self, device: Any, non_blocking: bool = False) -> "Stand":
        self.calls.append((str(device), non_blocking))
        return self

    def numpy(self) -> str:
        self.calls.append("read")
        return "numbers"


def test_a_gpu_is_given_pinned_memory_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch, "from_numpy", lambda array: Stand(calls))
    copies.to_device(np.zeros(3), torch.device("cuda"))
    assert calls == ["pinned", ("cuda", True)]


def test_nothing_is_read_before_it_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    event = SimpleNamespace(synchronize=lambda: calls.append("waited"))

    def stream(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(record_event=lambda: calls.append(("recorded", str(device))) or event)

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    arrivals = copies.Arrivals([Stand(calls), Stand(calls)])
    assert calls == [("cpu", True), ("cpu", True), ("recorded", "cuda:1")]
    assert arrivals.arrays() == ["numbers", "numbers"]
    assert calls[3:] == ["waited", "read", "read"]


def test_the_cpus_memory_is_used_as_it_is() -> None:
    array = np.arange(3.0)
    tensor = copies.to_device(array, torch.device("cpu"))
    assert tensor.data_ptr() == array.ctypes.data
    (back,) = copies.Arrivals([tensor]).arrays()
    assert back.ctypes.data == array.ctypes.data


@pytest.mark.parametrize("output", ["embedding", "sequence"])
def test_a_pass_is_launched_before_the_results_of_the_last_are_read(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU would else have nothing to do while the host adds up and assembles."""
    calls: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    torch.manual_seed(0)
    model = af.AstroCo.from_preset("tiny", width=16, heads=2, window=20).eval()
    curves = [curve(20, seed) for seed in range(3)]
    at_once = model.embed(curves, output=output, precision="fp32")
    monkeypatch.setattr(model, "forward", noted("pass", model.forward))
    monkeypatch.setattr(copies.Arrivals, "arrays", noted("read", copies.Arrivals.arrays))
    one_by_one = model.embed(curves, output=output, precision="fp32", batch_size=1)
    assert calls == ["pass", "pass", "read", "pass", "read", "read"]
    if output == "embedding":
        assert np.array_equal(one_by_one, at_once)
    else:
        assert all(np.array_equal(a, b) for a, b in zip(one_by_one[output], at_once[output], strict=True))
