"""BatchNorm's kernels against `reference.batchnorm`, with the statistics of one rank or of two."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from astroco_fast import Layout, ops, selfcheck
from astroco_fast.comparison import zero_filler
from astroco_fast.kernels import triton as triton_backend
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d
from astroco_fast.reference.sublayers import Convolution
from tests.kernels import harness
from tests.kernels.test_depthwise import bands_of
from tests.pretrain.processes import on_ranks

pytest.importorskip("triton")

WIDTH, PITCH, TILE = 44, 64, 16


def module(device: torch.device) -> MaskedBatchNorm1d:
    made = MaskedBatchNorm1d(WIDTH).to(device)
    with torch.no_grad():
        for parameter in (made.weight, made.bias, made.running_mean):
            parameter.normal_()
        made.running_var.uniform_(0.5, 2)
    return made


def rows(count: int, real: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, P) with NaN at rows that are not real, and the (N,) bool mask of the real ones, scattered."""
    valid = torch.zeros(count, dtype=torch.bool, device=device)
    valid[torch.randperm(count, device=device)[:real]] = True
    c = torch.zeros(count, PITCH, device=device)
    c[:, :WIDTH] = torch.randn(count, WIDTH, device=device) * 2 + 3
    return c.masked_fill(~valid[:, None], float("nan")), valid


