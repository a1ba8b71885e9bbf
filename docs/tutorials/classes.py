# %% [markdown]
# # From light curves to classes
#
# This notebook turns the light curves of variable stars into vectors, draws a map of them, finds stars that resemble
# one another, and trains a classifier whose probabilities can be trusted. It takes about two minutes on one core,
# needs no network, and writes its files into the folder that it runs in.
#
# Install the package with the extras that it uses, and Jupyter: `pip install '.[explore,probe,plots]' notebook`.
#
# **All light curves here are simulated.** The steps are the same for your own; the figures would be others.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

import astroco_fast as af

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## A survey
#
# `astroco simulate` writes a table with one row for each star. Its columns `mjd`, `mag` and `err` hold lists: the
# times (days), the magnitudes and their uncertainties. [Inputs and cleaning](../data.md) says which other tables,
# files and objects are read.

# %%
# !astroco simulate survey.parquet --stars 600

# %%
stars = pd.read_parquet("survey.parquet")
stars["n_points"] = stars["mjd"].map(len)
stars[["id", "band", "label", "period", "n_points"]].head()

# %% [markdown]
# The column `label` holds the true class, and `period` the true period in days. The encoder is given neither of them.

# %%
NAMES = {
    "RRab": "RR Lyrae, type ab",
    "RRc": "RR Lyrae, type c",
    "CEP_F": "Cepheid",
    "CEP_1O": "Cepheid, overtone",
    "T2CEP": "Cepheid, type II",
    "EA": "eclipsing, detached",
    "EW": "eclipsing, contact",
    "LPV": "long period",
}
COLOURS = dict(
    zip(NAMES, ["#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#CC79A7", "#009E73", "#8C8C8C", "#222222"], strict=True)
)
stars["label"].value_counts().rename(index=NAMES)

# %% [markdown]
# ## Look at the light curves
#
# A survey visits a star when it can: there are gaps for the day, the full Moon and the season, and the raw light
# curve (top) rarely shows what kind of star it is. Folded at its period (bottom), it does: each point is drawn at its
# phase, the place in the cycle, and two cycles are shown.


# %%
def draw(axes, star, period=None):
    """Draw a star's magnitudes against time, or against phase if a period (days) is given."""
    time, mag, err = star["mjd"], star["mag"], star["err"]
    if period is None:
        x, axes_label = time - time[0], "days"
    else:
        phase = (time - time[np.argmax(mag)]) / period % 1  # phase 0: the faintest point
        x, mag, err = np.concatenate([phase, phase + 1]), np.tile(mag, 2), np.tile(err, 2)
        axes_label = f"phase (period {period:.4g} d)"
    axes.errorbar(x, mag, err, fmt=".", ms=3, lw=0.6, color=COLOURS[star["label"]], ecolor="#CCCCCC")
    axes.set_xlabel(axes_label)
    axes.invert_yaxis()  # bright is up


shown = [stars[stars["label"] == label].iloc[n] for label, n in (("RRab", 1), ("CEP_F", 1), ("EA", 1), ("LPV", 0))]
figure, panels = plt.subplots(2, 4, figsize=(10.5, 5), layout="constrained")
for (above, below), star in zip(panels.T, shown, strict=True):
    draw(above, star)
    draw(below, star, star["period"])
    above.set_title(NAMES[star["label"]])
panels[0, 0].set_ylabel("magnitude")
panels[1, 0].set_ylabel("magnitude")
figure.suptitle("Four SIMULATED stars: raw, and folded at the true period")
plt.show()

# %% [markdown]
# ## Embed
#
# `astroco embed` turns each light curve into one vector. The model is `fold-small`, which ships with the package: it
# searches for the period of each light curve, folds it, and encodes the folded curve. Nothing is trained here.

# %%
# !astroco embed survey.parquet embeddings.parquet --model fold-small

# %%
embedded = pd.read_parquet("embeddings.parquet")
vectors = np.stack(embedded["embedding"])
vectors.shape

# %% [markdown]
# In Python, `model.embed` takes the same table, or a list of arrays with a light curve each.

# %%
model = af.load("fold-small")
star = stars.iloc[0]
curve = np.column_stack([star["mjd"], star["mag"], star["err"]])  # (points, 3)
model.embed([curve]).shape

# %% [markdown]
# The found periods are a by-product. Most agree with the true ones. Many eclipsing binaries have half their period,
# because their two eclipses look alike. Slow, irregular stars are often given a period of years, or of a day, which
# is the rhythm of the nights.

# %%
found = stars.merge(embedded[["id", "period"]], on="id", suffixes=("", "_found"))
figure, axes = plt.subplots(figsize=(6.5, 5), layout="constrained")
for label, name in NAMES.items():
    some = found[found["label"] == label]
    axes.loglog(some["period"], some["period_found"], ".", color=COLOURS[label], label=name)
ends = np.array([0.2, 1000])
axes.plot(ends, ends, color="#CCCCCC", lw=1, zorder=0)
axes.plot(ends, ends / 2, ":", color="#CCCCCC", lw=1, zorder=0)
axes.set_xlabel("true period (days)")
axes.set_ylabel("found period (days)")
axes.set_title("Periods of SIMULATED stars; dotted: half the true period")
axes.legend(fontsize=9, markerscale=2)
plt.show()

# %% [markdown]
# ## A map
#
# A map has two dimensions, a vector 175. Principal components (left) keep the two directions in which the vectors
# differ most; t-SNE (right) keeps near stars near, and says little about far ones. Each number is divided by its
# spread first, because the numbers have units of their own. Stars of a class gather, although no label was used.

