"""`astroco probe` from light curves to its folder of results, with an untrained model."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from astroco_fast import plots, probe
from astroco_fast.data.convert import convert
from astroco_fast.data.curves import CurveBatch
from astroco_fast.folders import MARK
from astroco_fast.probe import embeddings, heads, rivals
from tests.data.curve_factory import as_long
from tests.probe.survey import CLASSES, FEW, STARS_A_CLASS, survey, table, tiny_model


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 50)
    monkeypatch.setattr(heads, "C_GRID", (0.1, 1.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pq.write_table(table(), tmp_path / "survey.parquet")
    return tmp_path / "survey.parquet"


def run(data: Path, model: Path, out: Path, *flags: str) -> int:
    return probe.main(["--data", str(data), "--model", str(model), "--out", str(out), *FEW, *flags])


QUICK = ("--probes", "[knn]", "--plots", "false")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.yaml"}


def test_a_store_is_read_twice_like_a_table(data: Path, model: Path, tmp_path: Path) -> None:
    """The first pass reads labels, the second points."""
    convert(data, tmp_path / "store")
    assert run(data, model, tmp_path / "of_table", "--plots", "false") == 0
    assert run(tmp_path / "store", model, tmp_path / "of_store", "--plots", "false") == 0
    of_table, of_store = (
        json.loads((tmp_path / name / "results.json").read_text())["results"] for name in ("of_table", "of_store")
    )
    assert of_store == of_table


def test_the_folder_holds_all_that_was_found(data: Path, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "deep" / "out"
    assert run(data, model, out) == 0
    files = [MARK, "config.yaml", "confusion_4.png", "confusion_6.png", "embeddings.parquet"]
    files += ["results.csv", "results.json", "results.md", "splits.csv"]
    assert sorted(path.name for path in out.iterdir()) == files
    results = json.loads((out / "results.json").read_text())
    assert results["classes"] == list(CLASSES)
    assert [(entry["probe"], entry["n"], len(entry["runs"])) for entry in results["results"]] == [
        *(("linear", 4, 4), ("logistic", 4, 2), ("knn", 4, 2)),
        *(("linear", 6, 4), ("logistic", 6, 2), ("knn", 6, 2)),
    ]
    linear = results["results"][0]
    assert linear["macro_f1"]["mean"] == pytest.approx(np.mean([run["macro_f1"] for run in linear["runs"]]))
    assert linear["macro_f1"]["std"] == pytest.approx(np.std([run["macro_f1"] for run in linear["runs"]], ddof=1))
    assert np.sum(linear["confusion"], 1).tolist() == [4 * 4] * 3  # test stars a class, times runs
    assert results["stars"][0]["train"] == dict.fromkeys(CLASSES, 4)
    assert results["stars"][-1]["validation"] == dict.fromkeys(CLASSES, 3)
    assert not results["simulated"]
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == 16
    assert float(rows[0]["f1_LPV"]) == linear["runs"][0]["f1"]["LPV"]
    text = (out / "results.md").read_text()
    macro_f1 = linear["macro_f1"]
    assert f"| {model.name} | linear head | {macro_f1['mean']:.3f} ± {macro_f1['std']:.3f} |" in text


def test_embeddings_are_those_of_model_embed(data: Path, model: Path, tmp_path: Path) -> None:
    assert run(data, model, tmp_path / "out", "--probes", "[linear]", "--plots", "false") == 0
    made = pq.read_table(tmp_path / "out" / "embeddings.parquet").to_pandas().set_index("id")["embedding"]
    expected = tiny_model().embed(str(data), precision="fp32").set_index("id")["embedding"]
    for star, vector in made.items():
        np.testing.assert_allclose(vector, expected[star], rtol=1e-4, atol=1e-5)


def test_parts_of_the_vectors_are_those_asked_for(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--probes", "[linear]", "--plots", "false")
    assert run(data, model, tmp_path / "out", *quick, "--parts", "[time_spread, time_mean]") == 0
    made = pq.read_table(tmp_path / "out" / "embeddings.parquet")["embedding"].to_pylist()
    assert {len(vector) for vector in made} == {2 * tiny_model().config.width}
    assert run(data, model, tmp_path / "out", *quick) == 2
    assert "of another model, version or choice of parts" in capsys.readouterr().err
    assert run(data, model, tmp_path / "other", *quick, "--parts", "[mean]") == 2
    assert "parts: no part 'mean'" in capsys.readouterr().err


def test_second_probe_reuses_the_embeddings(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(data, model, out) == 0
    before = contents(out)
    monkeypatch.setattr(rivals, "embed_batch", None)
    assert probe.main(["--config", str(out / "config.yaml")]) == 0
    assert "0 of them embedded now" in capsys.readouterr().out
    assert contents(out) == before


def test_other_order_of_rows_gives_the_same_splits(data: Path, model: Path, tmp_path: Path) -> None:
    batch = survey()
    shuffled = as_long(batch).sample(frac=1, random_state=0)
    shuffled.to_csv(tmp_path / "shuffled.csv", index=False)
    for name, source in (("one", data), ("other", tmp_path / "shuffled.csv")):
        assert run(source, model, tmp_path / name, "--probes", "[linear]", "--plots", "false") == 0
    one, other = ((tmp_path / name / "splits.csv").read_bytes() for name in ("one", "other"))
    assert one == other
    digests = [json.loads((tmp_path / name / "results.json").read_text())["data_sha256"] for name in ("one", "other")]
    assert digests[0] == digests[1]


def test_interrupted_probe_goes_on(data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    monkeypatch.setattr(embeddings, "_CURVES_AT_ONCE", 5)
    monkeypatch.setattr(embeddings, "_SAVE_SECONDS", 0.0)
    assert run(data, model, whole, *QUICK) == 0
    embedded: list[int] = []

    def embed_batch(model: torch.nn.Module, curves: CurveBatch, batch_size: int, parts: None) -> np.ndarray:
        if len(embedded) == 3:
            raise KeyboardInterrupt
        embedded.append(len(curves))
        return original(model, curves, batch_size)

    original = rivals.embed_batch
    monkeypatch.setattr(rivals, "embed_batch", embed_batch)
    assert run(data, model, out, *QUICK) == 130
    monkeypatch.setattr(rivals, "embed_batch", original)
    assert len(pq.read_table(out / "embeddings.parquet")) == 15
    assert run(data, model, out, *QUICK) == 0
    for name in ("embeddings.parquet", "splits.csv", "results.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_embeddings_of_another_model_are_not_used(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, model, tmp_path / "out", *QUICK) == 0
    other = tiny_model()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    other.save_pretrained(tmp_path / "other")
    before = contents(tmp_path / "out")
    assert run(data, tmp_path / "other", tmp_path / "out", "--sizes", "[3]", *QUICK) == 2
    assert contents(tmp_path / "out") == before
    assert "of another model, version or choice of parts" in capsys.readouterr().err


def test_a_changed_light_curve_is_embedded_again(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, model, tmp_path / "out", "--test", "5", *QUICK) == 0
    batch = survey()
    batch.mag[-1] += 1
    pq.write_table(table(batch), data)
    capsys.readouterr()
    assert run(data, model, tmp_path / "out", "--test", "5", *QUICK) == 0
    assert " 1 of them embedded now" in capsys.readouterr().out


def test_given_splits_are_used(data: Path, model: Path, tmp_path: Path) -> None:
    assert run(data, model, tmp_path / "one", "--plots", "false") == 0
    flags = ("--plots", "false", "--splits", str(tmp_path / "one" / "splits.csv"), "--seed", "0", "--sizes", "[6]")
    assert run(data, model, tmp_path / "two", *flags) == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two["results"] == one["results"][3:]
    kept = (tmp_path / "one" / "splits.csv").read_text().splitlines()
    assert (tmp_path / "two" / "splits.csv").read_text().splitlines() == [
        row for row in kept if not row.startswith("4,")
    ]


def test_labels_of_a_file_count(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Notes are told once, and names do not steer the terminal."""
    batch = survey()
    data = tmp_path / "survey.csv"
    frame = as_long(batch).assign(camera="x").drop(columns="band")
    pd.concat([frame, frame[:5]]).to_csv(data, index=False)
    names = ("bright\x1b[31m", "fa|nt")
    lines = [f"{star},{names[i % 2]}" for i, star in enumerate([*batch.ids[:40], "other"])]
    (tmp_path / "labels.csv").write_text("\n".join(["star_id,Class", *lines]))
    assert run(data, model, tmp_path / "out", "--labels", str(tmp_path / "labels.csv"), "--plots", "false") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["classes"] == list(names)
    told = capsys.readouterr()
    notes = [line for line in told.err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 3
    assert "'camera'" in notes[0]
    assert notes[1] == f"note: {data}; dropped 5 points: exact duplicates"
    assert notes[2].endswith("1 of 41 stars have no light curve ('other'); 2 of 42 light curves get no label")
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| bright?[31m | fa\\|nt |" in text
    assert "\x1b" not in text + told.out + told.err


def test_classes_are_those_asked_for_in_their_order(data: Path, model: Path, tmp_path: Path) -> None:
    assert run(data, model, tmp_path / "out", "--classes", "[RRab, EW]", "--plots", "false") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["classes"] == ["RRab", "EW"]
    assert {row["label"] for row in csv.DictReader((tmp_path / "out" / "splits.csv").open())} == {"RRab", "EW"}


def test_simulated_stars_stay_labelled_so(model: Path, tmp_path: Path) -> None:
    simulated = table().replace_schema_metadata({"simulated": "true"})
    pq.write_table(simulated, tmp_path / "simulated.parquet")
    assert run(tmp_path / "simulated.parquet", model, tmp_path / "out", "--plots", "false") == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["simulated"]
    assert "SIMULATED" in (tmp_path / "out" / "results.md").read_text()


LEAK = "id,fold,split\nstar-0,0,train\nstar-1,0,train\nstar-2,0,val\nstar-0,0,test\n"
NOT_THERE = "id,fold,split\nstar-0,0,train\nstar-1,0,train\nstar-2,0,val\nstar-999,0,test\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes", "[8]"], f"EW has {STARS_A_CLASS}, LPV has {STARS_A_CLASS}, RRab has"),
        (["--sizes", "[4, 4]"], "sizes must be different"),
        (["--classes", "[EW]"], "classes must be two or more"),
        (["--classes", "[EW, QSO]"], "no star of class 'QSO'; found: EW, LPV, RRab"),
        (["--probes", "[]"], "probes must be one or more of linear, logistic, knn, forest"),
        (["--test", "0"], "test must be at least 1"),
        (["--columns.label", "kind"], "no column 'kind'"),
        (["--labels", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--labels", "labels.csv"], "labels.csv: none of its stars (x-1) has a light curve"),
        (["--labels", "two.csv"], "two labels, 'a' and 'b'"),
        (["--splits", "leak.csv"], "leak.csv: leakage: n = 2, fold 0: star 'star-0' in both train and test"),
        (["--splits", "lost.csv", "--sizes", "[2]"], "lost.csv: star 'star-999' has no light curve"),
        (["--splits", "lost.csv"], "lost.csv: no splits of size 4; there are: 2"),
        (["--device", "abacus"], "device 'abacus'"),
        (["--config", "bad.yaml"], "bad.yaml: unknown setting 'size'; did you mean 'sizes'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    data: Path,
    model: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("id,label\nx-1,a\n")
    Path("two.csv").write_text("id,label\nstar-1,a\nstar-1,b\n")
    Path("leak.csv").write_text(LEAK)
    Path("lost.csv").write_text(NOT_THERE)
    Path("bad.yaml").write_text("size: [2]\n")
    assert run(data, model, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_two_bands_of_a_star_need_a_choice(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = survey()
    red = survey()
    red.band = np.array(["R"] * len(red), dtype=object)
    red.mag = red.mag + 1
    frame = [as_long(batch), as_long(red)]
    for i, one in enumerate(frame):
        one.to_csv(tmp_path / f"{i}.csv", index=False)
    source = tmp_path / "*.csv"
    assert run(source, model, tmp_path / "out", "--plots", "false") == 2
    assert "two light curves, in bands 'V' and 'R'; choose one band by --band" in capsys.readouterr().err
    assert run(source, model, tmp_path / "out", "--plots", "false", "--band", "R") == 0


def test_a_table_without_labels_says_how_to_give_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(table().drop_columns(["label"]), tmp_path / "bare.parquet")
    assert run(tmp_path / "bare.parquet", model, tmp_path / "out") == 2
    assert "--labels FILE" in capsys.readouterr().err


def test_settings_go_round(data: Path, model: Path, tmp_path: Path) -> None:
    assert run(data, model, tmp_path / "out", "--plots", "false", "--classes", "[LPV, EW]") == 0
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (settings["sizes"], settings["classes"], settings["head"]["epochs"]) == ([4, 6], ["LPV", "EW"], 5)
