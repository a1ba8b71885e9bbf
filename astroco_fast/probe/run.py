"""A whole probe: from its settings to the files in its folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from astroco_fast.commands import tell
from astroco_fast.data.columns import listed
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from astroco_fast.files import scratch_folder, write_text
from astroco_fast.folders import ResultFolder, result_folder
from astroco_fast.probe.config import PAPER_SIZES, ProbeConfig
from astroco_fast.probe.embeddings import Embeddings, extract, is_cache
from astroco_fast.probe.evaluate import evaluate
from astroco_fast.probe.heads import require_scikit_learn
from astroco_fast.probe.metrics import plus_minus
from astroco_fast.probe.results import RESULTS, is_result, of_copies, result_names, summarise, write_results
from astroco_fast.probe.rivals import describers, pairs
from astroco_fast.probe.rivals import rows as rows_of
from astroco_fast.probe.splits import Split, draw, read_splits, write_splits
from astroco_fast.probe.stars import Portion, Stars, choose, read_survey, relabel
from astroco_fast.probe.tasks import measure
from astroco_fast.text import rows

SPLITS, CONFIG = "splits.csv", "config.yaml"


class Assigned(NamedTuple):
    """The light curves, their stars, and the splits."""

    portions: list[Portion]
    stars: Stars
    splits: list[Split]


def probe(config: ProbeConfig, assigned: Assigned | None = None) -> dict[str, Any]:
    """Run `astroco probe`: split, embed, train and test, and write the folder's files.

    Args:
        config: the settings.
        assigned: the result of `assign` for the same data, labels and splits, so that many models can be probed without
            reading the data each time; None: call `assign`.

    Returns:
        The content of results.json.

    Raises:
        UserError: the data, the labels, the splits, the model or the folder cannot be used; names what is wrong.
    """
    if config.against or config.tasks or {*config.probes} - {"linear"}:
        require_scikit_learn()
    out = Path(config.out)
    with _folder(out) as folder:
        found = describers(config)
        portions, stars, splits = assigned or assign(config)
        used = np.array(sorted(set().union(*(split.stars for split in splits))), dtype=object)
        classes = config.classes or sorted({stars.labels[star] for star in used})
        caches = [Embeddings(out / describer.file, describer.digest) for describer in found]
        sizes = {split.n for split in splits}
        folder.claim([CONFIG, SPLITS, *result_names(sizes), *(describer.file for describer in found)])
        made = extract(list(zip(found, caches, strict=True)), portions, stars, list(used), config.min_points)
        for cache, count in zip(caches, made, strict=True):
            print(f"{cache.path}: {len(used):,} stars, {count:,} of them embedded now", flush=True)
        curves = [stars.curves[star] for star in used]
        compared = rows_of(config, found, [cache.of(curves) for cache in caches])
        of_used = np.array([stars.labels[star] for star in used], dtype=object)
        outcomes, scores = {}, {}
        for row in compared:
            with_forest = replace(config, probes=list(dict.fromkeys([*config.probes, "forest"])))
            settings = with_forest if row.made_by_hand else config
            arguments = (row.vectors, used, of_used, classes, splits, settings, row.made_by_hand)
            outcomes[row.name] = evaluate(*arguments)
            if config.tasks:
                scores[row.name] = measure(*arguments)
        facts = {
            "vectors": [{"name": describer.name, "sha256": describer.digest} for describer in found],
            "data_sha256": stars.digest(list(used)),
            "simulated": stars.simulated,
            "copies": sorted(stars.copies),
        }
        results = summarise(outcomes, scores, pairs(compared), classes, splits, stars.labels, config, facts)
        paths = [out / name for name in _write(folder, config, splits, stars, results)]
    print("\n".join([*rows(_table(results)), "", *map(str, paths)]))
    return results


def assign(config: ProbeConfig) -> Assigned:
    """Read the light curves, and draw or read the splits.

    Raises:
        UserError: the data, the labels or the splits cannot be used; names what is wrong.
    """
    portions, stars = read_survey(config.data, config.columns, config.band, config.min_points)
    if config.labels is not None:
        tell(filter(None, [relabel(stars, config.labels, config.columns)]))
    splits = _splits(config, stars)
    if stars.copies:
        print(f"{config.data}: {of_copies(stars.copies)}", flush=True)
    return Assigned(portions, stars, splits)


def _write(
    folder: ResultFolder, config: ProbeConfig, splits: list[Split], stars: Stars, results: dict[str, Any]
) -> list[str]:
    """Write the settings, the splits and the results, all of them before they replace those of an earlier probe.

    Returns:
        The names of the files of results.
    """
    with scratch_folder(folder.path / RESULTS) as made:
        write_text(made / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False))
        if config.splits is None or not _is(folder.path / SPLITS, config.splits):
            write_splits(made / SPLITS, splits, stars.labels)
        names = write_results(made, results, config.plots)
        folder.replace(made, keep=[SPLITS])
    return names


def _is(path: Path, other: str) -> bool:
    return path.exists() and path.samefile(other)


@contextmanager
def _folder(out: Path) -> Iterator[ResultFolder]:
    """Make the folder and lock it, because two probes at once would mix their files."""
    if Store.is_store(out):
        raise UserError(f"{out}: a store of light curves is no place for results; choose another --out")
    busy = "another probe is writing to it; wait for it, or choose another --out"
    with result_folder(out, "probe", busy, _unmarked) as folder:
        yield folder


def _unmarked(out: Path) -> tuple[list[str], list[str]] | None:
    """What a probe of an earlier version wrote in a folder; None if there was none."""
    if not (out / CONFIG).exists() or not (out / SPLITS).exists():
        return None
    caches = [path.name for path in out.glob("*.parquet") if is_cache(path)]
    results = [path.name for path in out.iterdir() if is_result(path.name)]
    return ([*caches, *results, CONFIG, SPLITS], [*results, CONFIG, SPLITS]) if caches else None


def _splits(config: ProbeConfig, stars: Stars) -> list[Split]:
    """The splits that the data's folders or a file give, or else newly drawn ones."""
    if stars.placed and config.splits is not None:
        raise UserError(f"{config.data} gives splits by its folders; leave out --splits")
    if stars.placed:
        return _given(config, stars, stars.splits(), config.data)
    if config.splits is not None:
        return _given(config, stars, read_splits(config.splits), config.splits)
    ids, labels = choose(stars, config.classes)
    return draw(
        ids,
        labels,
        config.sizes or PAPER_SIZES,
        validation=config.validation,
        test=config.test,
        folds=config.folds,
        seed=config.seed,
        allow_fewer=config.allow_fewer,
    )


