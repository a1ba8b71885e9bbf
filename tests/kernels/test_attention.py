"""The attention core: PyTorch's fused kernels are called correctly, and the stand-in for them is right."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import astroco_fast as af
from astroco_fast import Layout, ops
from astroco_fast.reference.sublayers import Attention
from tests.kernels import harness
from tests.kernels.harness import Case
from tests.kernels.test_sublayers import check

pytest.importorskip("triton")

from astroco_fast.kernels.triton import fused_attention, tensors

HEADS, SIZE = 2, 8
SCALE = 5**-0.5  # of heads of 5, padded to 8

KERNELS = [("flash", torch.bfloat16), ("flash", torch.float16), ("efficient", torch.float32)]


class Seen(TorchDispatchMode):
    """The names of the ops that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def by_runs(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of (N, H, d) in float64, run by run, and the logarithms of softmax's sums, (H, N)."""
    out = [(q[:0] + k[:0] + v[:0]).double()]
    logsumexp = [q.new_empty(q.shape[1], 0, dtype=torch.float64)]
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        a, b, c = (x[start:end].double().transpose(0, 1) for x in (q, k, v))
        scores = a @ b.transpose(1, 2) * scale
        out.append((scores.softmax(-1) @ c).transpose(0, 1))
        logsumexp.append(scores.logsumexp(-1))
    return torch.cat(out), torch.cat(logsumexp, 1)


def gradients(upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float) -> list[Tensor]:
    """Gradients of q, k and v in float64, by softmax's derivative: the dispatcher runs this without autograd."""
    found = [torch.empty(q.shape, dtype=torch.float64) for _ in range(3)]
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        a, b, c, up = (x[start:end].double().transpose(0, 1) for x in (q, k, v, upstream))
        weights = (a @ b.transpose(1, 2) * scale).softmax(-1)
        slope = up @ c.transpose(1, 2)
        d_scores = weights * (slope - (weights * slope).sum(-1, keepdim=True)) * scale
        parts = d_scores @ b, d_scores.transpose(1, 2) @ a, weights.transpose(1, 2) @ up
        for whole, part in zip(found, parts, strict=True):
            whole[start:end] = part.transpose(0, 1)
    return found


class Imitation:
    """PyTorch's fused kernels imitated on the CPU, with their signatures; they check their arguments."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.handed_out: list[Tensor] = []

    def keep(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self.handed_out = list(tensors)
        return tensors

    def check(
        self, given: list[Tensor], q: Tensor, cumulated: list[Tensor], longest: list[int], dropout: float
    ) -> None:
        for mine, theirs in zip(self.handed_out, given, strict=True):
            assert torch.equal(mine, theirs)
        assert q.stride(-1) == 1
        assert q.shape[-1] % 8 == 0
        for offsets, bound in zip(cumulated, longest, strict=True):
            assert offsets.dtype == torch.int32
            assert 0 < offsets.shape[0] - 1 <= 65535
            assert 0 < bound <= q.shape[-3]
            assert offsets[0] == 0
            assert offsets[-1] == q.shape[-3]
            assert offsets.diff().min() >= 0
            assert offsets.diff().max() <= bound
        assert dropout == 0

    def flash(self, q, k, v, cum_q, cum_k, max_q, max_k, dropout, causal, debug, **options):  # type: ignore[no-untyped-def]
        self.calls.append("flash")
        self.handed_out = []
        self.check([], q, [cum_q, cum_k], [max_q, max_k], dropout)
        assert not causal
        assert not debug
        out, logsumexp = by_runs(q, k, v, cum_q, options["scale"])
        kept = self.keep(logsumexp.float(), torch.tensor([3, 5]), torch.tensor(7))
        return out.to(q.dtype), *kept, q.new_empty(0)

    def flash_backward(
        self, up, q, k, v, out, logsumexp, cum_q, cum_k, max_q, max_k, dropout, causal, state, unused, **options
    ):  # type: ignore[no-untyped-def]
        self.calls.append("flash backward")
        self.check([logsumexp, state, unused], q, [cum_q, cum_k], [max_q, max_k], dropout)
        assert not causal
        assert up.shape == out.shape == q.shape
        assert max_k <= 2 * (
            128 if q.shape[-1] <= 96 else 64
        )  # two blocks of keys at most: the order of their atomic sums does not matter
        return tuple(x.to(q.dtype) for x in gradients(up, q, k, v, cum_q, options["scale"]))

    def efficient(self, q, k, v, bias, cum_q, cum_k, max_q, max_k, dropout, mask_type, keep=False, **options):  # type: ignore[no-untyped-def]
        self.calls.append("efficient")
        self.handed_out = []
        self.check([], q, [cum_q, cum_k], [max_q, max_k], dropout)
        assert bias is None
        assert mask_type == 0
        assert q.shape[0] == 1
        out, _ = by_runs(q[0], k[0], v[0], cum_q, options["scale"])
        padded = torch.randn(cum_q.shape[0] - 1, q.shape[2], -(-max_q // 32) * 32 if keep else 0)
        return out.to(q.dtype)[None], *self.keep(padded, torch.tensor(3), torch.tensor(5)), max_q, max_k

    def efficient_backward(
        self, up, q, k, v, bias, out, cum_q, cum_k, max_q, max_k, logsumexp, dropout, seed, offset, mask_type,
        bias_gradient, **options,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        self.calls.append("efficient backward")
        self.check([logsumexp, seed, offset], q, [cum_q, cum_k], [max_q, max_k], dropout)
        assert bias is None
        assert mask_type == 0
        assert not bias_gradient
        assert options.get("num_splits_key") == (None if torch.version.hip else 1)
        assert up.shape == out.shape == q.shape
        found = gradients(up[0], q[0], k[0], v[0], cum_q, options["scale"])
        return *(x.to(q.dtype)[None] for x in found), q.new_empty(0)


@pytest.fixture
def imitation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Imitation]:
    """Send CPU tensors where a GPU's would go, to kernels that check their arguments."""
    imitation = Imitation()
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", imitation.flash, "CPU")
    library.impl("_flash_attention_backward", imitation.flash_backward, "CPU")
    library.impl("_efficient_attention_forward", imitation.efficient, "CPU")
    library.impl("_efficient_attention_backward", imitation.efficient_backward, "CPU")
    monkeypatch.setattr(fused_attention, "on_gpu", lambda x: True)
    yield imitation
    library._destroy()


def core(dtype: torch.dtype, offsets: list[int], longest: int = 33) -> tuple[Tensor, ...]:
    """The results of `attend` and `attend_backward`, and the right ones, computed run by run in float64."""
    rows = offsets[-1]
    torch.manual_seed(rows)
    qkv, upstream = torch.randn(rows, 3 * HEADS * SIZE).to(dtype), torch.randn(rows, HEADS * SIZE).to(dtype)
    runs = fused_attention.Runs(torch.tensor(offsets, dtype=torch.int32), longest)
    out, *kept = fused_attention.attend(qkv, runs, HEADS, SCALE)
    found = fused_attention.attend_backward(upstream, qkv, out, kept, runs, HEADS, SCALE)
    leaves = [x.double().requires_grad_() for x in qkv.view(rows, 3, HEADS, SIZE).unbind(1)]
    exact, _ = by_runs(*leaves, runs.offsets, SCALE)
    exact.backward(upstream.view(exact.shape))
    return out, *found, *(x.detach().flatten(1) for x in (exact, *(leaf.grad for leaf in leaves)))


RUNS = {"ragged": [0, 0, 33, 34, 34, 50, 61], "one": [0, 9], "none": [0, 0, 0], "no windows": [0]}


@pytest.mark.parametrize("offsets", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel")
@pytest.mark.parametrize("way", ["fused", "plain"])
def test_core(way: str, dtype: torch.dtype, offsets: list[int], request: pytest.FixtureRequest) -> None:
    if way == "fused":
        imitation = request.getfixturevalue("imitation")
    results = core(dtype, offsets)
    for name, got, exact in zip(("out", "dq", "dk", "dv"), results[:4], results[4:], strict=True):
        assert got.dtype == dtype
        assert got.shape == (offsets[-1], HEADS * SIZE)
        assert got.is_contiguous()
        allowed = 8 * torch.finfo(dtype).eps * max([1.0, *exact.abs().flatten().tolist()])
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=allowed, msg=name)
    if way == "fused":
        kind = "efficient" if dtype == torch.float32 else "flash"
        assert imitation.calls == ([kind, f"{kind} backward"] if offsets[-1] else [])


@pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel")
def test_long_runs_are_added_up_in_order(imitation: Imitation) -> None:
    core(torch.bfloat16, [0, 257], longest=300)
    assert imitation.calls == ["efficient", "efficient backward"]


@pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel")
def test_rocm_is_not_told_how_to_split_keys(imitation: Imitation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    core(torch.float32, [0, 9])
    assert imitation.calls == ["efficient", "efficient backward"]


def on_meta(runs: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """q, k and v of 20 rows in bfloat16, and offsets."""
    qkv = torch.empty(20, 3 * HEADS * size, dtype=torch.bfloat16, device="meta")
    return qkv, torch.empty(runs + 1, dtype=torch.int32, device="meta")


def test_more_runs_than_a_grid_has_room_for() -> None:
    qkv, offsets = on_meta(runs=65536)
    with pytest.raises(ValueError, match=r"attention.* 65536 .*smaller batches"):
        fused_attention.attend(qkv, fused_attention.Runs(offsets, 33), HEADS, SCALE)
    fused_attention.attend(qkv, fused_attention.Runs(offsets[:-1], 33), HEADS, SCALE)


@pytest.mark.parametrize(
    ("size", "longest", "kind"),
    [
        (72, 200, "flash"),
        (96, 256, "flash"),
        (96, 257, "efficient"),
        (104, 128, "flash"),
        (104, 200, "efficient"),
        (200, 33, "efficient"),
    ],
)
@pytest.mark.parametrize("rocm", [False, True])
def test_kernels_of_half_precision(
    size: int, longest: int, kind: str, rocm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4" if rocm else None)
    qkv, offsets = on_meta(runs=3, size=size)
    assert fused_attention.kernels_for(qkv, size, longest) == ("flash" if rocm else kind)
    with Seen() as seen:
        fused_attention.attend(qkv, fused_attention.Runs(offsets, longest), HEADS, SCALE, keep=False)
    # Without backward, the order of sums does not forbid FlashAttention.
    kind = "flash" if rocm or size <= 192 else "efficient"
    assert [name for name in seen.names if "_attention_" in name] == [f"aten._{kind}_attention_forward.default"]


@pytest.mark.parametrize(
    "case",
    [
        Case(33, 276, "packed", torch.bfloat16, "training", "contiguous"),
        Case(33, 276, "padded", torch.float32, "training", "contiguous"),
        Case(32, 64, "empty", torch.float16, "evaluation", "contiguous"),
        Case(32, 64, "packed", torch.float32, "inference", "contiguous"),
    ],
    ids=harness.name,
)
def test_op_by_fused_kernels(case: Case, triton: str, device: torch.device, imitation: Imitation) -> None:
    if device.type != "cpu":
        pytest.skip("imitates on the CPU what a GPU has")
    check("attention", case, triton, device)
    kind = "efficient" if case.dtype == torch.float32 else "flash"
    assert imitation.calls == ([kind] if case.mode == "inference" else [kind, f"{kind} backward"])


@pytest.mark.parametrize(("kind", "dtype"), KERNELS)
def test_attention_on_tensors_without_data(
    kind: str, dtype: torch.dtype, triton: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's kernels take tensors without data, forward and backward, with 69 channels in heads of 72."""
    monkeypatch.setattr(tensors, "modelled", True)
    half = dtype != torch.float32
    with FakeTensorMode(), Seen() as seen:
        module = Attention(276, 4, 0.1)
        layout = Layout.padded(torch.empty(3, dtype=torch.int64), 40)
        x = torch.zeros(layout.rows, 276, requires_grad=True)
        with af.backend(triton), torch.autocast("cpu", dtype=dtype) if half else contextlib.nullcontext():
            y = ops.attention(module, x, layout)
        y.backward(torch.empty_like(y))
    backward = {"flash": "aten._flash_attention_backward", "efficient": "astroco_fast.efficient_attention_backward"}
    names = [f"aten._{kind}_attention_forward.default", f"{backward[kind]}.default"]
    assert [name for name in seen.names if "_attention_" in name] == names
    for leaf in (x, *module.parameters()):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape


@pytest.mark.parametrize(("kind", "dtype"), KERNELS)
def test_core_on_meta(kind: str, dtype: torch.dtype) -> None:
    qkv = torch.empty(20, 3 * HEADS * SIZE, dtype=dtype, device="meta")
    runs = fused_attention.Runs(torch.empty(4, dtype=torch.int32, device="meta"), 33)
    assert fused_attention.kernels_for(qkv, SIZE, runs.longest) == kind
    out, *kept = fused_attention.attend(qkv, runs, HEADS, SCALE)
    found = fused_attention.attend_backward(torch.empty_like(out), qkv, out, kept, runs, HEADS, SCALE)
    assert [x.shape for x in (out, *found)] == 4 * [(20, HEADS * SIZE)]
