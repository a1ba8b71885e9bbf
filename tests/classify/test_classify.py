"""`astroco classify`: fit, report and predict, and what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroco_fast import embed
from astroco_fast.classify import main
from astroco_fast.classify.classifier import DESCRIPTION, NUMBERS, load_classifier
from astroco_fast.digest import DIGEST, MODEL, model_digest
from astroco_fast.embedding import embed_batch
from astroco_fast.embedding_formats import KEY
from astroco_fast.errors import UserError
from astroco_fast.registry import load
from astroco_fast.scale.partition import provenance
from tests.probe.survey import CLASSES, survey, table, tiny_model

PARTS = "[magnitudes]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a survey, a model, and a classifier of it."""
    folder = tmp_path_factory.mktemp("classify")
    pq.write_table(table(), folder / "survey.parquet")
    tiny_model().save_pretrained(folder / "model")
    assert fit(folder, folder / "survey.parquet", folder / "fitted") == 0
    return folder


def fit(place: Path, data: Path, out: Path, *flags: str) -> int:
    words = ["fit", str(data), "--out", str(out), "--model", str(place / "model"), "--parts", PARTS, "--folds", "2"]
    return main([*words, "--plots", "false", *flags])


def embeddings(place: Path, path: Path, digest: str | None = None) -> Path:
    """A table of the survey's vectors, as astroco embed writes one; row 3 has no finite vector."""
    batch, model = survey(), load(place / "model")
    vectors = embed_batch(model, batch, parts=["magnitudes"])
    vectors[3] = np.nan
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    columns = {
        name: pa.array(getattr(batch, name if name != "id" else "ids"), pa.string()) for name in ("id", "band", "label")
    }
    told = {MODEL: "the-model", DIGEST: digest or model_digest(model, ["magnitudes"])}
    pq.write_table(pa.table({**columns, "embedding": lists}).replace_schema_metadata(told), path)
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err.strip()
    assert text.count("\n") == 0, text
    return text


def test_a_classifier_of_amplitudes_tells_classes_that_differ_by_amplitude(place):
    results = json.loads((place / "fitted" / "results.json").read_text())
    assert results["classes"] == sorted(CLASSES)
    assert results["macro_f1"]["mean"] > 0.8
    assert len(results["folds"]) == 2
    for row in results["folds"]:
        assert row["stars"] == {"train": 30, "validation": 6, "test": 6}
    assert np.sum(results["confusion"]) == 2 * 6
    report = (place / "fitted" / "report.md").read_text()
    for text in ("macro-F1", "expected calibration error", "EW", "has not been tested"):
        assert text in report
    tested = list(csv.DictReader((place / "fitted" / "tested.csv").open()))
    assert len(tested) == 12
    assert all(abs(sum(float(row[f"p_{name}"]) for name in CLASSES) - 1) < 1e-5 for row in tested)


def test_predictions_are_probabilities_of_each_light_curve(place, tmp_path):
    for name in ("classes.parquet", "classes.csv"):
        words = ["predict", str(place / "survey.parquet"), str(tmp_path / name), "--classifier", str(place / "fitted")]
        assert main(words) == 0
    found = pq.read_table(tmp_path / "classes.parquet")
    assert found.column_names == ["id", "band", "label", "class", "probability", *(f"p_{c}" for c in sorted(CLASSES))]
    assert np.mean([a == b for a, b in zip(found["label"].to_pylist(), found["class"].to_pylist(), strict=True)]) > 0.9
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["class"] for row in rows] == found["class"].to_pylist()
    assert found.schema.metadata[DIGEST.encode()].decode() == load_classifier(place / "fitted").digest


def test_a_table_of_embeddings_gives_the_same_classifier_and_predictions(place, tmp_path, capsys):
    vectors = embeddings(place, tmp_path / "vectors.parquet")
    assert main(["fit", str(vectors), "--out", str(tmp_path / "fitted"), "--folds", "2", "--plots", "false"]) == 0
    assert "1 light curves without a finite vector" in capsys.readouterr().err
    found = load_classifier(tmp_path / "fitted")
    assert (found.model, found.digest) == ("the-model", load_classifier(place / "fitted").digest)
    assert main(["predict", str(vectors), str(tmp_path / "o.csv"), "--classifier", str(place / "fitted")]) == 0
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 1 + 41


def test_what_astroco_embed_writes_is_read_if_it_holds_whole_light_curves(place, tmp_path, capsys):
    words = [str(place / "survey.parquet"), "--model", str(place / "model"), "--parts", PARTS]
    assert embed.main([words[0], str(tmp_path / "v.parquet"), *words[1:]]) == 0
    assert fit(place, tmp_path / "v.parquet", tmp_path / "fitted") == 0
    assert load_classifier(tmp_path / "fitted").digest == load_classifier(place / "fitted").digest
    out = str(tmp_path / "o.csv")
    assert main(["predict", str(tmp_path / "v.parquet"), out, "--classifier", str(place / "fitted")]) == 0
    assert embed.main([words[0], str(tmp_path / "w.parquet"), "--windows", "first", *words[1:]]) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "w.parquet"), out + "2.csv", "--classifier", str(place / "fitted")]) == 2
    assert "--windows first; --windows mean is needed" in said(capsys)


