"""The budget `choices`: a run for each variant and seed, set against the base of the same seed."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from astroco_fast import plots, reproduce
from astroco_fast.probe import heads
from astroco_fast.registry import build
from astroco_fast.reproduce import choices, run
from astroco_fast.reproduce.choices import CHOICES, SEEDS, VARIANTS, start_at_last_layer
from astroco_fast.reproduce.plan import WINDOWS
from tests.probe.survey import table


def stage(rmse: float, f1: float) -> dict[str, Any]:
    """A finished run, with the same macro-F1 for both probes and all sizes."""
    probes = [{"probe": p, "n": n, "macro_f1": {"mean": f1}} for p in ("linear", "logistic") for n in (20, 100)]
    return {"stages": {WINDOWS: {"best": {"rmse_hidden": rmse}, "probes": probes}}}


def test_each_seed_is_set_against_its_own_base() -> None:
    models = {"rate-3e-3-0": stage(0.10, 0.7), "fast-loss-curve-0": stage(0.12, 0.8)}
    for seed, rmse in ((0, 0.15), (1, 0.25)):
        models[f"base-{seed}"] = stage(rmse, 0.5)
        models[f"base-1e2-{seed}"] = stage(rmse + 0.01 * (1 + 2 * seed), 0.4)
    results = {"models": models, "simulated": False, "light_curves": 3}
    rows = list(choices.page(results, []))
    assert "| base | 2 | 0.2000 |  | 50.0 |  | 50.0 |  |" in rows
    assert "| time base 100 | 2 | 0.2200 | +0.0200 ± 0.0141 | 40.0 | -10.0 ± 0.0 | 40.0 | -10.0 ± 0.0 |" in rows
    assert "| at 0.003: loss curve | 1 | 0.1200 | +0.0200 | 80.0 | +10.0 | 80.0 | +10.0 |" in rows
    assert len(choices.found(results)) == 6


def test_a_variant_without_its_base_is_set_against_nothing() -> None:
    results = {"models": {"fast-loss-curve-1": stage(0.12, 0.8)}, "simulated": True, "light_curves": 3}
    assert "| at 0.003: loss curve | 1 | 0.1200 |  | 80.0 |  | 80.0 |  |" in list(choices.page(results, []))


def test_folders_of_variants_are_told_apart() -> None:
    names = [variant.name for variant in VARIANTS]
    assert len({*names}) == len(names)
    assert all(variant.base in names for variant in VARIANTS)
    assert len({row.folder for row in CHOICES.rows}) == len(SEEDS) * len(VARIANTS)


def test_a_mix_that_begins_at_the_last_layer() -> None:
    model = build("tiny")
    start_at_last_layer(model)
    logits = model.mix_pool.logits
    assert logits.tolist() == pytest.approx([0.0] * (len(logits) - 1) + [3.0])


def test_the_command_runs_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run sees the same number of windows, in one stage, with its own seed and its own initial mix."""
    small = {"width": 16, "heads": 2, "layers": 1, "window": 8, "kernel": 4}
    rows = tuple(replace(row, model={**row.model, **small}) for row in CHOICES.rows)
    budget = replace(CHOICES, rows=rows, windows=64, global_batch=16, validation_windows=6)
    monkeypatch.setattr(run, "BUDGETS", {"choices": budget})
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 50)
    monkeypatch.setattr(heads, "C_GRID", (0.1, 1.0))
    pq.write_table(table(), tmp_path / "survey.parquet")
    out = tmp_path / "out"
    flags = ["--budget", "choices", "--models", "[base-0, mix-last-0, base-1]", "--device", "cpu"]
    probes = ["--sizes", "[4, 5]", "--test", "3"]
    assert reproduce.main(["--data", str(tmp_path / "survey.parquet"), "--out", str(out), *flags, *probes]) == 0
    models = json.loads((out / "results.json").read_text())["models"]
    assert {name: list(facts["stages"]) for name, facts in models.items()} == {name: [WINDOWS] for name in models}
    assert {facts["stages"][WINDOWS]["windows_seen"] for facts in models.values()} == {64}
    errors = {facts["stages"][WINDOWS]["best"]["rmse_hidden"] for facts in models.values()}
    assert len(errors) == 3
    page = (out / "README.md").read_text()
    assert "| base | 2 |" in page
    assert "| mix at first 83 % last layer | 1 |" in page
    with (out / "results.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["base-0", "mix-last-0", "base-1"]
    assert (out / "choices.png").stat().st_size > 0
