"""Every backend's sublayers against the reference, forward and backward, in awkward shapes."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from zlib import crc32

import pytest
import torch
from torch import Tensor

import astroco_fast as af
from astroco_fast import Layout, ops
from astroco_fast.comparison import GivenDropout
from astroco_fast.reference.sublayers import Attention, Convolution, FeedForward
from tests.kernels import harness
from tests.kernels.harness import Case

SUBLAYERS = {
    "attention": (ops.attention, lambda width, p: Attention(width, 4, p)),
    "convolution": (ops.convolution, lambda width, p: Convolution(width, 32, p)),
    "feed_forward": (ops.feed_forward, lambda width, p: FeedForward(width, 4, p)),
}
P = 0.3
SALT = 5


def drawn(
    op: str, case: Case, fused: str, device: torch.device, number: int, noise: float = 0.1
) -> tuple[harness.Draw, Tensor]:
    """The results of one draw, and the rows that are real points, (N,) bool; `noise` is added to parameters."""
    case = harness.fitting(case, fused)
    torch.manual_seed(crc32(repr(case).encode()) + number)
    call, make = SUBLAYERS[op]
    module = make(case.width, P).to(device).train(case.mode == "training")
    with torch.no_grad():  # random parameters, where initialisation has ones and zeros
        for parameter in module.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
        for key, buffer in module.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            elif key.endswith("running_mean"):
                buffer.normal_()
    module.dropout.salt = SALT
    layout = harness.layout_of(case, device)
    real = harness.real_rows(layout)[:, None]
    plain_module = copy.deepcopy(module)
    if case.mode == "training":
        plain_module.dropout = GivenDropout(ops.BACKENDS[fused].dropout_mask(layout, SALT, P, case.width))

    x = torch.randn(layout.rows, case.width, device=device)
    up = harness.upstream(case, layout.rows, device)
    gradients = case.mode != "inference"
    poisoned = x.masked_fill(~real, float("nan"))
    poisoned = harness.sliced(poisoned) if case.strides == "sliced" else poisoned
    poisoned_up = up if case.strides == "expanded" else up.masked_fill(~real, float("nan"))
    results = harness.variants(
        lambda module, x: call(module, x, layout),
        module,
        [x.masked_fill(~real, 0).requires_grad_(gradients)],
        [up * real] if gradients else None,
        case.dtype,
        fused,
        fused_inputs=[poisoned.requires_grad_(gradients)],
        fused_upstream=[poisoned_up] if gradients else None,
        plain_module=plain_module,
    )
    return results, harness.real_rows(layout)


def test_the_interpreter_s_cases_leave_out_no_value_and_no_pair_of_modes() -> None:
    """Lengths and widths, the first two axes, need not meet one another or the other axes' values."""

    def covered(cases: Iterable[Case]) -> set:
        met = set().union(*map(harness.pairs, cases))
        values = {(axis, value) for case in cases for axis, value in enumerate(case)}
        return values | {pair for pair in met if pair[0] > 1}

    assert covered(harness.INTERPRETED) == covered(harness.every_case())


def check(op: str, case: Case, fused: str, device: torch.device) -> None:
    harness.check(lambda number: drawn(op, case, fused, device, number))


@pytest.mark.parametrize(("fused", "case"), harness.cases(), indirect=["fused"])
@pytest.mark.parametrize("op", SUBLAYERS)
def test_sublayer(op: str, case: Case, fused: str, device: torch.device) -> None:
    check(op, case, fused, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", SUBLAYERS)
def test_parameters_as_initialised(op: str, dtype: torch.dtype, triton: str, device: torch.device) -> None:
    """A sublayer's product is then small beside its residual, and so is what plain PyTorch loses by rounding it."""
    case = Case(33, 64, "packed", dtype, "training", "contiguous")
    harness.check(lambda number: drawn(op, case, triton, device, number, noise=0.0))


@pytest.mark.slow
@pytest.mark.parametrize("shape", harness.SHAPES, ids=str)
@pytest.mark.parametrize("op", SUBLAYERS)
def test_sublayer_everywhere(op: str, shape: tuple[int, int], fused: str, device: torch.device) -> None:
    harness.check_shape(shape, lambda case: check(op, case, fused, device))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("op", SUBLAYERS)
def test_rows_whose_squares_overflow_are_not_finite(op: str, training: bool, fused: str, device: torch.device) -> None:
    call, make = SUBLAYERS[op]
    module, layout = (
        make(64, 0.0).to(device).train(training),
        Layout.packed(torch.tensor([3, 2]), 3, device, capacity=7),
    )
    x = torch.randn(7, 64, device=device)
    x[:3] *= 1e25  # the first window
    with af.backend(fused), torch.set_grad_enabled(training):
        y = call(module, x, layout)
    assert y[:3].isnan().all()
    assert y[3:5].isfinite().all() or (op == "convolution" and training)  # BatchNorm joins the windows
    assert y[5:].eq(0).all()


@pytest.mark.parametrize("width", [64, pytest.param(276, marks=pytest.mark.slow)])
def test_blocks_that_sweep_over_several_tiles(
    width: int, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backward's blocks take several row tiles each where there are more tiles than the GPU has room for blocks."""
    from astroco_fast.kernels.triton import launch

    one = replace(launch.architecture(device), multiprocessors=1)
    monkeypatch.setattr(launch, "_architecture", one)
    check("convolution", Case(33, width, "packed", torch.bfloat16, "training", "contiguous"), triton, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tilings of its own")
@pytest.mark.parametrize("width", [64, pytest.param(276, marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", ["attention", "convolution", "feed_forward"])
def test_tilings_of_sm_90(
    op: str, width: int, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter has those of sm_80 otherwise; on sm_90 blocks hold whole rows in more kernels."""
    from astroco_fast.kernels.triton import gated_onto, gated_rows, launch, residual_norm_product

    monkeypatch.setattr(launch, "_architecture", launch.ARCHITECTURES["sm_90"])
    weight = torch.empty(0, dtype=torch.bfloat16)
    assert gated_rows.config(weight, width, op == "feed_forward", None)
    assert gated_onto.fits(weight, width) == (width == 64)
    assert residual_norm_product.fits(weight.new_empty(width, width), width) == (width == 64)
    check(op, Case(33, width, "packed", torch.bfloat16, "training", "contiguous"), triton, device)
    check(op, Case(32, width, "packed", torch.float16, "evaluation", "expanded"), triton, device)
    check(op, Case(5, width, "padded", torch.float16, "inference", "sliced"), triton, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tilings of its own")
@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("op", SUBLAYERS)
def test_tilings_of_sm_90_at_width_256(
    op: str, multiprocessors: int, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In inference; on one multiprocessor 67 rows are more than a wave of blocks of 64, and have other tiles."""
    from astroco_fast.kernels.triton import launch

    on = replace(launch.ARCHITECTURES["sm_90"], multiprocessors=multiprocessors)
    monkeypatch.setattr(launch, "_architecture", on)
    check(op, Case(67, 256, "packed", torch.bfloat16, "inference", "contiguous"), triton, device)
