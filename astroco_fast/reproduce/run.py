"""From the settings to the report: train each model, keep it, probe it; whatever is there already is not done again."""

import filecmp
import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from astroco_fast import presets, registry
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from astroco_fast.files import whole_folder, write_text
from astroco_fast.pretrain import folder
from astroco_fast.pretrain.config import PretrainConfig, TrainConfig, differences
from astroco_fast.pretrain.distributed import Ranks
from astroco_fast.pretrain.exits import DIVERGED, DONE, INTERRUPTED, Diverged, Interrupted
from astroco_fast.pretrain.log import Console
from astroco_fast.pretrain.signals import StopRequest
from astroco_fast.pretrain.source import open_data
from astroco_fast.pretrain.start import pretrain
from astroco_fast.pretrained import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.heads import require_scikit_learn
from astroco_fast.probe.run import Assigned, assign, probe
from astroco_fast.probe.splits import write_splits
from astroco_fast.report import read_metrics, training_lines
from astroco_fast.reproduce.config import ReproduceConfig
from astroco_fast.reproduce.cost import expected
from astroco_fast.reproduce.plan import BUDGETS, STAGES, UNTRAINED, WINDOWS, Budget, Row, S
from astroco_fast.reproduce.report import write_report

CONFIG, SPLITS, MODELS, RUNS, PROBES = "config.yaml", "splits.csv", "models", "runs", "probes"
FREE = {"out", "models"}  # a later start may have other ones ...
PROBED = {"probe", "classes", "labels", "sizes", "test", "allow_fewer"}  # ... and these until stars have been drawn
_NO_LIMIT = 1_000_000
_FULL = "make room, or choose another --out"  # the way out of a full disk


