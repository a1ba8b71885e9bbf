"""Bad input: every command exits with status 2 and one line that names what is wrong, and leaves no partial output."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from astroco_fast import cli
from astroco_fast.data.convert import convert
from astroco_fast.data.curves import CurveBatch
from tests.data.curve_factory import as_long, as_nested, make_batch
from tests.data.tfrecords import example, new_style, write_records
from tests.pretrain.processes import on_ranks

resource = pytest.importorskip("resource", reason="limits of this kind are POSIX's")

STARS = 40
SMALL = """
preset: tiny
model: {width: 16, heads: 2, layers: 1, window: 20, kernel: 4}
train: {max_steps: 2, global_batch: 16, plots: false, device: cpu}
"""
Make = Callable[[Path, Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good inputs: good.csv, a store, settings, and a run."""
    folder = tmp_path_factory.mktemp("good")
    as_long(curves()).to_csv(folder / "good.csv", index=False)
    convert(curves(), folder / "store")
    (folder / "survey").mkdir()
    for name, part in (("part1", slice(0, STARS)), ("part2", slice(STARS, 2 * STARS))):
        rows = np.isin(np.arange(2 * STARS), np.arange(2 * STARS)[part])
        as_long(curves().select(rows)).to_csv(folder / "survey" / f"{name}.csv", index=False)
    (folder / "small.yaml").write_text(SMALL)
    flags = ["--config", str(folder / "small.yaml"), "--data", str(folder / "store"), "--out", str(folder / "run")]
    assert cli.main(["pretrain", *flags]) == 0
    return folder


