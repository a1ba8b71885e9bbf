"""The explorer's page: what it holds is what was given, and nothing of it can run or load anything."""

import base64
import hashlib
import html.parser
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.explore.pages import PERIOD, light_curve, make_page, packs, star_ids
from tests.vector_tables import EVIL, light_curves, vectors, write

pytest.importorskip("faiss")
pytest.importorskip("sklearn")

from astroco_fast import oddity
from astroco_fast.explore import curves as curves_module
from astroco_fast.explore import main
from astroco_fast.explore.columns import Column, column_of_text
from astroco_fast.explore.curves import epoch, pack_block
from astroco_fast.explore.pack import pack, planes, unpack, whole_planes
from astroco_fast.explore.projection import principal_components, project
from astroco_fast.vector_index import nearest
from astroco_fast.vectors import Scale, read_vectors


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oddity, "_TREES", 5)


class Tags(html.parser.HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_no_string_from_data_is_html_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = make_page(tmp_path, title=f"{{{{style}}}} {EVIL}")
    text, tags = page.read_text(encoding="utf-8"), Tags(page).found
    assert "onerror=alert" not in text.replace(html.escape(EVIL), "")
    assert {"img", "iframe", "link", "object", "embed", "base"}.isdisjoint(tag for tag, _ in tags)
    for tag, attributes in tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "style")}, tag
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.split('id="stars"')[0])
    code = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(code) == 1
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|fetch\(|http", code[0]
    )
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    content, _ = packs(page)["stars"]
    assert content["ids"][0] == EVIL
    assert next(c for c in content["columns"] if c["name"] == "note")["words"] == ["a", EVIL]


def test_numbers_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_module, "BLOCK", 16)
    monkeypatch.setattr("astroco_fast.explore.page.BLOCK", 16)
    page = make_page(tmp_path)
    found = packs(page)
    content, arrays = found["stars"]
    read = read_vectors(tmp_path / "vectors.parquet")
    standardised = Scale.of(read.matrix)(read.matrix)
    distances, rows = nearest(standardised, 10)
    np.testing.assert_array_equal(arrays["neighbours"].reshape(-1, 10), rows)
    np.testing.assert_array_equal(arrays["distances"].reshape(-1, 10), distances)
    places = arrays["view0"].reshape(-1, 2) * np.array(content["views"][0]["step"]) + content["views"][0]["low"]
    wanted, _ = principal_components(standardised, 2)
    np.testing.assert_allclose(places, wanted, atol=np.ptp(wanted) / 65_535)
    names = [column["name"] for column in content["columns"]]
    assert names == ["label", "band", "n_points", "anomaly score", "period", "colour", "note"]
    label = content["columns"][0]
    assert [label["words"][code] for code in arrays["column0"]] == list(read.label)
    table = pq.read_table(tmp_path / "curves.parquet")
    np.testing.assert_allclose(arrays["column5"], table["colour"].to_numpy(), rtol=1e-6)
    np.testing.assert_array_equal(arrays["period"], PERIOD)
    assert set(content["periodFrom"]) == {"given"}
    for star in (0, 15, 16, 39):
        block = found[f"curves-{star // 16}"][1]
        time, mag, err = light_curve(block, star % 16)
        row = table.slice(star, 1).to_pylist()[0]
        np.testing.assert_allclose(time, row["mjd"], rtol=0, atol=PERIOD / 2000)
        np.testing.assert_allclose(mag, row["mag"], rtol=0, atol=np.ptp(row["mag"]) / 4095)
        np.testing.assert_allclose(err, row["err"], rtol=0.01)


def test_a_pack_is_unpacked_and_needs_no_escaping() -> None:
    arrays = {"a": np.arange(3, dtype=np.uint8), "b": np.array([[1.5, np.nan]]), "c": np.empty(0, np.uint16)}
    text = pack({"words": [EVIL, "ß\ud800\u2028"]}, arrays)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", text)
    content, back = unpack(text)
    assert content == {"words": [EVIL, "ß\ud800\u2028"]}
    np.testing.assert_array_equal(back["b"], [1.5, np.nan])
    assert [back[name].dtype for name in "abc"] == [np.uint8, np.float64, np.uint16]
    values = np.array([1, 300, 70_000, 2**32 - 1], dtype=np.uint32)
    np.testing.assert_array_equal(whole_planes(planes(values), "<u4"), values)


