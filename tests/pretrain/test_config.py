"""The settings of a run: their ranges, defaults and comparison."""

import pytest

from astroco_fast import presets
from astroco_fast.commands import parse
from astroco_fast.errors import UserError
from astroco_fast.pretrain import PretrainConfig, TrainConfig
from astroco_fast.pretrain.config import FREE, MACHINE, differences


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("global_batch", -1),
        ("micro_batch", 0),
        ("learning_rate", float("nan")),
        ("clip_norm", 0.0),
        ("weight_decay", -0.1),
        ("ema_decay", 1.0),
        ("ema_decay", 0.0),
        ("betas", (0.9, 1.0)),
        ("checkpoint_minutes", float("inf")),
        ("keep", 0),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(UserError, match=f"train.{name} must be"):
        TrainConfig(**{name: value})


def test_least_values_are_taken():
    least = TrainConfig(betas=(0.0, 0.0), weight_decay=0.0, warmup_steps=0, epochs=1, keep=1)
    assert least.betas == (0.0, 0.0)


def test_defaults_depend_on_the_data():
    tiny = presets.preset("tiny")
    first, usual = PretrainConfig().resolve(tiny), PretrainConfig(data="x/survey.parquet").resolve(tiny)
    assert (first.out, usual.out) == ("runs/tiny-simulated", "runs/tiny-survey")
    assert (first.train.global_batch, usual.train.global_batch) == (64, 256)
    assert first.train.epochs < usual.train.epochs
    assert usual.train.learning_rate == 1e-3
    chosen = PretrainConfig(train=TrainConfig(epochs=3, learning_rate=5e-4)).resolve(presets.preset("tiny"))
    assert (chosen.train.epochs, chosen.train.learning_rate) == (3, 5e-4)


def test_a_preset_brings_its_recipe():
    paper, folded = (presets.preset(name) for name in ("S", "fold-small"))
    config = PretrainConfig(data="x").resolve(paper)
    assert (config.views, config.train.loss, config.train.global_batch) == ("time", "batch", 256)
    assert (config.train.max_steps, config.train.decay_steps) == (None, 0)
    config = PretrainConfig(data="x").resolve(folded)
    assert (config.views, config.train.loss, config.train.global_batch) == ("folded", "curve", 32)
    assert 0 < config.train.decay_steps < config.train.max_steps
    config = PretrainConfig(data="x", views="both", train=TrainConfig(loss="batch", max_steps=7)).resolve(folded)
    assert (config.views, config.train.loss, config.train.max_steps) == ("both", "batch", 7)
    with pytest.raises(UserError, match="decay_steps"):
        PretrainConfig(data="x", train=TrainConfig(decay_steps=5)).resolve(paper)


def test_survives_yaml(tmp_path):
    import yaml

    config = parse(PretrainConfig, "test", "", ["--model.layers", "3", "--train.ema_decay", "0.99", "--seed", "4"])
    assert (config.model, config.train.ema_decay, config.seed) == ({"layers": 3}, 0.99, 4)
    config = config.resolve(presets.preset("tiny"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert parse(PretrainConfig, "test", "", ["--config", str(tmp_path / "config.yaml")]) == config


def test_differences():
    old = {"a": 1, "b": {"c": 2, "d": 3}, "e": None}
    assert differences(old, old) == []
    assert differences(old, {"a": 1, "b": {"c": 2, "d": 4}, "f": None}) == ["b.d", "e", "f"]


def test_settings_that_may_change_exist():
    known = differences({}, PretrainConfig().to_dict(), "")
    assert {*known, *(f"train.{name}" for name in PretrainConfig().to_dict()["train"])} >= FREE | MACHINE
