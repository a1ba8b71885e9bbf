"""DistributedDataParallel around fused ops: two ranks compute the gradients of one process that has all windows."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import astroco_fast as af
from astroco_fast.kernels import triton as triton_backend
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d
from tests.kernels.test_model import shortened
from tests.pretrain.processes import on_ranks
from tests.windows import make_windows

LENGTHS, SIZE = [20, 9, 13, 20], 20


def gradients(rank: int | None, backend: str) -> dict[str, Tensor]:
    """Gradients of a sum over this rank's half of the windows, averaged over ranks by DDP, or over all (rank None)."""
    model = shortened("tiny", layers=1, dropout=0.0).train()
    wrapped = model
    if rank is not None:
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        for module in model.modules():
            if isinstance(module, MaskedBatchNorm1d):
                module.group = dist.group.WORLD
    mine = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    w = make_windows(LENGTHS, SIZE)
    with af.backend(backend):
        out = wrapped(w.time[mine], w.mag[mine], w.err[mine], w.mask[mine], hidden=w.hidden[mine])
        (out.sequence.square().sum() + out.reconstruction.square().sum() + out.embedding.sum()).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return found | {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def on_one_rank(folder: Path, backend: str) -> None:
    from astroco_fast import selfcheck

    # The same as the fixture `fused` does in the test's process, where it is undone after the test.
    triton_backend.interpreting, selfcheck.enabled = backend == "triton", False
    dist.init_process_group("gloo")
    torch.save(gradients(dist.get_rank(), backend), folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks interpret; a GPU's tests do not")
def test_two_ranks_are_one(fused: str, tmp_path: Path) -> None:
    ended = on_ranks(2, on_one_rank, tmp_path, fused, tmp_path=tmp_path)
    assert [rank.code for rank in ended] == [0, 0], ended[0].err
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    whole = gradients(None, fused)
    for name, expected in whole.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        if "running" not in name:
            expected = expected / 2  # DDP averages the two ranks' sums
        scale = expected.abs().max().item() + 1e-6
        torch.testing.assert_close(ranks[0][name], expected, rtol=1e-4, atol=1e-4 * scale, msg=name)
