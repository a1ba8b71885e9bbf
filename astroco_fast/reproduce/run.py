"""The engine of experiments: pretrain each row, keep its model, probe it, report; finished parts are skipped."""

import filecmp
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from astroco_fast import presets, registry, settings
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from astroco_fast.files import read_json, remove_partials, whole_folder, write_text
from astroco_fast.folders import ResultFolder, result_folder
from astroco_fast.pretrain import run_folder
from astroco_fast.pretrain.config import PretrainConfig, TrainConfig, differences
from astroco_fast.pretrain.log import Console
from astroco_fast.pretrain.ranks import Diverged, Interrupted, Ranks, StopRequest
from astroco_fast.pretrain.run import pretrain
from astroco_fast.pretrain.watch import DIVERGED, DONE, INTERRUPTED
from astroco_fast.pretrained import WEIGHTS_FILE
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.heads import require_scikit_learn
from astroco_fast.probe.results import TEXTS
from astroco_fast.probe.run import Assigned, assign, probe
from astroco_fast.probe.splits import write_splits
from astroco_fast.reproduce.choices import CHOICES
from astroco_fast.reproduce.config import ReproduceConfig
from astroco_fast.reproduce.cost import expected
from astroco_fast.reproduce.kept import DISK_FULL, MODEL_FILES, MODELS, PROBES, RUNS, KeptModels, read_summary
from astroco_fast.reproduce.paper import FULL, SMALL, S
from astroco_fast.reproduce.plan import STAGES, WINDOWS, Budget, Row
from astroco_fast.reproduce.report import write_report

BUDGETS: Mapping[str, Budget] = {budget.name: budget for budget in (SMALL, FULL, CHOICES)}
CONFIG, SPLITS = "config.yaml", "splits.csv"
_NAMES = (
    *(CONFIG, SPLITS, MODELS, RUNS, PROBES, run_folder.STORE, f"{run_folder.STORE}.partial"),
    *("README.md", "results.json", "results.csv", "figure3.png", "training.png", "choices.png"),
)
FREE = {"out", "models"}  # settings that a later start in the same folder may change ...
PROBED = {"probe", "classes", "labels", "sizes", "test", "allow_fewer"}  # ... and these until stars have been drawn
_NO_LIMIT = 1_000_000


def reproduce(config: ReproduceConfig, ranks: Ranks, stop: StopRequest) -> int:
    """Run `astroco reproduce` to its end, or to a signal.

    Args:
        config: the user's settings.
        ranks: this process's place among the ranks.
        stop: whether a signal asked to stop.

    Returns:
        The exit status: `DONE`; `INTERRUPTED` with everything saved; or `DIVERGED` if a model's
        training diverged, in which case the others are compared without it.

    Raises:
        UserError: bad input or configuration; the same on all ranks.
    """
    console = Console(ranks.is_first)
    config = config.resolve()
    budget = ranks.on_all_ranks(lambda: BUDGETS[config.budget].only(config.models))
    if config.windows is not None:
        budget = replace(budget, windows=config.windows)
    out = Path(str(config.out))
    with ExitStack() as until_the_end:
        ranks.on_rank_zero(lambda: until_the_end.enter_context(_held(out)))
        is_resumed = ranks.on_rank_zero(lambda: _claim(out, config))
        source = PretrainConfig(
            data=config.data, band=config.band, seed=config.seed, columns=config.columns, clean=config.clean
        )
        store = run_folder.open_data(source, out, is_resumed, ranks, console, stop)
        experiment = Experiment(config, budget, out, store, ranks, stop, console)
        try:
            ranks.on_rank_zero(experiment.prepare, is_long=True)
            return experiment.run()
        except Interrupted:
            console.say("Interrupted, everything saved: the same command continues from here.")
            return INTERRUPTED


@contextmanager
def _held(out: Path) -> Iterator[ResultFolder]:
    """Create the folder, and hold it for this comparison alone (rank 0).

    Raises:
        UserError: the folder is a store or holds anything but a comparison, it cannot be created, or is in use.
    """
    if Store.is_store(out):
        raise UserError(f"{out}: a store of light curves is no place for results; choose another --out")
    busy = "another process is writing to it; wait for it, or choose another --out"
    with result_folder(out, "reproduce", busy, _unmarked) as results:
        results.claim(_NAMES)
        yield results


def _unmarked(out: Path) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """What a comparison of an earlier version wrote in a folder; None if there was none."""
    rows = {row.folder for budget in BUDGETS.values() for row in budget.rows}
    began = (out / CONFIG).exists() and any((out / RUNS / row / run_folder.ENVIRONMENT).exists() for row in rows)
    return (_NAMES, ()) if began else None


