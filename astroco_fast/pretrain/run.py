"""A training run, set up: its folder, data, model and trainer are made, or loaded to go on; then `loop.py` trains."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from astroco_fast.flops import matmul_rate
from astroco_fast.pretrain import run_folder
from astroco_fast.pretrain.checkpoint import STATE_FORMAT, CheckpointFolder, State, load_weights
from astroco_fast.pretrain.config import PretrainConfig
from astroco_fast.pretrain.log import Console, Log
from astroco_fast.pretrain.loop import Loop, limit_reached, require_best
from astroco_fast.pretrain.ranks import Ranks, StopRequest
from astroco_fast.pretrain.step import Trainer
from astroco_fast.pretrain.task import Pretraining, Task
from astroco_fast.pretrain.watch import DONE


def pretrain(
    config: PretrainConfig, ranks: Ranks, stop: StopRequest, initialise: Callable[[nn.Module], None] | None = None
) -> int:
    """Pretrain a model to its end, or until a signal asks to stop.

    Args:
        config: the settings as the user gave them.
        ranks, stop: as for `train`.
        initialise: changes the freshly built model's parameters in place, before the first step.

    Returns:
        The exit status, as of `train`, whose errors it raises, too.
    """
    return train(lambda: Pretraining(config, initialise), ranks, stop)


def train(make_task: Callable[[], Task[Any]], ranks: Ranks, stop: StopRequest) -> int:
    """Run a task to its end, or until a signal asks to stop.

    Args:
        make_task: makes the task, or raises `UserError` if its settings are wrong.
        ranks: this process's place among the ranks.
        stop: whether a signal has asked to stop.

    Returns:
        The exit status: `DONE`, or `INTERRUPTED` with everything saved.

    Raises:
        UserError: bad input or configuration; the same on all ranks.
        Diverged: too many steps in a row were not finite.
    """
    console = Console(ranks.is_first)
    task = ranks.on_all_ranks(make_task)
    config = task.config
    out, settings = Path(str(config.out)), config.train
    checkpoints = CheckpointFolder(out / run_folder.CHECKPOINTS, settings.keep)
    with ExitStack() as stack:
        results = ranks.on_rank_zero(lambda: stack.enter_context(run_folder.held(out, task.command)))
        is_resumed = ranks.on_rank_zero(lambda: run_folder.claim(results, config, checkpoints, console))
        if not is_resumed:
            ranks.on_all_ranks(task.prepare)
        store = run_folder.open_data(config, out, is_resumed, ranks, console, stop)
        data = ranks.on_all_ranks(lambda: task.data(store, ranks))
        torch.manual_seed(config.seed)
        model = ranks.on_all_ranks(lambda: task.build(data))
        if not is_resumed:
            ranks.on_all_ranks(lambda: task.start(model, data))
        trainer = Trainer(model, settings, ranks, config.seed, task.objective(data))
        state, saved = resume(checkpoints, trainer, store, ranks, console)
        if (reason := limit_reached(state, settings)) and ranks.on_rank_zero((out / run_folder.SUMMARY).exists):
            console.say(f"{out}: this run is finished ({reason}). Raise that limit to go on, or choose another --out.")
            require_best(ranks.on_rank_zero(lambda: run_folder.read_best(out)), state, out)
            return DONE
        # A kill, or an evaluation at the end of a shorter run, may have left `best` elsewhere than the state says.
        ranks.on_rank_zero(lambda: checkpoints.reset_best(state.best_checkpoint))
        ranks.on_rank_zero(lambda: run_folder.begin(out, config, ranks))
        console.say(task.introduction(data, trainer))
        kind = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        rate = matmul_rate(ranks.device, kind) * ranks.world
        log = ranks.on_all_ranks(lambda: Log(out, console, state.metrics_bytes, state.step, settings.tensorboard))
        stack.enter_context(log)
        console.start(settings.total_steps(data.steps_per_epoch), state.step)
        return Loop(task, ranks, stop, data, trainer, results, checkpoints, log, state, saved, rate).run()


def resume(
    checkpoints: CheckpointFolder, trainer: Trainer, store: Store, ranks: Ranks, console: Console
) -> tuple[State, str | None]:
    """Load the checkpoint to resume from, if there is one, into the trainer.

    Returns:
        The state and the checkpoint's name; a new run's state and None if there is no checkpoint.

    Raises:
        UserError: all checkpoints are damaged, or the checkpoint belongs to other data or another model.
    """
    found = ranks.on_rank_zero(checkpoints.to_resume)
    if found is None:
        return State(), None
    name, saved = found

    def load() -> None:
        if saved.get("format") != STATE_FORMAT or not {"store", "ranks", "state"} <= saved.keys():
            raise UserError(
                f"{checkpoints.folder / name}: written by another version of astroco_fast; use another --out"
            )
        if saved.get("store") != store.digest:
            raise UserError(
                f"{store.path}: not the light curves that {checkpoints.folder.parent} was trained on; use another --out"
            )
        load_weights(trainer, checkpoints.folder / name)

    ranks.on_all_ranks(load)
    state = ranks.on_all_ranks(lambda: State.from_dict(saved.get("state")))
    if saved.get("ranks") != ranks.world:
        console.say(
            f"Note: {saved.get('ranks')} ranks before, {ranks.world} now: the global batches are the same, "
            "but results differ in the last bits."
        )
    console.say(f"Going on from {checkpoints.folder / name}: step {state.step}, epoch {state.epoch}.")
    return state, name
