"""The pretraining loop, read from the top."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from astroco_fast.data.training import StepBatches, TrainingData
from astroco_fast.pretrain.checkpoint import BEST, FORMAT, CheckpointFolder
from astroco_fast.pretrain.config import PretrainConfig, TrainConfig
from astroco_fast.pretrain.distributed import Ranks
from astroco_fast.pretrain.evaluate import evaluate
from astroco_fast.pretrain.exits import DONE, INTERRUPTED, Diverged
from astroco_fast.pretrain.folder import card_notes, write_summary
from astroco_fast.pretrain.log import Log
from astroco_fast.pretrain.records import Stopwatch, describe_skipped, skipped_record, train_record
from astroco_fast.pretrain.signals import StopRequest
from astroco_fast.pretrain.state import Interval, State
from astroco_fast.pretrain.trainer import StepResult, Trainer
from astroco_fast.pretrain.weights import save_weights


@dataclass
class Loop:
    """A run in progress. Every rank takes the same decisions: they follow from sums over all ranks.

    Attributes:
        config: the run's, with its defaults filled in.
        ranks, stop, data, trainer, checkpoints, log: what it works with.
        state: where it stands.
        saved: the checkpoint that holds the state as it is; None if none does.
        rate: the ranks' matrix-multiply rate together, operations per second.
    """

    config: PretrainConfig
    ranks: Ranks
    stop: StopRequest
    data: TrainingData
    trainer: Trainer
    checkpoints: CheckpointFolder
    log: Log
    state: State
    saved: str | None
    rate: float

    def __post_init__(self) -> None:
        self.train, self.out = self.config.train, Path(str(self.config.out))
        self.watch = Stopwatch()
        self.saved_at = time.monotonic()
        self.started = self.saved_at - self.state.seconds

    def run(self) -> int:
        """Steps and evaluations until a limit is reached (`DONE`) or a signal comes (`INTERRUPTED`).

        Raises:
            Diverged: too many steps in a row were not finite.
        """
        self.batches = self.data.steps(self.state.epoch, self.state.position)
        with self.batches:
            while True:
                if self.evaluation_is_due() and not self.evaluate():
                    return self.interrupted()
                if reason := limit_reached(self.state, self.train):
                    return self.finish(reason)
                if not self.step():
                    return self.interrupted()

    def step(self) -> bool:
        """One optimiser step, applied or skipped; False if the run was asked to stop."""
        start = time.perf_counter()
        batches = next(self.batches)
        waited = time.perf_counter() - start
        save_now = self.ranks.is_first and time.monotonic() - self.saved_at > 60 * self.train.checkpoint_minutes
        result = self.trainer.step(
            batches, self.state.step, wishes=[self.stop.requested, save_now], stop=lambda: self.stop.requested
        )
        if result is None:
            return False
        self.count(batches, result)
        self.watch.add(batches, result, waited)
        if self.state.step % self.train.log_every == 0 or batches.is_last:
            self.write_training_line(batches.epoch, result.learning_rate)
        stop, save = result.votes
        if not stop and (save or self.is_multiple(self.train.checkpoint_every)):
            self.save()
        return not stop

    def count(self, batches: StepBatches, result: StepResult) -> None:
        """Note what came of a step, and where the next one begins."""
        state = self.state
        self.saved = None
        state.step += 1
        state.windows_seen += len(batches.windows)
        following = (batches.epoch + 1, 0) if batches.is_last else (batches.epoch, batches.position + 1)
        state.epoch, state.position = following
        self.log.console.advance()
        if result.applied:
            state.bad_in_a_row = 0
            state.interval.add(result.sums, result.loss, result.grad_norm)
            return
        state.bad_in_a_row += 1
        state.bad_steps += 1
        state.interval.skipped += 1
        suspects = [window for found in self.ranks.gather(result.suspects) for window in found]
        record = skipped_record(self.data, state.step, batches, suspects)
        self.log.write(record)
        if state.bad_in_a_row >= self.train.max_bad_steps:
            raise Diverged(
                f"loss or gradient not finite in {state.bad_in_a_row} steps in a row; {describe_skipped(record)}; "
                f"all are in {self.out / 'metrics.jsonl'}; try a lower --train.learning_rate or a --train.clip_norm"
            )

    def evaluate(self, is_extra: bool = False) -> bool:
        """Evaluate on the validation split and save; False if the run was asked to stop meanwhile.

        An extra evaluation, at the end of a run that ends between two regular ones, is not saved in the run's state: if
        the limits are raised and the run goes on, it does so as if it had never ended.
        """
        state, start = self.state, time.monotonic()
        found = evaluate(self.trainer, self.data, self.ranks, lambda: self.stop.requested)
        if found is None:
            return False
        rmse = found["rmse"] if found["rmse"] is not None else math.nan
        is_best = math.isfinite(rmse) and (state.best is None or rmse < state.best["rmse"])
        epoch = state.epoch if state.position else state.epoch - 1
        record = {"step": state.step, "epoch": epoch, "split": "validation", "loss": found["rmse"], **found}
        record |= {"best": is_best}
        state.evaluated_step = state.step
        state.worse = 0 if is_best else state.worse + 1
        if is_best:
            state.best = record
        self.log.write({**record, "seconds": time.monotonic() - start})
        self.watch.resume()
        if not is_extra:
            self.save(is_best)
        elif is_best:
            state.best_checkpoint = self.saved
            self.ranks.first(lambda: self.checkpoints.link(BEST, str(self.saved)))
        return True

    def evaluation_is_due(self) -> bool:
        """Whether the validation split is to be evaluated before the next step."""
        if self.state.step == 0 or self.state.evaluated_step == self.state.step:
            return False
        return (
            self.state.position == 0
            if self.train.evaluate_every is None
            else self.is_multiple(self.train.evaluate_every)
        )

    def is_multiple(self, every: int | None) -> bool:
        """Whether the step is a multiple of a setting that may be unset."""
        return every is not None and self.state.step % every == 0

    def write_training_line(self, epoch: int, learning_rate: float) -> None:
        """Sum up the steps since the last line."""
        record = train_record(self.state, epoch, learning_rate)
        self.log.write({**record, **self.watch.record(self.trainer, self.rate), "seconds": self.seconds()})
        self.state.interval = Interval()
        self.watch.reset()

    def seconds(self) -> float:
        """Time spent in this run, over all its starts."""
        return time.monotonic() - self.started

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint; all ranks wait until it is safe on disk."""
        state = self.state
        name = self.ranks.first(lambda: self.checkpoints.next_name(state.step))
        if is_best:
            state.best_checkpoint = name
        state.seconds = self.seconds()

        def write() -> None:
            state.metrics_bytes = self.log.flushed_size()
            saved = {
                "format": FORMAT,
                "store": self.data.store.digest,
                "ranks": self.ranks.world,
                "state": state.to_dict(),
            }
            self.checkpoints.write(
                name,
                saved,
                lambda folder: save_weights(self.trainer, folder, card_notes(state, self.data)),
                needed=state.best_checkpoint,
            )
            if is_best:
                self.checkpoints.link(BEST, name)

        self.ranks.first(write)
        self.saved_at, self.saved = time.monotonic(), name
        self.watch.resume()

    def interrupted(self) -> int:
        """Save and leave, to go on another time."""
        if self.saved is None:
            self.save()
        self.log.console.say(
            f"Interrupted at step {self.state.step}, everything saved: the same command goes on from here."
        )
        return INTERRUPTED

    def finish(self, reason: str) -> int:
        """The last evaluation, summary.json and the plots."""
        state = self.state
        if state.evaluated_step != state.step:
            if self.saved is None:
                self.save()
            if not self.evaluate(is_extra=True):
                return self.interrupted()
        self.ranks.first(lambda: write_summary(self.out, reason, state, self.data, self.trainer))
        if self.train.plots and self.ranks.is_first:
            self.draw()
        self.log.console.say(f"Finished: {reason}. The best model is {self.out / 'checkpoints' / BEST}.")
        return DONE

    def draw(self) -> None:
        """Plot the run; a run without plots is a finished run all the same."""
        try:
            from astroco_fast.report import plot_run

            plots = plot_run(self.out, data=self.data.store.path)
        except Exception as error:  # of whatever kind, from matplotlib and its back-ends
            self.log.console.say(f"No plots: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            self.log.console.say(f"Plots: {', '.join(map(str, plots))}")


def limit_reached(state: State, train: TrainConfig) -> str | None:
    """Why a run that stands here is finished; None if it is not."""
    if state.worse >= train.patience:
        return f"no better validation RMSE in {state.worse} evaluations"
    if train.epochs is not None and state.epoch > train.epochs:
        return f"{train.epochs} epochs"
    if train.max_steps is not None and state.step >= train.max_steps:
        return f"{train.max_steps} steps"
    return None
