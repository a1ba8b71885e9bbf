"""From the settings to the report: train each model, keep it, probe it; whatever is there already is not done again."""

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from astroco_fast import presets
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from astroco_fast.files import whole_file
from astroco_fast.pretrain import folder
from astroco_fast.pretrain.config import PretrainConfig, TrainConfig, differences
from astroco_fast.pretrain.distributed import Ranks
from astroco_fast.pretrain.exits import DONE, INTERRUPTED, Interrupted
from astroco_fast.pretrain.log import Console
from astroco_fast.pretrain.signals import StopRequest
from astroco_fast.pretrain.source import open_data
from astroco_fast.pretrain.start import pretrain
from astroco_fast.pretrained import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.run import assign, probe
from astroco_fast.probe.splits import write_splits
from astroco_fast.report import read_metrics, training_lines
from astroco_fast.reproduce.config import ReproduceConfig
from astroco_fast.reproduce.cost import expected
from astroco_fast.reproduce.plan import BUDGETS, STAGES, UNTRAINED, WINDOWS, Budget, Row
from astroco_fast.reproduce.report import write_report

CONFIG, SPLITS, MODELS, RUNS, PROBES = "config.yaml", "splits.csv", "models", "runs", "probes"
FREE = {"out", "models", "micro_batch", "device"}  # a later start may have other ones
_NO_LIMIT = 1_000_000


def reproduce(config: ReproduceConfig, ranks: Ranks, stop: StopRequest) -> int:
    """Run `astroco reproduce` to its end, or to a signal.

    Args:
        config: as the user gave it.
        ranks: this process's place among them.
        stop: whether a signal asked to stop.

    Returns:
        The exit status: `exits.DONE`, or `exits.INTERRUPTED` with everything saved.

    Raises:
        UserError: bad input or configuration; the same on all ranks.
        Diverged: a model's training did.
    """
    console = Console(ranks.is_first)
    config = config.resolve()
    budget = ranks.everywhere(lambda: BUDGETS[config.budget].only(config.models))
    if config.windows is not None:
        budget = replace(budget, windows=config.windows)
    out = Path(str(config.out))
    with ExitStack() as until_the_end:
        ranks.first(lambda: until_the_end.enter_context(folder.held(out)))
        goes_on = ranks.first(lambda: _claim(out, config))
        source = PretrainConfig(
            data=config.data, band=config.band, seed=config.seed, columns=config.columns, clean=config.clean
        )
        store = open_data(source, out, goes_on, ranks, console, stop)
        comparison = Comparison(config, budget, out, store, ranks, stop, console)
        try:
            ranks.first(comparison.prepare, is_long=True)
            return comparison.run()
        except Interrupted:
            console.say("Interrupted, everything saved: the same command goes on from here.")
            return INTERRUPTED


def _claim(out: Path, config: ReproduceConfig) -> bool:
    """See that the folder is new, or holds the same comparison (rank 0); whether it does.

    Raises:
        UserError: it holds another comparison; names the settings.
    """
    path, settings = out / CONFIG, config.to_dict()
    goes_on = path.exists()
    if goes_on:
        try:
            before = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            before = None
        if not isinstance(before, dict):
            raise UserError(f"{path}: cannot be read; put it back, or choose another --out")
        changed = sorted({*differences(before, settings)} - FREE)
        if changed:
            raise UserError(
                f"{out} holds a comparison with other settings ({', '.join(changed)}); "
                f"to go on with it use --config {path}, else choose another --out"
            )
    with whole_file(path) as partial:
        partial.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return goes_on


