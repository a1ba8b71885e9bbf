"""Vectors to places in the plane: PCA always, UMAP and PaCMAP where their packages are installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.explore.config import Method
from astroco_fast.machine import package_version

Float32Array = NDArray[np.float32]

_PACKAGES = {"umap": "umap-learn", "pacmap": "pacmap"}
_FEWEST = 16  # stars from which on neighbourhoods make a picture
_COMPONENTS = 50  # principal components that the others start from


@dataclass(frozen=True)
class Projection:
    """Places of n stars in the plane.

    Attributes:
        name: what the page calls it.
        places: (n, 2) float32.
        axes: the labels of its axes.
    """

    name: str
    places: Float32Array
    axes: tuple[str, str]


def project(matrix: Float32Array, wanted: Sequence[Method] | None, seed: int) -> tuple[list[Projection], list[str]]:
    """Project standardised vectors (n, D).

    Args:
        matrix: the vectors.
        wanted: the projections beside PCA; None: those whose packages are installed.
        seed: of UMAP and PaCMAP.

    Returns:
        The projections, PCA first, and notes on those left out.

    Raises:
        MissingExtraError: the package of a wanted projection is not installed.
        UserError: too few stars for a wanted one.
    """
    components, shares = principal_components(matrix, _COMPONENTS)
    axes = tuple(f"component {i + 1} ({100 * shares[i]:.0f} % of variance)" for i in range(2))
    made = [Projection("PCA", np.ascontiguousarray(components[:, :2]), (axes[0], axes[1]))]
    notes = []
    for method, run in _METHODS.items():
        installed = package_version(_PACKAGES[method]) is not None
        if wanted is None and not installed:
            continue
        if wanted is not None and method not in wanted:
            continue
        if not installed:
            raise MissingExtraError(_PACKAGES[method], method, f"the projection {method}")
        if len(matrix) < _FEWEST:
            if wanted is not None:
                raise UserError(f"projections: {len(matrix)} stars are too few for {method}; leave it out")
            notes.append(f"{len(matrix)} stars are too few for {method}")
            continue
        name, places = run(components, seed)
        made.append(Projection(name, np.asarray(places, dtype=np.float32), (f"{name} 1", f"{name} 2")))
    return made, notes


def principal_components(matrix: Float32Array, most: int) -> tuple[Float32Array, NDArray[np.float64]]:
    """The first principal components of vectors.

    Returns:
        (n, C) float32 with C = `most`, or 2 or D if that is in between, and (C,) their shares of the variance. Their
        signs are such that the largest weight of each is positive, so that the picture is the same everywhere.
    """
    centred = (matrix - matrix.mean(0)).astype(np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = values[::-1][:most], vectors[:, ::-1][:, :most]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    shares = np.maximum(values, 0) / max(float((centred**2).sum()), 1e-300)
    components = centred @ vectors
    missing = max(0, 2 - components.shape[1])  # vectors of one number
    components = np.pad(components, ((0, 0), (0, missing)))
    return components.astype(np.float32), np.pad(shares, (0, missing))


def _umap(components: Float32Array, seed: int) -> tuple[str, Any]:
    import umap

    neighbours = min(15, len(components) - 1)
    return "UMAP", umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(components)


def _pacmap(components: Float32Array, seed: int) -> tuple[str, Any]:
    import pacmap

    return "PaCMAP", pacmap.PaCMAP(n_components=2, random_state=seed, apply_pca=False).fit_transform(components)


_METHODS: dict[Method, Callable[[Float32Array, int], tuple[str, Any]]] = {"umap": _umap, "pacmap": _pacmap}
