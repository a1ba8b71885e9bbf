"""An encoder in the form of `light_curve.embed` (the package light-curve, 0.13): `model(time, mag, err)`.

What differs from that package's models:

- a model is given the uncertainties, too;
- `output="mean"` is the mean over all points of a light curve, as `model.embed` computes it, where light-curve takes
  the mean of its windows' means, so that a short last window counts as much as a full one;
- `output="sequence"` keeps the windows apart along the second axis, where light-curve averages them by position;
- points that are not finite, or whose uncertainty is not positive, are left out; a light curve without a good point is
  a `UserError`.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astroco_fast.errors import UserError
from astroco_fast.interop.windows import States, good_points, window_states
from astroco_fast.pretrained import PretrainedEncoder
from astroco_fast.registry import load

Output = Literal["mean", "max", "sequence"]
Reduction = Literal["non-overlapping-windows", "beginning", "middle", "end"]


class AstroCo:
    """An encoder of single-band light curves with the call and output of light-curve's embedding models.

    Args:
        model: an encoder, or what `astroco_fast.load` takes.
        output: mean or max over the points, or sequence, the state of each point. A model that sees folded light curves
            gives the mean alone.
        bands: labels of bands to embed one by one, in this order; None: the light curve is of one band.
        reduction: non-overlapping-windows: the whole light curve; beginning, middle, end: only as many points as fill a
            window.

    Raises:
        UserError: there is no such model, output or reduction.

    Examples:
        >>> from astroco_fast.interop.light_curve import AstroCo
        >>> model = AstroCo.from_hf("time-small", output="mean")
        >>> model(time, mag, err).squeeze()  # (D,)
    """

    model_outputs = frozenset(get_args(Output))

    def __init__(
        self,
        model: PretrainedEncoder | str,
        *,
        output: Output = "mean",
        bands: Sequence[str | int] | None = None,
        reduction: Reduction = "non-overlapping-windows",
    ) -> None:
        for name, value, known in (("output", output, get_args(Output)), ("reduction", reduction, get_args(Reduction))):
            if value not in known:
                raise UserError(f"{name}: no {name} {value!r}; there are: {', '.join(known)}")
        self.model = (model if isinstance(model, PretrainedEncoder) else load(model)).eval()
        if output != "mean" and self.model.views != "time":
            raise UserError(f"output: a model of the view {self.model.views} gives the mean alone, not {output}")
        self.output, self.bands, self.reduction = output, bands, reduction
        self.seq_size = self.model.config.window

    @classmethod
    def from_hf(cls, model: str = "time-small", output: Output = "mean", **settings: Any) -> "AstroCo":
        """A released model, a folder, or a repository of the Hub; other arguments are those of the class."""
        return cls(model, output=output, **settings)

    def __call__(
        self, time: ArrayLike, mag: ArrayLike, err: ArrayLike, band: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Embed a light curve.

        Args:
            time, mag, err: (n,) days, magnitudes and their uncertainties.
            band: (n,) labels, if and only if the model was given `bands`.

        Returns:
            (n_bands, n_windows, n_points, D) float32. For mean and max, the second and third axis have length 1; for
            sequence, they are the windows and their points, zero at padding.

        Raises:
            UserError: the arrays are no light curve, or a band has no good point.
        """
        if (band is None) != (self.bands is None):
            raise UserError(f"band: give labels if and only if the model was given bands ({self.bands})")
        points = np.column_stack([np.asarray(values, dtype=np.float64) for values in (time, mag, err)])
        if self.bands is None:
            return self._embed(points, "light curve")[None]
        labels = np.asarray(band)
        return np.stack([self._embed(points[labels == name], f"band {name!r}") for name in self.bands])

    def _embed(self, points: NDArray[np.float64], what: str) -> NDArray[np.float32]:
        """(n_windows, n_points, D) of one band."""
        points = self._reduced(good_points(points, what))
        if self.output == "mean":
            part = "time_mean" if self.model.views == "time" else "folded_mean"
            (vector,) = self.model.embed([points], parts=[part], precision="fp32")
            return np.asarray(vector, dtype=np.float32)[None, None]
        states: States = window_states(self.model, points, self.seq_size)
        if self.output == "sequence":
            return states.sequence
        real = np.arange(self.seq_size) < states.lengths[:, None]
        return states.sequence[real].max(0)[None, None]

    def _reduced(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The points (n, 3) that the reduction keeps."""
        n, size = len(points), self.seq_size
        if n <= size or self.reduction == "non-overlapping-windows":
            return points
        first = {"beginning": 0, "middle": min(n // 2 - size // 2, n - size), "end": n - size}[self.reduction]
        return points[max(0, first) :][:size]
