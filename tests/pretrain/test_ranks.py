"""Ranks that fail together when any of them fails."""

import os
import time
from datetime import timedelta

import pytest
from torch.distributed import distributed_c10d

from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.pretrain.ranks import Interrupted, Ranks
from tests.pretrain.processes import on_ranks


def fail_on(rank: int, kind: str, first: bool) -> tuple[str, str]:
    """The error that this rank raises when rank `rank` raises one of this kind."""
    ranks = Ranks.start("cpu")

    def body() -> int:
        if ranks.rank == rank:
            errors = {
                "user": UserError("your mistake"),
                "extra": MissingExtraError("package", "extra", "purpose"),
                "disk": OSError(28, "No space left on device", "file"),
                "interrupted": Interrupted(),
                "bug": KeyError("bug"),
            }
            raise errors[kind]
        return ranks.rank

    try:
        (ranks.on_rank_zero if first else ranks.on_all_ranks)(body)
    except Exception as error:
        caught = type(error).__name__, str(error)
    else:
        caught = "", ""
    ranks.close()
    return caught


@pytest.mark.parametrize(
    ("rank", "first", "kind", "text"),
    [
        (1, False, "user", "your mistake"),
        (0, True, "extra", "pip install 'astroco_fast[extra]'"),
        (1, False, "disk", "No space left on device"),
        (0, True, "interrupted", ""),
    ],
)
def test_error_of_one_rank_is_raised_on_all(rank, first, kind, text, tmp_path):
    for ended in on_ranks(2, fail_on, rank, kind, first, tmp_path=tmp_path):
        name, message = ended.value
        assert name == ("Interrupted" if kind == "interrupted" else "SharedError")
        assert text in message


def test_a_bug_keeps_its_traceback_and_the_others_do_not_wait(tmp_path):
    values = [ended.value for ended in on_ranks(3, fail_on, 1, "bug", False, tmp_path=tmp_path)]
    assert values[1] == ("KeyError", "'bug'")
    assert values[0] == values[2] == ("RuntimeError", "rank 1 failed: KeyError('bug')")


def wait_for_rank_0(is_long: bool) -> str:
    """Wait for rank 0, which takes longer than the ranks usually wait."""
    ranks = Ranks.start("cpu")
    ranks.any(False)
    distributed_c10d._set_pg_timeout(timedelta(seconds=0.5))
    try:
        return ranks.on_rank_zero(lambda: time.sleep(1.5) or "done", is_long=is_long)
    except Exception as error:
        return type(error).__name__


def test_only_long_work_is_waited_for_long(tmp_path):
    assert [ended.value for ended in on_ranks(2, wait_for_rank_0, True, tmp_path=tmp_path)] == ["done", "done"]
    assert on_ranks(2, wait_for_rank_0, False, tmp_path=tmp_path)[1].value == "RuntimeError"


def gather_and_first() -> tuple[list[int], str, bool, bool]:
    ranks = Ranks.start("cpu")
    found = ranks.gather(ranks.rank * 10), ranks.on_rank_zero(lambda: f"from {ranks.rank}")
    flags = ranks.any(ranks.rank == ranks.world - 1), ranks.any(False)
    ranks.close()
    return (*found, *flags)


@pytest.mark.parametrize("world", [None, pytest.param(1, marks=pytest.mark.slow), 2])
def test_collectives(world, tmp_path):
    for ended in on_ranks(world, gather_and_first, tmp_path=tmp_path):
        assert ended.value == ([0, 10][: world or 1], "from 0", True, False)


def test_single_process_has_no_process_group():
    import torch.distributed

    assert "RANK" not in os.environ
    ranks = Ranks.start("cpu")
    assert (ranks.rank, ranks.world, ranks.is_first) == (0, 1, True)
    assert not torch.distributed.is_initialized()
