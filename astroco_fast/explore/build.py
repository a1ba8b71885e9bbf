"""The whole way from a table of vectors and its light curves to the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from astroco_fast import commands
from astroco_fast.data.clean import because
from astroco_fast.data.sources import Source, open_source
from astroco_fast.errors import UserError
from astroco_fast.explore.columns import Column, curves_columns, joined, of_table, of_vectors, periods
from astroco_fast.explore.config import ExploreConfig
from astroco_fast.explore.curves import PageCurves, collect
from astroco_fast.explore.page import Page, is_page, write_page
from astroco_fast.explore.projection import project
from astroco_fast.files import refuse_input
from astroco_fast.oddity import oddity
from astroco_fast.vector_index import nearest, require_faiss
from astroco_fast.vectors import SIMULATED_NOTE, Scale, Vectors, read_vectors

NEIGHBOURS = 10
_FEWEST, _MOST = 3, 65_535  # stars on a page; the numbers of neighbours are 16 bits wide
_SEEDS = 3  # of the anomaly score
_POINTS = 2_500_000  # of all light curves on a page, by default
_POINTS_OF_ONE = (100, 1000)


def explore(config: ExploreConfig) -> None:
    """Run the command. The page appears once it is whole.

    Raises:
        UserError: a setting is missing or makes no sense, an input cannot be read, or an output cannot be written.
    """
    curves, out = _check(config)
    require_faiss()
    source = open_source(curves, config.columns, config.band)
    for inputs, what in (
        ([Path(config.source)], "the vectors"),
        (source.inputs, "the light curves"),
        (map(Path, config.also), "columns to show"),
    ):
        refuse_input(out, inputs, what)
    if out.is_file() and out.stat().st_size and not is_page(out):
        raise UserError(f"{out}: is no page of astroco explore, which would replace it; choose another output")
    vectors = read_vectors(config.source, config.stars, config.seed)
    if len(vectors) < _FEWEST:
        raise UserError(f"{config.source}: {len(vectors)} light curves make no picture; give {_FEWEST} or more")
    page = _page(config, vectors, source)
    size = write_page(page, out)
    commands.tell([*source.notes, *page.notes])
    print(f"{out}: {len(vectors):,} light curves, {size / 1e6:.1f} MB; open it in a browser")


def _check(config: ExploreConfig) -> tuple[str, Path]:
    """The light curves and the output, which must be named."""
    if config.curves is None or config.out is None:
        missing = "--curves, the light curves" if config.curves is None else "--out, the HTML file to write"
        raise UserError(f"astroco explore needs {missing}")
    if not _FEWEST <= config.stars <= _MOST:
        raise UserError(f"stars must be from {_FEWEST} to {_MOST:,}, not {config.stars}")
    if config.points is not None and config.points < 1:
        raise UserError(f"points must be at least 1, not {config.points}")
    if not 0 <= config.seed < 2**32 - _SEEDS:  # what scikit-learn takes
        raise UserError(f"seed must be at least 0 and below 2^32 - {_SEEDS}, not {config.seed}")
    return config.curves, Path(config.out)


def _page(config: ExploreConfig, vectors: Vectors, source: Source) -> Page:
    tables = {Path(name).stem: of_table(Path(name), vectors.ids, vectors.band) for name in config.also}
    tables[Path(str(config.curves)).stem] = curves_columns(
        source.inputs, vectors.ids, vectors.band, config.columns, config.band
    )
    period = periods(tables.values(), len(vectors))
    points = config.points or int(np.clip(_POINTS / len(vectors), *_POINTS_OF_ONE))
    found = collect(source, vectors.ids, vectors.band, period, points, config.seed)
    standardised = Scale.of(vectors.matrix)(vectors.matrix)
    projections, notes = project(standardised, config.projections, config.seed)
    distances, rows = nearest(standardised, NEIGHBOURS)
    odd = oddity(vectors.matrix, NEIGHBOURS, range(config.seed, config.seed + _SEEDS))
    score = Column("anomaly score", None, odd.score.astype(np.float32))
    return Page(
        title=config.title or Path(config.source).stem,
        ids=vectors.ids,
        band=vectors.band,
        columns=joined(tables, [*of_vectors(vectors), score]),
        projections=projections,
        neighbours=rows,
        distances=distances,
        curves=found,
        total=vectors.total,
        notes=[*_notes(config, vectors, found, points), *notes],
    )


def _notes(config: ExploreConfig, vectors: Vectors, found: PageCurves, points: int) -> Iterator[str]:
    """What a reader of the page must know of what it does not show."""
    if found.simulated or vectors.simulated:
        yield SIMULATED_NOTE
    read = len(vectors) + vectors.not_finite
    if read < vectors.total:
        yield (
            f"a random sample of {read:,} of {vectors.total:,} light curves (seed {config.seed}); "
            "neighbours and anomaly scores are among these"
        )
    if vectors.not_finite:
        yield f"{vectors.not_finite:,} vectors are not finite and were left out"
    missing = sum(curve is None for curve in found.points)
    if missing:
        yield f"{missing:,} stars have no light curve in {config.curves}{because(found.dropped)}"
    thinned = int(np.count_nonzero(found.lengths > points))
    if thinned:
        yield f"{thinned:,} light curves have more than {points:,} points, of which as many are shown, at random"
