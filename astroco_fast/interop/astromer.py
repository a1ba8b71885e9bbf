"""A stand-in for `ASTROMER.models.SingleBandEncoder` (PyPI astromer, 0.1), without TensorFlow.

    from astroco_fast.interop.astromer import SingleBandEncoder  # in place of: from ASTROMER.models import ...

    model = SingleBandEncoder().from_pretraining("time-small")
    vectors = model.encode(light_curves, oids_list=ids, concatenate=True)

What differs from that package:

- `from_pretraining` takes a model of this package (a released one's name, a folder, hub:NAME/REPOSITORY), or the name
  or folder of Astromer's own weights, read from weights/NAME, where that package keeps them; it downloads none of
  those;
- `encode` takes lists of arrays, not TensorFlow datasets. In that package padding takes part in the attention, since
  its mask adds 1 to the logits; here it does not, so that states of short windows differ;
- light curves come back in the order of their sorted ids, as there; without `oids_list`, in the order of the list;
- `fit` takes lists of (L, 3) arrays, and masks points itself by this package's pretraining, whose checkpoints, metrics
  and early stopping it has; `labels` and `verbose` have no effect.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from astroco_fast.astromer_weights import is_keras, read
from astroco_fast.baselines import Astromer
from astroco_fast.data.convert import convert
from astroco_fast.data.hashing import TRAIN, VALIDATION
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData
from astroco_fast.errors import UserError
from astroco_fast.interop.windows import good_points, window_states
from astroco_fast.pretrain.config import PretrainConfig, TrainConfig
from astroco_fast.pretrain.ranks import Ranks, StopRequest
from astroco_fast.pretrain.run import train
from astroco_fast.pretrain.task import Pretraining
from astroco_fast.pretrain.watch import DONE
from astroco_fast.pretrained import PretrainedEncoder, require_local
from astroco_fast.reference.config import AstromerConfig
from astroco_fast.registry import load

RUN, STORE = "astroco-run", "astroco-store"
_NAMES = ("macho", "macho_a0", "macho_a1", "atlas", "ztfg")
_WEIGHTS = "https://github.com/astromer-science/weights/raw/main"


class SingleBandEncoder:
    """An encoder with the methods of Astromer's `SingleBandEncoder`; a new one is an untrained Astromer of version 1.

    Args:
        num_layers: blocks.
        d_model: width, a multiple of `num_heads`.
        num_heads: attention heads.
        dff: the feed-forward's hidden width.
        base: base of the sinusoids' frequencies.
        dropout: probability.
        maxlen: points of a window.
        batch_size: not used; `encode` has its own.

    Attributes:
        model: the encoder, in evaluation mode.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(
        self,
        num_layers: int = 2,
        d_model: int = 200,
        num_heads: int = 2,
        dff: int = 256,
        base: float = 10000,
        dropout: float = 0.1,
        maxlen: int = 100,
        batch_size: int | None = None,
    ) -> None:
        config = AstromerConfig(
            width=d_model, heads=num_heads, layers=num_layers, feed_forward=dff, dropout=dropout, window=maxlen,
            time_base=base, leak=False, mask_logit=1.0, mask_queries=True, hidden_magnitude="shown",
        )  # fmt: skip
        self.model: PretrainedEncoder = Astromer(config).eval()
        self.maxlen = maxlen

    def from_pretraining(self, name: str = "time-small") -> "SingleBandEncoder":
        """Another encoder with trained weights.

        Args:
            name: a model of this package, or Astromer's own weights: a folder, or a name in the folder `weights`.

        Raises:
            UserError: there is no such model.
        """
        found = type(self)()
        found.load_weights(Path("weights") / name if is_keras(Path("weights") / name) else name)
        return found

    def load_weights(self, weights_folder: str | Path) -> None:
        """Take the model of a folder or name, as for `from_pretraining`.

        Raises:
            UserError: there is no such model.
        """
        source = str(weights_folder)
        if is_keras(source):
            self.model = read(source)
        else:
            if source in _NAMES and not Path(source).is_dir():
                remote = f"{_WEIGHTS}/{source}.zip"
                raise UserError(f"{source}: Astromer's weights are not here: unpack {remote} into weights/{source}")
            require_local(source)
            self.model = load(source)
        self.maxlen = self.model.config.window

    def encode(
        self,
        dataset: Sequence[Any],
        oids_list: Sequence[Any] | None = None,
        labels: Sequence[Any] | None = None,
        batch_size: int = 1,
        concatenate: bool = True,
    ) -> list[NDArray[np.float32]]:
        """The states of light curves.

        Args:
            dataset: light curves (L, 3): time (days), magnitude, uncertainty.
            oids_list: their ids. Light curves of one id are joined, in the order of the list.
            labels: not used.
            batch_size: windows in a forward pass.
            concatenate: join the windows of a light curve.

        Returns:
            With `concatenate`, one array (L, D) an id, a row for each good point in the order of time; else arrays
            (at most `batch_size`, maxlen, D) of windows, zero at padding.

        Raises:
            UserError: the dataset is no list of light curves, there is not one id for each, or the model sees folded
                light curves.
        """
        curves = _curves(dataset, "dataset")
        if oids_list is not None and len(oids_list) != len(curves):
            raise UserError(f"oids_list: {len(oids_list)} ids for {len(curves)} light curves")
        found = [window_states(self.model, points, self.maxlen, batch_size) for points in curves]
        if not concatenate:
            windows = np.concatenate([states.sequence for states in found])
            return [windows[first : first + batch_size] for first in range(0, len(windows), batch_size)]
        joined: dict[str, list[NDArray[np.float32]]] = {}
        for i, states in enumerate(found):
            real = np.arange(self.maxlen) < states.lengths[:, None]
            name = f"{i:09d}" if oids_list is None else str(oids_list[i])
            joined.setdefault(name, []).append(states.sequence[real])
        return [np.concatenate(joined[name]) for name in sorted(joined)]

    def fit(
        self,
        train_batches: Sequence[Any],
        valid_batches: Sequence[Any],
        epochs: int = 2,
        patience: int = 40,
        lr: float = 1e-3,
        project_path: str | Path = ".",
        verbose: int = 0,
    ) -> None:
        """Train the model further by masked reconstruction, and keep the weights of the best evaluation.

        Args:
            train_batches, valid_batches: light curves (L, 3) to train on, and to evaluate on after each epoch.
            epochs: the most passes over the light curves.
            patience: stop after so many evaluations in a row without a better one.
            lr: the learning rate.
            project_path: a folder for the run, `astroco-run`, which must not exist yet.
            verbose: not used; the run prints a line for each evaluation.

        Raises:
            UserError: the light curves cannot be used, or the run's folder exists.
        """
        place = Path(project_path)
        if (place / RUN).exists() or (place / STORE).exists():
            raise UserError(f"{place}: holds an earlier run ({RUN}, {STORE}); choose another project_path")
        parts = [_curves(train_batches, "train_batches"), _curves(valid_batches, "valid_batches")]
        place.mkdir(parents=True, exist_ok=True)
        print(convert([curve for part in parts for curve in part], place / STORE))
        settings = TrainConfig(epochs=epochs, patience=patience, learning_rate=lr, global_batch=32, plots=False)
        preset = "astromer-v1" if isinstance(self.model, Astromer) else "tiny"
        own = self.model.config.to_dict()
        config = PretrainConfig(
            preset, str(place / STORE), views="time", out=str(place / RUN), model=own, train=settings
        )
        weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        with StopRequest() as stop:
            status = train(
                lambda: _Given(config, len(parts[0]), lambda model: _copy(model, weights)), Ranks.start("cpu"), stop
            )
        if status != DONE:
            raise KeyboardInterrupt
        self.model = load(place / RUN / "checkpoints" / "best")


class _Given(Pretraining):
    """Pretraining whose first `count` light curves train, and whose others validate."""

    def __init__(self, config: PretrainConfig, count: int, initialise: Any) -> None:
        super().__init__(config, initialise)
        self._count = count

    def data(self, store: Store, ranks: Ranks, **settings: Any) -> TrainingData:
        """The windows, in the parts that were given."""
        # The ids are the places in the list.
        parts = [TRAIN if int(place) < self._count else VALIDATION for place in store.ids]
        return super().data(store, ranks, parts=np.array(parts, dtype=np.int8), **settings)


def _copy(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(weights)


def _curves(dataset: Any, what: str) -> list[NDArray[np.float64]]:
    """The good points of each light curve of a list.

    Raises:
        UserError: it is no list of light curves, or empty.
    """
    if not isinstance(dataset, (list, tuple)) or not len(dataset):
        raise UserError(f"{what}: a list of (L, 3) arrays is needed, not {type(dataset).__name__} without light curves")
    return [good_points(curve, f"{what}[{i}]") for i, curve in enumerate(dataset)]
