"""The kinds of files, and how each is read: by the function of the package that users and commands call."""

import contextlib
import functools
import json
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis.strategies import SearchStrategy

from astroco_fast import astromer_weights, commands, presets, registry, settings, verdicts
from astroco_fast.checksums import MANIFEST, write_manifest
from astroco_fast.classify.classifier import DESCRIPTION, NUMBERS, load_classifier
from astroco_fast.classify.vectors import EmbeddingTable
from astroco_fast.data import store
from astroco_fast.data.clean import CleanConfig, clean
from astroco_fast.data.columns import Columns
from astroco_fast.data.metadata import StarTable, read_text_table
from astroco_fast.data.periods import Periods
from astroco_fast.data.recovery import catalogue_periods
from astroco_fast.data.seen import Seen
from astroco_fast.data.sources import open_source
from astroco_fast.data.store import FILES, PERIODS, Store, describe_file
from astroco_fast.errors import UserError
from astroco_fast.files import sha256
from astroco_fast.folders import MARK, result_folder
from astroco_fast.pretrain.checkpoint import STATE, CheckpointFolder, State
from astroco_fast.pretrain.config import PretrainConfig
from astroco_fast.pretrain.report import read_metrics, training_lines
from astroco_fast.probe.embeddings import Embeddings
from astroco_fast.probe.splits import read_splits
from astroco_fast.vectors import read_vectors
from tests.fuzz import seeds, strategies
from tests.fuzz.limits import limits

_UNSEEN = (ResourceWarning, DeprecationWarning, PendingDeprecationWarning)  # by default, Python does not print them
VALID, REFUSED = "valid", "refused"


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: the kind's name in the record.
        file: the file that is damaged; relative to a folder.
        read: reads the folder, and checks that the result is one.
        contents: valid contents of the file; None: only that in `others`.
        odd: makes contents that are odd inside, from valid ones.
        others: the folder's files, made in an empty folder whose path stays the same.
        share: how many of a campaign's inputs are of this kind, compared with others; less where reading is slow.
        seal: writes the checksum of the damaged file where that of the valid one stands.
    """

    name: str
    file: str
    read: Callable[[Path], object]
    contents: Callable[[], list[bytes]] | None = None
    odd: Callable[[list[bytes]], SearchStrategy[bytes]] | None = None
    others: Callable[[Path], seeds.Files] | None = None
    seal: Callable[[Path], None] | None = None
    share: float = 1.0

    @functools.cached_property
    def _files(self) -> seeds.Files:
        with _empty_folder() as folder:
            return {} if self.others is None else self.others(folder)

    @functools.cached_property
    def seeds(self) -> list[bytes]:
        """Valid contents of the file."""
        return [self._files[self.file]] if self.contents is None else self.contents()

    def outcome(self, data: bytes) -> str:
        """Give the file this content, and read it: `VALID` or `REFUSED`.

        Raises:
            Exception: whatever the package should not have raised.
            AssertionError: a result that is none, or too much time or memory.
        """
        files = {**self._files, self.file: data}
        with _empty_folder() as folder:
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if self.seal is not None:
                self.seal(folder)
            return outcome(functools.partial(self.read, folder))


def outcome(read: Callable[[], object]) -> str:
    """Call what reads an input: `VALID` or `REFUSED`; raises as `Kind.outcome`."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with limits():
                read()
        except UserError as error:
            line = commands.one_line(str(error))
            assert line
            assert line.isprintable()
            found = REFUSED
        else:
            found = VALID
    told = [warning for warning in told if not issubclass(warning.category, _UNSEEN)]
    assert not told, (
        f"a warning besides: {told[0].category.__name__}: {told[0].message} ({Path(told[0].filename).name})"
    )
    return found


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="astroco-fuzz-", dir=memory if memory.is_dir() else None)


@contextlib.contextmanager
def _empty_folder() -> Iterator[Path]:
    """Always of the same path; one that a stopped process left is emptied."""
    folder = Path(_scratch().name) / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def read_curves(source: Any) -> None:
    """Read light curves as `convert` and `embed` do."""
    seen = Seen()
    for raw in open_source(source).batches():
        seen.check(raw)
        kept, dropped = clean(raw, CleanConfig(min_points=1))
        lengths = np.diff(kept.offsets)
        assert len(kept.ids) == len(kept.band) == len(kept.label) == len(lengths)
        assert all(isinstance(text, str) for text in (*kept.ids, *kept.band, *kept.label))
        assert all(kept.ids)
        assert kept.offsets[0] == 0
        assert (lengths > 0).all()
        assert kept.offsets[-1] == len(kept.time) == len(kept.mag) == len(kept.err)
        assert all(np.isfinite(values).all() for values in (kept.time, kept.mag, kept.err))
        assert (kept.err > 0).all()
        assert all(count > 0 for count in dropped.values())


