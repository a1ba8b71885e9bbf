"""The benchmark report of a run written by hand: ratios, limits, tables, chart and comparison."""

from __future__ import annotations

import csv

import pytest

from astroco_fast.errors import UserError
from bench import report
from bench.results import bars, compare, load, newest
from tests.bench.saved import entry, other, save, usual


@pytest.fixture
def results(tmp_path):
    return load(save(tmp_path / "run.json", usual()))


def only(rows, provider, preset="L"):
    (_, row), *others = rows[(rows.provider == provider) & (rows.preset == preset)].iterrows()
    assert not others
    return row


def test_ratios_are_to_the_best_rival(results):
    """The best rival is ONNX Runtime on the first case and the baseline on the second; another model is no rival."""
    assert only(results.rows, "astroco_fast cpu bf16").to_best == pytest.approx(2.0 / 1.25)
    assert only(results.rows, "astroco_fast cpu bf16", "S").to_best == pytest.approx(1.5)
    assert only(results.rows, "eager bf16").to_best == pytest.approx(1 / 1.25)


def test_rounds_with_ours_count_before_quotients(tmp_path):
    """By rounds that alternated with ours, a rival may be closer than the quotient of ratios says, or less close."""
    for direct, best in ((1.2, 1.2), (1.9, 1.8)):
        compiled = entry("compiled bf16", 1.25, beside="astroco_fast cpu bf16", beside_ratio=direct)
        run = load(save(tmp_path / "run.json", [entry("astroco_fast cpu bf16", 1.8, "ours"), compiled]))
        assert only(run.rows, "astroco_fast cpu bf16").to_best == pytest.approx(best)
        assert only(run.rows, "compiled bf16").to_best == pytest.approx(1.0)


def test_a_run_in_parts(tmp_path):
    """A later part's figures replace earlier ones; a part of another machine is refused."""
    first = save(tmp_path / "1.json", [entry("astroco_fast cpu bf16", 1.8, "ours"), entry("eager fp32", 0.5)])
    second = save(tmp_path / "2.json", [entry("astroco_fast cpu bf16", 2.0, "ours")])
    rows = load(first, second).rows
    assert (only(rows, "astroco_fast cpu bf16").ratio, only(rows, "eager fp32").ratio) == (2.0, 0.5)
    second.write_text(second.read_text().replace("A processor", "Another one"))
    with pytest.raises(UserError, match=r"2\.json: of another machine"):
        load(first, second)


def test_baseline_has_a_row_a_case(results):
    """The baseline is measured beside every provider and has no benchmark of its own."""
    row = only(results.rows, "eager bf16")
    assert (row.role, row.ratio, row.median_ms, row.windows_per_s, row["rounds"]) == ("baseline", 1.0, 1000.0, 32.0, 15)
    assert (row.gflops, row.gb_per_s, row.gemm_share) == (pytest.approx(64), pytest.approx(2), pytest.approx(0.32))
    assert only(results.rows, "eager bf16", "S").peak_bytes == 10**9
    assert row.fallbacks == {}


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        ("L encode, batch 32, full windows: times the best rival", 1.6, True),
        ("L encode, batch 32, full windows: times eager fp32", 4.0, True),
        ("S training step, batch 32, full windows: times the best rival", 1.5, True),
        ("S training step, batch 32, full windows: peak memory to eager's", 0.4, True),
        ("S training step, batch 32, full windows: windows/s, times Astromer v2's best", 1.5, True),
    ],
)
def test_bars(results, text, value, met):
    (bar,) = [bar for bar in bars(results) if bar.text == text]
    assert bar.value == pytest.approx(value)
    assert bar.met is met