def test_extreme_light_curves_are_packed() -> None:
    one = np.array([[5e4], [15.0], [0.1]])
    equal = np.array([[5e4, 5e4], [15.0, 15.0], [0.1, 0.1]])
    long = np.array([[0.0, 4e4, 4e5], [10.0, 12, 11], [1e-4, 2.0, 90]])
    _, arrays = unpack(pack_block([one, None, equal, long], np.array([0.5, 0.5, np.nan, 0.02])))
    assert arrays["length"].tolist() == [1, 0, 2, 3]
    for place, curve in ((0, one), (2, equal), (3, long)):
        found = light_curve(arrays, place)
        np.testing.assert_allclose(found[0], curve[0], rtol=0, atol=1e-4)
        np.testing.assert_allclose(found[1], curve[1], rtol=0, atol=5e-4)


def test_phase_zero_is_a_minimum_of_light() -> None:
    time = np.sort(1000 + 50 * np.random.default_rng(0).random(80))
    curve = np.array([time, 15 + 0.3 * np.cos(2 * np.pi * (time - 1000.3) / 2.5), np.full(80, 0.01)])
    away = (epoch(curve, 2.5) - 1000.3) / 2.5
    assert away == pytest.approx(round(away), abs=0.01)


def test_periods_are_found_where_no_table_gives_one(tmp_path: Path) -> None:
    page = make_page(tmp_path, period=[None, 0.35, *[np.nan] * 38], n=40)
    content, arrays = packs(page)["stars"]
    assert content["periodFrom"][:3] == ["found", "given", "found"]
    assert arrays["period"][1] == 0.35
    assert arrays["period"][2] == pytest.approx(PERIOD, rel=1e-3)


def test_the_page_says_what_it_leaves_out(tmp_path: Path) -> None:
    make_page(tmp_path)
    ids = pq.read_table(tmp_path / "vectors.parquet")["id"].to_pylist()
    few = write(tmp_path, "few.parquet", light_curves(ids[:30]))
    out = tmp_path / "b.html"
    command = [str(tmp_path / "vectors.parquet"), "--curves", few, "--out", str(out), "--projections", "[]"]
    assert main([*command, "--stars", "39", "--points", "12"]) == 0
    content, arrays = packs(out)["stars"]
    assert len(content["ids"]) == 39
    assert content["total"] == 40
    told = "\n".join(content["notes"])
    assert "a random sample of 39 of 40 light curves (seed 0)" in told
    assert re.search(r"(9|10) stars have no light curve in .*few\.parquet", told)
    assert "more than 12 points" in told
    assert sorted(set(arrays["length"].tolist())) == [0, 30]
    block = packs(out)["curves-0"][1]
    assert sorted(set(block["length"].tolist())) == [0, 12]


