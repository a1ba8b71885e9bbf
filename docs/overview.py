"""Draw docs/overview.png: what the model of `make demo` makes of simulated stars that it has not seen.

make demo
.venv/bin/python docs/overview.py demo/run/checkpoints/best docs/overview.png

Two panels show reconstructions of hidden magnitudes: of a long-period variable against time, and of an RR Lyrae star
against its true phase, which the model is not told. Each star is the one at the third quartile of R2 among the 200 or
so of its class. The third panel shows embeddings of three classes on the two directions of a linear discriminant
analysis, fitted to other stars than are shown.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import astroco_fast as af
from astroco_fast.data.simulated_table import write_table

STARS, SEED = 2000, 1  # `make demo` trains on the survey of seed 0
HIDDEN_SHARE = 0.3
QUARTILE = 0.75
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#8C8C8C"
CLASSES = {"RRab": "#D55E00", "EW": "#56B4E9", "LPV": "#222222"}


def main(model_folder: str, out: str) -> None:
    model = af.load(model_folder).eval()
    with tempfile.TemporaryDirectory() as folder:
        survey = Path(folder) / "survey.parquet"
        write_table(survey, STARS, SEED)
        stars = pd.read_parquet(survey)
        vectors = np.stack(model.embed(stars[["id", "label", "mjd", "mag", "err"]])["embedding"])
    figure = Figure(figsize=(12, 3.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_reconstruction(left, model, stars[stars.label == "LPV"], "Long-period variable", folded=False)
    draw_reconstruction(middle, model, stars[stars.label == "RRab"], "RR Lyrae star, folded", folded=True)
    left.set_ylabel("magnitude")
    left.legend(loc="best", fontsize=8)
    draw_embeddings(right, vectors, stars.label.to_numpy())
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "SIMULATED light curves, unseen in training: hidden magnitudes and their reconstruction; embeddings by class"
    )
    figure.savefig(out, dpi=110)


def draw_reconstruction(axes: Axes, model: torch.nn.Module, stars: pd.DataFrame, title: str, folded: bool) -> None:
    """Draw the star of these at `QUARTILE` of R2: its visible and hidden points, and the reconstruction of these."""
    found = [
        (star, reconstruct(model, *(np.asarray(star[key], float) for key in ("mjd", "mag", "err"))))
        for _, star in stars.iterrows()
    ]
    star, points = sorted(found, key=lambda pair: pair[1]["r2"])[int(QUARTILE * len(found))]
    time, mag, hidden = points["time"], points["mag"], points["hidden"]
    x = time / star["period"] % 1 if folded else time - time[0]
    axes.errorbar(x, mag, points["err"], fmt="none", ecolor=GREY, elinewidth=0.6, alpha=0.5)
    axes.plot(x[~hidden], mag[~hidden], ".", color=GREY, markersize=4, label="visible")
    axes.plot(x[hidden], mag[hidden], "o", color=BLUE, markersize=4, label="hidden, true")
    style: dict[str, Any] = {"color": ORANGE, "markeredgecolor": "black", "markeredgewidth": 0.5, "markersize": 4.5}
    axes.plot(x[hidden], points["reconstruction"][hidden], "D", label="reconstruction", **style)
    axes.set_title(f"{title}: $R^2$ = {points['r2']:.2f}", fontsize=10)
    axes.set_xlabel(f"phase (period {star['period']:.4f} d)" if folded else "days")
    axes.invert_yaxis()


def reconstruct(model: torch.nn.Module, time: NDArray[Any], mag: NDArray[Any], err: NDArray[Any]) -> dict[str, Any]:
    """Hide a share of the points of a light curve's first window and reconstruct them."""
    size = model.config.window
    time, mag, err = time[:size], mag[:size], err[:size]
    hidden = np.random.default_rng(len(time)).random(len(time)) < HIDDEN_SHARE
    mean = mag.mean()  # of all points, as in the evaluation of a pretraining run
    points = (time - time.mean(), mag - mean, err)
    tensors = [torch.from_numpy(values.astype(np.float32))[None] for values in points]
    with torch.inference_mode():
        out = model(*tensors, hidden=torch.from_numpy(hidden)[None], centered=True)
    reconstruction = out.reconstruction[0].numpy() + mean
    residual = np.square(mag - reconstruction)[hidden].sum()
    r2 = 1 - residual / np.square(mag - mag[hidden].mean())[hidden].sum()
    return {"time": time, "mag": mag, "err": err, "hidden": hidden, "reconstruction": reconstruction, "r2": r2}


def draw_embeddings(axes: Axes, vectors: NDArray[Any], labels: NDArray[Any]) -> None:
    """Project the second half of the embeddings by a discriminant analysis of the first half."""
    known = np.isin(labels, list(CLASSES))
    vectors, labels = vectors[known], labels[known]
    half = len(labels) // 2
    analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=2)
    analysis.fit(vectors[:half], labels[:half])
    places = analysis.transform(vectors[half:])
    for name, colour in CLASSES.items():
        at = labels[half:] == name
        axes.plot(*places[at].T, ".", color=colour, markersize=4, alpha=0.8, label=name)
    axes.set_title("Embeddings of three classes", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(fontsize=8, markerscale=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
