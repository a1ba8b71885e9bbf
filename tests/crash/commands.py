"""The commands under test: what each needs, the arguments that run it in a folder, and what its result is."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from astroco_fast import cli, embedding, plots
from astroco_fast.data.simulated_table import write_table
from astroco_fast.probe.run import probe
from astroco_fast.reproduce import kept, paper
from astroco_fast.reproduce import run as run_module
from astroco_fast.reproduce.plan import Budget, Row

# What differs between two undisturbed runs, too: times, speeds, memory, and the checksums of files that hold them.
_VOLATILE = {
    "seconds",
    "windows_per_s",
    "mfu",
    "memory_gb",
    "metrics_bytes",
    "starts",
    "time",
    "state.json",
    "summary.json",
}
_TINY = ["--model.width", "16", "--model.heads", "2", "--model.layers", "1", "--train.plots", "false"]


@dataclass(frozen=True)
class Command:
    """A command of the package.

    Attributes:
        name: the word after `astroco`, and perhaps more words that set it apart.
        arguments: its arguments, for the folder of inputs and the folder to work in.
        prepare: copies what the command changes in place into the folder to work in; None: it changes nothing.
        ranks: the number of processes that share the work, as under torchrun.
    """

    name: str
    arguments: Callable[[Path, Path], Sequence[str]]
    prepare: Callable[[Path, Path], None] | None = None
    ranks: int = 1

    @property
    def command(self) -> str:
        """The word after `astroco`."""
        return self.name.split()[0]


def make_inputs(folder: Path) -> None:
    """A simulated table, a store and a saved model."""
    write_table(folder / "survey.parquet", n_stars=60, seed=0)
    run("convert", [str(folder / "survey.parquet"), str(folder / "survey.store")])
    run("pretrain", _pretrain(folder, folder / "trained"))


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command in this process; returns its exit status."""
    embedding.PIECE_CURVES = 16  # so that `embed` has parts to go on from
    if name == "reproduce":
        _make_small()
    try:
        return cli.main([name, *arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def _make_small() -> None:
    """Give `reproduce` two models that train in moments, and a training time that is the same in each run."""
    small = {"width": 16, "heads": 2, "layers": 1, "window": 8}
    rows = (
        Row(paper.S, "S", {**small, "kernel": 4}, {"learning_rate": 1e-3}),
        Row(paper.V2, "astromer-v2-paper", {**small, "feed_forward": 8}, {"learning_rate": 1e-3}),
    )
    budget = Budget("small", rows, 32, 1, 16, 1, 6, 0, head_seeds=1)
    seconds = {"AstroCo-S": 20.0, "Astromer-v2": 10.0}  # so that the second model trains on in the second stage
    run_module.BUDGETS = {**run_module.BUDGETS, "small": budget}
    kept.training_seconds = lambda run, summary: seconds[run.name] * summary["step"] / 2
    plots.STYLE["savefig.dpi"] = 30
    run_module.probe = lambda config, assigned: probe(
        replace(config, folds=1, head=replace(config.head, epochs=2)), assigned
    )


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


def _reproduce(inputs: Path, work: Path) -> list[str]:
    data = ["--data", str(inputs / "survey.parquet"), "--out", str(work / "out"), "--device", "cpu"]
    return [*data, "--sizes", "[2]", "--test", "1", "--allow_fewer", "true"]


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
    Command("reproduce", _reproduce),
    Command("pretrain on two ranks", lambda i, w: _pretrain(i, w / "run"), ranks=2),
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
    if path.suffix == ".png":
        return path.read_bytes()[-8:]  # whether it is whole: an axis may show times
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