class Comparison:
    """A comparison in progress. Every rank takes the same decisions: they follow from files that rank 0 reads."""

    def __init__(
        self, config: ReproduceConfig, budget: Budget, out: Path, store: Store, ranks: Ranks, stop: StopRequest,
        console: Console,
    ) -> None:  # fmt: skip
        self.config, self.budget, self.out, self.store = config, budget, out, store
        self.ranks, self.stop, self.console = ranks, stop, console

    def prepare(self) -> None:
        """What could go wrong later, and the stars of the probes (rank 0)."""
        curves = f"{self.store.n_curves:,} {'SIMULATED ' * self.store.simulated}light curves"
        self.console.say(f"Comparing {len(self.budget.rows)} models on {curves}. Folder: {self.out}")
        for line in expected(self.budget, self.store, self.config.band, self.config.seed):
            self.console.say(line)
        if self.config.probe and not (self.out / SPLITS).exists():
            with self.stop.immediate():
                _, stars, splits = assign(self._probe_config(Path(), Path()))
                write_splits(self.out / SPLITS, splits, stars.labels)

    def run(self) -> int:
        """All models to the same number of windows, then all to the same time; probes after each."""
        if self.config.probe:
            self.ranks.first(self._probe_untrained, is_long=True)
        for stage, row in ((stage, row) for stage in STAGES for row in self.budget.rows):
            kept = self.place(row, stage)
            if not self.ranks.first(kept.exists):
                self.console.say(f"\n{row.name}, {stage}")
                steps = self.ranks.first(lambda stage=stage, row=row: self._steps(row, stage))  # type: ignore[misc]
                if pretrain(self._training(row, steps), self.ranks, self.stop) == INTERRUPTED:
                    return INTERRUPTED
                self.ranks.first(lambda row=row, kept=kept: _keep(self._run(row), kept))  # type: ignore[misc]
            if self.config.probe:
                self.ranks.first(lambda kept=kept: self._probe(kept), is_long=True)  # type: ignore[misc]
            self.ranks.first(self._report, is_long=True)
        return DONE

    def place(self, row: Row, stage: str) -> Path:
        """Where the model is kept as it was at the end of a stage."""
        return self.out / MODELS / f"{row.folder}-{stage.replace(' ', '-')}"

    def _run(self, row: Row) -> Path:
        return self.out / RUNS / row.folder

    def _training(self, row: Row, steps: int | None) -> PretrainConfig:
        """The settings of a model's pretraining up to so many steps; None: the budget's epochs."""
        config, budget = self.config, self.budget
        train = TrainConfig(
            epochs=budget.epochs if steps is None else _NO_LIMIT,
            max_steps=steps,
            global_batch=budget.global_batch,
            micro_batch=config.micro_batch,
            learning_rate=row.learning_rate,
            warmup_steps=budget.warmup_steps,
            evaluate_windows=budget.validation_windows,
            plots=False,
            device=config.device,
        )
        return PretrainConfig(
            preset=row.preset, data=str(self.store.path), band=config.band, out=str(self._run(row)), seed=config.seed,
            model=dict(row.model), train=train,
        )  # fmt: skip

    def _steps(self, row: Row, stage: str) -> int | None:
        """How far a model is trained: to the budget's windows, or for as long as the slowest took for those."""
        if stage == WINDOWS:
            windows = self.budget.windows
            return None if windows is None else -(-windows // self.budget.global_batch)
        summaries = {other.name: read_summary(self.place(other, WINDOWS)) for other in self.budget.rows}
        longest = max(summary["training_seconds"] for summary in summaries.values())
        own = summaries[row.name]
        return round(own["step"] * longest / own["training_seconds"])

    def _probe_config(self, model: Path, out: Path) -> ProbeConfig:
        config, splits = self.config, self.out / SPLITS
        return ProbeConfig(
            data=str(self.store.path), model=str(model), out=str(out), labels=config.labels, classes=config.classes,
            sizes=config.sizes, test=config.test, seed=config.seed, allow_fewer=config.allow_fewer, band=config.band,
            splits=str(splits) if splits.exists() else None, probes=["linear", "logistic"], device=config.device,
            plots=False,
        )  # fmt: skip

    def _probe(self, kept: Path) -> None:
        out = self.out / PROBES / kept.name
        if not (out / "results.json").exists():
            (self.out / PROBES).mkdir(exist_ok=True)
            with self.stop.immediate():
                probe(self._probe_config(kept, out))

    def _probe_untrained(self) -> None:
        """The embeddings of preset S as it is initialised: what a probe makes of light curves without pretraining."""
        like = next((row for row in self.budget.rows if row.preset == "S"), None)
        if like is None:
            return
        kept = self.out / MODELS / UNTRAINED
        if not kept.exists():
            torch.manual_seed(self.config.seed)
            presets.build(like.preset, **like.model).save_pretrained(kept)
        self._probe(kept)

    def _report(self) -> None:
        for path in write_report(self.out, self.results(), {row.name: self._run(row) for row in self.budget.rows}):
            self.console.say(str(path))

    def results(self) -> dict[str, Any]:
        """All that has been found so far, as plain data."""
        settings = {key: value for key, value in vars(self.budget).items() if key != "rows"}
        return {
            "budget": settings,
            "settings": self.config.to_dict(),
            "simulated": self.store.simulated,
            "light_curves": self.store.n_curves,
            "store": self.store.digest,
            "environment": folder.environment(self.ranks),
            "models": {row.name: self._facts(row) for row in self.budget.rows},
            "untrained": {"probes": self._probed(self.out / MODELS / UNTRAINED)},
        }

    def _facts(self, row: Row) -> dict[str, Any]:
        """A model, and what it has reached at the end of each stage so far."""
        facts: dict[str, Any] = {
            "preset": row.preset,
            "model": presets.configure(row.preset, row.model).to_dict(),
            "learning_rate": row.learning_rate or presets.preset(row.preset).learning_rate,
            "stages": {},
        }
        for stage in STAGES:
            kept = self.place(row, stage)
            if kept.exists():
                facts["stages"][stage] = {**read_summary(kept), "probes": self._probed(kept)}
        return facts

    def _probed(self, kept: Path) -> list[dict[str, Any]]:
        """The results of a kept model's probes: none yet, or an entry for each probe and size."""
        path = self.out / PROBES / kept.name / "results.json"
        entries: list[dict[str, Any]] = json.loads(path.read_text())["results"] if path.exists() else []
        return entries


def read_summary(kept: Path) -> dict[str, Any]:
    """What a kept model has reached: a run's summary.json, and the seconds of its training."""
    summary: dict[str, Any] = json.loads((kept / folder.SUMMARY).read_text())
    return summary


def training_seconds(run: Path, windows_seen: int) -> float:
    """The time that a run's steps took, without evaluations and checkpoints, by the lines of its metrics."""
    *_, (seconds, line) = training_lines(read_metrics(run))
    return float(seconds * windows_seen / line["windows_seen"])  # the last steps may have no line yet


def _keep(run: Path, kept: Path) -> None:
    """Copy a run's best model and its summary, whole or not at all: the run will go on."""
    summary = json.loads((run / folder.SUMMARY).read_text())
    summary["training_seconds"] = training_seconds(run, summary["windows_seen"])
    partial = kept.with_name(f".{kept.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
            shutil.copyfile(run / "checkpoints" / "best" / name, partial / name)
        (partial / folder.SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
        os.replace(partial, kept)
    except OSError as error:
        raise UserError(f"{kept}: cannot be written: {error.strerror}; make room, or choose another --out") from error
