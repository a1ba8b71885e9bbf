"""The gated projections and the fused feed-forward in cases outside the sublayers' tests: widths, GLU, pads."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from astroco_fast import Layout

ROWS, REAL = 45, 41


def pitched(weight: Tensor) -> Tensor:
    """The weight, padded with zeros to multiples of 32 on both axes."""
    rows, columns = (-size % 32 for size in weight.shape)
    return F.pad(weight, (0, columns, 0, rows))


def problem(width: int, out: int, device: torch.device, rows: int = ROWS) -> tuple[Tensor, ...]:
    """x (NaN at rows that are not real, the last ones), `end`, and two projections."""
    torch.manual_seed(width)
    x = torch.randn(rows, width, device=device) + 3
    real = rows - ROWS + REAL
    x[real:] = torch.nan
    end = torch.tensor([real] * real + [0] * (rows - real), dtype=torch.int32, device=device)
    weights = [torch.randn(out, width, device=device) / width**0.5 for _ in range(2)]
    biases = [torch.randn(out, device=device) for _ in range(2)]
    return x, end, *weights, *biases


def assert_rows(got: Tensor, exact: Tensor, tolerance: float = 1e-5) -> None:
    """Assert that real rows and channels are right, and all others zero."""
    rows, columns = exact.shape
    torch.testing.assert_close(got[:rows, :columns].double(), exact, atol=tolerance, rtol=tolerance)
    assert not got[rows:].any()
    assert not got[:, columns:].any()


@pytest.mark.parametrize(("width", "out"), [(100, 100), (64, 160), (512, 96)])
@pytest.mark.parametrize("activation", ["glu", "gelu"])
@pytest.mark.parametrize("keep", [False, True])
def test_gated_linear(width: int, out: int, activation: str, keep: bool, triton: str, device: torch.device) -> None:
    check_gated_linear(width, out, activation, keep, device)


@pytest.mark.parametrize(("width", "out"), [(100, 100), (64, 160), (160, 96)])
@pytest.mark.parametrize("activation", ["glu", "gelu"])
def test_gated_linear_of_blocks_that_hold_rows(
    width: int, out: int, activation: str, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, to tell errors from rounding; in half precision `test_tilings_of_sm_90` runs them."""
    from astroco_fast.kernels.triton import gated_rows
    from astroco_fast.kernels.triton.launch import Config
    from astroco_fast.kernels.triton.tensors import split

    main, tail = split(width)
    small = Config({"BLOCK_R": 32, "BLOCK_F": 64, "SPLIT": 2, "MAIN": main, "TAIL": tail}, warps=4, stages=1)
    monkeypatch.setattr(gated_rows, "config", lambda *_, **__: small)
    check_gated_linear(width, out, activation, False, device)


def check_gated_linear(width: int, out: int, activation: str, keep: bool, device: torch.device) -> None:
    """Forward and backward against PyTorch in float64."""
    from astroco_fast.kernels.triton.gated_linear import gated_linear, gated_linear_backward

    x, end, w_val, w_gate, b_val, b_gate = problem(width, out, device)
    norm = [torch.rand(width, device=device), torch.randn(width, device=device)] if activation == "glu" else [None] * 2
    upstream = torch.randn(ROWS, out, device=device)
    upstream[REAL:] = 0

    a = x[:REAL].double()
    if norm[0] is not None:
        a = F.layer_norm(a, (width,), norm[0].double(), norm[1].double())
    v = F.linear(a, w_val.double(), b_val.double()).requires_grad_()
    g = F.linear(a, w_gate.double(), b_gate.double()).requires_grad_()
    u = (v if activation == "glu" else F.gelu(v)) * g.sigmoid()
    u.backward(upstream[:REAL].double())
    assert v.grad is not None
    assert g.grad is not None

    weights = [pitched(w_val), pitched(w_gate), b_val, b_gate]
    got, mean, rstd, vg = gated_linear(x, *norm, 1e-5, *weights, end, activation, keep)
    assert_rows(got, u.detach())
    if keep:
        for half, exact in zip(vg.chunk(2, dim=1), (v, g), strict=True):
            assert_rows(half, exact.detach())
    else:
        assert not vg.numel()
    padded = F.pad(upstream, (0, -upstream.shape[1] % 32))
    d, again, copy, partial = gated_linear_backward(
        x,
        *norm,
        mean,
        rstd,
        *weights,
        end,
        padded,
        activation,
        vg if keep else None,
    )
    d_val, d_gate = d.chunk(2, dim=1)
    assert_rows(d_val, v.grad)
    assert_rows(d_gate, g.grad)
    assert_rows(copy, a)
    sums = torch.stack([v.grad.sum(0), g.grad.sum(0)])
    torch.testing.assert_close(partial.sum(0)[:, :out].double(), sums, atol=1e-4, rtol=1e-5)
    assert torch.equal(again, got) if activation == "gelu" else again.numel() == 0