def _table(file: str) -> Callable[[Path], None]:
    return lambda folder: read_curves(folder / file)


def _read_yaml(folder: Path) -> None:
    path = folder / "config.yaml"
    settings.read(path, PretrainConfig)
    config = commands.parse(PretrainConfig, "astroco pretrain", "", ["--config", str(path)])
    config.resolve(presets.preset(config.preset))
    presets.configure(config.preset, config.model)


def _read_model(folder: Path) -> None:
    model = registry.load(folder)
    assert all(values.isfinite().all() for values in model.state_dict().values())


def _without_checksums(others: Callable[[], seeds.Files]) -> Callable[[Path], seeds.Files]:
    return lambda _: {name: content for name, content in others().items() if name != MANIFEST}


def _checkpoint(_: Path) -> seeds.Files:
    return {f"step-00000003/{name}": content for name, content in seeds.checkpoint().items()}


def _read_checkpoint(folder: Path) -> None:
    found = CheckpointFolder(folder, keep=2).to_resume()
    assert found is not None
    State.from_dict(found[1].get("state"))


def _seal_checkpoint(folder: Path) -> None:
    write_manifest(folder / "step-00000003")


def _read_store(folder: Path) -> None:
    opened = Store.open(folder)
    curves = points = 0
    for batch in opened.batches():
        assert len(batch.ids) == len(batch.band) == len(batch.label) == len(batch.lengths)
        assert all(isinstance(text, str) for text in (*batch.ids, *batch.band, *batch.label))
        assert (batch.lengths >= 0).all()
        assert batch.offsets[-1] == len(batch.time) == len(batch.mag) == len(batch.err)
        curves, points = curves + len(batch), points + batch.n_points
    assert curves == opened.n_curves == len(opened.star_hash)
    assert opened.periods is None or len(opened.periods) == curves
    assert points == opened.n_points


def _seal_store(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: describe_file(folder / name) for name in manifest["files"]}
    store.write_manifest(folder, manifest)


def _seal_store_manifest(folder: Path) -> None:
    """Write the checksum of a changed manifest, where it still can have one."""
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads((folder / "manifest.json").read_text())
        if isinstance(content, dict):
            store.write_manifest(folder, content)


def _read_partial(folder: Path) -> None:
    """Go on with a stopped conversion. It ends in the store that one without a stop makes, whatever was damaged."""
    seeds.set_time(folder / "points.csv")
    seeds.convert_points(folder, "out")
    _read_store(folder / "out")
    assert Store.open(folder / "out", verify=False).digest == _whole_digest(), "another store than without a stop"


