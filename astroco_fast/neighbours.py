"""`astroco neighbours`: the stars whose vectors are nearest to those of other stars, or of new light curves."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from astroco_fast import commands
from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError

if TYPE_CHECKING:
    from astroco_fast.vector_index import VectorIndex

_SHOWN_QUERIES = 20  # on the screen; the table has all
_AT_ONCE = 4096  # queries in a search


@dataclass
class NeighboursConfig:
    """Settings of `astroco neighbours`.

    Args:
        source: table of embeddings that `astroco embed` wrote, or an index that this command wrote.
        index: file to write an index to, which later calls take as their source.
        kind: of the index. exact compares with every star. hnsw follows a graph, which takes longer to build, answers
            faster, and may miss a neighbour.
        ids: stars of the source whose neighbours to find, separated by commas; a star with several bands has
            neighbours for each.
        curves: light curves whose neighbours to find: a table, folder or store, as `astroco embed` reads.
        model: the model that made the source's vectors, for `curves`. Default: the one that the source names.
        columns: names of the columns of `curves` that are not found by themselves.
        band: of `curves`, take only this band.
        k: neighbours of each light curve.
        out: Parquet file to write, one row a neighbour: query, query_band, rank, id, band, label, distance (Euclidean,
            of standardised vectors). An existing file is replaced, unless it is read.
    """

    source: str
    index: str | None = None
    kind: Literal["exact", "hnsw"] = "exact"
    ids: str | None = None
    curves: str | None = None
    model: str | None = None
    columns: Columns = field(default_factory=Columns)
    band: str | None = None
    k: int = 10
    out: str | None = None


def find_neighbours(config: NeighboursConfig) -> None:
    """Run the command.

    Raises:
        UserError: there is nothing to do, a star is unknown, or a file cannot be read or written.
    """
    # Imported here, because `--help` should not wait for them.
    from astroco_fast.data.sources import open_source
    from astroco_fast.files import refuse_input
    from astroco_fast.vectors import SIMULATED_NOTE

    if config.k < 1:
        raise UserError(f"k must be at least 1, not {config.k}")
    if config.index is None and config.ids is None and config.curves is None:
        raise UserError("nothing to find: give --ids or --curves, or --index to write an index")
    source = None if config.curves is None else open_source(config.curves, config.columns, config.band)
    for path in (Path(name) for name in (config.index, config.out) if name is not None):
        refuse_input(path, [Path(config.source)], "the vectors")
        refuse_input(path, [] if source is None else source.inputs, "the light curves")
    if config.index is not None and config.index == config.out:
        raise UserError(f"{config.out}: cannot hold both the index and the table; name two files")
    index = _open(config)
    if index.simulated:
        commands.tell([SIMULATED_NOTE])
    tables = []
    if config.ids is not None:
        tables.append(_of_stars(index, config))
    if source is not None:
        tables.extend(_of_curves(index, source, config))
    if tables:
        _tell(tables, config)


def _open(config: NeighboursConfig) -> "VectorIndex":
    """The index that is the source, or of the vectors that are; written to a file if asked for."""
    from astroco_fast.vector_index import VectorIndex, is_index
    from astroco_fast.vectors import read_vectors

    source = Path(config.source)
    if source.is_file() and is_index(source):
        index = VectorIndex.load(source)
    else:
        vectors = read_vectors(source)
        if vectors.not_finite:
            commands.tell([f"{source}: left out {vectors.not_finite} rows whose vectors are not finite"])
        index = VectorIndex.build(vectors, config.kind)
    if config.index is not None:
        index.save(Path(config.index))
        print(f"{config.index}: {index.kind} index of {len(index):,} light curves, {index.dimensions} numbers each")
    return index


def _of_stars(index: "VectorIndex", config: NeighboursConfig) -> Any:
    import numpy as np

    words = config.ids or ""
    stars = [words] if len(index.rows_of(words)) else [star.strip() for star in words.split(",")]
    rows = [index.rows_of(star) for star in stars]
    if unknown := [star for star, found in zip(stars, rows, strict=True) if not len(found)]:
        raise UserError(f"{config.source}: no star {unknown[0]!r} in it; ids are compared letter by letter")
    if len(index) < 2:
        raise UserError(f"{config.source}: holds one light curve only, which has no neighbours")
    queries = np.concatenate(rows)
    distances, nearest = index.search_rows(queries, config.k)
    return _table(index, index.ids[queries], index.band[queries], distances, nearest)


def _of_curves(index: "VectorIndex", source: Any, config: NeighboursConfig) -> Iterator[Any]:
    from collections import Counter

    import numpy as np

    from astroco_fast.data.clean import because
    from astroco_fast.digest import DIGEST, MODEL, model_digest
    from astroco_fast.embedding import choose, embed_tables
    from astroco_fast.pretrained import require_local
    from astroco_fast.registry import load

    told = {key: index.metadata.get(f"embeddings {key}", "") for key in (MODEL, DIGEST)}
    name = config.model or told[MODEL]
    if not name:
        raise UserError(f"{config.source}: does not say which model made its vectors; name it by --model")
    require_local(name)
    dropped: Counter[str] = Counter()
    found = False
    model = load(name)
    choice = choose(model)
    if told[DIGEST] and told[DIGEST] != model_digest(model, choice.parts):
        raise UserError(
            f"{config.source}: its vectors are not those that {name} makes of light curves; give the --model that made "
            f"them ({told[MODEL]}, with its own parts)"
        )
    for batch in embed_tables(model, source, choice, dropped):
        vectors = batch["embedding"].flatten().to_numpy().reshape(batch.num_rows, -1)
        ids, bands = (np.array(batch[role].to_pylist(), dtype=object) for role in ("id", "band"))
        for first in range(0, len(ids), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            yield _table(index, ids[some], bands[some], *index.search(vectors[some], config.k))
            found = True
    if not found:
        raise UserError(f"{config.curves}: no light curve left to embed{because(dropped)}")
    commands.tell([*source.notes, *([f"{config.curves}{because(dropped)}"] if dropped else [])])


def _table(index: "VectorIndex", queries: Any, bands: Any, distances: Any, rows: Any) -> Any:
    """An Arrow table with a row a neighbour; those that a graph did not find are left out."""
    import numpy as np
    import pyarrow as pa

    k = rows.shape[1]
    found = rows.ravel() >= 0
    near = rows.ravel()[found]
    rank = np.tile(np.arange(1, k + 1, dtype=np.int32), len(rows))[found]
    words = {
        "query": np.repeat(queries, k)[found],
        "query_band": np.repeat(bands, k)[found],
        "id": index.ids[near],
        "band": index.band[near],
        "label": index.label[near],
    }
    columns = {name: pa.array(values, pa.string()) for name, values in words.items()}
    columns |= {"rank": pa.array(rank), "distance": pa.array(distances.ravel()[found].astype(np.float32))}
    return pa.table(
        {name: columns[name] for name in ("query", "query_band", "rank", "id", "band", "label", "distance")}
    )


def _tell(tables: Sequence[Any], config: NeighboursConfig) -> None:
    """Print the neighbours of the first queries; write all of them if a file is named."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from astroco_fast.files import whole_file
    from astroco_fast.text import rows

    table = pa.concat_tables(tables)
    if config.out is not None:
        with whole_file(Path(config.out)) as partial:
            pq.write_table(table, partial, write_page_checksum=True)
    shown = list(_lines(table.slice(0, _SHOWN_QUERIES * config.k).to_pylist()))
    print("\n".join(rows([["star", "band", "rank", "neighbour", "band", "label", "distance"], *shown])))
    if len(shown) < table.num_rows:
        where = f"{config.out} has all" if config.out is not None else "--out FILE.parquet writes all"
        print(f"The first {len(shown)} of {table.num_rows:,} neighbours; {where}.")
    elif config.out is not None:
        print(f"{config.out}: {table.num_rows:,} neighbours")


def _lines(found: Iterable[dict[str, Any]]) -> Iterator[list[str]]:
    for row in found:
        yield [
            *(str(row[name]) for name in ("query", "query_band", "rank", "id", "band", "label")),
            f"{row['distance']:.3f}",
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco neighbours`; returns its exit status: 0 done, 2 bad input."""

    def body() -> int:
        description = "Find the stars with the nearest vectors, of stars or of new light curves."
        find_neighbours(commands.parse(NeighboursConfig, "astroco neighbours", description, argv, ("source",)))
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
