"""Files of every format, on this machine, on others and open: each holds the same light curves."""

import gzip
import http.server
import io
import json
import threading
import warnings
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from astroco_fast.data.columns import Columns
from astroco_fast.data.sources import open_source
from astroco_fast.errors import UserError
from tests.data.curve_factory import as_long, as_nested, assert_same_curves, read_curves

astropy_table = pytest.importorskip("astropy.table")


def write_astropy(table, path, format):
    frame = table.to_pandas()
    made = astropy_table.Table({name: frame[name].to_numpy() for name in frame.columns if frame[name].dtype != object})
    for name in frame.columns:
        if name not in made.colnames:
            made[name] = list(frame[name]) if isinstance(frame[name].iloc[0], str) else frame[name].to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.write(path, format=format)


def write_ipc(table, path):
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=7)


def write_json(table, path):
    text = "".join(f"{json.dumps(row)}\n" for row in table.to_pylist()).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


POINTS = {
    "a.csv": lambda table, path: table.to_pandas().to_csv(path, index=False),
    "a.csv.gz": lambda table, path: table.to_pandas().to_csv(path, index=False),
    "a.tsv": lambda table, path: table.to_pandas().to_csv(path, index=False, sep="\t"),
    "a.ecsv": partial(write_astropy, format="ascii.ecsv"),
    "a.vot": partial(write_astropy, format="votable"),
}
BOTH = {
    "a.feather": pyarrow.feather.write_feather,
    "a.arrow": write_ipc,
    "a.parquet": lambda table, path: pq.write_table(table, path),
    "a.jsonl": write_json,
    "a.ndjson.gz": write_json,
}
CASES = [(name, "points") for name in {**POINTS, **BOTH}] + [(name, "rows") for name in BOTH]


def write(name, form, batch, folder):
    table = as_nested(batch) if form == "rows" else pa.Table.from_pandas(as_long(batch), preserve_index=False)
    {**POINTS, **BOTH}[name](table, folder / name)
    return folder / name


@pytest.mark.parametrize(("name", "form"), CASES)
def test_files_of_every_format(name, form, batch, tmp_path, monkeypatch):
    path = write(name, form, batch, tmp_path)
    assert_same_curves(read_curves(path), [batch])
    assert_same_curves(read_curves(tmp_path, band="I"), [batch.select(batch.band == "I")])
    # In pieces, of which some are left out, as a conversion does that is resumed.
    monkeypatch.setattr("astroco_fast.data.sources.BATCH_POINTS", 50)
    monkeypatch.setattr("astroco_fast.data.sources._READ_ROWS", 16)
    every = list(read_curves(path))
    assert_same_curves(every, [batch])
    assert [b.ids.tolist() for b in open_source(path).batches(1)] == [b.ids.tolist() for b in every[1:]]


