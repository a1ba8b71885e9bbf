"""Light curves on other machines: what is read is what is there, and what fails is told in one line."""

import http.server
import os
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import astroco_fast as af
from astroco_fast import convert, embed
from astroco_fast.data.sources import open_source
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from tests.data.curve_factory import as_long, assert_same_curves, make_batch, read_curves
from tests.embedding.curves import curve, long_table

pytest.importorskip("upath")
pytest.importorskip("aiohttp")


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of a folder, wholly or in ranges. From byte `ends` of a file on, it breaks off."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.ends: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]) + 1, len(content))) if asked else (0, len(content))
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            ends = self.server.ends
            self.wfile.write(content[first : last if ends is None else max(min(last, ends), first)])
            self.close_connection = True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.csv.gz", "a.feather"])
def test_a_server_that_breaks_off(name: str, tmp_path: Path, server: Server) -> None:
    batch = make_batch(400, bands=("V", "I"))
    frame = as_long(batch)
    if name == "a.parquet":
        frame.to_parquet(tmp_path / name)
    elif name == "a.feather":
        frame.to_feather(tmp_path / name)
    else:
        frame.to_csv(tmp_path / name, index=False)
    url = f"{server.url}/{name}"
    assert_same_curves(read_curves(url), [batch])
    with urllib.request.urlopen(url) as opened:
        assert_same_curves(read_curves(opened), [batch])
    server.ends = (tmp_path / name).stat().st_size // 2
    with pytest.raises(UserError, match="cannot be read: ") as told:
        list(read_curves(url))
    assert url in str(told.value)
    assert "\n" not in str(told.value)
    with urllib.request.urlopen(url) as opened, pytest.raises(UserError, match="broke off"):
        list(read_curves(opened))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("convert", ["in.csv", "s3://bucket/a.store"]),
        ("embed", ["in.csv", "s3://bucket/a.parquet"]),
        ("embed", ["in.csv", "gs://bucket/a.csv"]),
        ("simulate", ["https://host/a.parquet"]),
        ("simulate", ["s3://bucket/a.store", "--stars", "2"]),
        ("periods", ["in.csv", "s3://bucket/p.parquet"]),
        ("pretrain", ["--data", "in.csv", "--out", "s3://bucket/run"]),
        ("probe", ["--model", "time-small", "--data", "in.csv", "--out", "s3://bucket/probe"]),
        ("classify", ["fit", "in.csv", "--out", "s3://bucket/classifier"]),
        ("export", ["s3://bucket/a.onnx"]),
    ],
)
def test_nothing_is_written_to_a_url(
    command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import import_module

    monkeypatch.chdir(tmp_path)
    long_table([curve(20, i) for i in range(4)]).to_csv("in.csv", index=False)
    assert import_module(f"astroco_fast.{command}").main(words) == 2
    told = capsys.readouterr().err.splitlines()
    url = next(word for word in words if "://" in word)
    assert f"error: {url}: results are written on this machine's disks only" in told[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_vectors_are_not_read_from_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    from astroco_fast import neighbours

    assert neighbours.main(["s3://bucket/v.parquet", "--ids", "a"]) == 2
    assert "s3://bucket/v.parquet: vectors are read on this machine's disks only" in capsys.readouterr().err


class Bucket:
    """A bucket of a server that speaks S3, on this machine; it needs `pip install 'moto[server]' s3fs`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        boto3 = pytest.importorskip("boto3")
        moto = pytest.importorskip("moto.server")
        self._s3fs = pytest.importorskip("s3fs")
        self.server = moto.ThreadedMotoServer(port=0, verbose=False)
        self.server.start()
        _, port = self.server.get_host_and_port()
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", os.devnull),
            ("AWS_SHARED_CREDENTIALS_FILE", os.devnull),
            ("AWS_MAX_ATTEMPTS", "1"),
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ):
            monkeypatch.setenv(name, value)
        self._client = boto3.client("s3")
        self._client.create_bucket(Bucket="bucket")
        self.forget()

    def put(self, path: Path, key: str) -> None:
        self._client.upload_file(str(path), "bucket", key)

    def forget(self) -> None:
        """Let the next call read the environment anew, and no listing from memory."""
        self._s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    made = Bucket(monkeypatch)
    yield made
    made.server.stop()
    made.forget()


@pytest.mark.slow
def test_s3(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = pytest.importorskip("moto.settings")
    af.AstroCo.from_preset("tiny", width=16, heads=2, window=20).save_pretrained(tmp_path / "model")
    frame = long_table([curve(20, i) for i in range(6)])
    half = frame["id"].isin(["star0", "star1", "star2"])
    for name, part in (("survey", frame), ("a", frame[half]), ("b", frame[~half])):
        part.to_parquet(tmp_path / f"{name}.parquet")
    bucket.put(tmp_path / "survey.parquet", "survey.parquet")
    for name in "ab":
        bucket.put(tmp_path / f"{name}.parquet", f"folder/{name}.parquet")
    model = ["--model", str(tmp_path / "model")]
    assert embed.main([str(tmp_path / "survey.parquet"), str(tmp_path / "wanted.parquet"), *model]) == 0
    wanted = pq.read_table(tmp_path / "wanted.parquet").sort_by("id")
    out = str(tmp_path / "out.parquet")
    for source in ("s3://bucket/survey.parquet", "s3://bucket/folder", "s3://bucket/folder/*.parquet"):
        assert embed.main([source, out, *model, "--overwrite"]) == 0
        found = pq.read_table(out).sort_by("id")
        assert found["id"].to_pylist() == wanted["id"].to_pylist()
        np.testing.assert_array_equal(np.stack(found["embedding"]), np.stack(wanted["embedding"]))
        known = open_source(source).identity  # by which an interrupted run is resumed
        bucket.forget()
        assert open_source(source).identity == known
        assert convert.main([source, str(tmp_path / "s"), "--clean.min_points", "1"]) == 0
        assert sum(map(len, Store.open(tmp_path / "s").batches())) == 6
        (tmp_path / "s").rename(tmp_path / f"s{source.count('/')}{source[-1]}")

    Path(out).unlink()

    def fails(source: str, message: str) -> None:
        bucket.forget()
        capsys.readouterr()
        for main, words in ((embed.main, [source, out, *model]), (convert.main, [source, str(tmp_path / "s")])):
            assert main(words) == 2
            told = capsys.readouterr().err
            assert told.startswith(f"astroco: error: {source}: ")
            assert re.search(message, told)
            assert told.count("\n") == 1
        assert not Path(out).exists()
        assert not Path(f"{out}.partial").exists()

    fails("s3://bucket/none.parquet", "no such file or folder")
    fails("s3://bucket/none", "no such file or folder")
    fails("s3://none/survey.parquet", "no such file or folder")
    fails("s3://none/folder", "no such file or folder")
    for source in ("s3://bucket/survey.parquet", "s3://bucket/folder"):
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)  # from now on the server knows no such key
        fails(source, "cannot be read: .*(Forbidden|Access|does not exist)")
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
        with monkeypatch.context() as patch:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.delenv(name)
            fails(source, "cannot be read: .*credentials")
    bucket.server.stop()
    fails("s3://bucket/survey.parquet", "cannot be read: .*connect")
    fails("s3://bucket/folder", "cannot be read: .*connect")
