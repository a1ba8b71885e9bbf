"""The presets, and the registry of models."""

import pytest
import torch

import astroco_fast as af
from astroco_fast import presets, registry
from astroco_fast.errors import UserError


@pytest.mark.parametrize(
    ("name", "parameters", "rate"),
    [
        ("S", 5_931_108, 7.5e-4),
        ("L", 15_187_342, 7.5e-5),
        ("S-no-mix", 5_931_103, 7.5e-4),
        ("tiny", 167_524, 1e-3),
        ("astromer-v1", 661_505, 1e-5),
        ("astromer-v2", 3_953_410, 1e-5),  # 3.95 M
        ("astromer-v2-paper", 5_381_602, 1e-5),  # 5.38 M
    ],
)
def test_sizes_and_learning_rates(name: str, parameters: int, rate: float) -> None:
    with torch.device("meta"):
        model = registry.build(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert presets.preset(name).learning_rate == rate


def test_ablations_differ_from_S_in_one_field() -> None:
    base = presets.preset("S").config.to_dict()
    for name, field in (("S-no-conv", "convolution"), ("S-no-gate", "gate"), ("S-no-mix", "mix")):
        values = presets.preset(name).config.to_dict()
        assert {key for key in base if base[key] != values[key]} == {field}


def test_overrides() -> None:
    model = af.AstroCo.from_preset("tiny", dropout=0.0, hide="magnitude")
    assert (model.config.width, model.config.dropout, model.config.hide) == (64, 0.0, ("magnitude",))


def test_a_preset_is_of_one_architecture() -> None:
    assert isinstance(af.Astromer.from_preset("astromer-v1", layers=1), af.Astromer)
    with pytest.raises(UserError, match="'astromer-v2' is not an AstroCo; build it with"):
        af.AstroCo.from_preset("astromer-v2", layers=1)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("XL", {}, "no preset 'XL'; there are: S, L, S-no-conv"),
        ("tiny", {"widht": 3}, "unknown model setting 'widht'; known: width,"),
        ("tiny", {"width": "64"}, "model.width must be a positive whole number, got '64'"),
        ("tiny", {"width": 66}, "multiple of 4 and of heads"),
        ("tiny", {"dropout": 1.0}, r"model.dropout must lie in \[0, 1\)"),
        ("tiny", {"dropout": "a"}, "model.dropout must be a finite number"),
        ("tiny", {"hide": ["period"]}, "model.hide takes magnitude, time, uncertainty; got 'period'"),
        ("tiny", {"gate": 1}, "model.gate must be true or false"),
        ("tiny", {"time_base": 0}, "model.time_base must be positive"),
        ("astromer-v2", {"kernel": 32}, "unknown model setting 'kernel'; known: width,"),
        ("astromer-v2", {"width": 30}, r"model.width must be a multiple of heads \(4\)"),
        ("astromer-v2", {"feed_forward": 0}, "model.feed_forward must be a positive whole number"),
        ("astromer-v2", {"leak": "no"}, "model.leak must be true or false"),
        ("astromer-v2", {"mask_logit": float("-inf")}, "model.mask_logit must be a finite number"),
        ("astromer-v2", {"hidden_magnitude": "mean"}, "model.hidden_magnitude takes token, zero, shown; got 'mean'"),
    ],
)
def test_bad_settings_are_named(name: str, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.build(name, **overrides)