@pytest.mark.parametrize("name", sorted({**POINTS, **BOTH}))
def test_damaged_files_of_every_format(name, batch, tmp_path):
    path = write(name, "points", batch, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    if name in ("a.csv", "a.tsv", "a.ecsv"):  # half of a text is a text, but for its last line
        path.write_bytes(content[: len(content) // 2].rstrip(b",\t 0123456789.") + b"\n")
    with pytest.raises(UserError, match=f"{name}: ") as error:
        list(read_curves(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_open_files(name, form, batch, tmp_path):
    path = write(name, form, batch, tmp_path)
    with path.open("rb") as file:
        assert_same_curves(read_curves(file), [batch])
    assert_same_curves(read_curves(io.BytesIO(path.read_bytes())), [batch])
    if name in ("a.csv", "a.jsonl"):
        assert_same_curves(read_curves(io.StringIO(path.read_text())), [batch])


def test_open_files_of_no_table(batch):
    with pytest.raises(UserError, match="BytesIO: no magnitude column; found: mjd"):
        open_source(io.BytesIO(b"mjd,err\n1,2\n"))
    with pytest.raises(UserError, match=r"^BytesIO.parquet: cannot be read"):
        open_source(io.BytesIO(b"PAR1" + bytes(100)))
    with pytest.raises(UserError, match="empty"):
        open_source(io.BytesIO(b""))


@pytest.mark.parametrize(("name", "form"), CASES)
def test_files_by_fsspec(name, form, batch, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("upath")
    path = write(name, form, batch, tmp_path)
    memory = fsspec.filesystem("memory")
    memory.makedirs("/survey/band=r", exist_ok=True)
    memory.pipe(f"/survey/band=r/{name}", path.read_bytes())
    try:
        for source in (f"memory://survey/band=r/{name}", "memory://survey", "memory://survey/*/a.*", f"file://{path}"):
            assert_same_curves(read_curves(source), [batch])
        with pytest.raises(UserError, match=r"memory://none.*: no such file"):
            open_source("memory://none")
        with pytest.raises(UserError, match=r"memory://survey/none\.csv: "):
            open_source("memory://survey/none.csv")
        with pytest.raises(UserError, match="no file matches this pattern"):
            open_source("memory://survey/*.fits")
        with pytest.raises(UserError, match="nothing://x: cannot be read: "):
            open_source("nothing://x")
    finally:
        memory.rm("/survey", recursive=True)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture
def server(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_files_by_http(batch, tmp_path, server):
    pytest.importorskip("aiohttp")
    pytest.importorskip("upath")
    for name in ("a.csv.gz", "a.parquet", "a.vot"):
        write(name, "points", batch, tmp_path)
        assert_same_curves(read_curves(f"{server}/{name}"), [batch])
    with pytest.raises(UserError, match=r"none\.csv: "):
        open_source(f"{server}/none.csv")


def test_units_of_ecsv_and_votable(batch, tmp_path):
    table = astropy_table.QTable.from_pandas(as_long(batch))
    table["mjd"] = (table["mjd"] * 24).astype(float)
    table["mjd"].unit, table["mag"].unit = "h", "mag"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.write(tmp_path / "a.ecsv")
        table.write(tmp_path / "b.vot", format="votable")
    for name in ("a.ecsv", "b.vot"):
        source = open_source(tmp_path / name)
        assert_same_curves(source.batches(), [batch], rtol=1e-12)
        assert "'mjd' is in 'h' and was converted" in "".join(source.notes)


def test_json_lines_of_many_kinds(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ['{"id": 470312883720183700, "mjd": 1, "mag": 15, "err": 0.1}', "", '{"id": 2, "mjd": 1.5, "mag": 15.5}']
    path.write_text("\n".join(lines))
    batches = list(read_curves(path))
    assert [name for b in batches for name in b.ids] == ["470312883720183700", "2"]
    assert np.isnan(batches[0].err[1])
    path.write_text(lines[0] + '\n{"id": 3, "mjd": "x", "mag": 1, "err": 1}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: column 'mjd', row 2: not a number: 'x'"):
        list(read_curves(path))
    for text, message in (("[1]", "line 1 is no JSON object"), ("{\n", "line 1 is not JSON: Expecting")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            open_source(path)
    path.write_text('{"id": "a", "mjd": 1, "mag": ">16.9", "err": 1}\n{"id": "a", "mjd": 2, "mag": 16, "err": NaN}\n')
    (batch,) = read_curves(path)
    assert batch.mag.tolist() == [-np.inf, 16.0]


def test_polars_feather(batch, tmp_path):
    polars = pytest.importorskip("polars")
    for compression in ("uncompressed", "lz4"):
        for table in (pa.Table.from_pandas(as_long(batch)), as_nested(batch)):
            polars.from_arrow(table).write_ipc(tmp_path / "a.arrow", compression=compression)
            assert_same_curves(read_curves(tmp_path / "a.arrow"), [batch])
            assert_same_curves(read_curves(tmp_path / "a.arrow", band="I"), [batch.select(batch.band == "I")])


def test_ogle_files(tmp_path):
    for band, shift in (("I", 0.0), ("V", 1.0)):
        (tmp_path / band).mkdir()
        for star in (1, 2):
            text = "".join(f" {2150.5 + i:.5f}   {15.123 + shift:.3f} {0.011:.3f}\n" for i in range(12))
            (tmp_path / band / f"OGLE-LMC-CEP-000{star}.dat").write_text(text)
    source = open_source(tmp_path)
    (batch,) = source.batches()
    assert {*zip(batch.ids, batch.band, strict=True)} == {
        (f"OGLE-LMC-CEP-000{star}", band) for star in (1, 2) for band in "IV"
    }
    assert batch.n_points == 48
    assert batch.time[0] == 2150.5
    assert not list(source.notes)
    one = tmp_path / "V" / "OGLE-LMC-CEP-0001.dat"
    assert next(read_curves(one, Columns(star="T Cep"))).ids.tolist() == ["T Cep"]
    for text, message in (
        ("1 2 3 4\n", r"0001\.dat: has 4 columns; a \.dat file has three"),
        ("1 2 3\n1 x 3\n", "column 'mag', row 2: not a number: 'x'"),
        ("1 2 3\n1 2 3 4\n", r"0001\.dat: cannot be read: .*Expected 3 fields"),
    ):
        one.write_text(text)
        with pytest.raises(UserError, match=message):
            list(read_curves(one))
    one.write_text("# nothing\n")
    assert sum(map(len, read_curves(one))) == 0
