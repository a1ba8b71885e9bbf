"""Stores: they return their light curves, and damage to a file is found."""

import json
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroco_fast.data import store as module
from astroco_fast.data.convert import convert
from astroco_fast.data.hashing import star_hash
from astroco_fast.data.periods import Periods, find_periods
from astroco_fast.data.sources import open_source
from astroco_fast.data.store import FILES, SCHEMA_VERSION, Store, read_manifest
from astroco_fast.errors import UserError
from tests.data.curve_factory import assert_same_curves, make_batch, write_nested


@pytest.fixture
def batch():
    return make_batch(7)


@pytest.fixture
def path(batch, tmp_path):
    write_nested(batch, tmp_path / "curves.parquet")
    convert(tmp_path / "curves.parquet", tmp_path / "store")
    return tmp_path / "store"


def edit(path, **changes):
    """Change a manifest, which then has no checksum, as those of earlier versions."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.update(changes)
    manifest.pop("sha256", None)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_store_holds_the_curves(path, batch):
    store = Store.open(path)
    assert (store.n_curves, store.n_points) == (7, batch.n_points)
    for name in ("time", "mag", "err", "offsets"):
        array = getattr(store, name)
        np.testing.assert_array_equal(array, getattr(batch, name))
        assert array.dtype == getattr(batch, name).dtype
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    for name, expected in (("ids", batch.ids), ("bands", batch.band), ("labels", batch.label)):
        assert getattr(store, name).tolist() == expected.tolist()
    np.testing.assert_array_equal(store.star_hash, star_hash(batch.ids))
    assert store.star_hash.dtype == np.uint64
    assert not store.simulated
    assert_same_curves(store.batches(), [batch])


def test_manifest_says_what_the_store_is(path, batch):
    manifest = Store.open(path).manifest
    assert (manifest["format"], manifest["schema_version"]) == ("astroco-store", SCHEMA_VERSION)
    assert manifest["counts"] == {"curves": 7, "points": batch.n_points, "dropped": {}}
    assert set(manifest["files"]) == set(FILES) == {p.name for p in path.iterdir()} - {"manifest.json"}
    (source,) = manifest["provenance"]["plan"]["source"]
    assert source["path"].endswith("curves.parquet")
    assert source["bytes"] > 0


def test_digest_follows_the_content(path, batch, tmp_path):
    write_nested(batch, tmp_path / "copy.parquet")
    convert(tmp_path / "copy.parquet", tmp_path / "same")
    batch.mag[3] += 1
    write_nested(batch, tmp_path / "other.parquet")
    convert(tmp_path / "other.parquet", tmp_path / "other")
    digest = Store.open(path).digest
    assert Store.open(tmp_path / "same").digest == digest
    assert Store.open(tmp_path / "other").digest != digest


@pytest.mark.parametrize("name", FILES)
def test_changed_byte_is_found(path, name):
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: its content has changed .*convert again"):
        Store.open(path)
    Store.open(path, verify=False)


def test_flipped_bit_of_the_manifest_is_found(path):
    before, content = read_manifest(path), (path / "manifest.json").read_bytes()
    del before["sha256"]
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        (path / "manifest.json").write_bytes(flipped)
        with suppress(UserError):  # else a blank between two values has become another, or the checksum's name
            found = read_manifest(path)
            assert {name: value for name, value in found.items() if name in before} == before


def test_manifest_of_an_earlier_version_has_no_checksum(path, batch):
    edit(path)
    assert "sha256" not in json.loads((path / "manifest.json").read_text())
    store = Store.open(path)
    assert_same_curves(store.batches(), [batch])
    store.write_periods([find_periods(batch)])
    assert "sha256" in json.loads((path / "manifest.json").read_text())
    assert Store.open(path).periods is not None


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_truncated_or_missing_file_is_found(path, name, verify):
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{name}: has {len(content) - 1} bytes, {len(content)} were written"):
        Store.open(path, verify)
    (path / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing from the store"):
        Store.open(path, verify)


def test_newer_schema_says_to_upgrade(path):
    edit(path, schema_version=SCHEMA_VERSION + 1, counts={"renamed": 1})
    with pytest.raises(
        UserError, match=r"manifest\.json: made by a newer version \(schema 2, known here: 1\); upgrade"
    ):
        Store.open(path)
    assert Store.is_store(path)


def test_manifest_that_does_not_fit(path):
    edit(path, counts={"curves": 8, "points": 1, "dropped": {}})
    with pytest.raises(UserError, match="counts are not those of the files"):
        Store.open(path)
    edit(path, files={})
    with pytest.raises(UserError, match=r"does not list time\.f64"):
        Store.open(path)
    for damage in ({"files": [1]}, {"files": {"mag.f32": {}}}, {"counts": None}, {"counts": {}}, {"provenance": "x"}):
        edit(path, **damage)
        with pytest.raises(UserError, match=r"manifest\.json: damaged; remove the folder and convert again"):
            Store.open(path)
    for text, message in (("{", "cannot be read"), ("[]", "not the manifest"), ('{"format": "x"}', "not the manifest")):
        (path / "manifest.json").write_text(text)
        assert Store.is_store(path), "its points are still there"
        with pytest.raises(UserError, match=message):
            Store.open(path)
    (path / "manifest.json").write_text('{"format": "astroco-store"}')
    with pytest.raises(UserError, match="incomplete"):
        Store.open(path)


def test_opening_what_is_not_a_store(path, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for place, message in (
        (tmp_path / "folder", "is no store"),
        (tmp_path / "file", "is no store"),
        (tmp_path / "no", "no such store"),
    ):
        assert not Store.is_store(place)
        with pytest.raises(UserError, match=message):
            Store.open(place)


def test_a_store_without_its_manifest_is_a_damaged_store(path):
    (path / "manifest.json").unlink()
    assert Store.is_store(path)
    with pytest.raises(UserError, match=r"manifest\.json: missing, so this store is not whole; remove the folder"):
        Store.open(path)


def test_periods_are_added_without_changing_what_the_store_is(path):
    store = Store.open(path)
    digest = store.digest
    assert store.periods is None
    found = [find_periods(batch) for batch in store.batches()]
    store.write_periods(found)
    for opened in (store, Store.open(path)):
        assert opened.digest == digest
        np.testing.assert_array_equal(opened.periods.gains, np.concatenate([part.gains for part in found]))
        assert len(opened.periods) == 7
    Store.open(path).write_periods([Periods.empty(7)])
    assert not Store.open(path).periods.found.any()
    assert {p.name for p in path.iterdir()} == {*FILES, "manifest.json", "periods.parquet"}


def test_an_interrupted_search_leaves_the_store_as_it_was(path):
    def stopped():
        yield Periods.empty(3)
        raise KeyboardInterrupt

    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        Store.open(path).write_periods(stopped())
    with pytest.raises(ValueError, match="periods of 3 light curves for a store of 7"):
        Store.open(path).write_periods([Periods.empty(3)])
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_damaged_periods_are_searched_again(path):
    Store.open(path).write_periods([Periods.empty(7)])
    (path / "periods.parquet").write_bytes(b"damaged")
    Store.open(path, check_periods=False).add_periods(find_periods, progress=False)
    assert len(Store.open(path).periods) == 7


def test_a_kill_between_the_periods_and_the_manifest_leaves_a_whole_store(path, monkeypatch):
    Store.open(path).write_periods([Periods.empty(7)])
    store = Store.open(path)
    write, calls = module.write_text, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(module, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write_periods([Periods.empty(7)])
    assert Store.open(path).periods is None
    monkeypatch.undo()
    Store.open(path).write_periods([Periods.empty(7)])
    assert len(Store.open(path).periods) == 7


def test_damaged_periods_are_found_and_can_be_replaced(path):
    Store.open(path).write_periods([Periods.empty(7)])
    content = bytearray((path / "periods.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "periods.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"periods\.parquet: its content has changed .*with: astroco periods .*store"):
        Store.open(path)
    (path / "periods.parquet").unlink()
    with pytest.raises(UserError, match=r"periods\.parquet: missing from the store; find the periods again"):
        Store.open(path, verify=False)
    Store.open(path, check_periods=False).write_periods([Periods.empty(7)])
    assert len(Store.open(path).periods) == 7


def test_two_searches_for_one_store(path):
    def other():
        with pytest.raises(UserError, match="another process is writing its periods"):
            Store.open(path).write_periods([Periods.empty(7)])
        yield Periods.empty(7)

    Store.open(path).write_periods(other())


def sealed(path, name, content, **counts):
    """Replace a file of a store, so that its checksum does not tell."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = module.describe_file(path / name)
    manifest["counts"].update(counts)
    edit(path, **manifest)