def tiles(c: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The convolution's statistics: real rows (tiles,), and (tiles, 3, P) mean, its rest and squared deviations."""
    counts, parts = [], []
    for part, here in zip(c.split(TILE), valid.split(TILE), strict=True):
        real = part[here].double()
        mean = real.sum(0) / max(1, real.shape[0])
        counts.append(float(real.shape[0]))
        parts.append(torch.stack([mean, mean - mean.float(), (real - mean).square().sum(0)]))
    return torch.tensor(counts, device=c.device), torch.stack(parts).float()


def merged(norm: MaskedBatchNorm1d, c: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Run the merge, which updates `norm`'s running statistics."""
    from astroco_fast.kernels.triton.batch_norm import batch_norm_merge

    return batch_norm_merge(
        *tiles(c, valid), norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum, norm.eps
    )


@pytest.mark.parametrize(("count", "real"), [(40, 0), (40, 1), (1, 1), (33, 33), (100, 61)])
def test_forward_and_running_statistics(count: int, real: int, triton: str, device: torch.device) -> None:
    from astroco_fast.kernels.triton.batch_norm import batch_norm_silu

    torch.manual_seed(count + real)
    norm = module(device)
    plain = copy.deepcopy(norm).double()
    for _ in range(2):
        c, valid = rows(count, real, device)
        expected = F.silu(plain(c[:, :WIDTH].double(), valid)) * valid[:, None]
        total, statistics = merged(norm, c, valid)
        assert total.item() == real
        s = batch_norm_silu(c, statistics, norm.weight, norm.bias, valid.int())
        torch.testing.assert_close(s[:, :WIDTH].double(), expected, rtol=1e-5, atol=1e-5)
        assert (s[:, WIDTH:] == 0).all()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[key].to(value.dtype), value, rtol=1e-5, atol=1e-6)


def test_many_tiles_are_merged_in_rounds(triton: str, device: torch.device) -> None:
    from astroco_fast.kernels.triton import batch_norm

    c, valid = rows(1200 * TILE, 900 * TILE, device)
    norm = module(device)
    assert c.shape[0] // TILE > 2 * batch_norm._merge_config().blocks["BLOCK_T"]
    total, statistics = merged(norm, c, valid)
    real = c[valid].double()
    assert total.item() == real.shape[0]
    torch.testing.assert_close(statistics[0].double(), real.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics[2].double(), real.var(0, correction=0) * real.shape[0], rtol=1e-5, atol=1e-6)


def test_a_large_mean_costs_no_digits_of_the_variance(triton: str, device: torch.device) -> None:
    from astroco_fast.kernels.triton.depthwise import depthwise_statistics
    from astroco_fast.kernels.triton.segments import segments

    torch.manual_seed(0)
    layout = Layout.padded(torch.tensor([300, 120], device=device), 300)
    spans = segments(layout)
    u = 1000 + 0.1 * torch.randn(layout.rows, PITCH, device=device)
    bands = bands_of(torch.ones(PITCH, 1, device=device), torch.float32)  # the convolution is the identity
    c, count, partial = depthwise_statistics(u, bands[0], spans.tiles, spans.first, spans.end, 1)
    from astroco_fast.kernels.triton.batch_norm import batch_norm_merge

    _, statistics = batch_norm_merge(count, partial, None, None, None, 0.1, 0.0)
    real = c[layout.valid].double()
    torch.testing.assert_close(statistics[0].double(), real.mean(0), rtol=2e-7, atol=0)
    torch.testing.assert_close(statistics[3].double(), real.std(0, correction=0).reciprocal(), rtol=2e-6, atol=0)


def test_running_statistics_have_a_new_version(triton: str, device: torch.device) -> None:
    norm = module(device)
    before = norm.running_var._version
    merged(norm, *rows(20, 20, device))
    assert norm.running_var._version > before


@pytest.mark.parametrize("real", [1, 45, 70])
@pytest.mark.parametrize("fixed", [False, True])
def test_backward(real: int, fixed: bool, triton: str, device: torch.device) -> None:
    from astroco_fast.kernels.triton.batch_norm import batch_norm_silu_gradient, batch_norm_silu_sums

    torch.manual_seed(real)
    norm = module(device)
    plain = copy.deepcopy(norm).double().train(not fixed)
    c, valid = rows(70, real, device)
    ds = rows(70, 70, device)[0].masked_fill(~valid[:, None], float("nan"))
    source = c[:, :WIDTH].double().nan_to_num(0).requires_grad_()
    s_exact = F.silu(plain(source, valid)) * valid[:, None]
    s_exact.backward(ds[:, :WIDTH].double().nan_to_num(0))
    total, statistics = merged(norm, c, valid)
    if fixed:
        statistics = torch.zeros_like(statistics)
        statistics[0, :WIDTH] = plain.running_mean
        statistics[3, :WIDTH] = (plain.running_var + plain.eps).rsqrt()
    args = (ds, c, statistics, norm.weight, norm.bias, valid.int())
    s, partial = batch_norm_silu_sums(*args)
    sums = partial.sum(0)
    dc = batch_norm_silu_gradient(*args, total, sums, fixed)
    torch.testing.assert_close(s[:, :WIDTH].double(), s_exact.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dc[:, :WIDTH].double(), source.grad, rtol=1e-4, atol=3e-4 if real == 1 else 1e-5)
    torch.testing.assert_close(sums[0].double(), plain.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums[1].double(), plain.bias.grad, rtol=1e-4, atol=1e-4)
    assert (s[:, WIDTH:] == 0).all()
    assert (dc[:, WIDTH:] == 0).all()
    assert (dc[~valid] == 0).all()


def one_rank(lengths: list[list[int]], backend: str, folder: Path) -> None:
    """Run the convolution sublayer on this rank's windows with synchronised statistics; save all results to a file."""
    dist.init_process_group("gloo")
    triton_backend.interpreting, selfcheck.enabled = True, False
    torch.manual_seed(3)
    module = Convolution(64, 5, 0.0)
    torch.manual_seed(dist.get_rank())
    layout = Layout.padded(torch.tensor(lengths[dist.get_rank()]), 6)
    real = harness.real_rows(layout)[:, None]
    x = (1 + dist.get_rank()) * torch.randn(layout.rows, 64) + dist.get_rank()

    def call(module: nn.Module, x: Tensor) -> Tensor:
        module.batch_norm.group = dist.group.WORLD  # set here, because a group cannot be copied with its module
        return ops.convolution(module, x, layout) * real

    found = harness.variants(call, module, [(x * real).requires_grad_()], [torch.randn_like(x)], torch.float32, backend)
    exact, plain, got = found
    real = harness.real_rows(layout)
    torch.save((zero_filler(exact, real), zero_filler(plain, real), got), folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="on the CPU, interpreted")
@pytest.mark.parametrize("lengths", [[[6, 2], [3]], [[5], [0]]], ids=["unequal", "one rank empty"])
def test_statistics_of_two_ranks(lengths: list[list[int]], tmp_path: Path) -> None:
    ended = on_ranks(2, one_rank, lengths, "triton", tmp_path, tmp_path=tmp_path)
    assert [rank.code for rank in ended] == [0, 0], ended
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for draw in found:
        harness.assert_close(draw)
    for key in ("batch_norm.running_mean", "batch_norm.running_var"):
        assert torch.equal(found[0][2][key], found[1][2][key])
