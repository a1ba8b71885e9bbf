"""The training loop, read from the top: `Loop.run` is the loop; what it calls follows, and then the step's two halves.

Every rank takes the same decisions, since they follow from sums over all ranks or from what rank 0 tells the others.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from astroco_fast.data.training import DeviceBatch, StepBatches, TrainingData, upload
from astroco_fast.folders import ResultFolder
from astroco_fast.pretrain import run_folder
from astroco_fast.pretrain.checkpoint import BEST, STATE_FORMAT, CheckpointFolder, Interval, State, save_weights
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.log import Log, Stopwatch, describe_skipped, skipped_record
from astroco_fast.pretrain.ranks import Diverged, Ranks, StopRequest
from astroco_fast.pretrain.step import Outcome, Requests, Trainer
from astroco_fast.pretrain.task import Task
from astroco_fast.pretrain.watch import DONE, INTERRUPTED


@dataclass
class Loop:
    """A run in progress.

    Attributes:
        task: what the run trains for, with its settings.
        ranks, stop, data, trainer, results, checkpoints, log: the parts that the loop works with.
        state: the run's progress.
        saved: the checkpoint that holds exactly this state; None if there is none.
        rate: the matrix-multiply rate of all ranks together, operations per second.
    """

    task: Task[Any]
    ranks: Ranks
    stop: StopRequest
    data: TrainingData
    trainer: Trainer
    results: ResultFolder
    checkpoints: CheckpointFolder
    log: Log
    state: State
    saved: str | None
    rate: float

    def __post_init__(self) -> None:
        self.train, self.out = self.task.config.train, Path(str(self.task.config.out))
        self.watch = Stopwatch()
        self.saved_at = time.monotonic()
        self.started = self.saved_at - self.state.seconds
        # Where the main thread may wait for other ranks while `state` and weights fit together, or nearly.
        self.waits_in: Literal["step", "evaluation"] | None = None
        if self.ranks.watch is not None and self.ranks.is_first:
            self.ranks.watch.rescue = self.rescue

    def run(self) -> int:
        """Take steps and evaluate until a limit is reached (`DONE`) or a signal asks to stop (`INTERRUPTED`).

        Raises:
            Diverged: too many steps in a row were not finite.
        """
        state, trainer, watch = self.state, self.trainer, self.watch
        with self.data.steps(state.epoch, state.position) as stream:
            while True:
                if self.evaluation_is_due() and not self.evaluate():
                    return self.interrupted()
                if reason := limit_reached(state, self.train):
                    return self.finish(reason)

                watch.lap("other")
                batches = next(stream)
                micro_batches = [upload(micro, self.ranks.device) for micro in batches.micro]
                watch.lap("data")
                requests = Requests(stop=self.stop.requested, save=self.save_is_due())
                self.ranks.now(f"step {state.step + 1}")
                self.waits_in = "step"
                outcome = accumulate(trainer, micro_batches, state.step, requests, lambda: self.stop.requested)
                self.waits_in = None
                if outcome is None:
                    return self.interrupted()
                watch.lap("model")
                update(trainer, outcome, state.step)
                watch.lap("optimizer")

                watch.count(len(batches.windows), outcome.points, outcome.attention_pairs, batches.assembly_seconds)
                self.count(batches, outcome)
                if state.step % self.train.log_every == 0 or batches.is_last:
                    self.write_training_line(batches.epoch)
                if outcome.requests.stop:
                    return self.interrupted()
                if outcome.requests.save or self.is_multiple(self.train.checkpoint_every):
                    self.save()

    def evaluation_is_due(self) -> bool:
        """Whether the validation split is to be evaluated before the next step."""
        if self.state.step == 0 or self.state.evaluated_step == self.state.step:
            return False
        return (
            self.state.position == 0
            if self.train.evaluate_every is None
            else self.is_multiple(self.train.evaluate_every)
        )

    def save_is_due(self) -> bool:
        """Whether the time for a checkpoint has come, by the clock of rank 0."""
        return self.ranks.is_first and time.monotonic() - self.saved_at > 60 * self.train.checkpoint_minutes

    def is_multiple(self, every: int | None) -> bool:
        """Whether the step is a multiple of a setting that may be unset."""
        return every is not None and self.state.step % every == 0

    def count(self, batches: StepBatches, outcome: Outcome) -> None:
        """Note that a step was applied or skipped, and where the next one begins."""
        state = self.state
        self.saved = None
        state.step += 1
        state.windows_seen += len(batches.windows)
        following = (batches.epoch + 1, 0) if batches.is_last else (batches.epoch, batches.position + 1)
        state.epoch, state.position = following
        self.log.console.advance()
        if outcome.is_finite:
            state.bad_in_a_row = 0
            state.interval.add(outcome.sums, outcome.loss, outcome.grad_norm)
            return
        state.bad_in_a_row += 1
        state.bad_steps += 1
        state.interval.skipped += 1
        found = self.ranks.gather(self.trainer.suspects(batches.micro))
        record = skipped_record(self.data, state.step, batches, [window for suspects in found for window in suspects])
        self.log.write(record)
        if state.bad_in_a_row >= self.train.max_bad_steps:
            raise Diverged(
                f"loss or gradient not finite in {state.bad_in_a_row} steps in a row; {describe_skipped(record)}; "
                f"all are in {self.out / 'metrics.jsonl'}; try a lower --train.learning_rate or a --train.clip_norm"
            )

    def write_training_line(self, epoch: int) -> None:
        """Write the line of metrics that sums up the steps since the last such line."""
        self.watch.lap("other")
        record = self.task.train_record(self.state, epoch, self.trainer.learning_rate_at(self.state.step - 1))
        self.log.write({**record, **self.watch.record(self.trainer, self.rate), "seconds": self.seconds()})
        self.state.interval = Interval()
        self.watch.reset()

    def evaluate(self, is_extra: bool = False) -> bool:
        """Evaluate on the validation split and save; False if the run was asked to stop meanwhile.

        A run that ends between two regular evaluations has an extra one, which is not saved in the run's state: if the
        limits are raised later, the run goes on as if it had never ended.
        """
        state, start = self.state, time.monotonic()
        self.ranks.now(f"the evaluation after step {state.step}")
        self.waits_in = "evaluation"
        found = self.task.evaluate(self.trainer, self.data, lambda: self.stop.requested)
        self.waits_in = None
        if found is None:
            return False
        loss = found["loss"] if found["loss"] is not None else math.nan
        is_best = math.isfinite(loss) and (state.best is None or loss < state.best["loss"])
        epoch = state.epoch if state.position else state.epoch - 1
        record = {"step": state.step, "epoch": epoch, "split": "validation", **found}
        record |= {"best": is_best}
        state.evaluated_step = state.step
        state.worse = 0 if is_best else state.worse + 1
        if is_best:
            state.best = record
        self.log.write({**record, "seconds": time.monotonic() - start})
        if not is_extra:
            self.save(is_best)
        elif is_best:
            state.best_checkpoint = self.saved
            self.ranks.on_rank_zero(lambda: self.checkpoints.link(BEST, str(self.saved)))
        return True

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint; all ranks wait until it is safe on disk."""
        state = self.state
        self.ranks.now(f"the checkpoint of step {state.step}")
        name = self.ranks.on_rank_zero(lambda: self.checkpoints.next_name(state.step))
        if is_best:
            state.best_checkpoint = name
        state.seconds = self.seconds()
        self.ranks.on_rank_zero(lambda: self.write(name, is_best))
        self.saved_at, self.saved = time.monotonic(), name
        self.watch.skip()

    def write(self, name: str, is_best: bool) -> None:
        """Write a checkpoint of the present state (rank 0)."""
        self.state.metrics_bytes = self.log.flushed_size()
        saved = {
            "format": STATE_FORMAT,
            "store": self.data.store.digest,
            "ranks": self.ranks.world,
            "state": self.state.to_dict(),
        }
        notes = self.task.card_notes(self.state, self.data)
        needed = self.state.best_checkpoint
        self.checkpoints.write(name, saved, lambda folder: save_weights(self.trainer, folder, notes), needed=needed)
        if is_best:
            self.checkpoints.link(BEST, name)
        self.results.note([run_folder.CHECKPOINTS])

    def rescue(self) -> bool:
        """Save without the other ranks (rank 0), from the watch's thread, while the main one waits for a rank that does
        not answer. Returns whether the state is saved.
        """
        if self.waits_in is None:
            return False
        if self.saved is None:
            if self.waits_in == "step":
                self.trainer.undo()
            self.state.seconds = self.seconds()
            self.write(self.checkpoints.next_name(self.state.step), is_best=False)
        return True

    def seconds(self) -> float:
        """The time spent in this run, over all its starts."""
        return time.monotonic() - self.started

    def interrupted(self) -> int:
        """Save and leave, to go on another time."""
        if self.saved is None:
            self.save()
        self.log.console.say(
            f"Interrupted at step {self.state.step}, everything saved: the same command goes on from here."
        )
        return INTERRUPTED

    def finish(self, reason: str) -> int:
        """Evaluate a last time, write summary.json and draw the plots.

        Raises:
            Diverged: no evaluation was finite, or no step was applied.
        """
        state = self.state
        if state.evaluated_step != state.step:
            if self.saved is None:
                self.save()
            if not self.evaluate(is_extra=True):
                return self.interrupted()
        self.ranks.on_rank_zero(lambda: run_folder.write_summary(self.out, reason, state, self.data, self.trainer))
        if self.ranks.is_first and state.best is not None:
            self.report()
        require_best(state.best, state, self.out)
        skipped = f" {state.bad_steps} of {state.step} steps were skipped, since they were not finite." * bool(
            state.bad_steps
        )
        self.log.console.say(f"Finished: {reason}.{skipped} The best model is {self.out / 'checkpoints' / BEST}.")
        return DONE

    def report(self) -> None:
        """Write the run's plots and other results. If that fails, the run is finished all the same."""
        try:
            paths = self.task.report(self.out, self.data)
        except Exception as error:  # matplotlib and its back-ends raise many kinds
            self.log.console.say(f"No plots: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            if paths:
                self.log.console.say(f"Plots: {', '.join(map(str, paths))}")


def accumulate(
    trainer: Trainer, batches: list[DeviceBatch], step: int, requests: Requests, stop: Callable[[], bool]
) -> Outcome | None:
    """Take the gradient of step number `step` (from 0): the step's first half.

    Args:
        trainer: the model to train.
        batches: this rank's micro-batches; every rank has the same number.
        step: the number of steps taken before this one.
        requests: what this rank asks for after the step.
        stop: whether this rank was asked to stop. On CPUs, where a step may take a minute, it is called between
            micro-batches.

    Returns:
        The step's results over all ranks; None if the step was stopped halfway, and has changed nothing.
    """
    trainer.begin(step)
    for i, batch in enumerate(batches):
        if i > 0 and trainer.ranks.device.type == "cpu" and trainer.ranks.any(stop()):
            trainer.undo()
            return None
        trainer.forward_backward(batch, is_last=i == len(batches) - 1)
    return trainer.reduce(requests)


def update(trainer: Trainer, outcome: Outcome, step: int) -> None:
    """Apply the gradient of a step, or undo the step if it is not finite: the step's second half."""
    if outcome.is_finite:
        trainer.apply(outcome.factor, step)
    else:
        trainer.undo()


def limit_reached(state: State, train: TrainConfig) -> str | None:
    """The reason why a run with this progress is finished; None if it is not."""
    if state.worse >= train.patience:
        return f"no lower validation loss in {state.worse} evaluations"
    if train.epochs is not None and state.epoch > train.epochs:
        return f"{train.epochs} epochs"
    if train.max_steps is not None and state.step >= train.max_steps:
        return f"{train.max_steps} steps"
    return None


def require_best(best: dict[str, Any] | None, state: State, out: Path) -> None:
    """Raise `Diverged` if a finished run has learnt nothing: all steps were skipped, or no evaluation was finite."""
    if best is None or state.bad_steps == state.step:
        what = "no evaluation was finite" if best is None else "no step was applied"
        raise Diverged(
            f"{out}: {what}, and {state.bad_steps} of {state.step} steps were skipped, since they were not finite "
            "(metrics.jsonl lists them); try a lower --train.learning_rate in another --out"
        )
