"""The command as users start it, with plain python and with torchrun."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from astroco_fast import AstroCo
from astroco_fast.pretrain import main

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
COMMAND = ["-m", "astroco_fast.pretrain"]


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_torchrun_stops_at_sigterm_and_goes_on(arguments, tmp_path):
    out = tmp_path / "run"
    argv = [
        *TORCHRUN,
        "2",
        *COMMAND,
        *arguments,
        "--out",
        str(out),
        "--train.epochs",
        "1000",
        "--train.patience",
        "9999",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **pipes) as process:
        wait_for(out / "checkpoints" / "best", process)
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "everything saved" in stdout
    state = json.loads((out / "checkpoints" / "last" / "state.json").read_text())["state"]
    limited = [*argv, "--train.max_steps", str(state["step"] + 3)]
    again = subprocess.run(limited, capture_output=True, text=True, timeout=90, check=False)
    assert again.returncode == 0, again.stderr
    assert f"Going on from {out / 'checkpoints' / 'step'}-{state['step']:08d}" in again.stdout
    assert json.loads((out / "summary.json").read_text())["step"] == state["step"] + 3
    starts = json.loads((out / "environment.json").read_text())["starts"]
    assert [start["ranks"] for start in starts] == [2, 2]


ORPHAN_MAKER = """
import subprocess, sys
with open(sys.argv[1], "w") as out, subprocess.Popen([sys.executable, *sys.argv[2:]], stdout=out) as rank:
    print(rank.pid, flush=True)
"""


def test_a_rank_whose_torchrun_is_gone_saves_and_stops(arguments, tmp_path):
    """A signal that torchrun does not handle, such as SIGUSR1, kills it, and its ranks go on without it."""
    out, log = tmp_path / "run", tmp_path / "log"
    flags = ["--out", str(out), "--train.epochs", "100000", "--train.patience", "99999"]
    argv = [sys.executable, "-c", ORPHAN_MAKER, str(log), *COMMAND, *arguments, *flags]
    run = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, "TORCHELASTIC_RUN_ID": "none"}}
    with subprocess.Popen(argv, **run) as torchrun:
        rank = int(torchrun.stdout.readline())
        wait_for(out / "checkpoints" / "last", torchrun)
        torchrun.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 60
    try:
        while "everything saved" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)


def test_the_best_checkpoint_is_a_model(arguments, tmp_path):
    out = tmp_path / "run"
    argv = [*arguments, "--out", str(out), "--train.ema_decay", "0.5"]
    assert main(argv) == 0
    model = AstroCo.from_pretrained(out / "checkpoints" / "best")
    assert model.config.width == 16
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"train", "validation"}
    best = json.loads((out / "summary.json").read_text())["best"]
    assert best["rmse"] == min(line["rmse"] for line in lines if line["split"] == "validation")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_without_any_argument(ranks, tmp_path):
    start = time.monotonic()
    done = subprocess.run([*TORCHRUN, str(ranks), *COMMAND], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    print(f"{ranks} ranks: {time.monotonic() - start:.0f} s")
    assert "simulat" in done.stdout
    summary = json.loads((tmp_path / "runs" / "tiny-simulated" / "summary.json").read_text())
    assert summary["simulated"]
    assert summary["best"]["rmse_hidden"] < 0.75 * summary["best"]["trivial_rmse_hidden"]
