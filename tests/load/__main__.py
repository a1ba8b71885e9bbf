"""`python -m tests.load FOLDER --stars 800000 --minutes 60`: see `tests.load`."""

import argparse
import json
import sys
from pathlib import Path

from tests.load.watch import Load, record, watch

# Exit statuses of commands that ended as they should: done, or saved and stopped by SIGTERM.
_FINE = (0, 75, 143, -15)


def steps(folder: Path, stars: int, model: str | None) -> dict[str, list[str]]:
    """The arguments of each step's command."""
    survey, store, run = (str(folder / name) for name in ("survey.parquet", "survey.store", "run"))
    quiet = ["--train.plots", "false", "--train.epochs", "1", "--train.evaluate_windows", "2000"]
    return {
        "simulate": ["simulate", survey, "--stars", str(stars)],
        "convert": ["convert", survey, store],
        "pretrain": ["pretrain", "--preset", "tiny", "--data", store, "--out", run, *quiet],
        "embed": ["embed", store, str(folder / "embeddings.parquet"), "--model", model or f"{run}/checkpoints/best"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description="Watch the commands under load.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stars", type=int, default=800_000, help="stars of the simulated survey")
    parser.add_argument("--minutes", type=float, help="the longest that a step may take; it is stopped by SIGTERM")
    parser.add_argument("--steps", nargs="*", default=["simulate", "convert", "pretrain", "embed"])
    parser.add_argument("--model", help="what `embed` takes, if not the model trained here")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = False
    print(
        "| step | status | minutes | processor minutes | peak MiB | MiB an hour | threads, an hour | files, an hour |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in options.steps:
        arguments = steps(options.folder, options.stars, options.model)[name]
        done, log = options.folder / f"{name}.json", options.folder / f"{name}.log"
        if not done.exists():
            limit = options.minutes * 60 if options.minutes else None
            load = watch(arguments, log, options.folder / f"{name}.samples", limit=limit)
            done.write_text(record(load))
        load = Load(**json.loads(done.read_text()))
        print(
            f"| {name} | {load.status} | {load.seconds / 60:.1f} | {load.processor_seconds / 60:.1f} "
            f"| {load.peak_mb:,.0f} | {load.memory_slope:+.1f} | {load.threads}, {load.thread_slope:+.2f} "
            f"| {load.files}, {load.file_slope:+.2f} |",
            flush=True,
        )
        failed |= load.status not in _FINE
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
