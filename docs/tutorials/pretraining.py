# %% [markdown]
# # Pretraining on your own survey
#
# A model learns from light curves without labels: some magnitudes are hidden, and it reconstructs them. This notebook
# converts a survey, looks at what is dropped on the way and why, pretrains a tiny model, interrupts the run and
# resumes it, and measures what the model's vectors are worth. It takes about two minutes on one core and needs no
# network.
#
# Install the package with the extras that it uses, and Jupyter: `pip install '.[probe,rivals,plots]' notebook`.
#
# **All light curves here are simulated.**

# %%
import shlex
import signal
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image
from safetensors.numpy import load_file

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## A survey with bad points
#
# Real archives hold values that are no measurements. We simulate a survey and spoil it in the usual ways.

# %%
# !astroco simulate perfect.parquet --stars 600

# %%
rng = np.random.default_rng(0)


def spoil(star):
    """Put bad values into one star's light curve, and repeat a point of it."""
    mag, err = star["mag"].copy(), star["err"].copy()
    mag[rng.random(len(mag)) < 0.02] = 99.999  # "no measurement"
    mag[rng.random(len(mag)) < 0.01] = np.nan
    err[rng.random(len(err)) < 0.01] = 0
    again = np.append(np.arange(len(mag)), rng.integers(len(mag)))
    return pd.Series({"mjd": star["mjd"][again], "mag": mag[again], "err": err[again]})


survey = pd.read_parquet("perfect.parquet")
survey[["mjd", "mag", "err"]] = survey.apply(spoil, axis=1)
for column in ("mjd", "mag", "err"):  # the first five stars were seen eight times only
    survey[column] = [values[:8] if n < 5 else values for n, values in enumerate(survey[column])]
survey.drop(columns=["period"]).to_parquet("survey.parquet")

# %% [markdown]
# ## Convert
#
# `astroco convert` writes a *store*, which training reads fast. It prints how many points and light curves each
# reason took: nothing is dropped without being counted. [Inputs and cleaning](../data.md#cleaning) has the reasons
# and their settings.

# %%
# !astroco convert survey.parquet survey.store

# %% [markdown]
# A point that is bad in several ways is counted once: of the repeated points, those without a magnitude are under *not
# finite*, and not under *exact duplicates*.
#
# ## Pretrain
#
# The preset `tiny` is for first steps: 167,524 parameters. With `--views folded` it sees light curves folded at their
# own periods, which are searched for first. We train for 90 steps and evaluate every 15, on stars that are not
# trained on. For real work take the preset `fold-small`, which brings its own settings, and hours
# ([pretraining](../pretraining.md)).
#
# The command runs as a process of its own, so that we can interrupt it. At step 30 it gets a SIGTERM, as a cluster's
# queue sends it when a job's time is over.

# %%
command = (
    "astroco pretrain --preset tiny --views folded --data survey.store --train.max_steps 90 --train.evaluate_every 15 "
    "--train.global_batch 64 --train.learning_rate 3e-3 --train.warmup_steps 20 --train.plots false"
)
run = subprocess.Popen(shlex.split(f"{command} --out runs/survey"), stdout=subprocess.PIPE, text=True)
for line in run.stdout:
    print(line, end="")
    if line.startswith("step 30 ") and "validation" in line:
        run.send_signal(signal.SIGTERM)
print("exit code", run.wait())

# %% [markdown]
# Exit code 75 means: interrupted and saved. **The same command resumes the run.**

# %%
# !{command} --out runs/survey

# %% [markdown]
# The interruption left no trace. An unbroken run ends with the same weights, bit for bit.

# %%
# !{command} --out runs/unbroken

# %%
resumed = load_file("runs/survey/checkpoints/last/model.safetensors")
unbroken = load_file("runs/unbroken/checkpoints/last/model.safetensors")
same = all(np.array_equal(resumed[name], unbroken[name]) for name in unbroken)
print(f"{len(unbroken)} tensors, {'all' if same else 'NOT all'} the same")

# %% [markdown]
# ## Watch the run
#
# The run's folder has one line for every ten steps and every evaluation in `metrics.jsonl`. The error at hidden
# points must fall below that of the trivial answer, each window's mean.

# %%
metrics = pd.read_json("runs/survey/metrics.jsonl", lines=True)
evaluations = metrics[metrics["split"] == "validation"]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(evaluations["step"], evaluations["rmse_hidden"], "o-", color="#0072B2", label="the model")
axes.plot(evaluations["step"], evaluations["trivial_rmse_hidden"], "--", color="#8C8C8C", label="the window's mean")
axes.axvline(30, ls=":", color="#D55E00", label="interrupted and resumed")
axes.set_ylim(0)
axes.set_xlabel("step")
axes.set_ylabel("RMSE at hidden points (mag)")
axes.set_title("SIMULATED survey, validation stars")
axes.legend()
plt.show()

# %% [markdown]
# `astroco report` prints the best evaluation and draws light curves with their hidden points. Blue points were hidden
# from the model, and orange diamonds are its reconstructions.

# %%
# !astroco report runs/survey

# %%
Image("runs/survey/plots/reconstructions.png", width=900)

# %% [markdown]
# ## Embed and probe
#
# The model embeds light curves as a released one does:

# %%
# !astroco embed survey.store embeddings.parquet --model runs/survey/checkpoints/best

# %% [markdown]
# Are its vectors any good? `astroco probe` trains simple classifiers on the vectors of 20 stars a class and tests
# them on other stars, three draws over. On the same stars it tests rivals: nine trivial *statistics*, which do not
# know the order of the points, and hand-crafted *features*, without and with a period.

# %%
# !astroco probe --data survey.store --model runs/survey/checkpoints/best --out probe \
#     --against '[features, statistics]' --probes '[logistic]' --sizes '[20]' --test 20 --allow_fewer true

# %%
Image("probe/comparison.png", width=620)

# %% [markdown]
# The bars are the spread over three draws. A minute of training put the vectors far above the statistics. With the
# same classifier (squares) they do as well as the features that have a period, or better. Trees on these features
# (triangles) are better still; on real light curves the released models are [level with them](../results/README.md).
# Much of a vector's strength comes from the period, which is one of its parts.
#
# ## From here
#
# - Presets, several processes, every setting: [pretraining](../pretraining.md).
# - Beginning with a released model's weights: [continued pretraining](../finetune.md#continued-pretraining).
# - Classes with probabilities: [the first notebook](classes.ipynb).
