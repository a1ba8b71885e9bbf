"""Ranks on several machines: what they must have in common, and how they join again after a restart."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import astroco_fast
from astroco_fast.data.convert import convert
from astroco_fast.errors import UserError
from astroco_fast.pretrain import agreement, main, ranks
from astroco_fast.pretrain.ranks import Ranks
from tests.ports import free_port
from tests.pretrain.patches import command, this_rank
from tests.pretrain.processes import on_ranks
from tests.pretrain.test_failures import one_line
from tests.pretrain.test_resume import outcome

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "astroco_fast" / "scale" / "slurm.sh"
PATIENCE = 300  # seconds
# Without the third, torchrun cannot take a lost machine back: https://github.com/pytorch/pytorch/issues/135712
ENVIRONMENT = {
    **os.environ,
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def on_its_own_disk(folder: str) -> None:
    """Let rank 1 be on a machine of its own, named pegasus, where relative paths lead into this folder."""
    agreement.APPEARS = 0.2
    if this_rank() == 1:
        ranks.socket.gethostname = lambda: "pegasus"
        os.chdir(folder)


def disagree(folder: str) -> dict[str, str]:
    """What two ranks are told for each thing in which they differ."""
    on_its_own_disk(folder)
    here, odd, told = Ranks.start("cpu"), this_rank() == 1, {}

    def check(name: str, body: Callable[..., Any], *args: Any) -> None:
        try:
            body(*args)
            told[name] = ""
        except UserError as error:
            told[name] = str(error)

    settings = {"seed": 1, "train": {"clip_norm": None}}
    check("same", agreement.require_same_start, here, settings)
    check("settings", agreement.require_same_start, here, {**settings, "seed": 2} if odd else settings)
    gpu = replace(here, device=torch.device("cuda")) if odd else here
    check("device", agreement.require_same_start, gpu, settings)
    version, astroco_fast.__version__ = astroco_fast.__version__, "0.0.9" if odd else "0.1.0"
    check("version", agreement.require_same_start, here, settings)
    astroco_fast.__version__ = version
    check("shared", agreement.require_shared_folder, here, Path(folder))
    check("not shared", agreement.require_shared_folder, here, Path())
    for name in ("copies", "damaged", "nowhere", "other"):
        check(name, agreement.open_store, here, Path(name))
    here.close()
    return told


def test_what_ranks_must_have_in_common(store, tmp_path, monkeypatch):
    for disk in ("zero", "one"):
        for name in ("copies", "damaged"):
            shutil.copytree(store, tmp_path / disk / name)
    shutil.copytree(store, tmp_path / "zero" / "nowhere")
    for disk, size in (("zero", 30), ("one", 31)):
        convert(
            [np.column_stack([np.arange(size), np.arange(size) % 3, np.full(size, 0.1)])], tmp_path / disk / "other"
        )
    file = tmp_path / "one" / "damaged" / "mag.f32"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    monkeypatch.chdir(tmp_path / "zero")

    told, also = (ended.value for ended in on_ranks(2, disagree, str(tmp_path / "one"), tmp_path=tmp_path))
    assert told == also
    assert told["same"] == told["shared"] == told["copies"] == ""
    assert told["settings"].startswith("rank 1 (on pegasus) was started with other settings than rank 0 (on ")
    assert "(seed)" in told["settings"]
    assert re.match(r"rank 1 \(on pegasus\) has device cuda, but rank 0 \(on \S+\) has device cpu; ", told["device"])
    assert re.match(r"rank 1 \(on pegasus\) has astroco_fast 0.0.9, but rank 0 \(on \S+\) .* 0.1.0; ", told["version"])
    assert re.match(
        r"\.: rank 1 \(on pegasus\) does not see the files that rank 0 \(on \S+\) writes", told["not shared"]
    )
    assert told["damaged"].startswith("rank 1 (on pegasus): damaged/mag.f32: ")
    assert told["nowhere"].startswith("rank 1 (on pegasus): nowhere: ")
    assert told["other"].startswith("other: rank 1 (on pegasus) finds other light curves or periods there than rank 0")
    assert sorted(path.name for path in tmp_path.glob("*/.*")) == []


def start_on_its_own_disk(argv: list[str], folder: str) -> int:
    on_its_own_disk(folder)
    return main([*argv, "--seed", "7"] if this_rank() == 1 and "--seed" in argv else argv)


@pytest.mark.parametrize(("flags", "words"), [(["--seed", "5"], "(seed)"), ([], "does not see the files")])
def test_the_command_refuses_ranks_that_do_not_agree(flags, words, arguments, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path)
    argv = [*arguments, "--out", "run", *flags]
    line = one_line(on_ranks(2, start_on_its_own_disk, argv, str(tmp_path / "one"), tmp_path=tmp_path), 2)
    assert words in line
    assert not (tmp_path / "run").exists()


def mistype(argv: list[str]) -> int:
    """Run the command, with a mistake in the arguments of rank 1 alone."""
    return main([*argv, "--sead", "1"] if this_rank() == 1 else argv)


def test_a_mistake_on_one_machine_ends_all(arguments, tmp_path):
    line = one_line(on_ranks(2, mistype, [*arguments, "--out", str(tmp_path / "run")], tmp_path=tmp_path), 2)
    assert re.match(r"astroco: error: rank 1 \(on \S+\): .*--sead", line)
    assert not (tmp_path / "run").exists()


def join_again(port: int, counts: tuple[int, int], value: int) -> list[int]:
    """Join by the store of a torchrun that goes on living; return the values of all ranks."""
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(counts[this_rank()])
    here = Ranks.start("cpu")
    found = here.gather(value + this_rank())
    here.close()
    return found


def test_ranks_join_again_in_a_store_that_knows_earlier_ranks(tmp_path):
    """Each machine's torchrun has a count of its own for the starts of its ranks."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    for start, counts in enumerate([(0, 0), (1, 0)]):
        ended = on_ranks(2, join_again, store.port, counts, 10 * start, tmp_path=tmp_path)
        assert [rank.value for rank in ended] == [[10 * start, 10 * start + 1]] * 2, ended


