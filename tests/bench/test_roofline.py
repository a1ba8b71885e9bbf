"""The roofline model: its counts, and the limits that the kernels keep to."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

import astroco_fast.kernels.triton as backend
from astroco_fast import presets
from astroco_fast.kernels.library import functions
from astroco_fast.kernels.triton.launch import ARCHITECTURES
from bench.roofline.__main__ import main
from bench.roofline.counting import Counts, Traffic
from bench.roofline.flops import PAIRWISE, PRODUCTS, counter
from bench.roofline.model import DEVICES, INFERENCE, OURS, STEP, Device, bars, rows
from bench.roofline.subject import count, window_lengths

SM_90 = ARCHITECTURES["sm_90"]
N, D = 64, 32  # float32: rows of 128 bytes


def counted(run, *shapes, parameters=()):
    """The counts of `run` on tensors of these shapes; `parameters` are the positions of those that are parameters."""
    with FakeTensorMode():
        tensors = [torch.empty(shape) for shape in shapes]
        with Traffic(counter(0), {}, SM_90, [tensors[i] for i in parameters]) as seen:
            run(*tensors)
    return seen.counts


@pytest.mark.parametrize(
    ("run", "launches", "read", "written"),
    [
        (lambda x, w: x @ w, 1, 4 * (N * D + D * D), 4 * N * D),
        (lambda x, w: x + x, 1, 4 * N * D, 4 * N * D),
        (lambda x, w: x.view(-1, 8).t()[1:].unsqueeze(0), 0, 0, 0),
        (lambda x, w: x + w[0].expand_as(x), 1, 4 * (N * D + D), 4 * N * D),
        (lambda x, w: x[::2] * 2, 1, 4 * N * D // 2, 4 * N * D // 2),
        (lambda x, w: torch.cat([x[:8], x[8:]]), 1, 4 * N * D, 4 * N * D),
        (lambda x, w: x.mul_(2), 1, 4 * N * D, 4 * N * D),
        (lambda x, w: x.copy_(x.new_empty(N, D)), 1, 4 * N * D, 4 * N * D),
        (lambda x, w: x.zero_(), 1, 0, 4 * N * D),
        (lambda x, w: torch.zeros_like(x), 1, 0, 4 * N * D),
        (lambda x, w: x.index_select(0, torch.empty(5, dtype=torch.int64)), 1, 5 * 8 + 5 * 128, 5 * 128),
        (lambda x, w: torch._foreach_mul([x, w], 2.0), 1, 4 * (N + D) * D, 4 * (N + D) * D),
    ],
)
def test_bytes(run, launches, read, written):
    counts = counted(run, (N, D), (D, D))
    assert (counts.launches, counts.read, counts.written) == (launches, read, written)


def test_operations():
    assert counted(lambda x, w: x @ w, (N, D), (D, D)).flops == 2 * N * D * D
    convolution = counted(
        lambda x, w: torch.nn.functional.conv1d(x, w, groups=D), (2, D, N + 3), (D, 1, 4)
    )  # torch's own formula for its gradient takes it for a dense one
    assert convolution.flops == 2 * 2 * D * N * 4


def test_casts_of_parameters_are_no_activations():
    def run(x, w, traffic):
        traffic.keep([x, w, w.half(), (x @ w).half()])

    with FakeTensorMode():
        x, w = torch.empty(N, D), torch.empty(D, D)
        with Traffic(counter(0), {}, SM_90, [w]) as seen:
            run(x, w, seen)
    assert seen.counts.kept == 4 * N * D + 2 * N * D


def test_kernel_op():
    """The op reads o, x, b, end and LayerNorm's parameters; writes y, the normalised sum and two numbers a row.

    No kernel runs.
    """
    from astroco_fast.kernels.triton.residual_norm import residual_norm

    def run(o, b, x, weight, bias):
        end = torch.empty(N, dtype=torch.int32)
        residual_norm(o.to(torch.bfloat16), b, x, weight, bias, end, None, 0, 0.0, 1e-5)

    counts = counted(run, (N, D), (D,), (N, D), (D,), (D,))
    assert [op.name for op in counts.ops] == ["_to_copy", "residual_norm"]
    op = counts.ops[1]
    assert op.launches == 1
    assert op.read == (2 + 4) * N * D + 3 * 4 * D + 4 * N
    assert op.written == (4 + 2) * N * D + 2 * 4 * N


def test_every_kernel_op_has_its_operations():
    for module in iter_modules(backend.__path__):
        import_module(f"{backend.__name__}.{module.name}")
    only_for_tests = {"dropout_mask", "plain_attention", "plain_attention_backward"}
    gpu = {name for name in functions if not name.startswith("cpu_")}  # it models GPUs
    assert gpu <= PRODUCTS.keys() | PAIRWISE.keys() | only_for_tests


def test_tilings_of_the_architecture():
    """Preset S's feed-forward is one kernel only on architectures where that fits and pays."""
    config, lengths = replace(presets.preset("S").config, layers=1), window_lengths(8, 200, padded=False)
    small, large = (
        {op.name for op in count("triton", config, lengths, 200, torch.bfloat16, ARCHITECTURES[name])["inference"].ops}
        for name in ("sm_86", "sm_100")
    )
    assert "feed_forward_fused" in large - small


def test_bound():
    """An op's bound is the longer of its two times."""
    device = Device("", "sm_90", half=1e3, single=1e2, bandwidth=1e1)
    counts = counted(lambda x, w: x @ w, (N, D), (D, D))
    assert device.bound(counts) == pytest.approx(max(counts.flops / 1e2, counts.bytes / 1e1))
    assert device.bound(counts + counts) == pytest.approx(2 * device.bound(counts))
    assert device.bound(Counts()) == 0


def test_half_of_the_ragged_points_are_padding():
    lengths = window_lengths(256, 200, padded=True)
    assert int(lengths.sum()) == 256 * 100
    assert int(lengths.min()) <= 1
    assert int(lengths.max()) >= 199


@pytest.mark.slow
def test_bars():
    """All limits that `python -m bench.roofline` checks."""
    found = rows(presets.preset("L").config, 256, 200, "bf16", DEVICES.values())
    assert {device for row in found for device in row.bound} == DEVICES.keys()
    assert not [bar for bar in bars(found) if not bar.met]


def test_command(tmp_path, monkeypatch, capsys):
    """The command prints Markdown and writes JSON; a preset L of two blocks, which saves time, keeps to all limits."""
    out = tmp_path / "roofline.json"
    large = presets.preset("L")
    monkeypatch.setitem(presets._PRESETS, "L", replace(large, config=replace(large.config, layers=2)))
    words = ["--ops", "--devices", "H100", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["roofline", *words])
    main()
    told = capsys.readouterr().out
    assert "*Modelled*" in told
    assert "| astroco_fast | inference |" in told
    found = json.loads(out.read_text())
    assert found["modelled"]
    step = next(r for r in found["rows"] if (r["implementation"], r["batch"], r["name"]) == (OURS, "full", STEP))
    assert step["launches"] > 0
    assert step["bound"]["H100"] > 0
    assert {row["name"] for row in found["rows"]} >= {INFERENCE, STEP}
    assert len(found["bars"]) == 8
    assert not [bar for bar in found["bars"] if not bar["met"]]