@functools.cache
def _whole_digest() -> str:
    """The digest of the conversion's store without a stop."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "points.csv").write_bytes(seeds.csv_files()[0])
        seeds.convert_points(Path(name), "out")
        return Store.open(Path(name) / "out").digest


def _read_cache(folder: Path) -> None:
    cache = Embeddings(folder / "embeddings.parquet", seeds.DIGEST)
    for curve in ("1" * 32, "2" * 32):
        if curve in cache:
            assert cache.of([curve]).shape[0] == 1
            cache.save()


def _read_vectors(folder: Path) -> None:
    """Read a table of vectors as `classify` and as `neighbours`, `anomalies` and `explore` do."""
    (path,) = folder.glob("vectors*")
    refused = None
    try:
        for chunk in EmbeddingTable(str(path)).chunks(Counter(), None):
            assert len(chunk.ids) == len(chunk.bands) == len(chunk.labels) == len(chunk.vectors)
            assert np.isfinite(chunk.vectors).all()
    except UserError as error:
        refused = None if path.suffix == ".csv" else error  # which has no place for the model's name
    found = read_vectors(path)
    assert len(found) == len(found.band) == len(found.label) == len(found.matrix) == found.columns.num_rows
    assert np.isfinite(found.matrix).all()
    if refused is not None:
        raise refused


def _vector_files() -> Iterator[Kind]:
    plain = {"id", "band", "label", "n_points"}
    odd: dict[str, Callable[[list[bytes]], Any] | None] = {
        ".parquet": _odd_table(*sorted(plain), "embedding", metadata=seeds.vector_table().schema.metadata),
        ".feather": None,
        ".csv": _odd_text(*sorted(plain), "embedding_0", "embedding_1"),
        ".fits": None,
        ".npz": None,
    }
    for suffix, strategy in odd.items():
        file = f"vectors{suffix}"
        yield Kind(f"vectors: {suffix}", file, _read_vectors, functools.partial(seeds.vector_files, suffix), strategy)
    yield Kind(
        "vectors: hats.properties",
        "vectors/hats.properties",
        _read_vectors,
        None,
        lambda _: _json([json.dumps(seeds.PROVENANCE).encode()]).map(seeds.properties),
        lambda _: seeds.vector_catalogue(),
    )


def _read_classifier(folder: Path) -> None:
    probabilities = load_classifier(folder).probabilities(np.ones((3, 4), dtype=np.float32))
    assert probabilities.shape == (3, 2)


def _seal_classifier(folder: Path) -> None:
    told = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**told, "sha256": sha256(folder / NUMBERS)}))


def _read_splits(folder: Path) -> None:
    for split in read_splits(folder / "splits.csv"):
        assert all(split.parts.values())
        assert not {*split.train} & {*split.test}


def _read_mark(folder: Path) -> None:
    with result_folder(folder, "probe", "busy", lambda path: ([], [])):
        pass


def _read_metrics(folder: Path) -> None:
    for _ in training_lines(read_metrics(folder)):
        pass


def _read_astromer(folder: Path) -> None:
    (path,) = folder.glob("*.h5")
    astromer_weights.load(path)


def _read_verdicts(folder: Path) -> None:
    assert isinstance(verdicts._read(folder / "selfcheck.json"), dict)


class Objects:
    """Light curves in memory, which are no files, but come in as many forms."""

    name = "objects in memory"
    seeds: tuple[bytes, ...] = ()
    share = 1.0

    @staticmethod
    def odd(seeds: object) -> SearchStrategy[Any]:
        return strategies.objects()

    @staticmethod
    def outcome(drawn: Any) -> str:
        return outcome(functools.partial(read_curves, drawn))


def _odd_table(*columns: str, metadata: dict[bytes, bytes] | None = None) -> Callable[[list[bytes]], Any]:
    return lambda _: strategies.parquet_files(columns, metadata)


def _odd_text(*columns: str, delimiter: str = ",") -> Callable[[list[bytes]], Any]:
    return lambda _: strategies.text_tables(columns, delimiter)


def _store_files() -> Iterator[Kind]:
    odd: dict[str, Callable[[list[bytes]], Any]] = {
        "time.f64": lambda _: strategies.number_files("<f8", 22),
        "mag.f32": lambda _: strategies.number_files("<f4", 22),
        "err.f32": lambda _: strategies.number_files("<f4", 22),
        "offsets.i64": lambda _: strategies.number_files("<i8", 5),
        "curves.parquet": _odd_table("id", "band", "label", "n_points", "star_hash"),
        PERIODS: _odd_table(*(field.name for field in fields(Periods))),
    }
    for name in (*FILES, PERIODS):
        yield Kind(f"store: {name}", name, _read_store, None, odd[name], lambda _: seeds.store(), _seal_store)


def _partial_files() -> Iterator[Kind]:
    odd: dict[str, Callable[[list[bytes]], Any] | None] = {
        "work/plan.json": strategies.json_files,
        "work/progress.json": strategies.json_files,
        "work/curves-000000.parquet": _odd_table("id", "band", "label", "n_points", "star_hash"),
        "work/spill/done.json": strategies.json_files,
        "work/spill/points-001.arrow": None,
        "time.f64": None,
        "offsets.i64": lambda _: strategies.number_files("<i8", 3),
    }
    for name, strategy in odd.items():
        yield Kind(
            f"stopped conversion: {name}",
            f"out.partial/{name}",
            _read_partial,
            None,
            strategy,
            seeds.partial,
            None,
            0.1,
        )


def _labels(folder: Path) -> None:
    read_text_table(folder / "labels.csv", {"id": None, "label": None})


def _periods(folder: Path) -> None:
    catalogue_periods(folder / "periods.csv")


def _metadata(folder: Path) -> None:
    StarTable(folder / "metadata.parquet", "newID", Columns())


_MARK = b'{"command": "probe", "names": ["a"], "results": []}'
_VERDICTS = b'{"cpu, torch 2": {"attention": "off"}}'
_STEP = "step-00000003"
_POINTS = strategies.COLUMNS
_model, _astromer = _without_checksums(seeds.model), _without_checksums(seeds.astromer)
_json = strategies.json_files

KINDS: dict[str, Kind | Objects] = {
    kind.name: kind
    for kind in (
        Objects(),
        Kind("CSV", "curves.csv", _table("curves.csv"), seeds.csv_files, _odd_text(*_POINTS)),
        Kind("TSV", "curves.tsv", _table("curves.tsv"), seeds.tsv_files, _odd_text(*_POINTS, delimiter="\t")),
        Kind("CSV, gzip", "curves.csv.gz", _table("curves.csv.gz"), seeds.csv_gz_files),
        Kind("Parquet", "curves.parquet", _table("curves.parquet"), seeds.parquet_files, _odd_table(*_POINTS)),
        Kind("FITS", "curves.fits", _table("curves.fits"), seeds.fits_files, lambda _: strategies.fits_files()),
        Kind("Feather", "curves.feather", _table("curves.feather"), seeds.arrow_files),
        Kind("JSON lines", "curves.jsonl", _table("curves.jsonl"), seeds.json_files, strategies.json_lines),
        Kind("ECSV", "curves.ecsv", _table("curves.ecsv"), lambda: seeds.astropy_files("ascii.ecsv"), share=0.4),
        Kind("VOTable", "curves.vot", _table("curves.vot"), lambda: seeds.astropy_files("votable"), share=0.4),
        Kind("OGLE's .dat", "curves.dat", _table("curves.dat"), seeds.dat_files),
        Kind(
            "TFRecord",
            "curves.tfrecord",
            _table("curves.tfrecord"),
            seeds.tfrecord_files,
            lambda _: strategies.tfrecord_files(),
        ),
        Kind("labels", "labels.csv", _labels, seeds.label_files, _odd_text("id", "label")),
        Kind("catalogue of periods", "periods.csv", _periods, seeds.period_files, _odd_text("id", "period")),
        Kind(
            "metadata.parquet",
            "metadata.parquet",
            _metadata,
            seeds.metadata_files,
            _odd_table("ID", "newID", "Class", "Band"),
        ),
        Kind("settings in YAML", "config.yaml", _read_yaml, seeds.yaml_files, strategies.yaml_files, share=0.4),
        Kind("model: config.json", "config.json", _read_model, None, _json, _model),
        Kind("model: config.json of Astromer", "config.json", _read_model, None, _json, _astromer),
        Kind("model: safetensors", "model.safetensors", _read_model, None, strategies.safetensors_files, _model),
        Kind("model: manifest.json", MANIFEST, _read_model, None, _json, lambda _: seeds.model()),
        Kind("checkpoint: manifest.json", f"{_STEP}/{MANIFEST}", _read_checkpoint, None, _json, _checkpoint),
        Kind(
            "checkpoint: state.json", f"{_STEP}/{STATE}", _read_checkpoint, None, _json, _checkpoint, _seal_checkpoint
        ),
        Kind(
            "store: manifest.json",
            "manifest.json",
            _read_store,
            None,
            _json,
            lambda _: seeds.store(),
            _seal_store_manifest,
        ),
        *_store_files(),
        *_partial_files(),
        Kind(
            "embeddings cache",
            "embeddings.parquet",
            _read_cache,
            seeds.cache_files,
            _odd_table("id", "curve", "embedding", metadata={b"model_sha256": seeds.DIGEST.encode()}),
        ),
        *_vector_files(),
        Kind("classifier: JSON", DESCRIPTION, _read_classifier, None, _json, lambda _: seeds.classifier()),
        Kind(
            "classifier: safetensors",
            NUMBERS,
            _read_classifier,
            None,
            strategies.safetensors_files,
            lambda _: seeds.classifier(),
            _seal_classifier,
        ),
        Kind(
            "splits.csv", "splits.csv", _read_splits, seeds.splits_files, _odd_text("n", "fold", "split", "id", "label")
        ),
        Kind("results' mark", MARK, _read_mark, lambda: [_MARK], _json),
        Kind("metrics.jsonl", "metrics.jsonl", _read_metrics, seeds.metrics_files, strategies.json_lines),
        Kind("selfcheck.json", "selfcheck.json", _read_verdicts, lambda: [_VERDICTS], _json),
    )
}
