"""`astroco anomalies EMBEDDINGS`: the stars whose vectors are unlike those of others, by two measures."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astroco_fast import commands
from astroco_fast.errors import UserError

if TYPE_CHECKING:
    from astroco_fast.oddity import Oddity
    from astroco_fast.vectors import Vectors


@dataclass
class AnomaliesConfig:
    """Settings of `astroco anomalies`.

    Args:
        source: table of embeddings that `astroco embed` wrote.
        out: Parquet file to write, one row a light curve, the oddest first: id, band, label, score, isolation,
            isolation_spread, distance, distance_spread (docs/explore.md). An existing file is replaced, unless it is
            read.
        top: stars to show on the screen, and on which the agreement is counted.
        k: the neighbour whose distance is taken.
        seeds: of the isolation forests and of the reference samples.
    """

    source: str
    out: str | None = None
    top: int = 20
    k: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)


def find_anomalies(config: AnomaliesConfig) -> None:
    """Run the command.

    Raises:
        UserError: the table cannot be read, has fewer than three light curves, or a setting makes no sense.
    """
    # Imported here, because `--help` should not wait for them.
    from astroco_fast.files import refuse_input
    from astroco_fast.oddity import oddity
    from astroco_fast.vectors import SIMULATED_NOTE, read_vectors

    for name, value in (("top", config.top), ("k", config.k)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    fit = all(0 <= seed < 2**32 for seed in config.seeds)  # what scikit-learn takes
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or not fit:
        raise UserError(f"seeds must be different whole numbers from 0 to 2^32 - 1, not {list(config.seeds)}")
    if config.out is not None:
        refuse_input(Path(config.out), [Path(config.source)], "the vectors")
    vectors = read_vectors(config.source)
    if len(vectors) < 3:
        raise UserError(
            f"{config.source}: {len(vectors)} light curves are too few to tell which is odd; give 3 or more"
        )
    if vectors.not_finite:
        commands.tell([f"{config.source}: left out {vectors.not_finite} rows whose vectors are not finite"])
    if vectors.simulated:
        commands.tell([SIMULATED_NOTE])
    found = oddity(vectors.matrix, config.k, config.seeds)
    table = _table(vectors, found)
    if config.out is not None:
        _write(table, Path(config.out))
    _tell(table, found, config)


def _table(vectors: "Vectors", found: "Oddity") -> Any:
    """An Arrow table with a row a light curve, the oddest first."""
    import numpy as np
    import pyarrow as pa

    words = {"id": vectors.ids, "band": vectors.band, "label": vectors.label}
    numbers = {"score": found.score}
    for name, values in (("isolation", found.isolation), ("distance", found.distance)):
        numbers |= {name: values.mean(0), f"{name}_spread": values.std(0)}
    columns = {name: pa.array(values, pa.string()) for name, values in words.items()}
    columns |= {name: pa.array(values) for name, values in numbers.items()}
    return pa.table(columns).take(pa.array(np.argsort(-found.score, kind="stable")))


def _write(table: Any, out: Path) -> None:
    import pyarrow.parquet as pq

    from astroco_fast.files import whole_file

    with whole_file(out) as partial:
        pq.write_table(table, partial, write_page_checksum=True)


def _tell(table: Any, found: "Oddity", config: AnomaliesConfig) -> None:
    from astroco_fast.text import rows

    lines = [["", "id", "band", "label", "score", "isolation", "distance"]]
    for place, row in enumerate(table.slice(0, config.top).to_pylist(), 1):
        measures = [f"{row[name]:.3f} ± {row[f'{name}_spread']:.3f}" for name in ("isolation", "distance")]
        lines.append([str(place), row["id"], row["band"], row["label"], f"{row['score']:.4f}", *measures])
    print(f"The oddest of {table.num_rows:,} light curves; ± is the spread over {len(config.seeds)} seeds:")
    print("\n".join(rows(lines)))
    top = min(config.top, table.num_rows)
    agreement = [(name, f"{correlation:.3f}", f"{share:.0%}") for name, correlation, share in found.agreement(top)]
    print("\nAgreement:")
    print("\n".join(rows([["", "rank correlation", f"shared of the {top} oddest"], *agreement])))
    if config.out is not None:
        print(f"\n{config.out}: {table.num_rows:,} light curves")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco anomalies`; returns its exit status: 0 done, 2 bad input."""

    def body() -> int:
        description = "Find the stars whose vectors are unlike the others'."
        find_anomalies(commands.parse(AnomaliesConfig, "astroco anomalies", description, argv, ("source",)))
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
