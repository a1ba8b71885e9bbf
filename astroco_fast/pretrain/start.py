"""From a configuration to a loop that is ready to run: new, or where it was left."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from astroco_fast import presets, registry
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData
from astroco_fast.errors import UserError
from astroco_fast.pretrain import folder
from astroco_fast.pretrain.checkpoint import BEST, FORMAT, CheckpointFolder
from astroco_fast.pretrain.config import PretrainConfig
from astroco_fast.pretrain.distributed import Ranks
from astroco_fast.pretrain.exits import DONE
from astroco_fast.pretrain.flops import matmul_rate
from astroco_fast.pretrain.log import Console, Log
from astroco_fast.pretrain.loop import Loop, limit_reached
from astroco_fast.pretrain.signals import StopRequest
from astroco_fast.pretrain.source import open_data
from astroco_fast.pretrain.state import State
from astroco_fast.pretrain.trainer import Trainer
from astroco_fast.pretrain.weights import load_weights
from astroco_fast.reference.config import ModelConfig

CPU_MICRO_BATCH = 32


def pretrain(
    config: PretrainConfig, ranks: Ranks, stop: StopRequest, initialise: Callable[[nn.Module], None] | None = None
) -> int:
    """Run a configuration to its end, or to a signal.

    Args:
        config: as the user gave it.
        ranks: this process's place among them.
        stop: whether a signal asked to stop.
        initialise: changes the freshly built model's parameters in place, before the first step.

    Returns:
        The exit status: `exits.DONE`, or `exits.INTERRUPTED` with everything saved.

    Raises:
        UserError: bad input or configuration; the same on all ranks.
        Diverged: too many steps in a row were not finite.
    """
    console = Console(ranks.is_first)
    model_config, config = ranks.everywhere(lambda: _resolve(config))
    out = Path(str(config.out))
    with ExitStack() as until_the_end:
        ranks.first(lambda: until_the_end.enter_context(folder.held(out)))
        return _pretrain(config, model_config.window, out, ranks, stop, console, initialise)


def _pretrain(
    config: PretrainConfig,
    window: int,
    out: Path,
    ranks: Ranks,
    stop: StopRequest,
    console: Console,
    initialise: Callable[[nn.Module], None] | None,
) -> int:
    """`pretrain` with the defaults filled in, and the run's folder to itself."""
    train = config.train
    checkpoints = CheckpointFolder(out / "checkpoints", train.keep)
    goes_on = ranks.first(lambda: folder.claim(out, config, checkpoints, console))
    store = open_data(config, out, goes_on, ranks, console, stop)
    data = ranks.everywhere(lambda: _training_data(store, config, window, ranks))
    torch.manual_seed(config.seed)
    model = ranks.everywhere(lambda: _build(config))
    if initialise is not None:
        initialise(model)
    trainer = Trainer(model, train, ranks, config.seed)
    state, saved = resume(checkpoints, trainer, store, ranks, console)
    reason = limit_reached(state, train)
    if reason is not None and ranks.first((out / folder.SUMMARY).exists):
        console.say(f"{out}: this run is finished ({reason}). Raise that limit to go on, or choose another --out.")
        return DONE
    ranks.first(lambda: _point_to_best(checkpoints, state))
    ranks.first(lambda: folder.begin(out, config, ranks))
    _introduce(console, config, data, trainer)
    rate = matmul_rate(ranks.device, torch.bfloat16 if train.precision == "bf16" else torch.float32) * ranks.world
    with ranks.everywhere(lambda: Log(out, console, state.metrics_bytes, state.step, train.tensorboard)) as log:
        console.start(_total_steps(config, data), state.step)
        return Loop(config, ranks, stop, data, trainer, checkpoints, log, state, saved, rate).run()


def _build(config: PretrainConfig) -> nn.Module:
    """The model to train, freshly initialised."""
    model: Any = registry.build(config.preset, **config.model)
    if config.train.recompute:
        if not hasattr(model, "recompute"):
            raise UserError(f"train.recompute: preset {config.preset!r} can't recompute its activations; leave it out")
        model.recompute = True
    return model


def resume(
    checkpoints: CheckpointFolder, trainer: Trainer, store: Store, ranks: Ranks, console: Console
) -> tuple[State, str | None]:
    """Load the newest checkpoint into the trainer; a new run's state, and no name, if there is none.

    Raises:
        UserError: none of the checkpoints is whole, or they are of other data or another model.
    """
    found = ranks.first(checkpoints.newest)
    if found is None:
        return State(), None
    name, saved = found

    def load() -> None:
        if saved.get("format") != FORMAT:
            raise UserError(
                f"{checkpoints.folder / name}: written by another version of astroco_fast; use another --out"
            )
        if saved["store"] != store.digest:
            raise UserError(
                f"{store.path}: not the light curves that {checkpoints.folder.parent} was trained on; use another --out"
            )
        load_weights(trainer, checkpoints.folder / name)

    ranks.everywhere(load)
    state = State.from_dict(saved["state"])

    if saved["ranks"] != ranks.world:
        console.say(
            f"Note: {saved['ranks']} ranks before, {ranks.world} now: the same global batches, but other last bits."
        )
    console.say(f"Going on from {checkpoints.folder / name}: step {state.step}, epoch {state.epoch}.")
    return state, name


def _point_to_best(checkpoints: CheckpointFolder, state: State) -> None:
    """As it was then: an evaluation since, at the end of a shorter run, or a kill may have left it elsewhere."""
    if state.best_checkpoint is not None and (checkpoints.folder / state.best_checkpoint).exists():
        checkpoints.link(BEST, state.best_checkpoint)


def _resolve(config: PretrainConfig) -> tuple[ModelConfig, PretrainConfig]:
    """The model's configuration, and the run's with its defaults filled in."""
    return presets.configure(config.preset, config.model), config.resolve(presets.preset(config.preset).learning_rate)


def _training_data(store: Store, config: PretrainConfig, window: int, ranks: Ranks) -> TrainingData:
    train = config.train
    assert train.global_batch is not None
    return TrainingData(
        store,
        size=window,
        seed=config.seed,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch or (CPU_MICRO_BATCH if ranks.device.type == "cpu" else None),
        band=config.band,
        random_windows=train.windows == "random",
        evaluate_windows=train.evaluate_windows,
        rank=ranks.rank,
        world=ranks.world,
    )


def _introduce(console: Console, config: PretrainConfig, data: TrainingData, trainer: Trainer) -> None:
    ranks, train = trainer.ranks, config.train
    parameters = sum(p.numel() for p in trainer.model.parameters())
    curves = f"{data.store.n_curves:,} {'SIMULATED ' * data.store.simulated}light curves"
    console.say(
        f"Pretraining {config.preset} ({parameters:,} parameters) on {curves}: {len(data.train):,} windows to train, "
        f"{len(data.validation):,} to validate; {train.global_batch} a step, {data.steps_per_epoch} steps an epoch, "
        f"at most {train.epochs} epochs; {ranks.world} rank(s) on {ranks.device.type}, {train.precision}. "
        f"Run folder: {config.out}"
    )


def _total_steps(config: PretrainConfig, data: TrainingData) -> int:
    steps = (config.train.epochs or 0) * data.steps_per_epoch
    return steps if config.train.max_steps is None else min(steps, config.train.max_steps)
