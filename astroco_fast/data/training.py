"""Training data: a store's training and validation windows, and each rank's share of every step.

Which windows a step takes is a function of (seed, epoch, position in the epoch) alone, so that a run that was stopped
goes on with the same windows, on any number of ranks.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astroco_fast.data.batches import Batch, Prefetcher, WindowBatches, prefetch
from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.columns import Columns
from astroco_fast.data.convert import convert
from astroco_fast.data.copies import to_device
from astroco_fast.data.hashing import TEST, TRAIN, VALIDATION, split_of
from astroco_fast.data.masking import EVALUATION_EPOCH, HIDDEN
from astroco_fast.data.simulate import simulate_survey
from astroco_fast.data.store import Store
from astroco_fast.data.views import Views
from astroco_fast.data.windows import epoch_order, view_table
from astroco_fast.errors import UserError

Indices = NDArray[np.int64]
EMPTY = -1  # a slot without a window
SIMULATED_STARS = 2000


def make_store(
    data: str | None,
    out: Path,
    *,
    seed: int,
    columns: Columns,
    band: str | None,
    clean: CleanConfig,
    say: Callable[[str], None],
    progress: bool,
) -> Path:
    """The folder of the store to train on: `data` itself if it is a store, else `out`, converted or simulated.

    Args:
        data: path of a store, or of whatever `convert` takes; None: simulate a survey of `SIMULATED_STARS` stars.
        out: where a store made here is written.
        seed: the simulated survey's seed.
        columns, band, clean: the arguments of `convert` with these names.
        say: prints a line for the user.
        progress: show a progress bar, on a terminal.

    Raises:
        UserError: the data cannot be read or converted.
    """
    if data is not None and Store.is_store(data):
        return Path(data)
    if data is None:
        say(f"No --data given: simulating a survey of {SIMULATED_STARS} stars.")
        curves = simulate_survey(SIMULATED_STARS, seed)
        provenance = {"simulated": True, "stars": SIMULATED_STARS, "seed": seed}
        convert(curves, out, columns=columns, band=band, clean=clean, provenance=provenance)
        return out
    say(str(convert(data, out, columns=columns, band=band, clean=clean, progress=progress)))
    return out


@dataclass(frozen=True)
class StepBatches:
    """One optimiser step's windows.

    Attributes:
        epoch: the epoch, from 1.
        position: the place of this global batch in its epoch, from 0.
        is_last: whether it is the epoch's last.
        windows: (n,) the global batch, as places in the table of windows.
        micro: this rank's share, a `Batch` for each forward pass; every rank has the same number.
        assembly_seconds: processor time that assembling them took.
    """

    epoch: int
    position: int
    is_last: bool
    windows: Indices
    micro: list[Batch]
    assembly_seconds: float


def micro_batches(windows: Indices, rank: int, world: int, size: int | None) -> list[Indices]:
    """A rank's share of a global batch, cut into pieces of nearly equal lengths, of at most `size` (None: one piece).

    Every rank gets the same number of pieces with the same lengths. Ranks that are a window short have an `EMPTY` slot.
    """
    slots = -(-len(windows) // world)
    share = np.full(slots, EMPTY, dtype=np.int64)
    mine = windows[rank::world]
    share[: len(mine)] = mine
    return np.array_split(share, -(-slots // (size or slots)))


class TrainingData:
    """The training and validation windows of a store."""

    def __init__(
        self,
        store: Store,
        *,
        size: int,
        seed: int,
        global_batch: int,
        micro_batch: int | None,
        band: str | None = None,
        views: Views = "time",
        random_windows: bool = False,
        evaluate_windows: int | None = None,
        curves: NDArray[np.bool_] | None = None,
        masked: bool = True,
        parts: NDArray[np.int8] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Cut a store into windows, and split them by star.

        Args:
            store: the light curves.
            size: T, points of a window.
            views: the views of the windows, as for `view_table`.
            seed, global_batch, micro_batch, band, evaluate_windows: the settings of these names.
            random_windows: redraw where training windows begin in each epoch.
            curves: (n,) the light curves to use; None: all.
            masked: whether points of the windows are hidden and changed, to be reconstructed.
            parts: (n,) the light curves' parts, `TRAIN`, `VALIDATION` or `TEST`; None: as the stars' hashes say.
            rank, world: this rank, and the number of ranks.

        Raises:
            UserError: the store has no curve of that band, or no periods where `views` needs them, or a split is left
                without a window.
        """
        self.store = store
        periods = store.periods
        if periods is None and views != "time":
            raise UserError(f"{store.path}: has no periods; the folded view needs them: astroco periods {store.path}")
        periodic = np.zeros(store.n_curves, dtype=bool) if periods is None else periods.found
        self.table = view_table(store.offsets, size, views, periodic)
        split = (split_of(store.star_hash) if parts is None else parts)[self.table.curve]
        chosen_curves = self._of_band(band) & (True if curves is None else curves)
        chosen = chosen_curves[self.table.curve]
        self.train = np.flatnonzero((split == TRAIN) & chosen)
        self.validation = np.flatnonzero((split == VALIDATION) & chosen)
        self.test = np.flatnonzero((split == TEST) & chosen)
        for name, windows in (("training", self.train), ("validation", self.validation)):
            if len(windows) == 0:
                raise UserError(
                    f"{store.path}: no star of {np.count_nonzero(chosen_curves)} light curves falls into the {name} "
                    "part (80/10/10 % by the star's id); give data of more stars"
                )
        if evaluate_windows is not None:
            order = epoch_order(len(self.validation), seed, 0)
            self.validation = np.sort(self.validation[order[:evaluate_windows]])
        self.seed, self.global_batch, self.micro_batch = seed, global_batch, micro_batch
        self.rank, self.world, self._masked = rank, world, masked
        self._sequential = WindowBatches(store, self.table, size, seed, periods=periods)
        self._training = WindowBatches(store, self.table, size, seed, random=random_windows, periods=periods)

    @property
    def steps_per_epoch(self) -> int:
        """The number of global batches in an epoch, the short last one included."""
        return -(-len(self.train) // self.global_batch)

    def steps(self, epoch: int, position: int) -> Prefetcher[StepBatches]:
        """Endless steps from a place in an epoch on, assembled ahead of their use by a thread."""
        return prefetch(self._places(epoch, position), lambda place: self._assemble(*place))

    def _places(self, epoch: int, position: int) -> Iterator[tuple[int, int, Indices]]:
        while True:
            windows = self.train[epoch_order(len(self.train), self.seed, epoch)]
            for place in range(position, self.steps_per_epoch):
                yield epoch, place, windows[place * self.global_batch : (place + 1) * self.global_batch]
            epoch, position = epoch + 1, 0

    def _assemble(self, epoch: int, position: int, windows: Indices) -> StepBatches:
        start = time.thread_time()
        micro = [
            self._shown(self._training.assemble(indices, epoch))
            for indices in micro_batches(windows, self.rank, self.world, self.micro_batch)
        ]
        is_last = position == self.steps_per_epoch - 1
        return StepBatches(epoch, position, is_last, windows, micro, time.thread_time() - start)

    def evaluation(self) -> Prefetcher[Batch]:
        """This rank's share of the validation windows, with evaluation's masks.

        Every rank has the same number of batches.
        """
        size = self.micro_batch or 256
        pieces = micro_batches(self.validation, self.rank, self.world, size)
        return prefetch(pieces, self.evaluation_batch)

    def evaluation_batch(self, windows: Indices) -> Batch:
        """These windows of the table with evaluation's masks."""
        return self._shown(self._sequential.assemble(windows, EVALUATION_EPOCH))

    def _shown(self, batch: Batch) -> Batch:
        """The batch, without its masks if there are to be none."""
        return batch if self._masked else replace(batch, mag=batch.target, role=np.zeros_like(batch.role))

    def curves_of(self, windows: Indices | list[int]) -> list[str]:
        """The ids of the light curves that these windows come from."""
        curves = self.table.curve[np.asarray(windows, dtype=np.int64)].astype(np.int64)
        return [str(star) for star in self.store.words("id", curves)]

    def _of_band(self, band: str | None) -> NDArray[np.bool_]:
        if band is None:
            return np.ones(self.store.n_curves, dtype=bool)
        bands = np.asarray(self.store.bands)
        if not (bands == band).any():
            found = ", ".join(sorted({str(name) or "(unknown)" for name in bands})[:20])
            raise UserError(f"{self.store.path}: no light curve in band {band!r}; bands found: {found}")
        return bands == band


@dataclass(frozen=True)
class DeviceBatch:
    """A `Batch` as tensors on the device, but `lengths`, which the model takes on the CPU, and `index` are there."""

    time: Tensor
    mag: Tensor
    err: Tensor
    target: Tensor
    role: Tensor
    lengths: Tensor
    index: Tensor

    def inputs(self) -> tuple[tuple[Tensor, ...], dict[str, object]]:
        """The model's positional and keyword arguments."""
        keywords = {"hidden": self.role == HIDDEN, "centered": True, "lengths": self.lengths}
        return (self.time, self.mag, self.err), keywords


def upload(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch to the device, without waiting for the copy to end."""
    return DeviceBatch(
        time=to_device(batch.time, device),
        mag=to_device(batch.mag, device),
        err=to_device(batch.err, device),
        target=to_device(batch.target, device),
        role=to_device(batch.role, device),
        lengths=torch.from_numpy(batch.lengths),
        index=torch.from_numpy(batch.index),
    )
