"""`LightCurveEncoder`: a frozen encoder as a scikit-learn transformer, from light curves to vectors."""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from astroco_fast.errors import MissingExtraError, UserError

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError:
    raise MissingExtraError("scikit-learn", "probe", "LightCurveEncoder") from None

from astroco_fast.data.arrays import is_array
from astroco_fast.embedding import embed, layout
from astroco_fast.pretrained import PretrainedEncoder
from astroco_fast.probe.heads import medians
from astroco_fast.registry import load

Short = Literal["nan", "median", "error"]


class LightCurveEncoder(TransformerMixin, BaseEstimator):
    """A transformer from light curves to the vectors of a frozen encoder, for pipelines and cross-validation.

    Its samples are a list of n arrays (L, 3), one a light curve: time (days), magnitude, uncertainty (magnitudes).
    `fit` loads the model and, for `short="median"`, learns the medians; the encoder itself is never trained.

    Args:
        model: the name of a released model (`astroco models` lists them), the folder of saved weights,
            hub:NAME/REPOSITORY, or an encoder in memory, which `clone` copies.
        parts: the vector's parts, as for `astroco embed`; None: those of the views that the model was pretrained on.
        short: what becomes of a light curve with too few good points, or whose vector is not finite. nan: a row of NaN,
            which most classifiers refuse, so that `SimpleImputer` or the like has to follow; median: the medians of the
            vectors that `fit` saw; error: a `UserError`. A warning counts such light curves in each case.
        min_points: light curves with fewer good points have too few.
        batch_size: windows in a forward pass.
        precision: fp32, bf16, int8; auto takes bf16 where the processor multiplies it in hardware.

    Attributes:
        encoder_: the model.
        n_features_out_: D, the numbers of a vector.
        medians_: (D,) float32, with `short="median"` only.

    Raises:
        UserError: there is no such model or part, `short` is no such policy, or the samples are no light curves.

    Examples:
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> classifier = make_pipeline(
        ...     LightCurveEncoder("fold-small", short="median"), StandardScaler(), LogisticRegression(max_iter=1000)
        ... )
        >>> classifier.fit(curves, labels).predict_proba(others)
    """

    def __init__(
        self,
        model: Any = "fold-small",
        *,
        parts: list[str] | None = None,
        short: Short = "nan",
        min_points: int = 1,
        batch_size: int = 256,
        precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    ) -> None:
        self.model = model
        self.parts = parts
        self.short = short
        self.min_points = min_points
        self.batch_size = batch_size
        self.precision = precision

    def fit(self, X: Any, y: Any = None) -> "LightCurveEncoder":  # scikit-learn's name
        """Load the model and, for `short="median"`, learn the medians.

        Args:
            X: n light curves, arrays (L, 3).
            y: not used.
        """
        self._fit(X)
        return self

    def fit_transform(self, X: Any, y: Any = None, **_: Any) -> NDArray[np.float32]:
        """Fit, and transform the same light curves, which are embedded once. Arguments as of `fit`; returns (n, D)."""
        vectors = self._fit(X)
        return self._filled(self._embed(X) if vectors is None else vectors)

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The vectors (n, D) float32 of n light curves; row i is that of curve i.

        Args:
            X: n light curves, arrays (L, 3).
        """
        check_is_fitted(self, "encoder_")
        return self._filled(self._embed(X))

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """The names (D,) of a vector's numbers: the part and the place in it, as in folded_mean_0.

        Args:
            input_features: not used; the samples have no columns.
        """
        check_is_fitted(self, "encoder_")
        places = layout(self.encoder_, self.parts).items()
        return np.array([f"{part}_{i}" for part, at in places for i in range(at.stop - at.start)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # the samples are light curves of different lengths
        tags.input_tags.allow_nan = True  # NaN in a light curve is a point that is not good
        tags.no_validation = True
        return tags

    def _fit(self, X: Any) -> NDArray[np.float32] | None:
        """Fit; the vectors if the medians needed them."""
        if self.short not in get_args(Short):
            raise UserError(f"short: no policy {self.short!r}; there are: {', '.join(get_args(Short))}")
        model = self.model if isinstance(self.model, PretrainedEncoder) else load(self.model)
        self.n_features_out_ = max(part.stop for part in layout(model, self.parts).values())
        self.encoder_ = model
        if self.short != "median":
            return None
        vectors = self._embed(X)
        self.medians_ = medians(vectors)
        return vectors

    def _embed(self, X: Any) -> NDArray[np.float32]:
        curves = _curves(X)
        vectors: NDArray[np.float32] = embed(
            self.encoder_,
            curves,
            batch_size=self.batch_size,
            min_points=self.min_points,
            parts=self.parts,
            precision=self.precision,
        )
        return vectors

    def _filled(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vectors with what the policy puts in place of rows of NaN."""
        missing = np.asarray(np.isnan(vectors).any(1))
        if self.short == "nan" or not missing.any():
            return vectors
        if self.short == "error":
            first = int(np.argmax(missing))
            raise UserError(
                f"light curve {first} of {len(vectors)} has too few good points, or no finite vector "
                f"({np.count_nonzero(missing)} such); leave it out, or choose short='nan' or 'median'"
            )
        return np.where(missing[:, None], self.medians_, vectors)


def _curves(X: Any) -> list[Any]:
    """The samples as a list of arrays.

    Raises:
        UserError: a table or a path, whose rows are no samples, or a single light curve.
    """
    if hasattr(X, "columns") or isinstance(X, str | bytes | dict) or not hasattr(X, "__iter__"):
        raise UserError(
            f"LightCurveEncoder takes a list of (L, 3) arrays, one a light curve, not a {type(X).__name__}; for tables "
            "and files use model.embed"
        )
    if is_array(X) and X.ndim == 2:
        raise UserError(
            f"LightCurveEncoder takes a list of (L, 3) arrays; for one light curve give [curve], not {tuple(X.shape)}"
        )
    return list(X)
