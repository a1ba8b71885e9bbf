"""`astroco embed IN OUT --model FOLDER`: embeddings of light curves as a Parquet table, one row a light curve."""

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from astroco_fast import commands
from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError


@dataclass
class EmbedConfig:
    """Embed light curves.

    Args:
        source: table, folder or URL of light curves (as for `astroco convert`), or a store.
        out: Parquet file to write, with the columns id, band, label, n_points and embedding, one row a light curve. An
            existing file is replaced, unless it is one of the source or of the model.
        model: the name of a released model (`astroco models` lists them), the folder of saved weights, such as
            RUN/checkpoints/best, or hub:NAME/REPOSITORY. Default: the best released model.
        columns: names of columns that are not found by themselves.
        band: embed only this band.
        min_points: light curves with fewer good points have no vector.
        short: a light curve without a vector has a row of NaN (nan) or no row (drop). It is counted.
        windows: light curves longer than the model's window: mean over all windows, weighted by points; first, last =
            only as many points as fill a window; all = a row for each window.
        output: embedding; sequence = the encoder's state of each point; reconstruction = the magnitude of each point.
        views: time = windows of consecutive points; folded = windows in the order of phase, at the period found in each
            light curve; both. Default: the views that the model was pretrained on.
        parts: the vector's parts, if not the views' own: time_mean, time_spread, folded_mean, folded_spread, period,
            shape, magnitudes. The output's metadata says where each lies in the vector.
        precision: fp32, bf16; auto takes bf16 where the processor multiplies it in hardware.
        batch_size: windows in a forward pass. It does not change the results.
        device: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one.
    """

    source: str
    out: str
    model: str | None = None
    columns: Columns = field(default_factory=Columns)
    band: str | None = None
    min_points: int = 1
    short: Literal["nan", "drop"] = "drop"
    windows: Literal["mean", "first", "last", "all"] = "mean"
    output: Literal["embedding", "sequence", "reconstruction"] = "embedding"
    views: Literal["time", "folded", "both"] | None = None
    parts: list[str] | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: int = 256
    device: str = "auto"


def write_embeddings(config: EmbedConfig) -> int:
    """Run the command. The file appears once it is whole.

    Returns:
        The number of light curves embedded.
    """
    # Imported here, because `--help` should not wait for them.
    import pyarrow.parquet as pq
    from tqdm import tqdm

    from astroco_fast.data.clean import because
    from astroco_fast.data.sources import open_source
    from astroco_fast.embedding import choose, dimensions, embed_tables
    from astroco_fast.files import refuse_input, whole_file
    from astroco_fast.machine import pick_device
    from astroco_fast.pretrained import local_folder, require_local
    from astroco_fast.registry import load
    from astroco_fast.released import names

    if config.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {config.batch_size}")
    out = Path(config.out)
    name = config.model or names()[0]
    if config.model is None:
        print(f"No --model given: taking {name}, the best released one.", file=sys.stderr)
    source = open_source(config.source, config.columns, config.band)
    refuse_input(out, source.inputs, "the light curves")
    require_local(name)
    refuse_input(out, [local_folder(name)], "the model")
    model = load(name).to(pick_device(config.device))
    choice = choose(
        model, min_points=config.min_points, short=config.short, windows=config.windows, output=config.output,
        views=config.views, parts=config.parts, precision=config.precision, batch_size=config.batch_size,
    )  # fmt: skip
    dropped: Counter[str] = Counter()
    rows = 0
    with whole_file(out) as partial, ExitStack() as stack:
        writer = None
        progress = stack.enter_context(tqdm(desc="embed", unit=" curves", disable=None))
        for table in embed_tables(model, source, choice, dropped):
            writer = writer or stack.enter_context(pq.ParquetWriter(partial, table.schema, write_page_checksum=True))
            writer.write_batch(table)
            rows += table.num_rows
            progress.update(table.num_rows)
        if not rows:
            raise UserError(f"{config.source}: no light curve left to embed{because(dropped)}")
    commands.tell(source.notes)
    print(f"{out}: {rows} light curves, {dimensions(model, choice.parts)} numbers each{because(dropped)}")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco embed`; returns its exit status: 0 done, 2 bad input."""

    def body() -> int:
        write_embeddings(commands.parse(EmbedConfig, "astroco embed", "Embed light curves.", argv, ("source", "out")))
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