def _given(config: ProbeConfig, stars: Stars, splits: list[Split], source: str) -> list[Split]:
    """Those of the given splits that have the wanted sizes, with the stars of the wanted classes.

    Raises:
        UserError: there are no splits of a wanted size, or a star has no light curve or no label.
    """
    there = sorted({split.n for split in splits})
    absent = sorted({*(config.sizes or ())} - {*there})
    if absent:
        raise UserError(f"{source}: no splits of size {absent[0]}; there are: {', '.join(map(str, there))}")
    chosen = []
    for split in splits:
        if config.sizes is None or split.n in config.sizes:
            _check_known(split, stars, source)
            # Of two equal light curves the tested one stays, because the test stars should be those of the splits.
            kept = {*stars.without_copies([*split.test, *split.validation, *split.train])}
            of = {
                part: tuple(star for star in ids if star in kept and _asked(config, stars, star))
                for part, ids in split.parts.items()
            }
            chosen.append(Split(split.n, split.fold, **of))
    return chosen


def _check_known(split: Split, stars: Stars, source: str) -> None:
    lost = sorted(split.stars - stars.curves.keys())
    if lost:
        more = f" ({len(lost):,} such stars: {listed(lost[:3])} ...)" if len(lost) > 1 else ""
        raise UserError(
            f"{source}: star {lost[0]!r} has no light curve in the data, or one with too few good points{more}; "
            "give the data that the splits were made of"
        )
    nameless = sorted(split.stars - stars.labels.keys())
    if nameless:
        raise UserError(f"{source}: star {nameless[0]!r} has no label; give labels by --labels FILE")


def _asked(config: ProbeConfig, stars: Stars, star: str) -> bool:
    return config.classes is None or stars.labels[star] in config.classes


def _table(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of text with the macro-F1 and balanced accuracy of each kind of vectors, probe and size."""
    table: list[tuple[str, ...]] = [("vectors", "probe", "n", "macro-F1", "balanced accuracy")]
    for entry in results["results"]:
        figures = (plus_minus(entry["macro_f1"]), plus_minus(entry["balanced_accuracy"]))
        table.append((entry["vectors"], entry["probe"], str(entry["n"]), *figures))
    return table
