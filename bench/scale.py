"""Light curves a second on the workers of LSDB and Ray: `python -m bench.scale --engine lsdb --workers 2`.

The stars are simulated. The time is that of reading, embedding and writing; a first run, in which the workers load the
model, is told apart.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from astroco_fast.data.simulate import simulate_survey
from astroco_fast.data.simulated_table import write_table


def make_catalog(folder: Path, stars: int, rows: int, order: int = 0) -> None:
    """A HATS catalogue of simulated stars with nested light curves, at most `rows` a partition, of `order` or finer."""
    import lsdb
    from nested_pandas import NestedFrame

    rng, ids, points = np.random.default_rng(0), [], []
    for batch in simulate_survey(stars, seed=0):
        ids += list(batch.ids)
        curve = np.repeat(np.array(batch.ids, dtype=object), batch.lengths)
        points.append(pd.DataFrame({"id": curve, "mjd": batch.time, "mag": batch.mag, "magerr": batch.err}))
    where = {"ra": rng.uniform(0, 360, stars), "dec": np.degrees(np.arcsin(rng.uniform(-1, 1, stars)))}
    frame = NestedFrame(pd.DataFrame({"id": ids, **where}).set_index("id"))
    frame = frame.join_nested(pd.concat(points).set_index("id"), "lc").reset_index()
    made = lsdb.from_dataframe(frame, ra_column="ra", dec_column="dec", partition_rows=rows, lowest_order=order)
    made.write_catalog(folder, progress_bar=False)


def on_lsdb(folder: Path, stars: int, workers: int, model: str) -> Callable[[str], None]:
    """Returns what embeds the catalogue into a new folder of that name."""
    import lsdb
    from distributed import Client

    from astroco_fast.scale.lsdb import embed_catalog

    make_catalog(folder / "survey", stars, stars // 16)
    client = Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    client.wait_for_workers(workers)
    catalog = embed_catalog(lsdb.open_catalog(folder / "survey"), model)
    return lambda name: catalog.write_catalog(folder / name, progress_bar=False)


def on_ray(folder: Path, stars: int, workers: int, model: str) -> Callable[[str], None]:
    """Returns what embeds the table into a new folder of that name."""
    import ray

    from astroco_fast.scale.ray import Embedder

    (folder / "survey").mkdir()
    write_table(folder / "survey" / "part.parquet", n_stars=stars, seed=0)
    ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False)
    table = ray.data.read_parquet(str(folder / "survey")).repartition(16).materialize()

    def embed(name: str) -> None:
        vectors = table.map_batches(
            Embedder, fn_constructor_args=(model,), batch_format="pyarrow", batch_size=stars // 16, concurrency=workers
        )
        vectors.write_parquet(str(folder / name))

    return embed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description="Light curves a second on workers.")
    parser.add_argument("--engine", choices=["lsdb", "ray"], required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stars", type=int, default=4000)
    parser.add_argument("--model", default="time-small")
    options = parser.parse_args()
    prepare = on_lsdb if options.engine == "lsdb" else on_ray
    with tempfile.TemporaryDirectory() as name:
        embed = prepare(Path(name), options.stars, options.workers, options.model)
        for run in range(2):
            began = time.perf_counter()
            embed(f"vectors-{run}")
            seconds = time.perf_counter() - began
            state = "warm" if run else "cold"
            print(f"{options.engine}, {options.workers} workers, {state}: {options.stars / seconds:.0f} light curves/s")


if __name__ == "__main__":
    main()