def test_columns_of_other_tables_colour_the_points(tmp_path: Path) -> None:
    columns = {"ID": star_ids(20), "teff": np.arange(20.0), "label": ["x"] * 20, "Period": [1.25] * 20}
    other = write(tmp_path, "other.parquet", pa.table(columns))
    content, arrays = packs(make_page(tmp_path, "--also", f"[{other}]"))["stars"]
    names = [column["name"] for column in content["columns"]]
    assert {"teff", "label (other)"} <= set(names)
    np.testing.assert_array_equal(arrays["period"], [*[1.25] * 20, *[PERIOD] * 20])
    np.testing.assert_array_equal(arrays[f"column{names.index('teff')}"], [*range(20), *[np.nan] * 20])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["1", "2", "1", ""], ("1", "", "2")),  # few whole numbers are classes
        (["0.5", "", "nan", "1e3"], None),
        (["a", "a", "", "b"], ("a", "", "b")),
        ([""] * 4, "left out"),
        ([f"id{i}" for i in range(40)], "left out"),
        (["nan"] * 4, "left out"),
    ],
)
def test_columns_are_numbers_or_classes(words: list[str], wanted: object) -> None:
    column = column_of_text("x", np.array(words, dtype=object))
    assert (column.words if isinstance(column, Column) else "left out") == wanted
    if wanted is None:
        np.testing.assert_array_equal(column.values, np.array([0.5, np.nan, np.nan, 1000], np.float32))


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], **changes: str) -> str:
    """The one line that an impossible command prints."""
    made = {"curves": str(tmp_path / "curves.parquet"), "out": str(tmp_path / "new.html"), **changes}
    capsys.readouterr()
    source = made.pop("source", str(tmp_path / "vectors.parquet"))
    assert main([source, *(word for name, value in made.items() for word in (f"--{name}", value))]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    return told


def test_bad_input_is_one_line_and_replaces_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = make_page(tmp_path)
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    others = write(tmp_path, "others.parquet", light_curves(["else"]))
    before[Path(others)] = Path(others).read_bytes()

    def check(message: str, **changes: str) -> None:
        assert message in refused(tmp_path, capsys, **changes)

    check("holds the vectors", out=str(tmp_path / "vectors.parquet"))
    check("holds the light curves", out=str(tmp_path / "curves.parquet"))
    check("holds columns to show", out=others, also=f"[{others}]")
    check("is no page of astroco explore", out=str(notes))
    check("there is no folder", out=str(tmp_path / "no" / "page.html"))
    check("has none of the stars of the embeddings", curves=others)
    check("no such file", curves=str(tmp_path / "nothing.parquet"))
    check("no such file", source=str(tmp_path / "nothing.parquet"))
    check("no column 'embedding'", source=str(tmp_path / "curves.parquet"), curves=others)
    check("stars must be from 3", stars="2")
    check("stars must be from 3", stars="70000")
    check("points must be at least 1", points="0")
    check("seed must be at least 0", seed="-1")
    check("pca", projections="[tsne]")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert main([str(tmp_path / "vectors.parquet")]) == 2
    assert "needs --curves" in capsys.readouterr().err
    assert make_page(tmp_path) == page  # its own page is replaced


def test_a_star_with_several_bands_needs_one_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"star{i}" for i in range(5)]
    two = pa.concat_tables([light_curves(ids), light_curves(ids).set_column(1, "band", pa.array(["R"] * 5))])
    write(tmp_path, "curves.parquet", two)
    write(tmp_path, "vectors.parquet", vectors(5).drop_columns(["band"]))
    assert "several bands" in refused(tmp_path, capsys)
    out = tmp_path / "new.html"
    command = [str(tmp_path / "vectors.parquet"), "--curves", str(tmp_path / "curves.parquet"), "--out", str(out)]
    assert main([*command, "--band", "R", "--projections", "[pca]"]) == 0


@pytest.mark.parametrize(("module", "extra"), [("faiss", "explore"), ("sklearn.ensemble", "explore")])
def test_missing_packages_name_the_extra(
    module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_page(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert f"astroco_fast[{extra}]" in refused(tmp_path, capsys)


def test_a_projection_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_page(tmp_path)
    monkeypatch.setattr("astroco_fast.explore.projection.package_version", {}.get)
    assert "astroco_fast[umap]" in refused(tmp_path, capsys, projections="[umap]")


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name"), [("umap", "UMAP"), ("pacmap", "PaCMAP")])
def test_other_projections_keep_classes_apart(package: str, name: str) -> None:
    pytest.importorskip(package)
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(120, 6)) + 9 * (np.arange(120) % 2)[:, None]).astype(np.float32)
    made, notes = project(matrix, [package], 0)  # type: ignore[list-item]
    assert [view.name for view in made] == ["PCA", name]
    assert notes == []
    places = made[1].places
    middles = [places[i::2].mean(0) for i in range(2)]
    away = [np.linalg.norm(places - middle, axis=1) for middle in middles]
    np.testing.assert_array_equal(np.argmin(away, axis=0), np.arange(120) % 2)
