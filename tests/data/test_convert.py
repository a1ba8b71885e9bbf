"""Conversion: tables to stores, resumed after a kill, with counts of dropped points and curves."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import astroco_fast.convert as command
from astroco_fast.data import convert as module
from astroco_fast.data import points, sources, writer
from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.convert import convert
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from tests.data.convert_child import killed_conversion
from tests.data.curve_factory import SHARED, as_long, as_nested, assert_same_curves, make_batch, write_nested
from tests.pretrain.processes import on_ranks

real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="real light curves are not beside this checkout")
# Small enough that the small inputs of these tests take several steps.
SMALL = {
    (sources, "BATCH_POINTS"): 100,
    (points, "BUFFER_POINTS"): 50,
    (points, "PARTITION_POINTS"): 100,
    (sources, "_READ_ROWS"): 100,
    (writer, "STEP_POINTS"): 150,
}


@pytest.fixture
def small_steps(monkeypatch):
    for (where, name), value in SMALL.items():
        monkeypatch.setattr(where, name, value)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("kind", ["nested", "long", "batches"])
def test_convert_keeps_all_good_curves(tmp_path, kind, small_steps):
    batch = make_batch(40, bands=("V", "I"))
    if kind == "nested":
        source = write_nested(batch, tmp_path / "in.parquet")
    elif kind == "long":
        source = tmp_path / "in.csv"
        as_long(batch).sample(frac=1, random_state=0).to_csv(source, index=False)
    else:
        source = [make_batch(20, first=20 * i, bands=("V", "I")) for i in range(2)]
        batch = None
    report = convert(source, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert_same_curves(store.batches(), source if batch is None else [batch], rtol=1e-7)
    assert report.kept == report.read == {"curves": 40, "points": store.n_points}
    assert report.bands == {"V": 20, "I": 20}
    assert not (tmp_path / "store.partial").exists()


def test_report_counts_what_was_dropped_and_is_saved(tmp_path):
    batch = make_batch(4, lengths=[20, 20, 5, 20])
    batch.mag[3], batch.err[25] = 99.999, 0
    report = convert(batch, tmp_path / "store", clean=CleanConfig(min_points=10))
    expected = {
        "points: sentinel value": 1,
        "points: error not positive": 1,
        "curves: too few points": 1,
        "points: in curves that are too short": 5,
    }
    assert report.dropped == expected
    assert (report.read, report.kept) == ({"curves": 4, "points": 65}, {"curves": 3, "points": 58})
    manifest = Store.open(tmp_path / "store").manifest
    assert manifest["counts"] == {"curves": 3, "points": 58, "dropped": expected}
    assert manifest["report"]["dropped"] == expected
    text = str(report)
    for part in ("4 curves", "65 points", "58 points", "dropped points: sentinel value"):
        assert part in text


def test_times_in_single_precision_are_noted(tmp_path):
    for kind in (as_long, as_nested):
        frame = kind(make_batch(3))
        single = frame.astype({"mjd": "float32"}) if kind is as_long else with_single_times(frame)
        assert convert(frame, tmp_path / f"{kind.__name__}-double").notes == []
        (note,) = convert(single, tmp_path / kind.__name__).notes
        assert "'mjd' are single precision" in note


def with_single_times(table):
    place = table.schema.get_field_index("mjd")
    return table.set_column(place, "mjd", table["mjd"].cast(pa.list_(pa.float32()), safe=False))


def test_conversion_that_drops_every_curve(tmp_path):
    batch = make_batch(3, lengths=[20, 5, 5])
    batch.mag[:20] = -99
    with pytest.raises(
        UserError, match=r"nothing is left after cleaning 3 curves of 30 points; dropped: .*too few points 3"
    ):
        convert(batch, tmp_path / "store")
    with pytest.raises(UserError, match=r"test|no light curves in it"):
        convert([make_batch(0)], tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_table_without_rows(tmp_path):
    for name, table in (
        ("a.parquet", as_nested(make_batch(0))),
        ("b.parquet", pa.Table.from_pandas(as_long(make_batch(0)))),
    ):
        pq.write_table(table, tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}: no light curves in it"):
            convert(tmp_path / name, tmp_path / "store")
    (tmp_path / "c.csv").write_text("id,mjd,mag,err\n")
    with pytest.raises(UserError, match=r"c\.csv: no light curves in it"):
        convert(tmp_path / "c.csv", tmp_path / "store")


@pytest.mark.parametrize("apart", [1, 30])
def test_two_rows_of_one_light_curve(tmp_path, apart, small_steps):
    batch = make_batch(40)
    batch.ids[5 + apart] = "star-5"
    path = write_nested(batch, tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"in\.parquet: id 'star-5' has two light curves in band 'V'.*--columns\.band"):
        convert(path, tmp_path / "store")
    batch.band[5 + apart] = "I"
    convert(write_nested(batch, path), tmp_path / "store")
    assert not (tmp_path / "store.partial").exists()


def test_duplicate_is_found_after_a_resume(tmp_path, small_steps, monkeypatch):
    batch = make_batch(40)
    batch.ids[39] = "star-0"
    path = write_nested(batch, tmp_path / "in.parquet")
    stop_after(monkeypatch, 2, path, tmp_path / "store")
    with pytest.raises(UserError, match="'star-0' has two light curves"):
        convert(path, tmp_path / "store")


def stop_after(monkeypatch, steps, source, out):
    """Convert, and stop after some steps."""
    record = writer.StoreWriter.record

    def stopping(self):
        record(self)
        if self.steps == steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer.StoreWriter, "record", stopping)
        with pytest.raises(KeyboardInterrupt):
            convert(source, out)


def test_converting_again_says_that_it_is_there(tmp_path):
    path = write_nested(make_batch(5), tmp_path / "in.parquet")
    first = convert(path, tmp_path / "store")
    before = content(tmp_path / "store")
    again = convert(path, tmp_path / "store")
    assert "already there" in again.notes[0]
    assert (again.kept, again.dropped, again.bands) == (first.kept, first.dropped, first.bands)
    assert content(tmp_path / "store") == before


def test_conversion_into_an_occupied_path(tmp_path):
    path = write_nested(make_batch(5), tmp_path / "in.parquet")
    convert(path, tmp_path / "store")
    for change in ({"band": "V"}, {"clean": CleanConfig(min_points=3)}):
        with pytest.raises(UserError, match="made from another input or with other options"):
            convert(path, tmp_path / "store", **change)
    with pytest.raises(UserError, match="another input"):
        convert(make_batch(5), tmp_path / "store")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file"):
        with pytest.raises(UserError, match=f"{name}: exists and is not a store"):
            convert(path, tmp_path / name)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "x"


def test_objects_are_never_taken_for_one_another(tmp_path):
    convert(make_batch(5), tmp_path / "store")
    with pytest.raises(UserError, match="another input"):
        convert(make_batch(5), tmp_path / "store")


def test_provenance_is_kept_and_identifies_an_iterable(tmp_path):
    facts = {"simulated": True, "seed": 3}
    convert(iter([make_batch(5)]), tmp_path / "store", provenance=facts)
    assert Store.open(tmp_path / "store").simulated
    assert "already there" in convert(iter([make_batch(5)]), tmp_path / "store", provenance=facts).notes[0]
    with pytest.raises(UserError, match="another input"):
        convert(iter([make_batch(5)]), tmp_path / "store", provenance={**facts, "seed": 4})


def test_progress_with_other_options_is_discarded(tmp_path, small_steps, monkeypatch):
    path = write_nested(make_batch(40), tmp_path / "in.parquet")
    stop_after(monkeypatch, 2, path, tmp_path / "store")
    report = convert(path, tmp_path / "store", clean=CleanConfig(min_points=15))
    assert "discarded" in report.notes[0]
    convert(path, tmp_path / "plain", clean=CleanConfig(min_points=15))
    assert content(tmp_path / "store") == content(tmp_path / "plain")


KILLS = {
    "before the first step": ("writer.StoreWriter.append", 1),
    "between steps": ("writer.StoreWriter.append", 5),
    "step written, not recorded": ("writer.flush", 5),
    "after a step": ("writer.StoreWriter.record", 2),
    "while cutting a long table": ("points._Cutter.add", 1),
    "before the curves are joined": ("writer.StoreWriter.finish", 0),
    "before the manifest": ("writer.describe_file", 3),
    "before the rename": ("writer.StoreWriter.publish", 0),
    "work removed, not renamed": ("writer.os.rename", "store"),
}


# The end of a conversion is the same for every kind of table.
KILLED = [("nested", kill) for kill in KILLS if "long" not in kill]
KILLED += [("long", kill) for kill in KILLS if "step" in kill or "long" in kill]


@pytest.mark.parametrize(("kind", "kill"), KILLED)
def test_killed_conversion_goes_on_to_the_same_bytes(tmp_path, kind, kill, small_steps):
    batch, source = make_batch(60), tmp_path / "in.parquet"
    if kind == "nested":
        write_nested(batch, source, row_group_size=13)
    else:
        as_long(batch).sample(frac=1, random_state=1).to_parquet(source)
    convert(source, tmp_path / "whole")
    small = {(where.__name__.rpartition(".")[2], name): value for (where, name), value in SMALL.items()}
    arguments = (source, tmp_path / "store", small, KILLS[kill])
    (killed,) = on_ranks(None, killed_conversion, *arguments, tmp_path=tmp_path)
    assert killed.code == -signal.SIGKILL, killed.err
    assert not (tmp_path / "store").exists()
    report = convert(source, tmp_path / "store")
    assert content(tmp_path / "store") == content(tmp_path / "whole")
    assert not (tmp_path / "store.partial").exists()
    assert "discarded" not in str(report)
    if kill == "after a step":
        assert "note: resumed after" in str(report)


def test_resuming_does_not_read_again_what_is_done(tmp_path, small_steps, monkeypatch):
    path = write_nested(make_batch(60), tmp_path / "in.parquet", row_group_size=10)
    stop_after(monkeypatch, 3, path, tmp_path / "store")
    read = []
    real = module.clean_batch
    monkeypatch.setattr(module, "clean_batch", lambda batch, config: read.extend(batch.ids) or real(batch, config))
    report = convert(path, tmp_path / "store")
    assert 0 < len(read) < 60
    assert len(read) == len(set(read))
    assert report.read["curves"] == 60


def test_damaged_progress_is_discarded(tmp_path, small_steps, monkeypatch):
    path = write_nested(make_batch(40), tmp_path / "in.parquet")
    stop_after(monkeypatch, 2, path, tmp_path / "store")
    os.truncate(tmp_path / "store.partial" / "mag.f32", 8)
    assert "discarded" in convert(path, tmp_path / "store").notes[0]
    convert(path, tmp_path / "whole")
    assert content(tmp_path / "store") == content(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["nested", "long"])
def test_a_changed_bit_of_a_stopped_conversion_is_noticed(kind, tmp_path, small_steps, monkeypatch):
    batch, path = make_batch(40), tmp_path / f"in.{kind}.parquet"
    write_nested(batch, path) if kind == "nested" else as_long(batch).to_parquet(path)
    convert(path, tmp_path / "whole")
    stop_after(monkeypatch, 2, path, tmp_path / "stopped")
    files = sorted(p.relative_to(tmp_path / "stopped.partial") for p in (tmp_path / "stopped.partial").rglob("*.*"))
    assert any(file.suffix == ".arrow" for file in files) == (kind == "long")
    for i, file in enumerate(file for file in files if file.suffix != ".partial"):
        partial = shutil.copytree(tmp_path / "stopped.partial", tmp_path / f"{i}.partial")
        written = bytearray((partial / file).read_bytes())
        written[len(written) // 2 - 3] ^= 1
        (partial / file).write_bytes(written)
        report = convert(path, tmp_path / f"{i}")
        assert content(tmp_path / f"{i}") == content(tmp_path / "whole"), file
        if "spill" in file.parts:
            assert "resumed after" in report.notes[0]  # the points are cut again
        else:
            assert "discarded" in report.notes[0], file


def test_a_finished_conversion_is_compared_with_its_checksums(tmp_path, small_steps, monkeypatch):
    path = write_nested(make_batch(40), tmp_path / "in.parquet")
    convert(path, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(path, tmp_path / "store")
    partial = tmp_path / "store.partial" / "mag.f32"
    partial.write_bytes(partial.read_bytes()[:-1] + b"\x00")
    assert "discarded" in convert(path, tmp_path / "store").notes[0]
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def interrupt(*args):
    raise KeyboardInterrupt


def test_corruption_during_conversion_is_noticed(tmp_path, small_steps, monkeypatch):
    real = writer.flush

    def flipping(path):
        real(path)
        if path.name == "mag.f32":
            path.write_bytes(b"\x00" + path.read_bytes()[1:])

    monkeypatch.setattr(writer, "flush", flipping)
    with pytest.raises(UserError, match=r"mag\.f32: not as it was written"):
        convert(make_batch(40), tmp_path / "store")


def test_a_folder_of_the_user_is_not_written_over(tmp_path):
    (tmp_path / "store.partial").mkdir()
    (tmp_path / "store.partial" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"store\.partial: holds 'thesis\.tex'"):
        convert(make_batch(5), tmp_path / "store")
    assert content(tmp_path) == {Path("store.partial/thesis.tex"): b"x"}


def test_two_conversions_into_one_place(tmp_path):
    inner = {}

    def batches():
        yield make_batch(5)
        with pytest.raises(UserError, match="another process is converting") as error:
            convert(make_batch(5), tmp_path / "store")
        inner["error"] = error

    convert(batches(), tmp_path / "store")
    assert inner
    assert Store.open(tmp_path / "store").n_curves == 5


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        convert(make_batch(5), tmp_path / "file" / "store")


def test_folders_on_the_way_are_made(tmp_path):
    convert(make_batch(5), tmp_path / "a" / "b" / "store")
    assert Store.is_store(tmp_path / "a" / "b" / "store")


def test_a_store_converts_into_a_store_of_one_band(tmp_path):
    batch = make_batch(10, bands=("V", "I"))
    convert(batch, tmp_path / "both")
    convert(tmp_path / "both", tmp_path / "one", band="I")
    assert_same_curves(Store.open(tmp_path / "one").batches(), [batch.select(batch.band == "I")])


def test_command(tmp_path, capsys):
    batch = make_batch(6, bands=("V", "I"))
    frame = as_long(batch).rename(columns={"mjd": "when", "mag": "brightness"})
    frame.to_csv(tmp_path / "in.csv", index=False)
    words = [str(tmp_path / "in.csv"), str(tmp_path / "store")]
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert "no time column" in error
    assert error.count("\n") == 1
    flags = ["--columns.time", "when", "--columns.mag", "brightness", "--band", "I", "--clean.min_points", "3"]
    assert command.main([*words, *flags]) == 0
    assert "3 curves" in capsys.readouterr().out
    plan = json.loads((tmp_path / "store" / "manifest.json").read_text())["provenance"]["plan"]
    assert (plan["band"], plan["clean"]["min_points"], plan["columns"]["time"]) == ("I", 3, "when")
    for bad in (["--colour", "1"], ["--clean.min_points", "many"], ["--clean.min_points", "0"]):
        assert command.main([*words, *bad]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@real_data
def test_macho(tmp_path):
    report = convert(SHARED / "macho.parquet", tmp_path / "store")
    assert report.read["curves"] == 149
    assert set(report.bands) == {"MACHO_B", "MACHO_R"}
    one = convert(SHARED / "macho.parquet", tmp_path / "red", band="MACHO_R")
    assert one.kept["curves"] == report.bands["MACHO_R"] == Store.open(tmp_path / "red").n_curves
    table = pq.read_table(SHARED / "macho.parquet").to_pandas()
    store = Store.open(tmp_path / "store")
    for i in (0, 77, 148):
        points = slice(store.offsets[i], store.offsets[i + 1])
        np.testing.assert_array_equal(store.time[points], table["mjd"][i])
        np.testing.assert_array_equal(store.mag[points], table["mag"][i])


@real_data
@pytest.mark.slow
def test_catalina_long_and_nested_agree(tmp_path):
    """The same survey as lists, and as 6.7 million unordered rows, has the same light curves."""
    import pandas as pd

    table = pd.read_parquet(SHARED / "catalina.parquet", columns=["id", "band", "label", "mjd", "mag", "err"])
    long_table = table.explode(["mjd", "mag", "err"]).sample(frac=1, random_state=0)
    long_table[["mjd", "mag", "err"]] = long_table[["mjd", "mag", "err"]].astype(float)
    long_table.to_parquet(tmp_path / "long.parquet")
    one = convert(SHARED / "catalina.parquet", tmp_path / "nested")
    two = convert(tmp_path / "long.parquet", tmp_path / "long")
    assert (one.kept, one.dropped, one.bands) == (two.kept, two.dropped, two.bands)
    a, b = Store.open(tmp_path / "nested"), Store.open(tmp_path / "long")
    place = {name: i for i, name in enumerate(b.ids)}
    for i in range(0, a.n_curves, 97):
        j = place[a.ids[i]]
        np.testing.assert_array_equal(a.time[a.offsets[i] : a.offsets[i + 1]], b.time[b.offsets[j] : b.offsets[j + 1]])
        assert a.labels[i] == b.labels[j]
