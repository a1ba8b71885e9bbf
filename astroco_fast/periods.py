"""`astroco periods IN [OUT]`: the period of each light curve, kept in a store or written as a table."""

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astroco_fast import commands
from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError

if TYPE_CHECKING:
    from astroco_fast.data.curves import CurveBatch
    from astroco_fast.data.periods import Periods


@dataclass
class PeriodsConfig:
    """Settings of `astroco periods`.

    Args:
        source: store, to which the periods are added if no output is named; or table, folder or URL of light curves, as
            for `astroco convert`.
        out: Parquet file to write, one row a light curve, with the columns id, band, label, n_points and span (days),
            and period, fold_period, epoch (days), power, log_false_alarm and others that docs/periods.md describes; NaN
            where a light curve has no period. An existing file is replaced, unless it is read.
        against: table with the columns id and period (days), such as the light curves' own. How many of the periods
            found are those, half or twice those, is printed by class, and written beside the output as
            NAME.recovery.csv.
        band: search only this band.
        columns: names of columns that are not found by themselves.
        threads: light curves searched at the same time; by default as many as this process may use CPUs.
    """

    source: str
    out: str | None = None
    against: str | None = None
    band: str | None = None
    columns: Columns = field(default_factory=Columns)
    threads: int | None = None


class _Search:
    """The search of a source's light curves, batch by batch, and what the report at the end needs of it."""

    def __init__(self, config: PeriodsConfig) -> None:
        from astroco_fast.data.recovery import catalogue_periods

        self.reasons: Counter[str] = Counter()
        self._threads = config.threads
        self._catalogue = None if config.against is None else catalogue_periods(config.against)
        self._compared: list[tuple[str, float, float, float]] = []  # label, period found, catalogue's, span

    def __call__(self, curves: "CurveBatch") -> "tuple[Periods, Any]":
        """The periods of clean light curves, and their spans (n,) in days."""
        from astroco_fast.data.periods import find_periods

        periods = find_periods(curves, threads=self._threads)
        spans = curves.time[curves.offsets[1:] - 1] - curves.time[curves.offsets[:-1]]
        self.reasons += periods.reasons()
        if self._catalogue is not None:
            for star, label, period, span in zip(curves.ids, curves.label, periods.period, spans, strict=True):
                if star in self._catalogue and span > 0:
                    self._compared.append((label, period, self._catalogue[star], span))
        return periods, spans

    @property
    def compared(self) -> int:
        """The number of light curves that have a period in the catalogue."""
        return len(self._compared)

    def recovery(self, config: PeriodsConfig) -> list[list[str]]:
        """The table of how many periods are the catalogue's, by class."""
        import numpy as np

        from astroco_fast.data.recovery import recovery, recovery_table

        if not self._compared:
            raise UserError(f"{config.against}: none of the light curves has a period there; are the ids the same?")
        labels, *numbers = zip(*self._compared, strict=True)
        return recovery_table(labels, recovery(*(np.array(values) for values in numbers)))


def write_periods(config: PeriodsConfig) -> None:
    """Run the command. The output appears, or the store changes, once the search is complete.

    Raises:
        UserError: the input cannot be read, no output is named for what is no store, or nothing fits `against`.
    """
    # Imported here, because `--help` should not wait for them.
    from astroco_fast.data.recovery import markdown
    from astroco_fast.data.store import Store

    if config.threads is not None and config.threads < 1:
        raise UserError(f"threads must be at least 1, not {config.threads}")
    search = _Search(config)
    if config.out is not None:
        _into_table(config, Path(config.out), search)
    elif Store.is_store(config.source):
        if config.band is not None:
            raise UserError("a store keeps the periods of all its bands; name an output file to search one band")
        Store.open(config.source, check_periods=False).add_periods(lambda curves: search(curves)[0], progress=True)
    else:
        raise UserError(f"{config.source}: not a store, which could keep its periods; name a Parquet file to write")
    print(f"{config.out or config.source}: {search.reasons.total():,} light curves; period {_counts(search.reasons)}")
    if config.against is not None:
        rows = search.recovery(config)
        searched = search.reasons.total()
        if search.compared < searched:
            missing = f"{searched - search.compared:,} of {searched:,} light curves"
            commands.tell([f"{config.against}: {missing} have no period there"])
        if config.out is not None:
            _write_csv(_recovery_file(Path(config.out)), rows)
        print(f"\nPeriods found, by their relation to {config.against}, in percent:\n", *markdown(rows), sep="\n")


def _recovery_file(out: Path) -> Path:
    """The file beside the output that says how many of the periods are the catalogue's."""
    return out.with_suffix(".recovery.csv")


def _counts(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())


def _into_table(config: PeriodsConfig, out: Path, search: _Search) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from astroco_fast.data.clean import CleanConfig, because, clean
    from astroco_fast.data.extent import progress_bar
    from astroco_fast.data.seen import Seen
    from astroco_fast.data.sources import open_source
    from astroco_fast.files import refuse_input, whole_file

    source, seen, cleaning = open_source(config.source, config.columns, config.band), Seen(), CleanConfig(min_points=1)
    dropped: Counter[str] = Counter()
    for path in (out, _recovery_file(out)):
        refuse_input(path, source.inputs, "the light curves")
        refuse_input(path, [] if config.against is None else [Path(config.against)], "the catalogue")
    with whole_file(out) as partial, ExitStack() as stack:
        writer = None
        advance = stack.enter_context(progress_bar(source.extent, "periods", True))
        for raw in source.batches():
            seen.check(raw)
            curves, reasons = clean(raw, cleaning)
            dropped.update(reasons)
            periods, spans = search(curves)
            named = {"id": curves.ids, "band": curves.band, "label": curves.label}
            table = pa.table({name: pa.array(text, pa.string()) for name, text in named.items()})
            found = periods.to_table()
            numbers = {"n_points": pa.array(curves.lengths), "span": pa.array(spans)}
            numbers |= dict(zip(found.column_names, found.columns, strict=True))
            for name, values in numbers.items():
                table = table.append_column(name, values)
            writer = writer or stack.enter_context(pq.ParquetWriter(partial, table.schema, write_page_checksum=True))
            writer.write_table(table)
            advance(raw)
        if writer is None:
            raise UserError(f"{config.source}: no light curves in it")
    commands.tell(source.notes)
    if dropped:
        commands.tell([f"{config.source}{because(dropped)}"])


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    import csv
    import io

    from astroco_fast.files import write_text

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco periods`; returns its exit status: 0 done, 2 bad input."""

    def body() -> int:
        description = "Find the period of each light curve, and the period at which to fold it."
        write_periods(commands.parse(PeriodsConfig, "astroco periods", description, argv, ("source", "out")))
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
