"""Tasks beside classification, on frozen vectors: clustering, novelty, and the purity of neighbourhoods.

They are tasks of StarEmbed (arXiv 2510.06200). Each is measured on the folds of the largest training size. Vectors are
standardised by the training stars' mean and standard deviation, as for the classifiers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from astroco_fast.data.metadata import Text
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.evaluate import samples_of
from astroco_fast.probe.heads import Matrix, Sample, head_seed, require_scikit_learn
from astroco_fast.probe.splits import Split

NEIGHBOURS = 10
STARTS, TREES = 10, 100  # of k-means, and of an isolation forest


@dataclass(frozen=True)
class Score:
    """One figure of one run of a task.

    Attributes:
        task: clustering, novelty or neighbours.
        figure: ari, nmi or homogeneity; auroc; purity.
        of: the class that was held out (novelty), or that the stars are of (neighbours); "" for all classes.
        fold: the split's fold.
        seed: the run of a task that draws at random; None for others.
        value: the figure; larger is better, and 1 the best.
    """

    task: str
    figure: str
    of: str
    fold: int
    seed: int | None
    value: float


def measure(
    vectors: Matrix,
    ids: Text,
    labels: Text,
    classes: Sequence[str],
    splits: Sequence[Split],
    config: ProbeConfig,
    missing: bool = False,
) -> list[Score]:
    """Measure all tasks on the folds of the largest training size. Arguments and errors are those of `evaluate`."""
    require_scikit_learn()
    largest = max(split.n for split in splits)
    chosen = [split for split in splits if split.n == largest]
    scores: list[Score] = []
    for split, samples in samples_of(vectors, ids, labels, classes, chosen, missing):
        scores += _on_fold(split, samples, classes, config)
    return scores


def _on_fold(split: Split, samples: dict[str, Sample], classes: Sequence[str], config: ProbeConfig) -> Iterator[Score]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(samples["train"].vectors)
    parts = {part: Sample(scaler.transform(sample.vectors), sample.classes) for part, sample in samples.items()}
    everything = Sample(
        np.concatenate([sample.vectors for sample in parts.values()]),
        np.concatenate([sample.classes for sample in parts.values()]),
    )
    for run in range(config.seeds):
        seed = head_seed(config.seed, split.n, split.fold, run) % 2**32
        for figure, value in clustering(everything, len(classes), seed).items():
            yield Score("clustering", figure, "", split.fold, run, value)
        for name, value in zip(classes, novelty(parts["train"], parts["test"], len(classes), seed), strict=True):
            yield Score("novelty", "auroc", name, split.fold, run, value)
    for name, value in zip(classes, purity(everything, len(classes)), strict=True):
        yield Score("neighbours", "purity", name, split.fold, None, value)


def clustering(stars: Sample, classes: int, seed: int) -> dict[str, float]:
    """Agreement of k-means, k being the number of classes, with the classes: ARI, NMI and homogeneity."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, homogeneity_score, normalized_mutual_info_score

    found = KMeans(classes, n_init=STARTS, random_state=seed).fit_predict(stars.vectors)
    return {
        "ari": float(adjusted_rand_score(stars.classes, found)),
        "nmi": float(normalized_mutual_info_score(stars.classes, found)),
        "homogeneity": float(homogeneity_score(stars.classes, found)),
    }


def novelty(train: Sample, test: Sample, classes: int, seed: int) -> list[float]:
    """How well an isolation forest (Liu et al. 2008) that saw no star of a class tells this class's test stars.

    Returns:
        For each class, held out of the training stars, the area under the ROC curve among all test stars.
    """
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import roc_auc_score

    values = []
    for held_out in range(classes):
        known = train.vectors[train.classes != held_out]
        forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(known)
        values.append(float(roc_auc_score(test.classes == held_out, -forest.score_samples(test.vectors))))
    return values


def purity(stars: Sample, classes: int, neighbours: int = NEIGHBOURS) -> list[float]:
    """For each class, the share of its stars' nearest neighbours (cosine) that are of the same class."""
    from sklearn.neighbors import NearestNeighbors

    count = min(neighbours, len(stars.classes) - 1)
    search = NearestNeighbors(n_neighbors=count, metric="cosine").fit(stars.vectors)
    near = search.kneighbors(return_distance=False)  # of the fitted stars, none of them its own neighbour
    same = (stars.classes[near] == stars.classes[:, None]).mean(1)
    return [float(same[stars.classes == number].mean()) for number in range(classes)]
