"""`python -m tests.crash --commands convert embed --points 50 --record FILE`: see `tests.crash`."""

import argparse
import itertools
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tests.crash import disturb
from tests.crash.commands import COMMANDS, Command, make_inputs, result

_SMALLEST = 512  # bytes; the log of what a command says is a file, too


class Trial:
    """A command's undisturbed result, and disturbed runs that are compared with it."""

    def __init__(self, command: Command, inputs: Path, scratch: Path) -> None:
        self._command, self._inputs, self._scratch = command, inputs, scratch
        ended = self._run("undisturbed")
        if ended.code or ended.value[0]:
            raise RuntimeError(f"{command.name} fails undisturbed: {ended.said}")
        self.changes: int = ended.value[1]
        self._expected = self._result("undisturbed")
        self.largest = max(path.stat().st_size for path in (scratch / "undisturbed").rglob("*") if path.is_file())

    def killed_before(self, change: int, killed: str = disturb.ONE) -> str | None:
        """Kill the command, and run it again; returns what was lost.

        Args:
            change: the disk change before which it is killed.
            killed: of several ranks, those that are killed.
        """
        ended = self._run("killed", kill_before=change, killed=killed)
        if ended.code != -signal.SIGKILL:
            return f"not killed: status {ended.code}; {ended.said[-500:]}"
        return self._again("killed")

    def without_room(self, largest: int) -> str | None:
        """Let no file grow beyond a size, and run a command that failed again; returns what was lost or said badly."""
        ended = self._run("full", largest=largest)
        if ended.code or ended.value is None:
            return f"status {ended.code}: {ended.said[-500:]}"
        if ended.value[0] not in (0, 2) or "Traceback" in ended.said:
            return f"status {ended.value[0]}: {ended.said[-800:]}"
        return self._again("full") if ended.value[0] else self._different("full")

    def _again(self, name: str) -> str | None:
        ended = self._run(name, fresh=False)
        if ended.code or ended.value is None or ended.value[0]:
            return f"the next run fails: {ended.said[-500:]}"
        return self._different(name)

    def _different(self, name: str) -> str | None:
        found = self._result(name)
        different = [path for path in sorted({*found, *self._expected}) if found.get(path) != self._expected.get(path)]
        return f"differs from the undisturbed run: {', '.join(different)}" if different else None

    def _run(self, name: str, fresh: bool = True, killed: str = disturb.ONE, **disturbance: int) -> disturb.Ended:
        work = self._scratch / name
        if fresh:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            if self._command.prepare:
                self._command.prepare(self._inputs, work)
        arguments = self._command.arguments(self._inputs, work)
        limits = {"kill_before": None, "largest": None} | disturbance
        log = self._scratch / f"{name}.log"
        command = (self._command.command, arguments, work)
        if self._command.ranks == 1:
            return disturb.call(disturb.run, *command, *limits.values(), log=log)
        work.with_name(f"{name}.pid").unlink(missing_ok=True)
        task = (disturb.run_rank, *command, limits["kill_before"], killed)
        ended = disturb.call_ranks(self._command.ranks, *task, killed=killed, log=log)
        codes = [rank.code for rank in ended]
        code = next((code for code in (None, -signal.SIGKILL) if code in codes), max(codes, key=bool))
        return disturb.Ended(code, "\n".join(rank.said for rank in ended), ended[0].value)

    def _result(self, name: str) -> Any:
        return disturb.call(result, self._scratch / name, log=self._scratch / "result.log").value


def trials(command: Command, inputs: Path, points: int, sizes: int, scratch: Path) -> Iterator[tuple[str, str | None]]:
    """Disturb a command; yields the kind of each disturbance and what was lost by it."""
    trial = Trial(command, inputs, scratch)
    changes = np.unique(np.linspace(0, trial.changes - 1, points).round().astype(int))
    for change, killed in zip(changes, itertools.cycle((disturb.ONE, disturb.OTHER, disturb.ALL)), strict=False):
        yield "killed", trial.killed_before(int(change), killed)
    if command.ranks > 1:  # one disk, which all commands without ranks have tried
        return
    for largest in np.unique(np.geomspace(_SMALLEST, trial.largest, sizes).round().astype(int)):
        yield "no room", trial.without_room(int(largest))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash", description="Kill commands at disk changes, and let them run out of disk."
    )
    parser.add_argument("--commands", nargs="*", default=[command.name for command in COMMANDS])
    parser.add_argument("--points", type=int, default=50, help="kills of each command")
    parser.add_argument("--sizes", type=int, default=10, help="limits of a file's size for each command")
    parser.add_argument("--record", type=Path, help="JSON file for the counts")
    options = parser.parse_args()
    record: dict[str, dict[str, int]] = {}
    lost = 0
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name) / "inputs"
        inputs.mkdir()
        made = disturb.call(make_inputs, inputs, log=Path(name) / "inputs.log")
        if made.code:
            raise RuntimeError(made.said)
        for command in COMMANDS:
            if command.name not in options.commands:
                continue
            counts = record.setdefault(command.name, {})
            scratch = Path(name) / command.name
            scratch.mkdir()
            every = trials(command, inputs, options.points, options.sizes, scratch)
            for kind, loss in tqdm(every, desc=command.name, disable=None):
                counts[kind] = counts.get(kind, 0) + 1
                if loss:
                    lost += 1
                    counts[f"{kind}, lost"] = counts.get(f"{kind}, lost", 0) + 1
                    print(f"{command.name}, {kind} ({counts[kind]}): {loss}")
            print(command.name, counts, flush=True)
    if options.record:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