def test_ranks_that_wait_for_one_another_write_each_word_once():
    store, written = dist.HashStore(), []
    noted = SimpleNamespace(
        check=store.check, get=store.get, set=lambda key, word: (written.append(key), store.set(key, word))
    )
    with ThreadPoolExecutor(2) as pool:
        groups = [pool.submit(ranks._meet, noted, SimpleNamespace(), 0, 2, "first")]
        time.sleep(0.3)
        groups.append(pool.submit(ranks._meet, noted, SimpleNamespace(), 1, 2, "second"))
        assert groups[0].result(60) == groups[1].result(60)
    assert len(written) == len(set(written)) == 5  # two words, an answer, and two that have joined


class Machine:
    """A torchrun with one rank, as on a machine of its own.

    Args:
        port: the port of the rendezvous, which the machine that is started first has.
        address: one of this machine's addresses. The ranks are numbered in the order of the addresses.
        argv: the arguments of `astroco pretrain`.
        log: the file for all that it says.
    """

    def __init__(self, port: int, address: str, argv: Sequence[str], log: Path) -> None:
        place = ["--nnodes", "2", "--nproc_per_node", "1", "--local_addr", address, "--max_restarts", "5"]
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "survey"]
        patience = ["--rdzv_conf", "join_timeout=120,keep_alive_interval=1"]
        command = ["torchrun", *place, *meeting, *patience, "-m", "astroco_fast.pretrain", *argv]
        self.log = log
        with log.open("a") as file:
            self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file)

    def workers(self) -> list[int]:
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in found.split()]

    def kill(self, with_worker: bool = True) -> None:
        workers = self.workers()
        self.process.kill()
        for worker in workers if with_worker else []:
            os.kill(worker, signal.SIGKILL)
        self.process.wait()


def wait_until(holds: Callable[[], Any], *machines: Machine) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        for machine in machines:
            assert machine.process.poll() is None, machine.log.read_text()
        assert time.monotonic() < deadline, [machine.log.read_text() for machine in machines]
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def machines():
    """Machines that are switched off at the end of the test."""
    started: list[Machine] = []
    yield started
    for machine in started:
        if machine.process.poll() is None:
            machine.kill()