def curves() -> CurveBatch:
    """Light curves of every star in two bands."""
    batch = make_batch(2 * STARS, lengths=[12] * 2 * STARS, bands=("V", "I"))
    names = np.array([f"star-{i // 2}" for i in range(2 * STARS)], dtype=object)
    return replace(batch, ids=names, label=np.full(2 * STARS, "EW", dtype=object))


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a command that refuses its input."""
    capsys.readouterr()
    status = cli.main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert line.startswith("astroco: error: ")
    assert line.isprintable()
    assert len(line) < 700
    return line


def long_with(**columns: object) -> Make:
    return lambda path, good: as_long(curves()).assign(**columns).to_csv(path, index=False)


def cell(column: str, value: object) -> Make:
    """A function that writes a table with one odd value, in row 8."""

    def make(path: Path, good: Path) -> None:
        frame = as_long(curves())
        frame[column] = frame[column].astype(object)
        frame.loc[7, column] = value
        frame.to_csv(path, index=False)

    return make


def rows_with(**odd: object) -> Make:
    """A function that writes a table of one star a row, whose last row is the first row with other values in `odd`."""

    def make(path: Path, good: Path) -> None:
        frame = as_nested(curves()).to_pandas()
        pd.concat([frame, frame.iloc[:1].assign(**odd)]).to_parquet(path)

    return make


def no_rows(path: Path, good: Path) -> None:
    pq.write_table(as_nested(curves()).slice(0, 0), path)


def fits(path: Path, good: Path) -> None:
    pytest.importorskip("astropy.table").Table.from_pandas(as_long(curves())).write(path)


def cut_fits(path: Path, good: Path) -> None:
    fits(path, good)
    os.truncate(path, path.stat().st_size // 2)


def empty_fits(path: Path, good: Path) -> None:
    pytest.importorskip("astropy.table").Table(names=["id", "mjd", "mag", "err"]).write(path)


def cut_parquet(path: Path, good: Path) -> None:
    pq.write_table(as_nested(curves()), path)
    os.truncate(path, path.stat().st_size // 2)


def cut_records(path: Path, good: Path) -> None:
    write_records(path, [new_style(curves(), 0), new_style(curves(), 1)])
    os.truncate(path, path.stat().st_size - 5)


def other_records(path: Path, good: Path) -> None:
    write_records(path, [example({"id": "a"}, {"flux": np.ones(3)})])


def store_with(file: str, change: Callable[[bytes], bytes | None]) -> Make:
    """A function that writes a store with one file changed, or removed."""

    def make(path: Path, good: Path) -> None:
        shutil.copytree(good / "store", path)
        content = change((path / file).read_bytes())
        (path / file).unlink() if content is None else (path / file).write_bytes(content)

    return make


def newer(content: bytes) -> bytes:
    return json.dumps({**json.loads(content), "schema_version": 99}).encode()


# (name, make, words): the input's file name, whose suffix decides how it is read; the function that makes it, given the
# input's path and the folder `good` (None: the input is missing); and what the error must say besides the input's path.
INPUTS: list[tuple[str, Make | None, str]] = [
    ("missing.csv", None, "no such file"),
    ("missing/*.csv", None, "no file matches"),
    ("zero.csv", lambda path, good: path.touch(), "the file is empty"),
    ("zero.parquet", lambda path, good: path.touch(), "the file is empty"),
    ("zero.fits", lambda path, good: path.touch(), "the file is empty"),
    ("header.csv", lambda path, good: path.write_text("id,mjd,mag,err\n"), "no light curve"),
    ("header.parquet", no_rows, "no light curve"),
    ("header.fits", empty_fits, "no light curve"),
    ("folder", lambda path, good: path.mkdir(), "no table in this folder"),
    ("notes.txt", lambda path, good: path.write_text("x"), "unknown kind of file"),
    ("text.parquet", lambda path, good: path.write_text("no table" * 99), "cannot be read"),
    ("text.fits", lambda path, good: path.write_text("no table" * 99), "cannot be read"),
    ("bytes.csv", lambda path, good: path.write_bytes(bytes(range(256)) * 9), "not UTF-8"),
    ("cut.parquet", cut_parquet, "cannot be read"),
    ("cut.fits", cut_fits, "cannot be read"),
    ("text.record", lambda path, good: path.write_text("no record" * 99), "cut short, or not a TFRecord file"),
    ("cut.tfrecord", cut_records, "cut short"),
    ("zero.record", lambda path, good: path.touch(), "no light curve"),
    ("columns.record", other_records, "no time column; found: id, flux"),
    ("columns.csv", lambda path, good: path.write_text("when,mag,err\n1,2,3\n"), "found: when, mag, err; tried: mjd"),
    ("words.csv", cell("mag", "bright"), "column 'mag', row 8: not a number: 'bright'"),
    ("dates.csv", cell("mjd", "2020-01-01"), "column 'mjd', row 8: not a number: '2020-01-01'"),
    ("nothing.csv", long_with(mag=99.999), "dropped"),
    ("seconds.csv", long_with(mjd=5e9), "convert to days"),
    ("late.csv", cell("mjd", 1e300), "convert to days"),
    ("mixed.csv", cell("mjd", 2_459_000.5), "JD and MJD may be mixed"),
    ("twice.parquet", rows_with(), "id 'star-0' has two light curves in band 'V'"),
    ("labels.parquet", rows_with(band="R", label="EA"), "id 'star-0' has two labels, 'EA' and 'EW'"),
    ("changed", store_with("mag.f32", lambda content: content[:-1] + b"\x00"), "mag.f32: its content has changed"),
    ("cut", store_with("time.f64", lambda content: content[:-8]), "time.f64: has 7672 bytes, 7680 were written"),
    ("incomplete", store_with("err.f32", lambda content: None), "err.f32: missing from the store"),
    ("nameless", store_with("manifest.json", lambda content: None), "manifest.json: missing"),
    ("garbled", store_with("manifest.json", lambda content: content[:99]), "manifest.json: cannot be read"),
    ("newer", store_with("manifest.json", newer), "made by a newer version (schema 99"),
]


# Tables of no light curves are bad only where some are needed: `embed` makes a table without rows of them.
EMPTY = {name for name, _, words in INPUTS if words == "no light curve"}
REFUSALS = [
    pytest.param(command, *row, id=f"{row[0]}-{command}")
    for row in INPUTS
    for command in ("convert", "pretrain", "embed")
    if command != "embed" or row[0] not in EMPTY
]


@pytest.mark.parametrize(("command", "name", "make", "words"), REFUSALS)
def test_input(
    command: str, name: str, make: Make | None, words: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, out = tmp_path / name, tmp_path / "out"
    if make is not None:
        make(source, good)
    before = sorted(tmp_path.rglob("*"))
    argv = {
        "convert": [str(source), str(out)],
        "pretrain": ["--config", str(good / "small.yaml"), "--data", str(source), "--out", str(out)],
        "embed": [str(source), str(out), "--model", str(good / "run" / "checkpoints" / "best")],
    }
    line = refused([command, *argv[command]], capsys)
    assert str(source) in line
    assert words in line
    assert set(tmp_path.rglob("*")) <= {*before, *([out] if command == "pretrain" else [])}


def test_no_light_curves_have_no_embeddings(good: Path, tmp_path: Path) -> None:
    for name, make in ((name, make) for name, make, _ in INPUTS if name in EMPTY and make is not None):
        make(tmp_path / name, good)
        out = tmp_path / f"{name}.parquet"
        argv = ["embed", str(tmp_path / name), str(out), "--model", str(good / "run" / "checkpoints" / "best")]
        assert cli.main(argv) == 0, name
        assert pq.read_table(out).num_rows == 0, name


SETTINGS = [
    ("bogus: 1", "settings.yaml: unknown setting 'bogus'"),
    ("train: {epoch: 3}", "settings.yaml: unknown setting 'train.epoch'; did you mean 'train.epochs'?"),
    ("train: {epochs: many}", "settings.yaml: train.epochs must be a whole number or null, not 'many'"),
    ("train: {loss: cubic}", "settings.yaml: train.loss must be batch or curve or null, not 'cubic'"),
    ("train: {betas: 3}", "settings.yaml: train.betas must be a list [a number, a number], not '3'"),
    ("train: 7", "settings.yaml: train must be a group of settings, not 7"),
    ("train: [1\n", "settings.yaml, line 2: not YAML"),
    ("- 1\n- 2", "settings.yaml: holds no settings"),
    (b"\xff\xfe\x00", "settings.yaml: not YAML"),
    (None, "settings.yaml: cannot be read (No such file or directory)"),
]


@pytest.mark.parametrize(("text", "words"), SETTINGS, ids=[words for _, words in SETTINGS])
def test_file_of_settings(text: str | bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refused(["pretrain", "--config", str(path), "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


# The words of a command, in which GOOD, MODEL and OUT stand for paths, and the words of the line.
LINES = [
    ("bogus", "no command 'bogus'"),
    ("convert GOOD/good.csv", "required: output"),
    ("convert GOOD/good.csv OUT --bogus 1", "--bogus"),
    ("convert GOOD/good.csv OUT --band Z", "good.csv: no light curve in band 'Z'; bands found: I, V"),
    ("convert GOOD/good.csv OUT --columns.time when", "no column 'when', asked for by --columns.time"),
    ("convert GOOD/good.csv OUT --clean.min_points many", "--clean.min_points must be a whole number, not 'many'"),
    ("convert GOOD/good.csv OUT --clean.min_points 0", "clean.min_points must be at least 1"),
    ("convert GOOD/good.csv OUT --clean.min_points 13", "lower --clean.min_points"),
    ("convert GOOD/good.csv GOOD/store", "store: exists, made from another input"),
    ("convert GOOD/good.csv GOOD/run", "run: exists and is not a store"),
    ("convert GOOD/good.csv GOOD/good.csv/x", "x: cannot be written: Not a directory"),
    ("pretrain --bogus 1", "--bogus"),
    ("pretrain --preset XL", "no preset 'XL'; there are: "),
    ("pretrain --model.layers many", "model.layers must be a positive whole number"),
    ("pretrain --model.bogus 1", "unknown model setting 'bogus'"),
    ("pretrain --train.epochs 0", "train.epochs must be at least 1"),
    ("pretrain --train.epochs=", "--train.epochs must be a whole number or null, not ''"),
    ("pretrain --seed 99999999999999999999", "seed must be a whole number below 2^63"),
    ("pretrain --data GOOD/store --out OUT --band Z", "store: no light curve in band 'Z'; bands found: I, V"),
    ("pretrain --data GOOD/good.csv --out OUT --band Z", "good.csv: no light curve in band 'Z'"),
    ("pretrain --data GOOD/store --out GOOD/good.csv", "good.csv: cannot be the run's folder"),
    ("pretrain --data GOOD/store --out GOOD/good.csv/x", "x: cannot be the run's folder"),
    ("pretrain --data GOOD/store --out GOOD/store", "a store of light curves is no place for a run"),
    ("pretrain --data GOOD/store --out GOOD/run --seed 3", "run holds a run with other settings"),
    ("embed GOOD/good.csv OUT --model nowhere", "nowhere: no such folder"),
    ("embed GOOD/good.csv OUT --model GOOD", "config.json: no such file"),
    ("embed GOOD/good.csv OUT --model MODEL --band Z", "good.csv: no light curve in band 'Z'"),
    ("embed GOOD/good.csv OUT --model MODEL --batch_size 0", "batch_size must be at least 1"),
    ("embed GOOD/good.csv OUT --model MODEL --device bogus", "device 'bogus' cannot be used here"),
    ("embed GOOD/good.csv GOOD/good.csv --model MODEL", "good.csv: holds the light curves"),
    ("embed GOOD/survey GOOD/survey/part2.csv --model MODEL", "part2.csv: is a file of"),
    ("embed GOOD/survey/*.csv GOOD/survey/../survey/part2.csv --model MODEL", "part2.csv: holds the light curves"),
    ("embed GOOD/store GOOD/store/curves.parquet --model MODEL", "curves.parquet: is a file of"),
    ("embed GOOD/store GOOD/store/manifest.json --model MODEL", "manifest.json: is a file of"),
    ("embed GOOD/good.csv MODEL/model.safetensors --model MODEL", "which holds the model"),
    ("periods GOOD/survey GOOD/survey/part1.csv", "part1.csv: is a file of"),
    ("periods GOOD/store GOOD/store/time.f64", "time.f64: is a file of"),
    ("pretrain --data GOOD/store --out GOOD", "is not a folder of astroco pretrain's results"),
    ("probe --data GOOD/store --model MODEL --out GOOD", "is not a folder of astroco probe's results"),
    ("probe --data GOOD/store --model MODEL --out GOOD/run", "run: holds the results of astroco pretrain"),
    ("reproduce --data GOOD/store --out GOOD", "is not a folder of astroco reproduce's results"),
    ("reproduce --data GOOD/store --out GOOD/run", "run: holds the results of astroco pretrain"),
    ("embed GOOD/good.csv GOOD --model MODEL", "is a folder"),
    ("embed GOOD/good.csv GOOD/no/out --model MODEL", "there is no folder"),
    ("report", "required: run"),
    ("report nowhere", "nowhere/config.yaml: cannot be read"),
    ("report GOOD/store", "config.yaml: cannot be read"),
    ("report GOOD/run --data nowhere", "nowhere: not a store"),
    ("simulate OUT --stars 0", "--stars must be at least 1"),
    ("simulate OUT --stars many", "--stars must be a whole number, not 'many'"),
    ("simulate OUT --seed -1", "--seed must be a whole number from 0"),
    ("simulate GOOD/store --stars 3", "store: exists"),
    ("simulate GOOD/good.csv/x.parquet --stars 3", "there is no folder"),
    ("simulate GOOD/good.csv/x --stars 3", "x: cannot be written"),
]


@pytest.mark.parametrize(("words", "told"), LINES, ids=[line for line, _ in LINES])
def test_command_line(words: str, told: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in good.rglob("*") if path.is_file()}
    places = {"GOOD": good, "MODEL": good / "run" / "checkpoints" / "best", "OUT": tmp_path / "out"}
    argv = words.split()
    for name, place in places.items():
        argv = [word.replace(name, str(place)) for word in argv]
    settings = ["--config", str(good / "small.yaml")] if argv[0] == "pretrain" else []
    assert told in refused([*argv, *settings], capsys)
    assert {path: path.stat().st_mtime_ns for path in good.rglob("*") if path.is_file()} == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("command", ["pretrain", "embed", "report"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_damaged_checkpoint(file: str, command: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One changed byte of a weight is noticed."""
    pytest.importorskip("matplotlib")
    run = shutil.copytree(good / "run", tmp_path / "run", symlinks=True)
    path = run / "checkpoints" / "best" / file
    path.write_bytes(path.read_bytes()[:-3] + b"1" + path.read_bytes()[-2:])
    data = str(good / "store")
    argv = {
        "pretrain": ["--config", str(run / "config.yaml"), "--out", str(run), "--train.max_steps", "3"],
        "embed": [data, str(tmp_path / "out"), "--model", str(run / "checkpoints" / "best")],
        "report": [str(run)],
    }
    assert f"{file} is damaged (its checksum differs)" in refused([command, *argv[command]], capsys)