@pytest.mark.parametrize("name", [name for name in FILES if name != "curves.parquet"])
def test_arrays_that_are_cut_are_refused_although_sealed(path, name):
    content = (path / name).read_bytes()
    for cut, what in (
        (content[:-3], "no whole number of values"),
        (b"", "counts|divide"),
        (content[:-8], "counts|divide"),
    ):
        sealed(path, name, cut)
        with pytest.raises(UserError, match=what):
            Store.open(path)


def test_offsets_that_lie_are_refused(path):
    offsets = np.fromfile(path / "offsets.i64", "<i8")
    for change in (np.s_[0], np.s_[-1], np.s_[3]):
        wrong = offsets.copy()
        wrong[change] = 2**60
        sealed(path, "offsets.i64", wrong.tobytes())
        with pytest.raises(UserError, match=r"offsets\.i64: it does not divide the points"):
            Store.open(path)
    sealed(path, "offsets.i64", b"", curves=-1)
    with pytest.raises(UserError, match="counts"):
        Store.open(path)


def as_bytes(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_a_table_of_curves_that_lies_is_refused(path):
    table = pq.read_table(path / "curves.parquet")
    nulls = pa.array([None, *table["id"].to_pylist()[1:]], pa.string())
    for wrong in (
        table.set_column(0, "id", nulls),
        table.set_column(0, "id", pa.array(range(7))),
        table.slice(1),
        table.drop_columns("id"),
    ):
        sealed(path, "curves.parquet", as_bytes(wrong))
        with pytest.raises(UserError, match=r"curves\.parquet: column 'id' .*convert again"):
            list(open_source(path).batches())
    sealed(path, "curves.parquet", b"PAR1 and nonsense")
    with pytest.raises(UserError, match=r"curves\.parquet: column 'id' cannot be read"):
        list(open_source(path).batches())


def test_a_table_of_periods_that_lies_is_refused(path, batch):
    Store.open(path).write_periods([find_periods(batch)])
    table = pq.read_table(path / "periods.parquet")
    for wrong in (table.slice(1), table.drop_columns("period"), pa.table({})):
        sealed(path, "periods.parquet", as_bytes(wrong))
        with pytest.raises(UserError, match=r"periods\.parquet: .*astroco periods"):
            list(open_source(path).batches())
