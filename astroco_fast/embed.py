"""`astroco embed IN OUT`: embeddings of light curves as a table, one row a light curve."""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from astroco_fast import commands
from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError

if TYPE_CHECKING:
    from astroco_fast.data.sources import Source
    from astroco_fast.embedding import Choice
    from astroco_fast.embedding_parts import Parts, Share
    from astroco_fast.pretrained import PretrainedEncoder

INTERRUPTED = 75  # exit status: stopped by a signal, and the same command goes on from there; as of `astroco pretrain`

_ABOUT = """Embed light curves: one vector each, with its id, as a table.

What is done survives a kill in OUT.partial, and the same command goes on from there. \
Several processes share the work with --shard i/n, or as ranks of torchrun; \
the last to finish writes OUT, the same to the bit as one process would.

Examples:
astroco embed survey.parquet embeddings.parquet
astroco embed survey.store vectors.fits --model runs/mine/checkpoints/best --short nan
astroco embed survey.store embeddings.parquet --shard 3/16
torchrun --nproc_per_node 4 -m astroco_fast.embed survey.store embeddings.parquet"""


@dataclass
class EmbedConfig:
    """Embed light curves.

    Args:
        source: table, folder or URL of light curves (as for `astroco convert`), or a store.
        out: file to write, with the columns id, band, label, n_points and embedding, one row a light curve. Its suffix
            decides the format: .parquet (or none), .feather, .arrow, .csv, .fits or .npz. All but CSV keep in their
            metadata how they were made: the model and its checksum, settings, and what was left out.
        model: the name of a released model (`astroco models` lists them), the folder of saved weights, such as
            RUN/checkpoints/best, or hub:NAME/REPOSITORY. Default: the best released model.
        columns: names of columns that are not found by themselves.
        band: embed only this band.
        min_points: light curves with fewer good points have no vector.
        short: a light curve without a vector, because it has too few good points or is not finite, has a row of NaN
            (nan) or no row (drop). It is counted. Default: drop, where it is an error if no row is left of light curves
            that were read; a table without any gives one without rows.
        windows: what becomes of light curves longer than the model's window of points. mean = the mean over all
            windows, weighted by points; first, last = only as many points as fill a window; all = a row for each
            window.
        output: embedding = vectors; sequence = the encoder's state of each point; reconstruction = the magnitude of
            each point as the model gives it back. The last two are lists, for .parquet and .feather.
        views: time = windows of consecutive points; folded = windows in the order of phase, at the period found in each
            light curve; both. Default: the views that the model was pretrained on.
        parts: the vector's parts, if not the views' own: time_mean, time_spread, folded_mean, folded_spread, period,
            shape, magnitudes. The metadata of the output's column says where each lies in the vector.
        precision: fp32, bf16 or int8 (faster than bf16, less exact, on CPUs with AVX512-VNNI and AVX512-BF16); auto =
            bf16 where the processor multiplies it in hardware, else fp32.
        batch_size: windows in a forward pass. It takes memory, and does not change the results.
        shard: i/n, with i from 1 to n: do only this share of the work. All shares name the same OUT, and may run at any
            time on any machine that sees its folder. Under torchrun each rank takes its share of this share.
        overwrite: replace an existing file, and discard what was begun with other settings.
        device: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one.
    """

    source: str
    out: str
    model: str | None = None
    columns: Columns = field(default_factory=Columns)
    band: str | None = None
    min_points: int = 1
    short: Literal["nan", "drop"] | None = None
    windows: Literal["mean", "first", "last", "all"] = "mean"
    output: Literal["embedding", "sequence", "reconstruction"] = "embedding"
    views: Literal["time", "folded", "both"] | None = None
    parts: list[str] | None = None
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    batch_size: int = 256
    shard: str = "1/1"
    overwrite: bool = False
    device: str = "auto"


def write_embeddings(config: EmbedConfig) -> int:
    """Run the command: embed what this process's share lacks, and join the shares if this is the last.

    Returns:
        The number of rows written; 0 if other shares are not done.

    Raises:
        UserError: a setting, the light curves or the model cannot be used, or the output cannot be written.
    """
    # Imported here, because `--help` should not wait for them.
    from astroco_fast import embedding_formats as formats
    from astroco_fast.data.sources import open_source
    from astroco_fast.embedding import choose
    from astroco_fast.embedding_parts import Parts
    from astroco_fast.files import refuse_input
    from astroco_fast.machine import pick_device

    out, share = Path(config.out), _share(config.shard)
    name, folder, model = _load(config.model)
    model.to(pick_device(config.device, _ranks()[2]))
    choice = choose(
        model, min_points=config.min_points, short=config.short or "drop", windows=config.windows, output=config.output,
        views=config.views, parts=config.parts, precision=config.precision, batch_size=config.batch_size,
    )  # fmt: skip
    source = open_source(config.source, config.columns, config.band)
    refuse_input(out, source.inputs, "the light curves")
    refuse_input(out, [folder], "the model")
    formats.check(out, config.output)
    provenance = formats.provenance_of(name, model, choice, config.source, config.columns, config.band)
    provenance["settings"]["device"] = next(model.parameters()).device.type
    parts = Parts(out, {**provenance, "source": source.identity}, share, config.overwrite)
    if parts.finished():
        parts.remove()
        print(f"{out}: whole already; only what was left beside it was removed")
        return 0
    with parts.opened():
        rows = 0
        if parts.all_there(_make_parts(model, source, choice, parts)):
            rows = _join(config, model, choice, parts, provenance)
        else:
            print(f"{parts.path}: {share} is done; whichever share is done last writes {out}")
        commands.tell(source.notes)
        return rows


