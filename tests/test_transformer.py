"""`LightCurveEncoder` behaves as scikit-learn's transformers do, on lists of light curves."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import astroco_fast as af
from astroco_fast.errors import UserError

Curve = np.ndarray


def curve(n: int, scale: float, seed: int) -> Curve:
    rng = np.random.default_rng(seed)
    return np.column_stack([np.sort(900 * rng.random(n)), 15 + scale * rng.normal(size=n), np.full(n, 0.02)])


@pytest.fixture(scope="module")
def model() -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo.from_preset("tiny", width=16, heads=2, layers=1, window=20).eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return str(folder)


CURVES = [curve(15 + i, 0.05 if i % 2 else 1.0, i) for i in range(16)]
LABELS = ["quiet" if i % 2 else "loud" for i in range(16)]
EMPTY = np.full((3, 3), np.nan)


def test_vectors_are_those_of_embed_in_order(saved, model):
    encoder = af.LightCurveEncoder(saved)
    vectors = encoder.fit_transform(CURVES)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, model.embed(CURVES))
    np.testing.assert_array_equal(encoder.transform(CURVES[:3]), vectors[:3])
    np.testing.assert_array_equal(encoder.transform(np.stack([c[:15] for c in CURVES])[:2]).shape, (2, 16))


def test_parameters_are_got_set_and_cloned(saved):
    encoder = af.LightCurveEncoder(saved, parts=["time_mean"], short="median", min_points=3, batch_size=8)
    told = {"model": saved, "parts": ["time_mean"], "short": "median", "min_points": 3, "batch_size": 8}
    told["precision"] = "auto"
    assert encoder.get_params() == clone(encoder.fit(CURVES)).get_params() == told
    assert encoder.set_params(short="nan") is encoder
    assert encoder.short == "nan"
    assert not hasattr(clone(encoder), "encoder_")


def test_an_encoder_in_memory_is_taken_and_copied_by_clone(model):
    encoder = af.LightCurveEncoder(model)
    copied = clone(encoder)
    assert copied.model is not model
    np.testing.assert_array_equal(encoder.fit_transform(CURVES), copied.fit_transform(CURVES))


def test_a_fitted_encoder_pickles(saved):
    encoder = af.LightCurveEncoder(saved, short="median").fit(CURVES)
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(encoder.transform(CURVES[:2]), again.transform(CURVES[:2]))
    assert list(encoder.get_feature_names_out()) == list(again.get_feature_names_out())


def test_names_tell_the_part_and_the_place_in_it(saved):
    encoder = af.LightCurveEncoder(saved, parts=["magnitudes", "time_mean"]).fit(CURVES)
    names = encoder.get_feature_names_out()
    assert len(names) == encoder.n_features_out_ == encoder.transform(CURVES[:1]).shape[1] == 13 + 16
    assert [names[0], names[13], names[-1]] == ["magnitudes_0", "time_mean_0", "time_mean_15"]
    assert list(encoder.set_output(transform="pandas").transform(CURVES[:2]).columns) == list(names)


def test_a_pipeline_is_cross_validated_on_a_list_of_curves(saved):
    pipeline = make_pipeline(af.LightCurveEncoder(saved, parts=["magnitudes"]), LogisticRegression())
    assert cross_val_score(pipeline, CURVES, LABELS, cv=2, error_score="raise").mean() > 0.9


def test_short_curves_are_rows_of_nan_that_an_imputer_fills(saved):
    encoder = af.LightCurveEncoder(saved)
    with pytest.warns(UserWarning, match="1 of 17 light curves"):
        vectors = encoder.fit_transform([*CURVES, EMPTY])
    assert np.isnan(vectors[-1]).all()
    assert np.isfinite(vectors[:-1]).all()
    pipeline = make_pipeline(af.LightCurveEncoder(saved), SimpleImputer(), LogisticRegression())
    with pytest.warns(UserWarning, match="too few"):
        assert len(pipeline.fit([*CURVES, EMPTY], [*LABELS, "loud"]).predict([EMPTY, CURVES[0]])) == 2


def test_short_curves_take_the_medians_of_the_curves_that_fit_saw(saved):
    encoder = af.LightCurveEncoder(saved, short="median", min_points=18)
    with pytest.warns(UserWarning, match="3 of 16 light curves"):  # those of 15, 16 and 17 points
        vectors = encoder.fit_transform(CURVES)
    medians = np.median(vectors[3:], axis=0)
    np.testing.assert_allclose(vectors[:3], np.tile(medians, (3, 1)), rtol=1e-6)
    with pytest.warns(UserWarning, match="too few"):
        np.testing.assert_array_equal(encoder.transform([EMPTY])[0], encoder.medians_)


def test_short_curves_are_an_error_if_so_asked(saved):
    encoder = af.LightCurveEncoder(saved, short="error").fit(CURVES)
    with (
        pytest.warns(UserWarning, match="too few"),
        pytest.raises(UserError, match=r"light curve 1 of 2 .*short='nan'"),
    ):
        encoder.transform([CURVES[0], EMPTY])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (CURVES[0], r"one light curve give \[curve\]"),
        (pd.DataFrame({"id": [1]}), "use model.embed"),
        ("survey.parquet", "use model.embed"),
        (7, "use model.embed"),
    ],
)
def test_what_is_no_list_of_curves_is_refused(given, message, saved):
    with pytest.raises(UserError, match=message):
        af.LightCurveEncoder(saved).fit(CURVES).transform(given)


def test_wrong_settings_are_refused_by_fit_and_not_before(saved):
    with pytest.raises(UserError, match="no policy 'drop'; there are: nan, median, error"):
        af.LightCurveEncoder(saved, short="drop").fit(CURVES)
    with pytest.raises(UserError, match="no part 'mean'"):
        af.LightCurveEncoder(saved, parts=["mean"]).fit(CURVES)
    with pytest.raises(UserError, match="no released model"):
        af.LightCurveEncoder("fold-smal").fit(CURVES)
    with pytest.raises(NotFittedError):
        af.LightCurveEncoder(saved).transform(CURVES)


# Of the checks of `check_estimator`, those that give the estimator no 2-D array; the others need samples of one length.
CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
]


@pytest.mark.parametrize("check", CHECKS)
def test_scikit_learn_s_own_checks_pass(check, saved):
    run = getattr(estimator_checks, check, None)
    if run is None:
        pytest.skip(f"this scikit-learn has no {check}")
    run("LightCurveEncoder", af.LightCurveEncoder(saved))


def test_check_estimator_takes_the_tags_as_they_are(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator_checks.check_estimator(af.LightCurveEncoder(saved))


def test_scikit_learn_is_imported_only_when_it_is_needed():
    code = (
        "import sys, astroco_fast as af\n"
        "af.AstroCo\n"
        "assert 'sklearn' not in sys.modules\n"
        "sys.modules['sklearn'] = None\n"
        "sys.modules['sklearn.base'] = None\n"
        "try:\n    af.LightCurveEncoder\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "MissingExtraError LightCurveEncoder needs scikit-learn: pip install 'astroco_fast[probe]'\n"