@pytest.mark.parametrize(("width", "out", "rows"), [(64, 160, 45), (100, 96, 130), (256, 64, 45), (64, 32, 0)])
@pytest.mark.parametrize("activation", ["glu", "gelu"])
def test_gated_linear_onto(
    width: int, out: int, rows: int, activation: str, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dx and all that the parameters' gradients are made of, in float32, against PyTorch in float64."""
    from astroco_fast.kernels.triton.gated_onto import gated_linear_onto

    x, end, w_val, w_gate, b_val, b_gate = (t.to(device) for t in problem(width, out, device))
    x, end = x.repeat(3, 1)[:rows], end.repeat(3)[:rows]  # rows that are not real stand between others
    real = end > 0
    base, upstream = torch.randn(rows, width, device=device), torch.randn(rows, pitched(w_val).shape[0], device=device)
    upstream[:, out:] = 0
    base[~real] = upstream[~real] = torch.nan
    norm = [torch.rand(width, device=device), torch.randn(width, device=device)] if activation == "glu" else []

    exact = [t.double().requires_grad_() for t in (x[real], w_val, w_gate, b_val, b_gate, *norm)]
    points, a = exact[0], exact[0]
    mean = rstd = x.new_empty(0)
    if norm:
        a = F.layer_norm(points, (width,), *exact[5:])
        mean, rstd = x.mean(1), (((x - x.mean(1, keepdim=True)) ** 2).mean(1) + 1e-5).rsqrt()
    v, g = F.linear(a, exact[1], exact[3]), F.linear(a, exact[2], exact[4])
    u = (v if norm else F.gelu(v)) * g.sigmoid()
    d_v, d_g, d_x, *d_other = torch.autograd.grad(u, [v, g, *exact], upstream[real, :out].double())

    both = torch.cat([pitched(w_val), pitched(w_gate)])
    given = (x, *(norm or [None, None]), mean, rstd, both, b_val, b_gate, end, upstream, base, activation)
    d, got_u, got_a, dx, of_biases, of_norm = gated_linear_onto(*given)

    def check(got: Tensor, exact: Tensor) -> None:
        assert not got[~real].any()
        assert not got[:, exact.shape[1] :].any()
        torch.testing.assert_close(got[real, : exact.shape[1]].double(), exact, atol=2e-5, rtol=1e-5)

    for got, right in zip(d.chunk(2, dim=1), (d_v, d_g), strict=True):
        check(got, right)
    check(got_a, a.detach())
    check(dx, d_x + base[real].double())
    sums = of_biases.sum(0)[:, :out].double()
    torch.testing.assert_close(sums, torch.stack(d_other[2:4]), atol=1e-4, rtol=1e-5)
    if norm:
        torch.testing.assert_close(of_norm.sum(0).double(), torch.stack(d_other[4:]), atol=1e-4, rtol=1e-5)
        assert not got_u.numel()
    else:
        check(got_u, u.detach())
        assert not of_norm.numel()
    again = gated_linear_onto(*given)
    assert all(
        torch.equal(one, other) for one, other in zip(again, (d, got_u, got_a, dx, of_biases, of_norm), strict=True)
    )
    monkeypatch.undo()  # because opcheck would take poisoned outputs for mutated ones
    monkeypatch.setattr("astroco_fast.kernels.triton.interpreting", True)
    torch.library.opcheck(gated_linear_onto, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("width", [64, 100, 160, 276])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_feed_forward_fused(width: int, dtype: torch.dtype, triton: str, device: torch.device) -> None:
    check_feed_forward_fused(width, dtype, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tilings of its own")
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize(("arch", "width"), [("sm_90", 64), ("sm_90", 256), ("sm_90", 276), ("sm_100", 276)])
def test_feed_forward_fused_as_tiled_for_other_architectures(
    arch: str, width: int, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter has the tiles of sm_80 otherwise."""
    from astroco_fast.kernels.triton import launch

    monkeypatch.setattr(launch, "_architecture", launch.ARCHITECTURES[arch])
    check_feed_forward_fused(width, torch.bfloat16, device)
    monkeypatch.setattr(launch, "_architecture", replace(launch.ARCHITECTURES[arch], multiprocessors=1))
    check_feed_forward_fused(width, torch.bfloat16, device, rows=130)  # a whole wave first


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tilings of its own")
def test_rows_beyond_whole_waves_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would leave the last wave half empty has smaller blocks, up to as many as there are multiprocessors."""
    assert launches(monkeypatch, 132, 51200) == [(50688, 128, 1), (512, 64, 8)]
    assert launches(monkeypatch, 132, 132 * 128) == [(132 * 128, 128, 1)]
    assert launches(monkeypatch, 132, 132 * 128 + 1) == [(132 * 128, 128, 1), (1, 64, 8)]
    assert launches(monkeypatch, 132, 66 * 128 + 1) == [(66 * 128 + 1, 128, 1)]
    assert launches(monkeypatch, 132, 6400) == [(6400, 64, 1)]
    assert launches(monkeypatch, 132, 40 * 64) == [(2560, 64, 3)]
    assert launches(monkeypatch, 132, 200) == [(200, 64, 8)]
    assert launches(monkeypatch, 132, 0) == []
    assert launches(monkeypatch, 0, 200) == [(200, 128, 1)]  # a GPU of unknown size
    assert launches(monkeypatch, 148, 51200, "sm_100") == [(47360, 64, 1), (3840, 64, 2)]
    assert launches(monkeypatch, 148, 148 * 64 + 6400, "sm_100") == [(148 * 64 + 6400, 64, 1)]
    assert launches(monkeypatch, 148, 148 * 64 + 200, "sm_100") == [(148 * 64, 64, 1), (200, 64, 8)]
    assert launches(monkeypatch, 108, 512, "sm_80", 64) == [(512, 64, 1)]


def launches(
    monkeypatch: pytest.MonkeyPatch, multiprocessors: int, rows: int, arch: str = "sm_90", width: int = 256,
    hidden: int | None = None, dtype: torch.dtype = torch.bfloat16,
) -> list[tuple[int, int, int]]:  # fmt: skip
    """Of each launch the rows, those of a block, and the shares of the hidden units, on a GPU that then stands in."""
    from astroco_fast.kernels.triton import launch
    from astroco_fast.kernels.triton.feed_forward_fused import tilings

    units = hidden or 4 * width
    w_up, w_out = pitched(torch.empty(2 * units, width)).to(dtype), pitched(torch.empty(width, units)).to(dtype)
    on = replace(launch.ARCHITECTURES[arch], multiprocessors=multiprocessors)
    monkeypatch.setattr(launch, "_architecture", on)
    found = tilings(rows, w_up, w_out, width)
    assert [0, *(some.stop for some in found)] == [*(some.start for some in found), rows]
    return [(some.stop - some.start, some.config.blocks["BLOCK_R"], some.shares) for some in found]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tilings of its own")
@pytest.mark.parametrize(
    ("width", "rest", "shares"),
    [
        (64, 1, 4), (64, 63, 4), (64, 64, 4), (64, 65, 4), (64, 257, 3), (64, 511, 2), (64, 512, 2), (64, 513, 1),
        (256, 65, 4), (276, 63, 4),
    ],
)  # fmt: skip
def test_shares_of_the_hidden_units(
    width: int, rest: int, shares: int, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows after whole waves. Three shares of 4 steps leave one empty, four of 18 one short."""
    from astroco_fast.kernels.triton import feed_forward_shares

    monkeypatch.setattr(feed_forward_shares, "_LEAST", width * width // 2)
    rows = 17 * 128 + rest if width == 64 else rest
    assert launches(monkeypatch, 17, rows, width=width, hidden=2 * width)[-1] == (rest, 64, shares)
    y = check_feed_forward_fused(width, torch.bfloat16, device, rows)
    assert launches(monkeypatch, 0, rows, width=width, hidden=2 * width)[-1][2] == 1
    # The parts of the product are float32: half precision would lose 1e-3.
    torch.testing.assert_close(check_feed_forward_fused(width, torch.bfloat16, device, rows), y, atol=1e-4, rtol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tilings of its own")
def test_shares_are_exact_in_float32(triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three row tiles on ten multiprocessors have three shares, the last of which has 4 of 14 steps."""
    from astroco_fast.kernels.triton import feed_forward_shares

    monkeypatch.setattr(feed_forward_shares, "_LEAST", 5000)
    assert launches(monkeypatch, 10, ROWS, width=100, hidden=200, dtype=torch.float32)[0][2] == 3
    check_feed_forward_fused(100, torch.float32, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="in float32 a GPU has no room for these blocks")
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the gate of what stands for no units
@pytest.mark.parametrize(("width", "hidden"), [(256, 32), (256, 64), (256, 150), (276, 100)])
def test_products_two_steps_behind_the_projections(
    width: int, hidden: int, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, to tell errors from rounding, where half precision has such blocks on sm_90: of one step and more."""
    from astroco_fast.kernels.triton import feed_forward_fused
    from astroco_fast.kernels.triton.launch import Config

    blocks = {"BLOCK_R": 128, "BLOCK_F": 32, "MAIN": 256, "TAIL": 32 if width > 256 else 0}
    monkeypatch.setattr(feed_forward_fused, "_config", lambda *_: Config(blocks, 8, 2))
    check_feed_forward_fused(width, torch.float32, device, hidden=hidden)


def check_feed_forward_fused(
    width: int, dtype: torch.dtype, device: torch.device, rows: int = ROWS, hidden: int | None = None
) -> torch.Tensor:
    """The kernel's result, compared with PyTorch's in float64."""
    from astroco_fast.kernels.triton.feed_forward_fused import feed_forward_fused

    hidden = hidden or 2 * width
    x, end, w_val, w_gate, b_val, b_gate = problem(width, hidden, device, rows)
    w_out = torch.randn(width, hidden, device=device) / width**0.5
    b_out, gain, shift = (torch.randn(width, device=device) for _ in range(3))
    weights = [pitched(w).to(dtype) for w in (w_val, w_gate, w_out)]
    a = x[: rows - ROWS + REAL].double()
    h = F.gelu(F.linear(a, w_val.double(), b_val.double())) * F.linear(a, w_gate.double(), b_gate.double()).sigmoid()
    z = a + F.linear(h, w_out.double(), b_out.double())
    exact = F.layer_norm(z, (width,), gain.double(), shift.double())
    w_up = torch.cat(weights[:2])
    y = feed_forward_fused(x, w_up, b_val, b_gate, weights[2], b_out, gain, shift, end, 1e-5)
    assert_rows(y, exact, 1e-5 if dtype == torch.float32 else 5e-2)
    return y


@pytest.mark.parametrize(("width", "p"), [(64, 0.0), (100, 0.3), (256, 0.1)])
def test_feed_forward_training(
    width: int, p: float, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, against the kernels that it replaces, which other tests compare with float64."""
    from astroco_fast.kernels.triton import feed_forward_shares
    from astroco_fast.kernels.triton import feed_forward_training as one
    from astroco_fast.kernels.triton.feed_forward_shares import Rows
    from astroco_fast.kernels.triton.gated_linear import gated_linear
    from astroco_fast.kernels.triton.residual_norm import residual_norm

    x, end, w_val, w_gate, b_val, b_gate = problem(width, 96, device)
    w_out = pitched(torch.randn(width, 96, device=device) / 96**0.5)
    b_out, gain, shift = torch.randn(3, width, device=device)
    seed = torch.tensor([5], device=device) if p else None
    rest = (b_out, x, gain, shift, end, seed, 3, p, 1e-5)
    h, *_ = gated_linear(x, None, None, 0.0, pitched(w_val), pitched(w_gate), b_val, b_gate, end, "gelu")
    apart = residual_norm(h @ w_out.t(), *rest)
    up = torch.cat([pitched(w_val), pitched(w_gate)])
    given = (x, up, b_val, b_gate, w_out, b_out, gain, shift, end, seed, 3, p, 1e-5)
    # In three launches, of which two know their place among all rows, and one shares out the hidden units.
    config = one.tilings(ROWS, up, w_out, width)[0].config
    some = Rows(0, 16, config), Rows(16, 32, config), Rows(32, ROWS, config, 2)
    monkeypatch.setattr(feed_forward_shares, "_LEAST", w_out.numel() // 3)
    monkeypatch.setattr(one, "tilings", lambda *_: some)
    got = one.feed_forward_training(*given)
    assert_rows(got[0], apart[0][:REAL].double())
    for found, alone in zip(got[1:], apart[1:], strict=True):
        torch.testing.assert_close(found[:REAL], alone[:REAL], atol=1e-5, rtol=1e-5)
    monkeypatch.undo()  # because opcheck would take poisoned outputs for mutated ones
    monkeypatch.setattr("astroco_fast.kernels.triton.interpreting", True)
    torch.library.opcheck(one.feed_forward_training, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("width", "expansion"), [(100, 2), (512, 1)])
def test_both_inference_forms_are_one_function(
    width: int, expansion: int, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPU and width choose the form; this test chooses both."""
    from astroco_fast.kernels.triton import feed_forward as sublayer
    from astroco_fast.reference.sublayers import FeedForward

    torch.manual_seed(0)
    module = FeedForward(width, expansion, 0.1).to(device).eval()
    layout = Layout.packed(torch.tensor([17, 9]), 20, device, capacity=32)
    x = torch.randn(32, width, device=device)
    found = []
    for fits in (True, False):
        monkeypatch.setattr(sublayer, "fits", lambda w, width, fits=fits: fits)
        with torch.no_grad():
            found.append(sublayer.feed_forward(module, x, layout))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(found[0][:26], module(x, layout)[:26], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90"])
def test_shared_memory_of_the_fused_form(arch: str, tmp_path: Path) -> None:
    """The form that tests run in float32 fits a GPU, too; in a process of its own, since interpreted code has none."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.fused_shared", arch], cwd=Path(__file__).parents[2], text=True,
        env={**clean, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 2
    assert all(0 < needed <= limit for needed, limit in found), found


def test_gate_in_half_precision(triton: str, device: torch.device) -> None:
    """GELU(v) sigmoid(g) within 3e-5 of the exact one, also far out and at infinities; NaN where v or g is."""
    from tests.kernels.gate_kernel import gated

    torch.manual_seed(0)
    v, g = torch.linspace(-40, 40, 1024), torch.linspace(-30, 30, 1024)[torch.randperm(1024)]
    v[:6] = torch.tensor([0.0, 1e30, -1e30, torch.inf, 3.0, torch.nan])
    g[:6] = torch.tensor([1e30, 5.0, 5.0, 1.0, torch.nan, 1.0])
    exact = F.gelu(v.double()) * g.double().sigmoid()
    with np.errstate(over="ignore"):  # the interpreter's; a GPU's infinities are meant
        out = gated(v.to(device), g.to(device)).cpu().double()
    assert out[3] == torch.inf
    torch.testing.assert_close(out, exact, atol=3e-5, rtol=1e-5, equal_nan=True)