def test_a_start_that_fails_leaves_the_run_as_it_was(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The settings that a report and the next start read must not name data that cannot be used."""
    run = shutil.copytree(good / "run", tmp_path / "run", symlinks=True)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    store_with("mag.f32", lambda content: content[:-1] + b"\x00")(tmp_path / "changed", good)
    argv = ["--config", str(run / "config.yaml"), "--data", str(tmp_path / "changed"), "--out", str(run)]
    assert "mag.f32" in refused(["pretrain", *argv], capsys)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_report_of_light_curves_that_are_not_the_run_s(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    convert(make_batch(90), tmp_path / "other")
    argv = ["report", str(good / "run"), "--data", str(tmp_path / "other")]
    assert f"other: not the light curves that {good / 'run'} was trained on" in refused(argv, capsys)


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """A context in which no file can grow beyond this many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("convert GOOD/good.csv OUT", "out: cannot be written: "),
        ("simulate OUT --stars 5", "out: cannot be written: "),
        ("simulate OUT.parquet --stars 20", "out.parquet: cannot be written: "),
        ("embed GOOD/store OUT --model GOOD/run/checkpoints/best", "out: cannot be written: "),
        ("pretrain --config GOOD/small.yaml --data GOOD/store --out OUT", "step-00000002: cannot be written: "),
    ],
)
def test_full_disk(words: str, told: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = words.replace("GOOD", str(good)).replace("OUT", str(tmp_path / "out")).split()
    with full_disk(5000):
        assert told in refused(argv, capsys)
    assert cli.main(argv) == 0, "with room, the same command goes on"


def on_full_disk(argv: list[str]) -> int:
    """Run a command as one rank, on a full disk."""
    with full_disk(5000):
        return cli.main(argv)


@pytest.mark.parametrize("case", ["full disk", "one star"])
def test_both_ranks_end(case: str, good: Path, tmp_path: Path) -> None:
    as_long(curves()).head(24).to_csv(tmp_path / "one.csv", index=False)
    data = {"full disk": good / "store", "one star": tmp_path / "one.csv"}[case]
    argv = ["pretrain", "--config", str(good / "small.yaml"), "--data", str(data), "--out", str(tmp_path / "run")]
    ranks = on_ranks(2, on_full_disk if case == "full disk" else cli.main, argv, tmp_path=tmp_path)
    assert [rank.code for rank in ranks] == [2, 2], ranks
    told = {"full disk": "checkpoints/step-00000002: cannot be written", "one star": "no star of 2 light curves"}
    (line,) = ranks[0].err.splitlines()
    assert told[case] in line
    assert ranks[1].err == ""


def begin_late(argv: list[str], folder: Path) -> int:
    """Run a command as one rank; rank 0 begins a second later. Tell when it began and when it was done."""
    rank = os.environ["RANK"]
    time.sleep(rank == "0")
    (folder / f"began{rank}").write_text(str(time.time()))
    code = cli.main(argv)
    (folder / f"done{rank}").write_text(str(time.time()))
    return code


def test_ranks_wait_for_a_slow_rank_0_that_tells_what_is_wrong(tmp_path: Path) -> None:
    """Rank 0 alone prints the error, but torchrun ends all ranks as soon as one of them exits."""
    ranks = on_ranks(2, begin_late, ["pretrain", "--bogus", "1"], tmp_path, tmp_path=tmp_path)
    assert [rank.code for rank in ranks] == [2, 2]
    assert ranks[0].err.count("astroco: error: ") == 1
    assert "--bogus" in ranks[0].err
    assert ranks[1].err == ""
    assert float((tmp_path / "done1").read_text()) > float((tmp_path / "began0").read_text())


@pytest.mark.slow
def test_under_torchrun_a_slow_rank_0_still_tells_what_is_wrong(tmp_path: Path) -> None:
    """Rank 0 alone prints the error, but torchrun ends all ranks as soon as one of them exits."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\nfrom astroco_fast.pretrain import main\n"
        "time.sleep(2 * (os.environ['RANK'] == '0'))\nsys.exit(main(sys.argv[1:]))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run(
        [*launch, "--bogus", "1"], capture_output=True, text=True, timeout=120, env=environment, check=False
    ).stderr
    assert told.count("astroco: error: ") == 1
    assert "--bogus" in told
    assert told.count("exitcode  : 2 ") == 2, told
