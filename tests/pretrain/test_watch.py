"""Ranks that join or wait for a rank that does not answer: they speak, take signals, and end with what can be saved."""

import json
import os
import signal
import threading
import time

from astroco_fast.pretrain import watch
from astroco_fast.pretrain.ranks import Ranks
from tests.pretrain.patches import command, stop_one_and_ask_the_other
from tests.pretrain.processes import on_ranks


def join_alone(signalled: bool) -> None:
    """Rank 1 never joins; rank 0 waits for it, and may get a SIGTERM meanwhile."""
    if os.environ["RANK"] == "1":
        return
    watch.BEAT, watch.SPEAK, watch.JOIN = 0.1, 0.5, 3.0
    if signalled:
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    Ranks.start("cpu")


def test_a_rank_that_does_not_join_is_named(tmp_path):
    first, _ = on_ranks(2, join_alone, False, tmp_path=tmp_path)
    assert first.code == 2
    waiting, gone = first.err.splitlines()
    assert "rank 0 of 2: waits for rank 1 to join" in waiting
    assert "rank 1 did not answer in 3 s" in gone


def test_a_signal_ends_a_rank_that_is_joining(tmp_path):
    assert on_ranks(2, join_alone, True, tmp_path=tmp_path)[0].code == -signal.SIGTERM


def test_a_stopped_rank_is_named_and_the_others_end(arguments, tmp_path):
    """The last whole step is saved, and the stopped rank is ended."""
    out, stopped = tmp_path / "run", 1
    argv = [*arguments, "--out", str(out), "--train.epochs", "1000"]
    start = time.monotonic()
    ended = on_ranks(2, command, argv, (stop_one_and_ask_the_other, (stopped,)), tmp_path=tmp_path)
    assert ended[1 - stopped].code == 75, ended
    assert ended[stopped].code == -signal.SIGKILL
    assert time.monotonic() - start < 60
    said = ended[1 - stopped].err
    assert f"rank {1 - stopped} of 2: waits for rank {stopped}, which has not answered for" in said
    assert f"asked to stop while rank {stopped} does not answer" in said
    assert "everything saved" in said
    assert json.loads((out / "checkpoints" / "last" / "state.json").read_text())["state"]["step"] == 2
    (again,) = on_ranks(None, command, [*argv, "--train.max_steps", "3"], tmp_path=tmp_path)
    assert again.code == 0, again.err
    assert "step 2, epoch 1" in again.out
