"""Time the index of `astroco neighbours` on random vectors: building it, queries, and the recall of the graph.

    python -m bench.neighbours --stars 300000 --dimensions 276

Random vectors of many dimensions have no near neighbours, so that a graph finds fewer of them than among those of
stars: `--embeddings FILE` takes the vectors of a table instead. Times are of the processor.
"""

import argparse
import json
from pathlib import Path
from time import process_time

import numpy as np
import pyarrow as pa

from astroco_fast.vector_index import Kind, VectorIndex
from astroco_fast.vectors import Vectors, read_vectors

_KINDS: tuple[Kind, ...] = ("exact", "hnsw")


def random_vectors(stars: int, dimensions: int) -> Vectors:
    """Vectors of normal random numbers."""
    matrix = np.random.default_rng(0).standard_normal((stars, dimensions), dtype=np.float32)
    ids = np.array([str(i) for i in range(stars)], dtype=object)
    none = np.full(stars, "", dtype=object)
    return Vectors("random", ids, none, none, matrix, pa.table({}), stars, 0, {}, [])


def measure(vectors: Vectors, queries: int, k: int) -> dict[str, float]:
    """Seconds to build each index, queries a second, and the share of the exact neighbours that the graph finds."""
    rows = np.sort(np.random.default_rng(1).choice(len(vectors), queries, replace=False))
    figures: dict[str, float] = {"stars": len(vectors), "dimensions": vectors.matrix.shape[1], "queries": queries}
    found = {}
    for kind in _KINDS:
        start = process_time()
        index = VectorIndex.build(vectors, kind)
        figures[f"{kind} build, s"] = round(process_time() - start, 2)
        start = process_time()
        found[kind] = index.search_rows(rows, k)[1]
        figures[f"{kind} queries/s"] = round(queries / (process_time() - start), 1)
        start = process_time()
        for row in rows[:50]:
            index.search_rows(np.array([row]), k)
        figures[f"{kind} queries/s, one at a time"] = round(min(50, queries) / (process_time() - start), 1)
    shared = [np.isin(a, b).mean() for a, b in zip(found["exact"], found["hnsw"], strict=True)]
    return {**figures, f"recall at {k}": round(float(np.mean(shared)), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=int, default=300_000)
    parser.add_argument("--dimensions", type=int, default=276)
    parser.add_argument("--embeddings", type=Path, help="take the vectors of this table")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    flags = parser.parse_args()
    vectors = (
        random_vectors(flags.stars, flags.dimensions) if flags.embeddings is None else read_vectors(flags.embeddings)
    )
    print(json.dumps(measure(vectors, min(flags.queries, len(vectors)), flags.k), indent=2))


if __name__ == "__main__":
    main()