def test_a_catalogue_of_lsdb_says_which_model_made_its_vectors(place, tmp_path, capsys):
    table = pq.read_table(embeddings(place, tmp_path / "vectors.parquet")).drop_columns(["label"])
    piece = tmp_path / "collection" / "vectors" / "dataset" / "Norder=0" / "Dir=0" / "Npix=4.parquet"
    piece.parent.mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata(None), piece)
    told = provenance(str(place / "model"), "survey", parts=["magnitudes"], threads=2)
    catalogue = tmp_path / "collection" / "vectors"
    (tmp_path / "collection" / "collection.properties").write_text("hats_primary_table_url=vectors\n")
    (catalogue / "hats.properties").write_text(f"dataproduct_type=object\n{KEY}={told}\n", encoding="utf-8")
    words = ["predict", "--classifier", str(place / "fitted"), "--model", str(place / "model")]
    for number, data in enumerate((catalogue, catalogue.parent)):
        assert main([*words, str(data), str(tmp_path / f"{number}.parquet")]) == 0
        assert f"{data}: says itself that {place / 'model'} made its vectors; --model is not used" in said(capsys)
        assert pq.read_table(tmp_path / f"{number}.parquet")["id"].to_pylist() == [
            star for i, star in enumerate(table["id"].to_pylist()) if i != 3
        ]
    other = provenance(str(place / "model"), "survey", parts=["magnitudes", "time_mean"])
    (catalogue / "hats.properties").write_text(f"dataproduct_type=object\n{KEY}={other}\n", encoding="utf-8")
    assert main([*words, str(catalogue), str(tmp_path / "no.parquet")]) == 2
    assert "the classifier takes those of" in said(capsys)


def test_priors_change_the_probabilities(place):
    found = load_classifier(place / "fitted")
    vectors = np.tile(found.mean.astype(np.float32), (1, 1))
    unlike = found.with_priors("uniform")
    np.testing.assert_allclose(found.probabilities(vectors), unlike.probabilities(vectors))  # classes of equal size
    skewed = type(found)(**{**vars(found), "frequency": np.array([0.98, 0.01, 0.01])})
    assert skewed.probabilities(vectors)[0, 0] > unlike.probabilities(vectors)[0, 0]
    assert skewed.with_priors("uniform").probabilities(vectors)[0, 0] == unlike.probabilities(vectors)[0, 0]


def test_vectors_of_another_model_are_refused(place, tmp_path, capsys):
    out = tmp_path / "o.csv"
    vectors = embeddings(place, tmp_path / "vectors.parquet", digest="f" * 64)
    assert main(["predict", str(vectors), str(out), "--classifier", str(place / "fitted")]) == 2
    assert "vectors of the-model; the classifier takes those of" in said(capsys)
    words = ["predict", str(place / "survey.parquet"), str(out), "--classifier", str(place / "fitted")]
    assert main([*words, "--model", "time-small"]) == 2
    assert "time-small: another model" in said(capsys)
    assert not out.exists()


def test_a_table_that_names_no_model_is_refused(place, tmp_path, capsys):
    path = embeddings(place, tmp_path / "vectors.parquet")
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    assert main(["fit", str(path), "--out", str(tmp_path / "fitted")]) == 2
    assert "does not say which model made its vectors" in said(capsys)
    assert not (tmp_path / "fitted").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / DESCRIPTION).unlink(), "give a folder of astroco classify fit"),
        (lambda folder: (folder / DESCRIPTION).write_text("{"), "not JSON"),
        (lambda folder: (folder / DESCRIPTION).write_text("[1]"), "not a classifier"),
        (lambda folder: (folder / NUMBERS).write_bytes(b"0"), "damaged, or of another classifier"),
        (lambda folder: (folder / NUMBERS).unlink(), "fit the classifier again"),
        (lambda folder: edit(folder, temperature=-1), "damaged"),
        (lambda folder: edit(folder, classes=["one"]), "damaged"),
        (lambda folder: edit(folder, classes=None), "damaged"),
        (lambda folder: edit(folder, format=9), "not a classifier that this version"),
    ],
)
def test_a_damaged_classifier_is_refused(change, message, place, tmp_path):
    for name in (DESCRIPTION, NUMBERS):
        (tmp_path / name).write_bytes((place / "fitted" / name).read_bytes())
    load_classifier(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        load_classifier(tmp_path)


def edit(folder: Path, **values: object) -> None:
    told = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**told, **values}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "no action 'train'; choose fit or predict"),
        (["fit", "absent.parquet", "--out", "o"], "absent.parquet"),
        (["fit", "survey.parquet", "--out", "o", "--classes", "[EW]"], "two or more different labels"),
        (["fit", "survey.parquet", "--out", "o", "--classes", "[EW, X]"], "no star of class 'X'"),
        (["fit", "survey.parquet", "--out", "o", "--c", "0"], "c must be a positive number"),
        (["fit", "survey.parquet", "--out", "."], "choose another --out"),
        (["predict", "survey.parquet", "o.txt", "--classifier", "fitted"], "must end in .parquet or .csv"),
        (["predict", "survey.parquet", "survey.parquet", "--classifier", "fitted"], "exists"),
        (["predict", "survey.parquet", "o.csv", "--classifier", "nowhere"], "give a folder of astroco classify fit"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_lost(words, message, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    words = [*words, "--model", "model"] * (words[0] == "fit") or words
    assert main(words) == 2
    assert message in said(capsys)
    assert sorted(place.iterdir()) == before


def test_a_second_fit_replaces_the_first_and_embeds_nothing_again(place, tmp_path, capsys):
    assert fit(place, place / "survey.parquet", tmp_path / "fitted") == 0
    (tmp_path / "fitted" / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert fit(place, place / "survey.parquet", tmp_path / "fitted", "--seed", "1") == 0
    assert "42 stars, 0 of them embedded now" in capsys.readouterr().out
    assert (tmp_path / "fitted" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_figures_are_drawn(place, tmp_path):
    pytest.importorskip("matplotlib")
    assert fit(place, place / "survey.parquet", tmp_path / "fitted", "--plots", "true") == 0
    for name in ("confusion.png", "reliability.png"):
        assert (tmp_path / "fitted" / name).stat().st_size > 5000
