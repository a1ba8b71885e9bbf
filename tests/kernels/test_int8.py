"""Products in int8 on the CPU, by each instruction set that has them, against sums of whole numbers in float64."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import Layout, ops, selfcheck
from astroco_fast.comparison import results
from astroco_fast.data.simulated_table import write_table
from astroco_fast.errors import UserError
from astroco_fast.kernels.cpu import Cpu, build, native
from astroco_fast.reference.int8 import int8_of, quantised
from astroco_fast.reference.sublayers import Attention, FeedForward
from tests.kernels import harness
from tests.kernels.conftest import choose_isa
from tests.kernels.harness import Case
from tests.kernels.test_sublayers import SUBLAYERS

F32, INT8, F64 = torch.float32, torch.int8, torch.float64
CPU = torch.device("cpu")


def inference(cases: Sequence[Case]) -> set[Case]:
    """The cases in int8, which has no gradients to expand."""
    return {
        case._replace(dtype=F32, mode="inference", strides="sliced" if case.strides == "sliced" else "contiguous")
        for case in cases
    }


FEW = inference(harness.INTERPRETED)  # every length, width and layout
CASES = [
    *sorted(FEW, key=str),
    *(pytest.param(case, marks=pytest.mark.slow) for case in sorted(inference(harness.pairwise()) - FEW, key=str)),
]


def made(op: str, width: int) -> nn.Module:
    """A sublayer with random parameters, where initialisation has ones and zeros."""
    module = SUBLAYERS[op][1](width, 0.0).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for key, buffer in module.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return module


def encoded(op: str, module: nn.Module, x: Tensor, lengths: list[int]) -> Tensor:
    """The op's rows in int8 for packed windows."""
    layout = Layout.packed(torch.tensor(lengths), max(lengths), capacity=len(x))
    with torch.no_grad(), af.backend("cpu"), af.int8():
        return SUBLAYERS[op][0](module, x, layout)


@pytest.mark.parametrize("case", CASES, ids=harness.name)
@pytest.mark.parametrize("op", SUBLAYERS)
def test_sublayers(isa: str, op: str, case: Case) -> None:
    def draw(number: int) -> tuple[harness.Draw, Tensor]:
        torch.manual_seed(crc32(repr(case).encode()) + number)
        module, layout = made(op, case.width), harness.layout_of(case, CPU)
        real = harness.real_rows(layout)
        x = torch.randn(layout.rows, case.width) * torch.rand(layout.rows, 1).mul(4).exp()
        clean, poisoned = (x.masked_fill(~real[:, None], value) for value in (0.0, float("nan")))
        poisoned = harness.sliced(poisoned) if case.strides == "sliced" else poisoned
        whole = int8_of(module)
        exact, plain = (results(lambda m, x: m(x, layout), whole, [clean], None, to) for to in (F64, INT8))
        with af.backend("cpu"):
            fused = results(lambda m, x: SUBLAYERS[op][0](m, x, layout), module, [poisoned], None, INT8)
        return (exact, plain, fused), real

    harness.check(draw)


def test_whole_numbers_are_rounded_by_row() -> None:
    x = torch.tensor([[254.0, -1.0, 0.9, 3.0], [0.0, 0.0, 0.0, 0.0], [1e-38, 0.0, 0.0, 0.0]])
    q, scale = quantised(x)
    assert q.tolist() == [[127, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]]  # ties go to even
    assert scale[0].item() == 2
    assert quantised(torch.tensor([[1.0, float("inf")]]))[1].isnan().all()


