# %% [markdown]
# # A survey on LSDB, to a page to explore
#
# Surveys of millions of light curves are kept as HATS catalogues: Parquet files, each for a piece of the sky.
# [LSDB](https://docs.lsdb.io) reads them and works on many pieces at once. This notebook makes a small catalogue,
# embeds it piece by piece on two workers, writes the vectors as a catalogue of their own, and makes a page of it. It
# takes about two minutes on one core and needs no network.
#
# Install the package with the extras that it uses, and Jupyter: `pip install '.[lsdb,explore,plots]' notebook`
# (Python 3.11 or newer).
#
# **All light curves and positions here are simulated.**

# %%
import lsdb
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from dask.distributed import Client

from astroco_fast.scale.lsdb import embed_catalog

# %% [markdown]
# ## A catalogue
#
# We simulate 400 variable stars and put them at random places on the sky. Skip this part if you have a catalogue.

# %%
# !astroco simulate stars.parquet --stars 400

# %%
stars = pd.read_parquet("stars.parquet").rename(columns={"period": "true_period"})
rng = np.random.default_rng(0)
stars["ra"] = rng.uniform(0, 360, len(stars))  # degrees
stars["dec"] = np.degrees(np.arcsin(rng.uniform(-1, 1, len(stars))))
stars[["id", "ra", "dec", "label", "true_period"]].head()

# %% [markdown]
# LSDB divides the stars by their place on the sky, here into pieces of at most 60 stars. A row is a star, and its
# light curve is a *nested* column: `lc.mjd` (days), `lc.mag` and `lc.err` (magnitudes).

# %%
catalog = lsdb.from_dataframe(stars, partition_rows=60, catalog_name="survey")
catalog.nest_lists(list_columns=["mjd", "mag", "err"], name="lc").write_catalog("survey", progress_bar=False)

# %%
survey = lsdb.open_catalog("survey")
survey.dtypes

# %%
figure, axes = plt.subplots(figsize=(8, 4.2), subplot_kw={"projection": "mollweide"}, layout="constrained")
for number, pixel in enumerate(survey.get_healpix_pixels()):
    piece = survey.get_partition(pixel.order, pixel.pixel).compute()
    ra, dec = piece["ra"].to_numpy(float), piece["dec"].to_numpy(float)
    x = np.radians(180 - ra)  # 180 degrees in the middle, east to the left
    axes.plot(x, np.radians(dec), ".", color=plt.cm.tab20(number))
axes.set_xticks(np.radians([-120, -60, 0, 60, 120]), ["300°", "240°", "180°", "120°", "60°"], fontsize=8)
axes.grid(alpha=0.3)
axes.set_xlabel("right ascension")
axes.set_ylabel("declination")
axes.set_title(f"{len(stars)} SIMULATED stars in {survey.npartitions} pieces, a colour each", pad=14)
plt.show()

# %% [markdown]
# ## Embed on two workers
#
# Dask starts the workers, on this machine or on a cluster. `embed_catalog` says what is to be done with each piece,
# and `write_catalog` does it: each worker reads a piece, embeds its light curves and writes the vectors, so that no
# process ever holds the whole survey.

# %%
client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
embed_catalog(survey, model="fold-small").write_catalog("vectors", catalog_name="vectors", progress_bar=False)
client.close()

# %% [markdown]
# If a worker or the machine dies on the way, `write_catalog("vectors", resume=True)` computes the pieces that are
# missing.
#
# ## Read the vectors back
#
# The catalogue of vectors has a row for each star, with the plain columns of the survey and new ones: `n_points`, the
# found `period` (days) and the `embedding`. A star whose light curve is too short would have a row of NaN, so that
# none is lost.

# %%
vectors = lsdb.open_catalog("vectors")
found = vectors.compute()
print(f"{len(found)} rows, {int(found['embedding'].isna().sum())} of them without a vector")
found[["id", "ra", "dec", "label", "n_points", "true_period", "period"]].head()

# %% [markdown]
# It is a catalogue as any other: here are the RR Lyrae stars within 20 degrees of a position.

# %%
near = vectors.cone_search(ra=120, dec=0, radius_arcsec=20 * 3600).query("label == 'RRab' or label == 'RRc'")
near.compute()[["id", "ra", "dec", "label", "period"]]

# %% [markdown]
# Classes differ in their periods and in the shape of the folded light curve. A vector holds both.

# %%
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
labels = ["EW", "RRc", "RRab", "EA", "CEP_1O", "CEP_F", "T2CEP", "LPV"]
for row, label in enumerate(labels):
    period = found.loc[found["label"] == label, "period"].astype(float)
    axes.semilogx(period, row + rng.uniform(-0.25, 0.25, len(period)), ".", color="#0072B2", alpha=0.6)
axes.set_yticks(range(len(labels)), labels)
axes.set_xlabel("found period (days)")
axes.set_title("SIMULATED stars: found periods by class; EW and EA often at half the period")
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## A page to explore
#
# `astroco explore` reads both catalogues and writes one file, which a browser opens from disk: a map of the vectors,
# and each star's light curve, raw and folded, with its neighbours. Right ascension and declination are among the
# colours to choose. Of more than 20,000 stars, the page holds a random sample. [Looking at embeddings](../explore.md)
# shows what it can do.

# %%
# !astroco explore vectors --curves survey --out page.html

# %% [markdown]
# ## From here
#
# - Other engines, rates with one and two workers, and what 10^9 light curves cost: [survey scale](../scale.md).
# - Nearest neighbours and odd stars of the same catalogue: [looking at embeddings](../explore.md).
# - Classes with probabilities: [the first notebook](classes.ipynb).
