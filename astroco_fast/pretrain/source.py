"""From what the user gave to an open store: as it is, converted, or simulated. Rank 0 works, the others wait."""

from pathlib import Path

from astroco_fast.data.store import Store
from astroco_fast.data.training import make_store
from astroco_fast.pretrain.config import PretrainConfig
from astroco_fast.pretrain.distributed import Ranks
from astroco_fast.pretrain.log import Console
from astroco_fast.pretrain.signals import StopRequest


def open_data(
    config: PretrainConfig, folder: Path, goes_on: bool, ranks: Ranks, console: Console, stop: StopRequest
) -> Store:
    """The store of the run's light curves; one made here is kept in `folder`/store.

    Args:
        config, ranks, console, stop: of the run.
        folder: the run's.
        goes_on: whether the run has begun already, and so has its store.

    Raises:
        UserError: the data cannot be read; the same on all ranks.
        Interrupted: a signal came while rank 0 converted.
    """

    def prepare() -> Path:
        with stop.immediate():
            if goes_on and Store.is_store(folder / "store") and not Store.is_store(config.data or ""):
                return folder / "store"
            return make_store(
                config.data,
                folder / "store",
                seed=config.seed,
                columns=config.columns,
                band=config.band,
                clean=config.clean,
                say=console.say,
                progress=console.speaks,
            )

    path = ranks.first(prepare, is_long=True)
    return ranks.everywhere(lambda: Store.open(path, verify=ranks.is_first), is_long=True)
