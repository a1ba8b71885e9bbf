"""The stand-ins for other packages' encoders have their shapes, and the values of `model.embed`."""

import numpy as np
import pytest
import torch

import astroco_fast as af
from astroco_fast.errors import UserError
from astroco_fast.interop.astromer import SingleBandEncoder
from astroco_fast.interop.light_curve import AstroCo

Curve = np.ndarray


def curve(n: int, seed: int = 0) -> Curve:
    rng = np.random.default_rng(seed)
    return np.column_stack([np.sort(58000 + 900 * rng.random(n)), 15 + rng.normal(size=n), 0.01 + 0.1 * rng.random(n)])


def embedded(encoder: af.AstroCo, curves: list[Curve]) -> np.ndarray:
    return encoder.embed(curves, precision="fp32")


@pytest.fixture(scope="module")
def encoder() -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo.from_preset("tiny", width=16, heads=2, layers=1, window=20, kernel=4).eval()


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("interop") / "model"
    encoder.save_pretrained(folder)
    return str(folder)


def test_mean_has_four_axes_and_the_values_of_embed(saved, encoder):
    points = curve(45)
    found = AstroCo.from_hf(saved)(*points.T)
    assert found.shape == (1, 1, 1, 16)
    np.testing.assert_allclose(found.squeeze(), embedded(encoder, [points])[0], rtol=1e-5)


def test_sequence_and_max_are_of_the_same_states(encoder):
    points = curve(45)
    sequence, largest = (AstroCo(encoder, output=output)(*points.T) for output in ("sequence", "max"))
    assert sequence.shape == (1, 3, 20, 16)
    assert not sequence[0, 2, 5:].any()
    states = sequence[0].reshape(60, 16)[:45]
    np.testing.assert_allclose(states.mean(0), embedded(encoder, [points])[0], atol=1e-5)
    np.testing.assert_array_equal(largest[0, 0, 0], states.max(0))


def test_bands_are_embedded_one_by_one_and_bad_points_left_out(encoder):
    points = curve(30)
    band = np.array(["g", "r"] * 15)
    points[2, 1] = np.nan
    found = AstroCo(encoder, bands=["r", "g"])(*points.T, band=band)
    assert found.shape == (2, 1, 1, 16)
    wanted = [points[band == "r"], points[(band == "g") & np.isfinite(points[:, 1])]]
    np.testing.assert_allclose(found[:, 0, 0], embedded(encoder, wanted), rtol=1e-5)


@pytest.mark.parametrize(("reduction", "first"), [("beginning", 0), ("middle", 12), ("end", 25)])
def test_reductions_keep_as_many_points_as_fill_a_window(reduction, first, encoder):
    points = curve(45)
    found = AstroCo(encoder, reduction=reduction)(*points.T)
    np.testing.assert_allclose(found.squeeze(), embedded(encoder, [points[first : first + 20]])[0], rtol=1e-5)


def test_shapes_are_those_of_light_curve(encoder):
    """The package's own reductions cut the same windows."""
    reduction = pytest.importorskip("light_curve.embed.reduction")
    points = curve(45)
    for name in ("beginning", "middle", "end"):
        time, *_, mask = reduction.reduction_from_str(name).preprocess_lc(*points.T, seq_size=20)
        assert mask.all()
        np.testing.assert_array_equal(AstroCo(encoder, reduction=name)._reduced(points)[:, 0], time[0])


def test_a_folded_model_gives_the_mean_alone():
    found = AstroCo("fold-small")(*curve(30).T)
    assert found.shape == (1, 1, 1, 128)
    with pytest.raises(UserError, match="gives the mean alone"):
        AstroCo("fold-small", output="sequence")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"output": "median"}, "no output 'median'"), ({"reduction": "random"}, "no reduction 'random'")],
)
def test_wrong_settings_are_refused(settings, message, encoder):
    with pytest.raises(UserError, match=message):
        AstroCo(encoder, **settings)


def test_wrong_light_curves_are_refused(encoder):
    model = AstroCo(encoder)
    with pytest.raises(UserError, match="has no good point"):
        model([1.0], [np.nan], [0.1])
    with pytest.raises(UserError, match="give labels if and only if"):
        model(*curve(5).T, band=["g"] * 5)


def test_encode_gives_the_states_of_each_id_in_the_order_of_sorted_ids(saved, encoder):
    model = SingleBandEncoder().from_pretraining(saved)
    curves = [curve(45, 1), curve(7, 2), curve(20, 3)]
    found = model.encode(curves, oids_list=["b", "a", "b"], batch_size=2)
    assert [len(states) for states in found] == [7, 65]
    np.testing.assert_allclose(found[0].mean(0), embedded(encoder, [curves[1]])[0], atol=1e-5)
    np.testing.assert_allclose(found[1][:45].mean(0), embedded(encoder, [curves[0]])[0], atol=1e-5)
    assert [len(states) for states in model.encode(curves)] == [45, 7, 20]
    assert [batch.shape for batch in model.encode(curves, batch_size=3, concatenate=False)] == [
        (3, 20, 16),
        (2, 20, 16),
    ]


def test_a_new_encoder_is_astromer_of_these_settings():
    model = SingleBandEncoder(num_layers=1, d_model=16, num_heads=2, dff=8, maxlen=10)
    (states,) = model.encode([curve(15)])
    assert states.shape == (15, 16)
    assert (model.model.name, model.model.config.feed_forward) == ("Astromer", 8)


def test_fit_trains_further_and_keeps_the_best(saved, tmp_path):
    model = SingleBandEncoder().from_pretraining(saved)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    train, valid = [curve(25, seed) for seed in range(12)], [curve(25, seed) for seed in range(20, 24)]
    model.fit(train, valid, epochs=1, lr=1e-3, project_path=tmp_path / "project")
    moved = [key for key, value in model.model.state_dict().items() if not torch.equal(value, before[key])]
    assert "head.weight" in moved
    assert (tmp_path / "project" / "astroco-run" / "summary.json").exists()
    with pytest.raises(UserError, match="choose another project_path"):
        model.fit(train, valid, project_path=tmp_path / "project")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.encode(curve(5)), "a list of"),
        (lambda model: model.encode([]), "a list of"),
        (lambda model: model.encode([curve(5).T]), r"dataset\[0\]: \(L, 3\) numbers are needed"),
        (lambda model: model.encode([curve(5)], oids_list=["a", "b"]), "2 ids for 1 light curves"),
        (lambda model: model.from_pretraining("macho"), "unpack https://.*macho.zip into weights/macho"),
        (lambda model: model.from_pretraining("fold-small").encode([curve(5)]), "no states in the order of time"),
    ],
)
def test_bad_input_is_one_sentence(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        call(SingleBandEncoder(num_layers=1, d_model=8, num_heads=2, dff=8))