# %%
standard = StandardScaler().fit_transform(vectors)
maps = {"principal components": PCA(2).fit_transform(standard), "t-SNE": TSNE(random_state=0).fit_transform(standard)}
figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
for axes, (name, places) in zip(panels, maps.items(), strict=True):
    for label in NAMES:
        some = embedded["label"] == label
        axes.plot(*places[some].T, ".", ms=5, color=COLOURS[label], label=NAMES[label])
    axes.set(title=name, xticks=[], yticks=[])
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", markerscale=2)
figure.suptitle("Vectors of SIMULATED stars; the axes have no units")
plt.show()

# %% [markdown]
# The map of principal components as a page to explore: pointing at a star shows its light curve, raw and folded, and
# its neighbours. Open `page.html` in a browser; it needs no server. [Looking at embeddings](../explore.md) shows what
# the page can do.

# %%
# !astroco explore embeddings.parquet --curves survey.parquet --out page.html

# %% [markdown]
# ## Stars like this one
#
# Near vectors belong to similar light curves. We ask for the four nearest neighbours of a detached eclipsing binary.

# %%
query = stars[stars["label"] == "EA"].iloc[1]
# !astroco neighbours embeddings.parquet --ids {query["id"]} --k 4 --out near.parquet

# %%
near = pd.read_parquet("near.parquet").merge(found, on="id", suffixes=("_near", ""))
query = found[found["id"] == query["id"]].iloc[0]
figure, panels = plt.subplots(1, 5, figsize=(11.5, 3), layout="constrained")
draw(panels[0], query, query["period_found"])
panels[0].set_title("the star", fontsize=10)
panels[0].set_ylabel("magnitude")
for axes, (_, other) in zip(panels[1:], near.iterrows(), strict=True):
    draw(axes, other, other["period_found"])
    axes.set_title(f"{NAMES[other['label']]}\ndistance {other['distance']:.1f}", fontsize=10)
figure.suptitle("A SIMULATED star and its neighbours, folded at the found periods")
plt.show()

# %% [markdown]
# ## Classify
#
# `astroco classify fit` trains a classifier on the vectors and their labels. It is tested on stars that took no part
# in its training: five times over, 60 % of the stars train, 20 % set it up, and 20 % test it.

# %%
# !astroco classify fit embeddings.parquet --out classifier

# %%
results = json.loads(Path("classifier/results.json").read_text())
folds = pd.DataFrame(results["folds"]).set_index("fold")[["macro_f1", "accuracy", "calibration_error"]]
folds.loc["mean"] = folds.mean()
folds.round(3)

# %% [markdown]
# Macro-F1 is the mean of the classes' F1, so that a rare class counts as much as a common one. The folds differ by a
# few hundredths: that much is chance. `classifier/report.md` has every class, and the confusion matrix shows which
# classes are taken for one another. Read it along a row: of the true class, so many per cent were given to each
# class.

# %%
Image("classifier/confusion.png", width=620)

# %% [markdown]
# Most type II Cepheids that are missed are called Cepheids. Their light curves are much alike. What tells them apart
# is how bright the star truly is, which no light curve shows.
#
# A probability is calibrated if, of all stars that get 0.8, eight in ten are right. The points should lie on the
# dashed line, within their bars.

# %%
Image("classifier/reliability.png", width=480)

# %% [markdown]
# ## New stars
#
# The classifier in the folder was fitted to all labelled stars. We give it another simulated survey, as if it had no
# labels: the column `class` holds the predictions, and `probability` how sure each is.

# %%
# !astroco simulate new.parquet --stars 200 --seed 1
# !astroco classify predict new.parquet classes.parquet --classifier classifier

# %%
predicted = pd.read_parquet("classes.parquet")
predicted["right"] = predicted["class"] == predicted["label"]
sure = predicted["probability"] > 0.9
print(f"{len(predicted)} new SIMULATED stars, {predicted['right'].mean():.0%} right")
print(f"{sure.sum()} of them with a probability above 0.9, {predicted.loc[sure, 'right'].mean():.0%} right")

# %% [markdown]
# The least sure prediction is worth a look, for such stars are the ones to observe again. Its light curve is folded
# at the true period, and the bars are the probabilities of the classes.

# %%
least = predicted.sort_values("probability").iloc[0]
star = pd.read_parquet("new.parquet").set_index("id").loc[least["id"]]
probabilities = least[[f"p_{label}" for label in NAMES]].astype(float)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
draw(left, star, star["period"])
left.set_ylabel("magnitude")
left.set_title(f"{least['id']}: {NAMES[least['label']]}, in truth")
right.barh(list(NAMES.values()), probabilities, color=list(COLOURS.values()))
right.invert_yaxis()
right.set_xlabel("probability")
right.set_title(f"predicted: {NAMES[least['class']]}")
figure.suptitle("The least sure of the new SIMULATED stars")
plt.show()

# %% [markdown]
# ## From here
#
# - Your own light curves: put your table in place of `survey.parquet` ([inputs and cleaning](../data.md)).
# - What a vector is made of, long runs, many processes: [embedding](../embedding.md).
# - The probabilities, and labels in a file of their own: [classifying](../classify.md).
# - Vectors in a scikit-learn pipeline: [scikit-learn](../sklearn.md).
# - A model pretrained on your own survey: [the next notebook](pretraining.ipynb).
