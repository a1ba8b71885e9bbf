"""A run that is stopped anywhere and resumed ends with the same bits as one that was never stopped."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from astroco_fast.pretrain.checkpoint import CheckpointFolder
from astroco_fast.pretrain.log import TIMING
from tests.pretrain.patches import command, kill_at, signal_at
from tests.pretrain.processes import on_ranks

SLOW = pytest.mark.slow
EMA = ["--train.ema_decay", "0.9"]


def outcome(out: Path) -> dict[str, Any]:
    """All results of a run except times."""
    found: dict[str, Any] = {}
    for link in ("last", "best"):
        folder = out / "checkpoints" / link
        files = sorted(folder.glob("*.safetensors"))
        found |= {f"{link}/{path.name}": path.read_bytes() for path in files}
        state = json.loads((folder / "state.json").read_text())["state"]
        found[f"{link}/state"] = {
            key: value for key, value in state.items() if key not in ("seconds", "metrics_bytes", "best_checkpoint")
        }
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{key: value for key, value in line.items() if key not in TIMING} for line in lines]
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """Outcomes of runs that were never stopped, by ranks and flags."""
    return {}


def run(world: int | None, argv: list[str], tmp_path: Path, accident: Any = None) -> list[int | None]:
    ended = on_ranks(world, command, argv, accident, tmp_path=tmp_path)
    if any(rank.code == 1 for rank in ended):
        raise AssertionError("\n".join(rank.err for rank in ended))
    return [rank.code for rank in ended]


def expected(unbroken: dict[Any, dict[str, Any]], world: int | None, argv: list[str], tmp_path: Path) -> dict[str, Any]:
    key = (world, tuple(argv))
    if key not in unbroken:
        assert run(world, [*argv, "--out", str(tmp_path / "unbroken")], tmp_path) == [0] * (world or 1)
        unbroken[key] = outcome(tmp_path / "unbroken")
    return unbroken[key]


@pytest.mark.parametrize(
    ("world", "flags", "accident"),
    [
        pytest.param(None, [], (signal_at, ("forward", 1)), marks=SLOW),
        (None, [], (signal_at, ("forward", 8, 0, signal.SIGINT))),  # in the middle of a step
        pytest.param(None, EMA, (signal_at, ("forward", 21, 0, signal.SIGUSR1)), marks=SLOW),
        pytest.param(None, EMA, (signal_at, ("evaluation", 2)), marks=SLOW),
        (2, EMA, (signal_at, ("forward", 4, 1))),  # only rank 1 gets the signal
        pytest.param(2, [], (signal_at, ("evaluation", 1, 1)), marks=SLOW),
        pytest.param(
            2,
            [*EMA, "--train.loss", "curve", "--train.sync_batchnorm", "true"],
            (signal_at, ("forward", 9, 0)),
            marks=SLOW,
        ),
        pytest.param(
            2, ["--train.windows", "random", "--train.precision", "fp32"], (signal_at, ("forward", 7, 0)), marks=SLOW
        ),
        (3, ["--train.epochs", "1"], (signal_at, ("forward", 4, 2))),  # the sum of 3 numbers depends on their order
    ],
)
def test_stopped_by_a_signal(world, flags, accident, arguments, unbroken, tmp_path):
    argv = [*arguments, *flags]
    stopped = [*argv, "--out", str(tmp_path / "stopped")]
    assert run(world, stopped, tmp_path, accident) == [75] * (world or 1)
    assert not (tmp_path / "stopped" / "summary.json").exists()
    assert run(world, stopped, tmp_path) == [0] * (world or 1)
    assert outcome(tmp_path / "stopped") == expected(unbroken, world, argv, tmp_path)


def test_signal_during_conversion(arguments, tmp_path):
    curves = "id,mjd,mag,err\n" + "".join(f"s{i // 20},{i},1{i % 7},0.1\n" for i in range(2000))
    (tmp_path / "survey.csv").write_text(curves)
    argv = [*arguments, "--data", str(tmp_path / "survey.csv"), "--out", str(tmp_path / "run")]
    stopped = on_ranks(2, command, argv, (signal_at, ("conversion", 1)), tmp_path=tmp_path)
    assert [rank.code for rank in stopped] == [75, 75]
    assert "before training began" in stopped[0].err
    assert run(2, [*argv, "--train.max_steps", "1"], tmp_path) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("world", [None, 2])
def test_stopped_at_every_forward_pass(world, arguments, unbroken, tmp_path):
    argv = [*arguments, *EMA, "--train.epochs", "5"]
    stopped = [*argv, "--out", str(tmp_path / "stopped")]
    stops = 0  # some starts are stopped before their first step is done, others after a few
    while codes := run(world, stopped, tmp_path, (signal_at, ("forward", 1 + stops % 6))):
        if codes == [0] * (world or 1):
            break
        assert codes == [75] * (world or 1)
        stops += 1
        assert stops < 60
    assert stops > 5
    assert outcome(tmp_path / "stopped") == expected(unbroken, world, argv, tmp_path)


@pytest.mark.parametrize("world", [None, pytest.param(2, marks=SLOW)])
def test_stopped_by_max_steps_and_taken_further(world, arguments, unbroken, tmp_path):
    out = ["--out", str(tmp_path / "limited")]
    for limit in ("2", "5"):
        assert run(world, [*arguments, *out, "--train.max_steps", limit], tmp_path) == [0] * (world or 1)
        assert json.loads((tmp_path / "limited" / "summary.json").read_text())["step"] == int(limit)
    assert run(world, [*arguments, *out], tmp_path) == [0] * (world or 1)
    assert outcome(tmp_path / "limited") == expected(unbroken, world, arguments, tmp_path)


@pytest.mark.parametrize(
    ("call", "count"),
    [
        ("fsync", 9),
        pytest.param("replace", 5, marks=SLOW),
        pytest.param("rename", 2, marks=SLOW),
        pytest.param("replace", 6, marks=SLOW),
    ],
)
def test_killed_while_it_saves(call, count, arguments, unbroken, tmp_path):
    argv = [*arguments, "--train.checkpoint_every", "1"]
    killed = [*argv, "--out", str(tmp_path / "killed")]
    assert run(None, killed, tmp_path, (kill_at, (call, count))) == [-signal.SIGKILL]
    assert run(None, killed, tmp_path) == [0]
    assert outcome(tmp_path / "killed") == expected(unbroken, None, argv, tmp_path)


def test_a_finished_run_is_left_alone(arguments, tmp_path):
    argv = [*arguments, "--train.max_steps", "2", "--out", str(tmp_path / "run")]
    assert run(None, argv, tmp_path) == [0]
    before = outcome(tmp_path / "run")
    (again,) = on_ranks(None, command, argv, tmp_path=tmp_path)
    assert again.code == 0
    assert "finished (2 steps)" in again.out
    assert outcome(tmp_path / "run") == before


def test_the_best_model_of_a_finished_run_stays_the_best(arguments, tmp_path):
    """A longer run would resume from the state before the last evaluation, but the same command again runs nothing."""
    argv = [*arguments, "--train.evaluate_every", "2", "--train.max_steps", "3", "--out", str(tmp_path / "run")]
    assert run(None, argv, tmp_path) == [0]
    best = tmp_path / "run" / "checkpoints" / "best"
    before = os.readlink(best)
    assert before.endswith("3")
    assert run(None, argv, tmp_path) == [0]
    assert os.readlink(best) == before


def test_a_damaged_checkpoint_is_passed_over(arguments, unbroken, tmp_path):
    out = tmp_path / "run"
    argv = [*arguments, "--out", str(out), "--train.checkpoint_every", "1"]
    assert run(None, argv, tmp_path, (signal_at, ("forward", 12))) == [75]
    last = out / "checkpoints" / "last" / "optimizer.safetensors"
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    (again,) = on_ranks(None, command, argv, tmp_path=tmp_path)
    assert again.code == 0
    assert "damaged" in again.err
    assert outcome(out) == expected(unbroken, None, [*arguments, "--train.checkpoint_every", "1"], tmp_path)


def test_without_a_whole_checkpoint_it_says_so(arguments, tmp_path):
    out = tmp_path / "run"
    argv = [*arguments, "--out", str(out), "--train.max_steps", "2"]
    assert run(None, argv, tmp_path) == [0]
    for name in CheckpointFolder(out / "checkpoints", 2).names():
        (out / "checkpoints" / name / "state.json").write_text("{")
    ended = on_ranks(2, command, argv, tmp_path=tmp_path)
    assert [rank.code for rank in ended] == [2, 2]
    assert "none of" in ended[0].err
    assert ended[1].err == ""
