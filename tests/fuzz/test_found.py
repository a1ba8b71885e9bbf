"""What fuzzing found, each as a small input that the test makes."""

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy as safetensors

pytest.importorskip("resource", reason="limits of this kind are POSIX's")
pytest.importorskip("hypothesis")

from astroco_fast import presets
from astroco_fast.data.columns import Columns
from astroco_fast.data.periods import Periods
from astroco_fast.data.sources import open_source
from astroco_fast.data.store import PERIODS, Store, describe_file, write_manifest
from astroco_fast.errors import UserError
from astroco_fast.folders import MARK, result_folder
from astroco_fast.pretrain.checkpoint import State
from astroco_fast.pretrain.config import PretrainConfig
from astroco_fast.pretrain.report import read_metrics, training_lines
from astroco_fast.probe.embeddings import Embeddings
from tests.fuzz import seeds
from tests.fuzz.kinds import KINDS, REFUSED, VALID, outcome, read_curves


def test_damaged_gzip(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(seeds.csv_files()[0], mtime=0))
    content[15:30] = bytes(15)
    (tmp_path / "curves.csv.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"curves\.csv\.gz: cannot be read"):
        open_source(tmp_path / "curves.csv.gz")


def test_headers_of_odd_style_are_read_without_a_warning() -> None:
    pytest.importorskip("astropy")
    content = seeds.fits_files()[0].replace(b"SIMPLE  =                    T", b"SIMPLE  = T                   ", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KINDS["FITS"].outcome(content) == VALID


@pytest.mark.parametrize("odd", ["type", "null", "missing"])
def test_periods_of_another_form(odd: str, tmp_path: Path) -> None:
    for name, content in seeds.store().items():
        (tmp_path / name).write_bytes(content)
    table = Periods.empty(4).to_table()
    at = table.schema.names.index("epoch")
    if odd == "missing":
        table = table.remove_column(at)
    else:
        new = pa.array([{"a": 1}] * 4) if odd == "type" else pa.array([1.0, None, 2.0, 3.0])
        table = table.set_column(at, "epoch", new)
    pq.write_table(table, tmp_path / PERIODS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"][PERIODS] = describe_file(tmp_path / PERIODS)
    write_manifest(tmp_path, manifest)
    with pytest.raises(UserError, match=r"periods\.parquet: cannot be read; find the periods again"):
        assert Store.open(tmp_path).periods is None


def test_mark_without_a_command(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text('{"names": [], "results": []}')
    with (
        pytest.raises(UserError, match="damaged"),
        result_folder(tmp_path, "probe", "busy", lambda path: ([], [])),
    ):
        pass


@pytest.mark.parametrize("kind", [pa.list_(pa.float64(), 2), pa.list_(pa.float32()), pa.list_(pa.float32(), 0)])
def test_embeddings_cache_of_another_form(kind: pa.DataType, tmp_path: Path) -> None:
    vectors = pa.array([[] if kind.equals(pa.list_(pa.float32(), 0)) else [1e300, 2.0]], kind)
    table = pa.table({"id": ["a"], "curve": ["1" * 32], "embedding": vectors})
    pq.write_table(table.replace_schema_metadata({"model_sha256": seeds.DIGEST}), tmp_path / "cache.parquet")
    with pytest.raises(UserError, match=r"cache\.parquet: cannot be read .*; remove it"):
        Embeddings(tmp_path / "cache.parquet", seeds.DIGEST)


@pytest.mark.parametrize("state", [None, [], 3, {}, {"steps": 3}, {"interval": 1}, {"interval": {}, "step": "x"}])
def test_state_of_another_form(state: object) -> None:
    with pytest.raises(UserError, match=r"state\.json: "):
        State.from_dict(state)


@pytest.mark.parametrize("rate", ['"fast"', "null", "NaN", "1" + "0" * 400, "[1]"])
def test_metrics_of_another_form(rate: str, tmp_path: Path) -> None:
    line = '{"split": "train", "step": 1, "windows_seen": 9, "windows_per_s": %s}\n'
    (tmp_path / "metrics.jsonl").write_text(line % "3.5" + line % rate)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a line of metrics"):
        read_metrics(tmp_path)


def test_metrics_of_no_windows_take_no_time(tmp_path: Path) -> None:
    line = '{"split": "train", "step": 1, "windows_seen": 9, "windows_per_s": %s}\n'
    (tmp_path / "metrics.jsonl").write_text(line % "3" + line % "0")
    assert [seconds for seconds, _ in training_lines(read_metrics(tmp_path))] == [3.0]


@pytest.mark.parametrize(
    "values", [{"hide": 12}, {"hide": None}, {"hide": {"time": 1}}, {99.0: 1, "widps": 2}, {None: 1}]
)
def test_settings_of_a_model_of_another_form(values: dict[Any, Any]) -> None:
    with pytest.raises(UserError, match="model"):
        presets.configure("tiny", values)


@pytest.mark.parametrize(
    ("preset", "name"),
    [("tiny", "dropout"), ("tiny", "time_base"), ("tiny", "width"), ("astromer-v2", "mask_logit")],
)
@pytest.mark.parametrize("number", [10**400, -(10**5000), float("inf"), float("nan"), "9" * 999], ids=range(5))
def test_endless_numbers_in_a_model(preset: str, name: str, number: Any) -> None:
    with pytest.raises(UserError, match=rf"model\.{name}") as refused:
        presets.configure(preset, {name: number})
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("zero_point", [float("inf"), float("nan")])
def test_zero_point_that_is_not_finite(zero_point: float) -> None:
    with pytest.raises(UserError, match=r"columns\.zero_point must be a finite number"):
        Columns(zero_point=zero_point)


def test_seed_of_another_form() -> None:
    with pytest.raises(UserError, match="seed must be a whole number"):
        PretrainConfig(seed=None)  # type: ignore[arg-type]


def test_masked_float16_columns_are_read_without_a_warning() -> None:
    table = pytest.importorskip("astropy.table")
    points: dict[str, Any] = {name: [1.0, 2.0, 3.0] for name in ("mjd", "mag", "err")}
    with np.errstate(over="ignore"):
        points["err"] = table.MaskedColumn(np.ones(3, np.float16), mask=[True, False, False])
        made = table.Table({"id": ["a"] * 3, **points})
    assert outcome(lambda: read_curves(made)) == VALID


def test_a_list_of_spill_files_that_lacks_one_is_not_believed() -> None:
    """The points in the other files would be all that the store has."""
    kind = KINDS["stopped conversion: work/spill/done.json"]
    done = json.loads(kind.seeds[0])
    done["files"].popitem()
    assert kind.outcome(json.dumps(done).encode()) == VALID


def test_text_of_a_store_that_is_no_text(tmp_path: Path) -> None:
    for name, content in seeds.store().items():
        (tmp_path / name).write_bytes(content)
    table = pq.read_table(tmp_path / "curves.parquet")
    bad = pa.array([b"star\xad0", b"star-1", b"star-2", b"star-3"]).cast(pa.string(), safe=False)
    pq.write_table(table.set_column(0, "id", bad), tmp_path / "curves.parquet")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"]["curves.parquet"] = describe_file(tmp_path / "curves.parquet")
    write_manifest(tmp_path, manifest)
    with pytest.raises(UserError, match=r"curves\.parquet: column 'id' cannot be read"):
        assert Store.open(tmp_path).ids is None


@pytest.mark.parametrize(
    ("odd", "found"),
    [
        ({"model": {"name": True, "sha256": seeds.DIGEST}}, REFUSED),
        ({"model": {"name": "m"}}, REFUSED),
        ({"model": "m"}, REFUSED),
        ({"settings": 1.5}, VALID),
        ({"parts": 1.5}, VALID),
        ("[" * 20_000, REFUSED),
        ("[]", REFUSED),
    ],
)
def test_provenance_of_another_form(odd: Any, found: str) -> None:
    told = odd if isinstance(odd, str) else json.dumps({**seeds.PROVENANCE, **odd})
    assert KINDS["vectors: hats.properties"].outcome(seeds.properties(told.encode())) == found


def test_vectors_with_metadata_that_are_no_text() -> None:
    table = seeds.vector_table()
    table = table.replace_schema_metadata({**table.schema.metadata, b"\xff": b"\xff"})
    assert KINDS["vectors: .parquet"].outcome(seeds.parquet(table)) == VALID


@pytest.mark.parametrize("odd", ["complex", "one number", "temperature"])
def test_classifier_of_other_numbers(odd: str) -> None:
    files = seeds.classifier()
    if odd == "temperature":
        told = {**json.loads(files["classifier.json"]), "temperature": 10**400}
        assert KINDS["classifier: JSON"].outcome(json.dumps(told).encode()) == REFUSED
        return
    arrays = safetensors.load(files["classifier.safetensors"])
    arrays["mean"] = np.zeros(4, dtype=np.complex64) if odd == "complex" else np.array(0.0)
    assert KINDS["classifier: safetensors"].outcome(safetensors.save(arrays)) == REFUSED


def test_vectors_with_two_columns_of_one_name() -> None:
    content = b"id,band,label,x,x,embedding_0\na,V,EW,1,2,0.5\n"
    assert KINDS["vectors: .csv"].outcome(content) == REFUSED
    assert KINDS["vectors: .csv"].outcome(content.replace(b"x,x", b"x,y")) == VALID


def test_vectors_in_fits_of_an_odd_style_are_read_without_a_warning() -> None:
    pytest.importorskip("astropy")
    content = seeds.vector_files(".fits")[0]
    odd = content.replace(b"SIMPLE  =                    T", b"SIMPLE  = T                   ", 1)
    assert odd != content
    assert KINDS["vectors: .fits"].outcome(odd) == VALID