@pytest.mark.parametrize("op", ["convolution", "feed_forward"])  # attention's scores are products of bfloat16 numbers
def test_instruction_sets_agree_to_the_bit(op: str, cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in (name for name in build.isas() if name.endswith("bf16")):
        choose_isa(name, monkeypatch)
        torch.manual_seed(0)
        module = made(op, 100)
        found.append(encoded(op, module, torch.randn(70, 100), [47, 23]))
    if len(found) < 2:
        pytest.skip("a CPU with one such instruction set, or none")
    assert torch.equal(*found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("op", SUBLAYERS)
def test_what_is_not_finite_stays_visible_and_in_its_window(isa: str, op: str, value: float) -> None:
    torch.manual_seed(0)
    module, x = made(op, 64), torch.randn(80, 64)
    whole = encoded(op, module, x, [40, 33, 7])
    assert whole.isfinite().all()
    x[45, 3] = value
    found = encoded(op, module, x, [40, 33, 7])
    others = torch.ones(80, dtype=torch.bool)
    others[40:73] = False
    assert torch.equal(found[others], whole[others])
    assert found[45].isnan().all()
    if op == "feed_forward":
        others = torch.arange(80) != 45
        assert torch.equal(found[others], whole[others])


@pytest.mark.parametrize("size", [1e-35, 1e-20, 1e15])
def test_rows_of_any_size(isa: str, size: float) -> None:
    """Tiny rows vanish beside the biases, and large ones do not overflow, as in float32."""
    torch.manual_seed(0)
    module, x = made("feed_forward", 64), size * torch.randn(5, 64)
    exact = int8_of(module).double()(x.double(), Layout.packed(torch.tensor([5]), 5))
    found = encoded("feed_forward", module.float(), x, [5])
    torch.testing.assert_close(found.double(), exact, atol=0.03, rtol=0)


def test_weights_are_prepared_anew_when_they_change(isa: str) -> None:
    torch.manual_seed(0)
    module, x = made("feed_forward", 64), torch.randn(5, 64)
    before = encoded("feed_forward", module, x, [5])
    with torch.no_grad():
        module.w_out.weight[3, 7] = float("nan")  # type: ignore[union-attr, index]
    assert encoded("feed_forward", module, x, [5]).isnan().all()
    with torch.no_grad():
        module.w_out.weight[3, 7] = 0.0  # type: ignore[union-attr, index]
    after = encoded("feed_forward", module, x, [5])
    assert after.isfinite().all()
    assert not torch.equal(before, after)


def test_the_self_check_judges_int8(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = selfcheck.configuration("feed_forward", FeedForward(64, 4, 0.0), 64)
    assert configuration is not None
    monkeypatch.setenv("ASTROCO_CACHE", "")

    def verdict(backend: Cpu) -> str | None:
        return selfcheck.rerun(backend, "feed_forward", CPU, INT8, configuration)

    assert verdict(Cpu()) is None

    class Wrong(Cpu):
        def function(self, op: str) -> Callable[..., Any]:
            right = super().function(op)
            return lambda *arguments: 1.1 * right(*arguments)

    assert "is off by" in (verdict(Wrong()) or "")


# --- Refusals -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo.from_preset("tiny", width=16, heads=2, window=20).eval()


CURVES = [np.column_stack([np.arange(9.0), np.sin(np.arange(9.0)), np.full(9, 0.1)])]


def test_a_cpu_that_lacks_it_is_refused(isa: str, model: af.AstroCo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.isfinite(model.embed(CURVES, precision="int8")).all()
    monkeypatch.setattr(native, "_library", native.library()._replace(isa=build.ISAS["avx512"]))
    with pytest.raises(UserError, match=r"precision: .*int8 needs a CPU with AVX512-VNNI and AVX512-BF16; choose"):
        model.embed(CURVES, precision="int8")


def test_other_backends_are_refused(isa: str, model: af.AstroCo) -> None:
    with af.backend("reference"), pytest.raises(UserError, match="only the backend cpu computes in it"):
        model.embed(CURVES, precision="int8")


def test_training_and_gradients_are_refused(isa: str, model: af.AstroCo) -> None:
    time, mag, err = torch.from_numpy(CURVES[0].T.copy())[:, None]
    with af.int8():
        with pytest.raises(UserError, match=r"int8 is for inference: encode under torch\.no_grad"):
            model(time, mag, err)
        with pytest.raises(UserError, match=r"int8 is for inference: call model.eval\(\)"), torch.no_grad():
            model.train()(time, mag, err)
        for dropout in model.eval().modules():
            dropout.train(isinstance(dropout, nn.Dropout))
        with pytest.raises(UserError, match=r"int8 is for inference: call model.eval\(\)"), torch.no_grad():
            model(time, mag, err)


def test_modules_without_kernels_are_refused(isa: str) -> None:
    attention, x = Attention(64, 4, 0.0).eval(), torch.randn(5, 64)
    attention.out = nn.Sequential(attention.out).eval()  # type: ignore[assignment]
    with pytest.raises(UserError, match="attention cannot run in int8: no kernels for Attention with a Sequential in"):
        encoded("attention", attention, x, [5])


def test_only_inside_its_block(isa: str, model: af.AstroCo) -> None:
    def embedded(precision: str) -> np.ndarray:
        return model.embed(CURVES, precision=precision)

    whole, half = embedded("int8"), embedded("bf16")
    assert not np.array_equal(whole, half)
    for _ in range(3):  # the first calls are recorded, and later ones repeat them
        with af.int8():
            assert np.array_equal(embedded("auto"), whole)
            assert np.array_equal(embedded("bf16"), half)
        with torch.autocast("cpu", torch.bfloat16):
            assert np.array_equal(embedded("auto"), half)


# --- Quality ------------------------------------------------------------------------------------------------------


def cosines(model: nn.Module, source: Any) -> np.ndarray:
    """Of each light curve's mean states in int8 to those in float32."""
    parts = ["time_mean" if model.views == "time" else "folded_mean"]
    exact, found = (
        np.stack(model.embed(source, precision=precision, parts=parts)["embedding"]) for precision in ("fp32", "int8")
    )
    return (exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)


@pytest.mark.parametrize("name", ["fold-small", "time-small"])
def test_released_models_keep_their_vectors(cpu: str, name: str, tmp_path: Path) -> None:
    if ops.no_int8(CPU) is not None:
        pytest.skip("a CPU without int8 products")
    write_table(tmp_path / "survey.parquet", n_stars=20, seed=0)  # simulated
    found = cosines(af.load(name).eval(), tmp_path / "survey.parquet")
    assert found.mean() > 0.999
    assert found.min() > 0.995