def _claim(out: Path, config: ReproduceConfig) -> bool:
    """Whether the folder holds this experiment already; False: it is new. Called on rank 0.

    Raises:
        UserError: it holds an experiment with other settings; names them.
    """
    path = out / CONFIG
    if not path.exists():
        return False
    before = settings.read_yaml(path, "put it back, or choose another --out")
    free = FREE if (out / SPLITS).exists() else FREE | PROBED
    changed = sorted({*differences(before, config.to_dict())} - free)
    if changed:
        raise UserError(
            f"{out} holds a comparison with other settings ({', '.join(changed)}); "
            f"to continue it use --config {path}, else choose another --out"
        )
    return True


class Experiment:
    """An experiment in progress. Every rank decides alike, since decisions follow from files that rank 0 reads."""

    def __init__(
        self, config: ReproduceConfig, budget: Budget, out: Path, store: Store, ranks: Ranks, stop: StopRequest,
        console: Console,
    ) -> None:  # fmt: skip
        self.config, self.budget, self.out, self.store = config, budget, out, store
        self.ranks, self.stop, self.console = ranks, stop, console
        self._assigned: Assigned | None = None
        self.models = KeptModels(out, store, console)
        self._runs = {row.name: out / RUNS / row.folder for row in budget.rows}

    def prepare(self) -> None:
        """Check for errors that would occur later, draw the probes' stars, and claim the folder. Called on rank 0."""
        for folder in (self.out / MODELS, self.out / PROBES):
            if folder.is_dir():
                remove_partials(folder)
        for kept in (self.models.place(row, stage) for row in BUDGETS[self.config.budget].rows for stage in STAGES):
            self.models.check(kept)
            if self.models.holds(kept) and read_summary(kept)["store"] != self.store.digest:
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
        """Train all models to the end of each stage, probe and report after each; return the exit status."""
        diverged: list[Row] = []
        if self.config.probe:
            self.ranks.on_rank_zero(self._probe_untrained, is_long=True)
        for stage, row in ((stage, row) for stage in self.budget.stages for row in self.budget.rows):
            if row in diverged:
                continue
            try:
                if self._train(row, stage) == INTERRUPTED:
                    return INTERRUPTED
            except Diverged as error:
                self.console.say(f"{row.name} is left out, since its training diverged: {error}")
                diverged.append(row)
                continue
            if self.config.probe:
                kept, first = self.models.place(row, stage), self.models.place(row, WINDOWS)
                self.ranks.on_rank_zero(partial(self._probe, kept, first), is_long=True)
            self.ranks.on_rank_zero(self._report, is_long=True)
        for path in self.ranks.on_rank_zero(self._report, is_long=True):
            self.console.say(str(path))
        return DIVERGED if diverged else DONE

    def _train(self, row: Row, stage: str) -> int:
        """Train a model to the end of a stage and keep it there, unless that was done."""
        kept, run = self.models.place(row, stage), self._runs[row.name]
        seconds = self.ranks.on_rank_zero(lambda: self._seconds(stage))
        if self.ranks.on_rank_zero(lambda: self.models.holds(kept) and read_summary(kept)["seconds_asked"] == seconds):
            return DONE
        steps, there = self.ranks.on_rank_zero(lambda: self._steps(row, stage, seconds))
        if not there:
            self.console.say(f"\n{row.name}, {stage}")
            if pretrain(self._training(row, steps), self.ranks, self.stop, row.initialise) == INTERRUPTED:
                return INTERRUPTED
        source = self.models.place(row, WINDOWS) if there else run
        self.ranks.on_rank_zero(lambda: self.models.keep(source, kept, seconds, steps, self.budget.epochs))
        return DONE

    def _seconds(self, stage: str) -> float | None:
        """Seconds that every model trains for in a stage; None: as long as its windows take.

        That is the time of the slowest model in the folder, rows of an earlier start included.
        """
        if stage == WINDOWS:
            return None
        kept = (self.models.place(row, WINDOWS) for row in BUDGETS[self.config.budget].rows)
        return max(float(read_summary(place)["training_seconds"]) for place in kept if self.models.holds(place))

    def _steps(self, row: Row, stage: str, seconds: float | None) -> tuple[int | None, bool]:
        """The last step of a model's training (None: the budget's epochs), and whether the first stage reached it."""
        if seconds is None:
            windows = self.budget.windows
            return None if windows is None else -(-windows // self.budget.global_batch), False
        summary = read_summary(self.models.place(row, WINDOWS))
        steps = round(summary["step"] * seconds / summary["training_seconds"])
        return steps, steps <= summary["step"]

    def _training(self, row: Row, steps: int | None) -> PretrainConfig:
        """The settings of a model's pretraining up to a number of steps; None: the budget's epochs."""
        config, budget = self.config, self.budget
        train: dict[str, Any] = {"epochs": budget.epochs}
        if steps is not None:
            train = {"epochs": _NO_LIMIT, "max_steps": steps, "patience": _NO_LIMIT, "log_every": min(10, steps)}
        train |= {
            "global_batch": budget.global_batch,
            "micro_batch": config.micro_batch,
            "warmup_steps": budget.warmup_steps,
            "evaluate_windows": budget.validation_windows,
            "plots": False,
            "device": config.device,
            **row.train,
        }
        return PretrainConfig(
            preset=row.preset, data=str(self.store.path), band=config.band, out=str(self._runs[row.name]),
            seed=config.seed + row.seed, model=dict(row.model), train=TrainConfig(**train),
        )  # fmt: skip

    def _probe_config(self, model: Path, out: Path) -> ProbeConfig:
        config, splits = self.config, self.out / SPLITS
        return ProbeConfig(
            data=str(self.store.path), model=str(model), out=str(out), labels=config.labels, classes=config.classes,
            sizes=config.sizes, test=cast(int, config.test), seeds=self.budget.head_seeds, seed=config.seed,
            allow_fewer=config.allow_fewer, band=config.band, splits=str(splits) if splits.exists() else None,
            columns=config.columns, probes=["linear", "logistic"], logistic_c=1.0, device=config.device,
            plots=False,
        )  # fmt: skip

    def _probe(self, kept: Path, first: Path) -> None:
        """Probe a kept model; if it is still the `first` stage's model, as the slowest is, copy that one's probes."""
        out = self.models.probes(kept)
        if all((out / name).exists() for name in TEXTS):
            return
        if kept != first and filecmp.cmp(kept / WEIGHTS_FILE, first / WEIGHTS_FILE, shallow=False):
            with whole_folder(out, DISK_FULL) as new:
                shutil.copytree(self.models.probes(first), new, dirs_exist_ok=True)
            return
        with self.stop.immediate():
            probe(self._probe_config(kept, out), self._assigned)

    def _probe_untrained(self) -> None:
        """Probe preset S with its initial weights: the embeddings that light curves have without pretraining."""
        like = next((row for row in self.budget.rows if row.name == S), None)
        if like is None:
            return
        kept = self.models.untrained
        self.models.check(kept, MODEL_FILES)
        if not self.models.holds(kept):
            torch.manual_seed(self.config.seed)
            self.models.write(kept, lambda new: registry.build(like.preset, **like.model).save_pretrained(new))
        self._probe(kept, kept)

    def _report(self) -> list[Path]:
        return write_report(self.out, self.results(), self._runs)

    def results(self) -> dict[str, Any]:
        """All results so far, as plain data."""
        settings = {
            key: value for key, value in vars(self.budget).items() if key not in ("rows", "stages", "head_seeds")
        }
        return {
            "budget": settings,
            "settings": self.config.to_dict(),
            "simulated": self.store.simulated,
            "light_curves": self.store.n_curves,
            "store": self.store.digest,
            "environment": run_folder.environment(self.ranks),
            "models": {row.name: self._facts(row) for row in self.budget.rows},
            "untrained": {"probes": self._probed(self.models.untrained)},
        }

    def _facts(self, row: Row) -> dict[str, Any]:
        """A model's settings, and its summary and probes at the end of each stage so far."""
        facts: dict[str, Any] = {
            "preset": row.preset,
            "model": presets.configure(row.preset, row.model).to_dict(),
            "learning_rate": row.train.get("learning_rate") or presets.preset(row.preset).learning_rate,
            "stages": {},
        }
        for stage in STAGES:
            kept = self.models.place(row, stage)
            if self.models.holds(kept):
                facts["stages"][stage] = {**read_summary(kept), "probes": self._probed(kept)}
        return facts

    def _probed(self, kept: Path) -> list[dict[str, Any]]:
        """The probes' results for a kept model, an entry for each probe and size; empty if there are none yet."""
        path = self.models.probes(kept) / TEXTS[0]
        entries: list[dict[str, Any]] = read_json(path)["results"] if path.exists() else []
        return entries