@pytest.mark.parametrize(("batch", "kind", "limit"), [(1, "full", 1.5), (256, "full", 1.25), (256, "ragged", 2.0)])
def test_bar_of_a_case(tmp_path, batch, kind, limit):
    """Each kind of case has its own limit, which is met at exactly that value."""
    for ratio in (limit - 0.01, limit):
        run = save(tmp_path / "run.json", [entry("astroco_fast cpu bf16", ratio, "ours", batch=batch, kind=kind)])
        (bar,) = [bar for bar in bars(load(run)) if bar.text.endswith("times the best rival")]
        assert (bar.limit, bar.met, bar.rivals) == (limit, ratio >= limit, 1)


def test_int8_meets_no_bar(tmp_path):
    """It is asked for by name, and rounds what it multiplies."""
    ours = [entry(f"astroco_fast cpu {kind}", ratio, "ours") for kind, ratio in (("int8", 4.0), ("bf16", 1.1))]
    (bar,) = [bar for bar in bars(load(save(tmp_path / "run.json", ours))) if bar.text.endswith("times the best rival")]
    assert not bar.met


def test_overhead_is_a_bar(tmp_path):
    run = save(tmp_path / "run.json", [other("test_embed", 1.0, embed_share=0.04, assembly_share=0.02)])
    (bar,) = bars(load(run))
    assert bar.value == pytest.approx(0.06)
    assert not bar.met


def test_report(tmp_path, capsys):
    """The command writes the page, all numbers and a chart, and names the ops that fell back to the reference."""
    run = save(tmp_path / "run.json", usual())
    assert report.main([str(run), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert text in capsys.readouterr().out
    assert "A processor, 2 threads; python 3.11, torch 2.13" in text
    assert "| astroco_fast cpu bf16 | 500 | 64 | 2.00 | 1.60 | 128 | 64% | 4 |" in text
    assert "| **ONNX Runtime fp32** | 800 | 40 | 1.25 | 1.00 |" in text
    assert "| astroco_fast cpu bf16 | 667 | 48 | 1.50 | 1.50 | 96 | 48% | 3 | 400 |" in text
    assert "convolution ran on the reference: no compiler" in text
    assert "| bench/bench_batches.py::test_assemble | 250 | windows_per_s 100000 |" in text
    assert report.PARTIAL in text
    with (tmp_path / "out" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {(row["provider"], row["to_best"]) for row in rows} >= {("eager fp32", "0.4"), ("eager bf16", "0.8")}
    assert (tmp_path / "out" / "report.png").stat().st_size > 10_000


def test_compare_flags_changes(tmp_path):
    """Changes go by the ratio, so that a machine that has become slower flags the baseline only."""
    old = [entry("a bf16", 2.0), entry("b bf16", 2.0), entry("c bf16", 2.0), entry("gone bf16", 1.0), other("d", 1.0)]
    new = [entry("a bf16", 2.08), entry("b bf16", 1.8), entry("c bf16", 2.2), other("d", 0.5)]
    for each in new[:3]:
        each["extra_info"]["baseline_ms"] *= 2
    changes, gone = compare(load(save(tmp_path / "old.json", old)), load(save(tmp_path / "new.json", new)))
    flags = {name.split(": ")[-1]: flag for name, flag in changes.flag.items()}
    assert flags == {"a bf16": "", "b bf16": "SLOWER", "c bf16": "FASTER", "d": "FASTER", "eager bf16": "SLOWER"}
    assert gone == ["L encode, batch 32, full windows: gone bf16"]
    text = report.comparison(load(tmp_path / "old.json"), load(tmp_path / "new.json"))
    assert "5 compared, 4 of them more than 5 % faster or slower" in text
    assert "b bf16 | 0.90 | ratio to eager bf16 | SLOWER |" in text


def test_not_a_run(tmp_path, capsys):
    (tmp_path / "run.json").write_text("{}")
    assert report.main([str(tmp_path / "run.json")]) == 2
    assert "not a saved run of this suite" in capsys.readouterr().err
    with pytest.raises(UserError, match="no saved run"):
        newest(tmp_path / "empty")
