"""The commands under test: what each needs, the arguments that run it in a folder, and what its result is."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from astroco_fast import cli
from astroco_fast.data.simulated_table import write_table

# What differs between two undisturbed runs, too: times, speeds, memory, and the checksums of files that hold them.
_VOLATILE = {"seconds", "windows_per_s", "mfu", "memory_gb", "metrics_bytes", "starts", "state.json"}
_TINY = ["--model.width", "16", "--model.heads", "2", "--model.layers", "1", "--train.plots", "false"]


@dataclass(frozen=True)
class Command:
    """A command of the package.

    Attributes:
        name: the command's.
        arguments: its arguments, for the folder of inputs and the folder to work in.
        prepare: copies what the command changes in place into the folder to work in; None: it changes nothing.
    """

    name: str
    arguments: Callable[[Path, Path], Sequence[str]]
    prepare: Callable[[Path, Path], None] | None = None


def make_inputs(folder: Path) -> None:
    """A simulated table, a store and a saved model."""
    write_table(folder / "survey.parquet", n_stars=60, seed=0)
    run("convert", [str(folder / "survey.parquet"), str(folder / "survey.store")])
    run("pretrain", _pretrain(folder, folder / "trained"))


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command in this process; returns its exit status."""
    try:
        return cli.main([name, *arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def _pretrain(inputs: Path, out: Path) -> list[str]:
    steps = [
        "--train.max_steps",
        "4",
        "--train.evaluate_every",
        "2",
        "--train.checkpoint_every",
        "1",
        "--train.log_every",
        "1",
    ]
    data = ["--preset", "tiny", "--data", str(inputs / "survey.store"), "--out", str(out)]
    return [*data, *_TINY, *steps, "--train.global_batch", "8", "--train.evaluate_windows", "8"]


def _probe(inputs: Path, work: Path) -> list[str]:
    model = ["--data", str(inputs / "survey.parquet"), "--model", str(inputs / "trained/checkpoints/best")]
    sizes = ["--sizes", "[2]", "--validation", "1", "--test", "1", "--folds", "1", "--seeds", "1"]
    return [
        *model,
        *sizes,
        "--probes",
        "[logistic]",
        "--logistic_c",
        "1",
        "--plots",
        "false",
        "--out",
        str(work / "probe"),
    ]


def _copy_store(inputs: Path, work: Path) -> None:
    (work / "survey.store").mkdir(parents=True)
    for file in (inputs / "survey.store").iterdir():
        (work / "survey.store" / file.name).write_bytes(file.read_bytes())


COMMANDS = (
    Command("convert", lambda i, w: [str(i / "survey.parquet"), str(w / "store")]),
    Command("periods", lambda _, w: [str(w / "survey.store"), "--threads", "1"], _copy_store),
    Command("pretrain", lambda i, w: _pretrain(i, w / "run")),
    Command(
        "embed",
        lambda i, w: [str(i / "survey.parquet"), str(w / "e.parquet"), "--model", str(i / "trained/checkpoints/best")],
    ),
    Command("probe", _probe),
)


def result(folder: Path) -> dict[str, Any]:
    """The files of a folder and what they say, without what differs between undisturbed runs."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {_plain_name(str(path.relative_to(folder))): _content(path, folder) for path in files}


def _content(path: Path, folder: Path) -> Any:
    if path.suffix == ".json":
        return _steady(json.loads(path.read_text()), folder)
    if path.suffix == ".jsonl":
        return [_steady(json.loads(line), folder) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return repr(pq.read_table(path).to_pydict())  # text, in which NaN equals NaN
    if path.suffix in (".pt", ".pth"):
        return repr(torch.load(path, weights_only=True))
    return path.read_bytes().replace(str(folder).encode(), b"")


def _steady(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {
            key: _steady(item, folder)
            for key, item in value.items()
            if key not in _VOLATILE and not key.startswith("share_")
        }
    if isinstance(value, list):
        return [_steady(item, folder) for item in value]
    return _plain_name(value.replace(str(folder), "")) if isinstance(value, str) else value


def _plain_name(text: str) -> str:
    """A text without the number that a second checkpoint of one step has after the step's."""
    return re.sub(r"(step-\d{8})-\d+", r"\1", text)