def _load(name: str | None) -> "tuple[str, Path, PretrainedEncoder]":
    """A model's name, its folder, which is looked up once, and the model; None: the best."""
    from astroco_fast.pretrained import read_saved, require_local
    from astroco_fast.registry import load
    from astroco_fast.released import given_or_best

    name = given_or_best(name)
    require_local(name)
    folder, model = read_saved(name, lambda folder: (folder, load(folder)))
    return name, folder, model


def _ranks() -> tuple[int, int, int]:
    """This process's rank under torchrun, how many there are, and its rank on this machine."""
    rank, world, local = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
    return rank, world, local


_TORCHRUN = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _share(shard: str) -> "Share":
    from astroco_fast.embedding_parts import Share

    rank, world, _ = _ranks()
    return Share.parse(shard).split(rank + 1, world)


def _make_parts(model: "PretrainedEncoder", source: "Source", choice: "Choice", parts: "Parts") -> int:
    """Embed the pieces of this share that are not done; returns how many batches the source has."""
    from astroco_fast.data.extent import progress_bar
    from astroco_fast.data.seen import Seen
    from astroco_fast.embedding import embed_curves, evaluating, pieces
    from astroco_fast.machine import give_back_memory

    skip = parts.batches_done
    if parts.count:
        commands.tell([f"{parts.path}: goes on after {parts.count:,} parts that are done"])
    seen, batches = Seen(), skip
    with evaluating(model), progress_bar(source.extent, "embed", commands.is_rank_zero()) as advance:
        for batch in source.batches(skip, parts.spill, progress=commands.is_rank_zero()):
            seen.check(batch)
            cut = list(pieces(batch))
            for number, piece in enumerate(cut):
                if parts.wants(batches, number):
                    table, reasons = embed_curves(model, piece, choice)
                    simulated = piece.simulated and len(piece) > 0
                    record = {"curves": len(piece), "reasons": reasons, "simulated": simulated}
                    parts.add(batches, number, len(cut), table, record)
                advance(piece)
            batches += 1
            give_back_memory()
    return batches


def _join(
    config: EmbedConfig, model: "PretrainedEncoder", choice: "Choice", parts: "Parts", provenance: dict[str, Any]
) -> int:
    """Write the output from all parts; returns the number of rows."""
    from astroco_fast import embedding_formats as formats
    from astroco_fast.data.clean import because
    from astroco_fast.embedding import dimensions, empty_table
    from astroco_fast.embedding_curves import nothing_left

    reasons: Counter[str] = Counter()
    curves, simulated = 0, False
    for record in parts.records():
        reasons.update(record["reasons"])
        curves += record["curves"]
        simulated |= record["simulated"]
    rows = _checked_rows(config, parts)
    if config.short is None and nothing_left(reasons, choice.short, rows):
        parts.remove()
        raise UserError(f"{config.source}: no light curve left to embed{because(reasons)}")
    counts = {"light_curves": curves, "rows": rows, "without": dict(sorted(reasons.items()))}
    schema = empty_table(model, choice).schema
    parts_told = (schema.field(choice.output).metadata or {}).get(b"parts", b"{}")
    facts = {**provenance, "counts": counts, "parts": json.loads(parts_told), formats.SIMULATED: simulated}
    schema = formats.with_provenance(schema, facts)
    with parts.joining() as partial:
        if partial is not None:
            formats.write(partial, parts.out.suffix, formats.Rows(schema, rows, parts.read))
    what = f"{dimensions(model, choice.parts)} numbers each" if choice.output == "embedding" else "a list each"
    print(f"{parts.out}: {rows} {'windows' if choice.windows == 'all' else 'light curves'}, {what}{because(reasons)}")
    return rows


def _checked_rows(config: EmbedConfig, parts: "Parts") -> int:
    """The number of rows of all parts, in which no light curve may come twice, whichever processes made them."""
    import numpy as np

    from astroco_fast.data.curves import CurveBatch
    from astroco_fast.data.seen import Seen

    seen, rows = Seen(), 0
    windows = ["window"] if config.windows == "all" else []
    for table in parts.read(["id", "band", "label", *windows]):
        rows += table.num_rows
        ids, band, label = (table.column(i).to_numpy(zero_copy_only=False) for i in range(3))
        if windows:
            first = table.column(3).to_numpy() == 0
            ids, band, label = ids[first], band[first], label[first]
        none = np.empty(0, dtype=np.float32)
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        seen.check(CurveBatch(ids, band, label, offsets, none.astype(np.float64), none, none, source=config.source))
    return rows


@contextmanager
def _stop_at_once() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does: the file being written is removed, and finished parts stay."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco embed`; returns its exit status: 0 done, 2 bad input, 75 stopped by a signal and resumable."""

    def body() -> int:
        config = commands.parse(EmbedConfig, "astroco embed", _ABOUT, argv, ("source", "out"))
        try:
            with _stop_at_once():
                write_embeddings(config)
        except KeyboardInterrupt:
            commands.tell([f"stopped; the same command goes on from what {config.out}.partial holds"])
            return INTERRUPTED
        except UserError as error:
            if not commands.is_rank_zero():  # whose errors `run` tells; this rank may be the only one that has any
                print(f"astroco: rank {_ranks()[0]}: error: {commands.one_line(str(error))}", file=sys.stderr)
            raise
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