def reproduce(config: ReproduceConfig, ranks: Ranks, stop: StopRequest) -> int:
    """Run `astroco reproduce` to its end, or to a signal.

    Args:
        config: as the user gave it.
        ranks: this process's place among them.
        stop: whether a signal asked to stop.

    Returns:
        The exit status: `exits.DONE`, `exits.INTERRUPTED` with everything saved, or `exits.DIVERGED` if a model's
        training did: the others are compared without it.

    Raises:
        UserError: bad input or configuration; the same on all ranks.
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
    path = out / CONFIG
    if not path.exists():
        return False
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{path}: cannot be read; put it back, or choose another --out")
    free = FREE if (out / SPLITS).exists() else FREE | PROBED
    changed = sorted({*differences(before, config.to_dict())} - free)
    if changed:
        raise UserError(
            f"{out} holds a comparison with other settings ({', '.join(changed)}); "
            f"to go on with it use --config {path}, else choose another --out"
        )
    return True


class Comparison:
    """A comparison in progress. Every rank takes the same decisions: they follow from files that rank 0 reads."""

    def __init__(
        self, config: ReproduceConfig, budget: Budget, out: Path, store: Store, ranks: Ranks, stop: StopRequest,
        console: Console,
    ) -> None:  # fmt: skip
        self.config, self.budget, self.out, self.store = config, budget, out, store
        self.ranks, self.stop, self.console = ranks, stop, console
        self._assigned: Assigned | None = None
        self._runs = {row.name: out / RUNS / row.folder for row in budget.rows}

    def prepare(self) -> None:
        """What could go wrong later, and the stars of the probes; then the folder is this comparison's (rank 0)."""
        for row, stage in ((row, stage) for row in self.budget.rows for stage in STAGES):
            kept = self.place(row, stage)
            if kept.exists() and read_summary(kept)["store"] != self.store.digest:
                raise UserError(
                    f"{self.store.path}: not the light curves that {self.out} compares models on; choose another --out"
                )
        if self.config.probe:
            require_scikit_learn()
            with self.stop.immediate():
                self._assigned = assign(self._probe_config(Path(), Path()))
                if not (self.out / SPLITS).exists():
                    write_splits(self.out / SPLITS, self._assigned.splits, self._assigned.stars.labels)
        write_text(self.out / CONFIG, yaml.safe_dump(self.config.to_dict(), sort_keys=False))
        curves = f"{self.store.n_curves:,} {'SIMULATED ' * self.store.simulated}light curves"
        self.console.say(f"Comparing {len(self.budget.rows)} models on {curves}. Folder: {self.out}")
        for line in expected(self.budget, self.store, self.config.band, self.config.seed):
            self.console.say(line)

    def run(self) -> int:
        """All models to the same number of windows, then all to the same time; probes after each."""
        diverged: list[Row] = []
        if self.config.probe:
            self.ranks.first(self._probe_untrained, is_long=True)
        for stage, row in ((stage, row) for stage in STAGES for row in self.budget.rows):
            if row in diverged:
                continue
            try:
                if self._train(row, stage) == INTERRUPTED:
                    return INTERRUPTED
            except Diverged as error:
                self.console.say(f"{row.name} is left out, its training diverged: {error}")
                diverged.append(row)
                continue
            if self.config.probe:
                self.ranks.first(partial(self._probe, self.place(row, stage), self.place(row, WINDOWS)), is_long=True)
            self.ranks.first(self._report, is_long=True)
        for path in self.ranks.first(self._report, is_long=True):
            self.console.say(str(path))
        return DIVERGED if diverged else DONE

    def place(self, row: Row, stage: str) -> Path:
        """Where the model is kept as it was at the end of a stage."""
        return self.out / MODELS / f"{row.folder}-{stage.replace(' ', '-')}"

    def _train(self, row: Row, stage: str) -> int:
        """Take a model to the end of a stage, if it is not there yet."""
        kept, run = self.place(row, stage), self._runs[row.name]
        seconds = self.ranks.first(lambda: self._seconds(stage))
        if self.ranks.first(lambda: kept.exists() and read_summary(kept)["seconds_asked"] == seconds):
            return DONE
        steps, there = self.ranks.first(lambda: self._steps(row, stage, seconds))
        if not there:
            self.console.say(f"\n{row.name}, {stage}")
            if pretrain(self._training(row, steps), self.ranks, self.stop) == INTERRUPTED:
                return INTERRUPTED
        self.ranks.first(lambda: self._keep(self.place(row, WINDOWS) if there else run, kept, seconds))
        return DONE

    def _seconds(self, stage: str) -> float | None:
        """How long the models of a stage train: as long as the slowest took for the windows; None: as it takes.

        The slowest of all that are in the folder: an earlier start may have had other rows.
        """
        if stage == WINDOWS:
            return None
        kept = (self.place(row, WINDOWS) for row in BUDGETS[self.config.budget].rows)
        return max(float(read_summary(place)["training_seconds"]) for place in kept if place.exists())

    def _steps(self, row: Row, stage: str, seconds: float | None) -> tuple[int | None, bool]:
        """How far a model is to be trained (None: the budget's epochs), and whether the first stage took it there."""
        if seconds is None:
            windows = self.budget.windows
            return None if windows is None else -(-windows // self.budget.global_batch), False
        summary = read_summary(self.place(row, WINDOWS))
        steps = round(summary["step"] * seconds / summary["training_seconds"])
        return steps, steps <= summary["step"]

    def _training(self, row: Row, steps: int | None) -> PretrainConfig:
        """The settings of a model's pretraining up to so many steps; None: the budget's epochs."""
        config, budget = self.config, self.budget
        limits: dict[str, Any] = {"epochs": budget.epochs}
        if steps is not None:
            limits = {"epochs": _NO_LIMIT, "max_steps": steps, "patience": _NO_LIMIT, "log_every": min(10, steps)}
        train = TrainConfig(
            **limits,
            global_batch=budget.global_batch,
            micro_batch=config.micro_batch,
            learning_rate=row.learning_rate,
            warmup_steps=budget.warmup_steps,
            evaluate_windows=budget.validation_windows,
            plots=False,
            device=config.device,
        )
        return PretrainConfig(
            preset=row.preset, data=str(self.store.path), band=config.band, out=str(self._runs[row.name]),
            seed=config.seed, model=dict(row.model), train=train,
        )  # fmt: skip

    def _keep(self, source: Path, kept: Path, seconds: float | None) -> None:
        """Keep a run's best model and its summary, since the run will go on; or a kept model for the next stage too."""
        summary = json.loads((source / folder.SUMMARY).read_text())
        if summary["best"] is None:
            raise UserError(f"{source}: no evaluation has a finite RMSE; see its metrics.jsonl")
        model = source
        if source.parent.name == RUNS:
            model = source / "checkpoints" / "best"
            summary["training_seconds"] = training_seconds(source, summary)
            summary["store"] = self.store.digest
        shutil.rmtree(self.out / PROBES / kept.name, ignore_errors=True)  # of an earlier model of this place
        with whole_folder(kept, _FULL) as new:
            for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
                shutil.copyfile(model / name, new / name)
            text = json.dumps({**summary, "seconds_asked": seconds}, indent=1)
            (new / folder.SUMMARY).write_text(text + "\n")

    def _probe_config(self, model: Path, out: Path) -> ProbeConfig:
        config, splits = self.config, self.out / SPLITS
        assert config.test is not None
        return ProbeConfig(
            data=str(self.store.path), model=str(model), out=str(out), labels=config.labels, classes=config.classes,
            sizes=config.sizes, test=config.test, seed=config.seed, allow_fewer=config.allow_fewer, band=config.band,
            splits=str(splits) if splits.exists() else None, columns=config.columns, probes=["linear", "logistic"],
            device=config.device, plots=False,
        )  # fmt: skip

    def _probe(self, kept: Path, first: Path) -> None:
        """Probe a kept model; if it still is the one of the `first` stage, as the slowest is, its probes are too."""
        out = self.out / PROBES / kept.name
        if (out / "results.json").exists():
            return
        if kept != first and filecmp.cmp(kept / WEIGHTS_FILE, first / WEIGHTS_FILE, shallow=False):
            with whole_folder(out, _FULL) as new:
                shutil.copytree(self.out / PROBES / first.name, new, dirs_exist_ok=True)
            return
        with self.stop.immediate():
            probe(self._probe_config(kept, out), self._assigned)

    def _probe_untrained(self) -> None:
        """The embeddings of preset S as it is initialised: what a probe makes of light curves without pretraining."""
        like = next((row for row in self.budget.rows if row.name == S), None)
        if like is None:
            return
        kept = self._untrained()
        if not kept.exists():
            torch.manual_seed(self.config.seed)
            with whole_folder(kept, _FULL) as new:
                registry.build(like.preset, **like.model).save_pretrained(new)
        self._probe(kept, kept)

    def _untrained(self) -> Path:
        return self.out / MODELS / UNTRAINED.replace(", ", "-")

    def _report(self) -> list[Path]:
        return write_report(self.out, self.results(), self._runs)

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
            "untrained": {"probes": self._probed(self._untrained())},
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
    """What a kept model has reached: its run's summary.json, and what `_keep` adds to it."""
    summary: dict[str, Any] = json.loads((kept / folder.SUMMARY).read_text())
    return summary


def training_seconds(run: Path, summary: dict[str, Any]) -> float:
    """The time that a run's steps took, without evaluations and checkpoints, by the lines of its metrics."""
    *_, (seconds, line) = training_lines(read_metrics(run))
    return float(seconds * summary["windows_seen"] / line["windows_seen"])  # the last steps may have no line yet
