"""The table of open choices: differences are to the base of the same seed."""

import json
from pathlib import Path

import pytest

from bench import choices


def saved(out: Path, name: str, seed: int, rmse: float, f1: float) -> None:
    """A finished run's result, the same macro-F1 for both heads and all sizes."""
    scores = {f"{head} {n}": {"mean": f1} for head in ("linear", "logistic") for n in (20, 100)}
    place = out / f"{name}-{seed}"
    place.mkdir()
    (place / choices.RESULT).write_text(json.dumps({"rmse_hidden": rmse, "rmse": rmse, "macro_f1": scores}))


def test_each_seed_is_set_against_its_own_base(tmp_path: Path) -> None:
    for seed, rmse in ((0, 0.15), (1, 0.25)):
        saved(tmp_path, "base", seed, rmse, 0.5)
        saved(tmp_path, "base-1e2", seed, rmse + 0.01 * (1 + 2 * seed), 0.4)
    saved(tmp_path, "rate-3e-3", 0, 0.10, 0.7)
    saved(tmp_path, "fast-loss-curve", 0, 0.12, 0.8)
    choices.write(tmp_path)
    rows = (tmp_path / "choices.md").read_text().splitlines()
    assert "| base | 2 | 0.2000 |  | 50.0 |  | 50.0 |  |" in rows
    assert "| time base 100 | 2 | 0.2200 | +0.0200 ± 0.0141 | 40.0 | -10.0 ± 0.0 | 40.0 | -10.0 ± 0.0 |" in rows
    assert "| at 0.003: loss curve | 1 | 0.1200 | +0.0200 | 80.0 | +10.0 | 80.0 | +10.0 |" in rows
    assert len((tmp_path / "choices.csv").read_text().splitlines()) == 1 + 6
    assert (tmp_path / "choices.png").stat().st_size > 0


def test_folders_of_variants_are_told_apart() -> None:
    names = [variant.name for variant in choices.VARIANTS]
    assert len({*names}) == len(names)
    assert all(variant.base in names for variant in choices.VARIANTS)


def test_a_mix_that_begins_at_the_last_layer() -> None:
    from astroco_fast.presets import configure

    logits = choices._mixing(configure("tiny", {}), last_layer=3.0).mix_pool.logits
    assert logits.tolist() == pytest.approx([0.0] * (len(logits) - 1) + [3.0])