@pytest.mark.slow
def test_machines_are_lost_and_come_back(arguments, machines, tmp_path):
    """The run ends with the same bits as one without any loss."""
    flags = ["--train.epochs", "1000", "--train.max_steps", "80", "--train.checkpoint_every", "3"]
    argv = [*arguments, *flags, "--train.ema_decay", "0.9"]
    whole = on_ranks(2, command, [*argv, "--out", str(tmp_path / "whole")], tmp_path=tmp_path)
    assert [rank.code for rank in whole] == [0, 0]

    out, port = tmp_path / "run", free_port()
    here = [*argv, "--out", str(out)]

    def start(name: str, address: str) -> Machine:
        machines.append(Machine(port, address, here, tmp_path / f"{name}.log"))
        return machines[-1]

    def step() -> int:
        return max((int(path.name.split("-")[1]) for path in out.glob("checkpoints/step-*")), default=0)

    def starts() -> int:
        return len(json.loads((out / "environment.json").read_text())["starts"])

    first = start("first", "127.0.0.2")
    wait_until(lambda: listens(port), first)
    other = start("other", "127.0.0.3")
    wait_until(lambda: step() > 0, first, other)

    # The machine of rank 1 is lost. It comes back once rank 0 has noticed, as rank 0.
    (worker,) = first.workers()
    other.kill()
    wait_until(lambda: worker not in first.workers(), first)
    assert "rank 0 (on " in first.log.read_text()
    assert "has lost another rank in " in first.log.read_text()
    before = step()
    other = start("other", "127.0.0.1")
    wait_until(lambda: step() > before, first, other)
    assert starts() == 2

    # A torchrun is lost, but not its rank, which saves and ends.
    before = step()
    other.kill(with_worker=False)
    other = start("other", "127.0.0.1")
    wait_until(lambda: step() > before + 3, first, other)
    assert "everything saved" in other.log.read_text()

    # A rank is lost, but not its torchrun, which starts it again, as the other torchrun does with its rank.
    before = step()
    os.kill(*first.workers(), signal.SIGKILL)
    wait_until(lambda: step() > before + 3, first, other)

    # A torchrun is asked to stop, and its rank saves; the other one waits for it.
    before = step()
    other.process.terminate()
    assert other.process.wait(PATIENCE) != 0
    other = start("other", "127.0.0.1")
    wait_until(lambda: step() > before + 3, first, other)

    # The machine of the rendezvous is lost: the other one ends, too, and both are started again.
    before = step()
    first.kill()
    assert other.process.wait(PATIENCE) != 0
    first = start("first", "127.0.0.2")
    other = start("other", "127.0.0.1")
    assert (first.process.wait(PATIENCE), other.process.wait(PATIENCE)) == (0, 0), first.log.read_text()
    assert before < 80
    assert starts() >= 6
    assert outcome(out) == outcome(tmp_path / "whole")


# As Slurm's own, these start the tasks of two machines, pass SIGUSR1 on to them, and kill them at SIGTERM.
SRUN = """
import signal, subprocess, sys
assert sys.argv[1] == "--kill-on-bad-exit=1"
tasks = [subprocess.Popen(sys.argv[2:]) for _ in range(2)]
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """
import os, sys
if sys.argv[1:] == ["show", "hostnames", "node[1-2]"]:
    print("localhost", "localhost", sep="\\n")
else:
    print(*sys.argv[1:], file=open(os.environ["REQUESTS"], "a"))
"""


@pytest.mark.slow
def test_slurm_stops_the_run_ahead_of_its_time_limit_and_starts_it_again(arguments, tmp_path):
    (tmp_path / "bin").mkdir()
    for name, code in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(f"#!{sys.executable}{code}")
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    environment = {**ENVIRONMENT, **job, "REQUESTS": str(tmp_path / "requests")}
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}"
    del environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"]  # the script sets it
    out, log = tmp_path / "run", tmp_path / "log"
    argv = ["bash", str(SCRIPT), *arguments, "--out", str(out), "--train.epochs", "100000", "--train.patience", "9999"]
    with log.open("w") as file, subprocess.Popen(argv, env=environment, stdout=file, stderr=file) as script:
        deadline = time.monotonic() + PATIENCE
        while not (out / "checkpoints" / "last").exists():
            assert script.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        script.send_signal(signal.SIGUSR1)
        assert script.wait(PATIENCE) == 1, log.read_text()
    assert "everything saved" in log.read_text()
    assert (tmp_path / "requests").read_text() == f"requeue {job['SLURM_JOB_ID']}\n"
    state = json.loads((out / "checkpoints" / "last" / "state.json").read_text())["state"]

    limited = [*argv, "--train.max_steps", str(state["step"] + 2)]
    again = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert again.returncode == 0, again.stderr
    assert f"step {state['step']}, epoch {state['epoch']}" in again.stdout
    assert (tmp_path / "requests").read_text().count("requeue") == 1
    assert json.loads((out / "summary.json").read_text())["step"] == state["step"] + 2
    assert [start["ranks"] for start in json.loads((out / "environment.json").read_text())["starts"]] == [2, 2]
