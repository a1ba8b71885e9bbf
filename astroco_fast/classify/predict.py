"""`astroco classify predict`: the classes of light curves, with probabilities."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from astroco_fast.classify.classifier import Classifier, load_classifier
from astroco_fast.classify.config import PredictConfig
from astroco_fast.classify.vectors import Chunk, EmbeddingTable, Model, curve_chunks
from astroco_fast.commands import tell
from astroco_fast.data.clean import because
from astroco_fast.data.extent import Extent, progress_bar
from astroco_fast.data.notes import Notes
from astroco_fast.data.sources import open_source
from astroco_fast.digest import DIGEST, MODEL
from astroco_fast.errors import UserError
from astroco_fast.files import refuse_input, whole_file
from astroco_fast.vector_tables import is_embeddings

SUFFIXES = (".parquet", ".csv")


def predict(config: PredictConfig) -> int:
    """Run `astroco classify predict`, in bounded memory. The file appears once it is whole.

    Returns:
        The number of light curves.

    Raises:
        UserError: the vectors are those of another model, or the data, the classifier or the file cannot be used.
    """
    out = Path(config.out)
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"{out}: the name must end in {' or '.join(SUFFIXES)}")
    if out.exists() and not config.overwrite:
        raise UserError(f"{out}: exists; give another name, or --overwrite true")
    classifier = load_classifier(config.classifier).with_priors(config.priors)
    dropped: Counter[str] = Counter()
    if is_embeddings(Path(config.data)):
        refuse_input(out, [Path(config.data)], "the embeddings")
        table = EmbeddingTable(config.data, config.model, list(classifier.parts) or None)
        _require(table.digest, classifier, f"{config.data}: vectors of {table.model or 'another model'}")
        chunks, extent, notes = table.chunks(dropped, config.band), Extent(), Notes()
        if config.model is not None and table.taken is None:
            notes.add(config.data, f"says itself that {table.model} made its vectors; --model is not used")
    else:
        source = open_source(config.data, config.columns, config.band)
        refuse_input(out, source.inputs, "the light curves")
        name = config.model or classifier.model
        model = Model.open(name, list(classifier.parts) or None, config.device)
        _require(model.digest, classifier, f"{name}: another model")
        chunks = curve_chunks(model, source, dropped, config.batch_size, classifier.min_points)
        extent, notes = source.extent, source.notes
    count = 0
    with whole_file(out) as partial, _writer(partial, out.suffix.lower(), classifier) as write:
        with progress_bar(extent, "classify", shown=True) as advance:
            for chunk in chunks:
                if len(chunk):
                    write(columns(chunk, classifier))
                    count += len(chunk)
                    advance(chunk)
        if not count:
            raise UserError(f"{config.data}: no light curve left to classify{because(dropped)}")
    tell(notes)
    print(f"{out}: {count:,} light curves, {len(classifier.classes)} classes{because(dropped)}")
    return count


def columns(chunk: Chunk, classifier: Classifier) -> dict[str, Any]:
    """The output's columns for some light curves."""
    probabilities = classifier.probabilities(chunk.vectors)
    best = probabilities.argmax(1)
    return {
        "id": chunk.ids,
        "band": chunk.bands,
        "label": chunk.labels,
        "class": [classifier.classes[i] for i in best],
        "probability": probabilities[np.arange(len(best)), best],
        **{f"p_{name}": probabilities[:, i] for i, name in enumerate(classifier.classes)},
    }


def _require(digest: str, classifier: Classifier, what: str) -> None:
    if digest != classifier.digest:
        raise UserError(
            f"{what}; the classifier takes those of {classifier.model} (SHA-256 {classifier.digest[:12]}, not "
            f"{digest[:12]}): embed with that model and its parts, or fit another classifier"
        )


@contextmanager
def _writer(path: Path, suffix: str, classifier: Classifier) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends columns to a file."""
    names = ["id", "band", "label", "class", "probability", *(f"p_{name}" for name in classifier.classes)]
    if suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(names)
            yield lambda made: rows.writerows(zip(*(made[name] for name in names), strict=True))
        return
    told = {MODEL: classifier.model, DIGEST: classifier.digest, "priors": classifier.priors}
    kinds = [pa.string() if name in names[:4] else pa.float64() for name in names]
    schema = pa.schema(list(zip(names, kinds, strict=True)), metadata=told)
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as file:
        yield lambda made: file.write_table(pa.table([made[name] for name in names], schema=schema))
