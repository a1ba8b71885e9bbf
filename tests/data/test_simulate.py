"""The simulated survey: deterministic star by star, plausible, and labelled as simulated in every output."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from astroco_fast import convert as convert_command
from astroco_fast.data.convert import convert
from astroco_fast.data.shapes import LABELS, StarDraws, draw_stars, magnitudes
from astroco_fast.data.simulate import MAX_POINTS, MIN_POINTS, simulate_portions, simulate_stars, simulate_survey
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from astroco_fast.simulate import main

N_STARS = 600


@pytest.fixture(scope="module")
def survey():
    return simulate_stars(np.arange(N_STARS), seed=0)[0]


@pytest.fixture(scope="module")
def stars():
    return draw_stars(StarDraws(0, np.arange(4000)))


def curve(batch, i):
    points = slice(batch.offsets[i], batch.offsets[i + 1])
    return batch.time[points], batch.mag[points].astype(np.float64), batch.err[points]


def test_a_star_is_the_same_in_any_survey_and_portion(survey):
    numbers = np.array([599, 3, 100, 4])
    few, _ = simulate_stars(numbers, seed=0)
    assert few.ids.tolist() == ["sim-0000599", "sim-0000003", "sim-0000100", "sim-0000004"]
    for row, number in enumerate(numbers):
        for got, expected in zip(curve(few, row), curve(survey, number), strict=True):
            assert np.array_equal(got, expected)
        assert few.label[row] == survey.label[number]
    first = next(simulate_survey(20, seed=0))
    assert np.array_equal(first.mag, survey.mag[: survey.offsets[20]])


def test_portions_make_up_the_survey():
    batches = list(simulate_survey(1100, seed=3))
    assert len(batches) > 1
    ids = np.concatenate([b.ids for b in batches])
    assert ids.tolist() == [f"sim-{i:07d}" for i in range(1100)]
    assert list(simulate_survey(0, seed=3)) == []
    with pytest.raises(UserError, match="number of stars"):
        next(simulate_survey(-1, seed=3))


def test_another_seed_is_another_survey(survey):
    other, _ = simulate_stars(np.arange(20), seed=1)
    assert not np.isin(other.time, survey.time).any()


def test_the_points_are_clean_measurements(survey):
    assert survey.lengths.min() >= MIN_POINTS
    assert survey.lengths.max() <= MAX_POINTS
    assert 200 < np.median(survey.lengths) < 320
    assert np.isfinite(survey.mag).all()
    assert (survey.err > 0).all()
    inside = np.ones(survey.n_points, dtype=bool)
    inside[survey.offsets[1:-1]] = False  # the first point of a curve follows another curve's last
    assert (np.diff(survey.time)[inside[1:]] > 0).all()
    assert survey.time.min() > 53500
    assert survey.time.max() < 53500 + 7 * 365.25


def test_every_kind_is_there_in_numbers(survey):
    for label in LABELS:
        assert 0.05 < (survey.label == label).mean() < 0.27


def test_noise_has_the_quoted_size(survey):
    """Observed minus true magnitude, divided by the error, is a standard normal, for bright and for faint stars."""
    star = np.repeat(np.arange(N_STARS), survey.lengths)
    true = magnitudes(draw_stars(StarDraws(0, np.arange(N_STARS))), star, survey.time)
    level = survey.mag - true  # the mean magnitude of the star, plus noise
    weight = 1 / survey.err.astype(np.float64) ** 2
    mean = np.bincount(star, weight * level) / np.bincount(star, weight)
    pull = (level - mean[star]) / survey.err
    for part in (survey.err < 0.04, (survey.err > 0.04) & (survey.err < 0.1), survey.err > 0.1):
        assert abs(pull[part].std() - 1) < 0.02
        assert abs((np.abs(pull[part]) < 2).mean() - 0.9545) < 0.01
    repeated = np.corrcoef(pull[:-1], pull[1:])[0, 1]
    assert abs(repeated) < 6 / np.sqrt(len(pull))


def test_faint_stars_have_large_errors_and_shapes_stand_above_the_noise(survey):
    mean, error, spread = (np.empty(N_STARS) for _ in range(3))
    for i in range(N_STARS):
        _, mag, err = curve(survey, i)
        mean[i], error[i], spread[i] = mag.mean(), np.median(err), mag.std()
    bright = mean < np.percentile(mean, 30)
    assert 0.015 < np.median(error[bright]) < 0.05
    assert np.median(error[mean > np.percentile(mean, 90)]) > 0.09
    noise_share = (error**2 / spread**2).mean()
    assert noise_share < 0.3, "a model could learn little"


def test_seasons_moon_and_nights(survey):
    longest = max(range(50), key=lambda i: survey.lengths[i])
    time, _, _ = curve(survey, longest)
    gaps = np.sort(np.diff(time))[::-1]
    assert (gaps[:6] > 55).all(), "six seasonal gaps in seven years"
    from_full = np.abs((np.floor(time - 53500) + 29.530588 / 2) % 29.530588 - 29.530588 / 2)
    assert from_full.min() > 2.5
    hours = survey.time % 1
    assert np.ptp(hours) < 0.45, "observed by day"
    per_night = [np.unique(np.floor(curve(survey, i)[0]), return_counts=True)[1].max() for i in range(60)]
    assert set(per_night) == {1, 4}


@pytest.mark.parametrize(("label", "low", "high"), [("RRab", 0.35, 1), ("RRc", 0.2, 0.46), ("CEP_F", 1.5, 61)])
def test_periods_and_amplitudes_are_of_the_kind(stars, label, low, high):
    members = stars.kind == LABELS.index(label)
    assert stars.period[members].min() > low
    assert stars.period[members].max() < high
    assert stars.amplitude[members].min() > 0.19
    assert stars.amplitude[members].max() < 1.31


def folded(stars, i, points=400):
    """Magnitudes over one period of star i, at `points` equal steps."""
    time = np.arange(points) / points * stars.period[i]
    return magnitudes(stars, np.full(points, i), time)


def members(stars, label, n=40):
    return np.flatnonzero(stars.kind == LABELS.index(label))[:n]


def test_pulsating_stars_are_periodic_with_their_amplitude(stars):
    for label in ("RRab", "RRc", "CEP_F", "CEP_1O", "T2CEP"):
        for i in members(stars, label, 10):
            assert np.ptp(folded(stars, i)) == pytest.approx(stars.amplitude[i], rel=0.02)
            t = np.linspace(53500, 53600, 50)
            star = np.full(50, i)
            later = magnitudes(stars, star, t + 5 * stars.period[i])
            np.testing.assert_allclose(magnitudes(stars, star, t), later, atol=1e-8)


def test_rrab_and_cepheids_brighten_fast_and_rrc_evenly(stars):
    def rise(i):
        brightening = np.diff(folded(stars, i), append=folded(stars, i)[:1]) < 0
        return brightening.mean()

    rises = {label: np.median([rise(i) for i in members(stars, label)]) for label in ("RRab", "CEP_F", "RRc")}
    assert rises["RRab"] < 0.3
    assert rises["CEP_F"] < 0.36
    assert 0.36 < rises["RRc"] < 0.5


def test_detached_binaries_are_flat_with_dips_and_contact_ones_never_rest(stars):
    for i in members(stars, "EA"):
        mag = folded(stars, i) / stars.amplitude[i]
        assert mag.max() > 0.85, "the eclipse is seen"
        assert ((mag - mag.min()) < 0.25).mean() > 0.45, "most of the time out of eclipse"
    for i in members(stars, "EW"):
        mag = folded(stars, i)
        low, high = np.percentile(mag, [25, 75])
        assert high - low > 0.3 * np.ptp(mag)
        half = 200
        assert np.corrcoef(mag[:half], mag[half:])[0, 1] > 0.8, "two like minima an orbit"


def test_long_period_variables_do_not_repeat_exactly(stars):
    i = members(stars, "LPV", 1)[0]
    t = np.linspace(53500, 54500, 200)
    star = np.full(200, i)
    difference = magnitudes(stars, star, t) - magnitudes(stars, star, t + stars.period[i])
    assert 0.05 < difference.std() / stars.amplitude[i] < 1


def test_the_command_writes_a_table(tmp_path, capsys):
    out = tmp_path / "survey.parquet"
    assert main([str(out), "--stars", "30", "--seed", "5"]) == 0
    assert "30 SIMULATED light curves" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]
    table = pq.read_table(out)
    assert table.schema.metadata[b"simulated"] == b"true"
    assert table.column_names == ["id", "survey", "band", "label", "period", "mjd", "mag", "err"]
    assert set(table["survey"].to_pylist()) == {"simulated"}
    ((batch, period),) = simulate_portions(30, seed=5)
    assert table["period"].to_pylist() == period.tolist()
    assert table["label"].to_pylist() == batch.label.tolist()
    assert np.array_equal(table["mjd"][7].values.to_numpy(), curve(batch, 7)[0])
    assert np.array_equal(table["err"][7].values.to_numpy(), curve(batch, 7)[2])


def test_the_command_writes_a_store_that_says_it_is_simulated(tmp_path, capsys):
    out = tmp_path / "survey"
    assert main([str(out), "--stars", "30", "--seed", "5"]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    store = Store.open(out)
    assert store.simulated
    assert store.manifest["provenance"]["survey"] == "simulated"
    (batch,) = simulate_survey(30, seed=5)
    assert np.array_equal(store.time, batch.time)
    assert store.labels.tolist() == batch.label.tolist()


def test_the_table_converts_to_the_same_points(tmp_path):
    main([str(tmp_path / "a.parquet"), "--stars", "30", "--seed", "5"])
    convert(tmp_path / "a.parquet", tmp_path / "a")
    (batch,) = simulate_survey(30, seed=5)
    store = Store.open(tmp_path / "a")
    assert np.array_equal(store.mag, batch.mag)
    assert store.ids.tolist() == batch.ids.tolist()


@pytest.mark.parametrize("arguments", [["--stars", "0"], ["--stars", "many"], ["--moons", "3"]])
def test_bad_arguments_exit_with_one_line(tmp_path, capsys, arguments):
    assert main([str(tmp_path / "x.parquet"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "stars" in error or "moons" in error


@pytest.mark.parametrize("name", ["x.csv", "x.fits", "x.CSV.gz", "x.feather"])
def test_a_table_of_another_kind_is_no_store(tmp_path, capsys, name):
    assert main([str(tmp_path / name), "--stars", "3"]) == 2
    assert f"{name}: a table is simulated as .parquet, a store as a folder" in capsys.readouterr().err
    assert main([str(tmp_path / "y.PARQUET"), "--stars", "3"]) == 0
    assert (tmp_path / "y.PARQUET").is_file()
    assert convert_command.main([str(tmp_path / "y.PARQUET"), str(tmp_path / name)]) == 2
    refused = f"{name}: a store is a folder, not a .{name.rpartition('.')[2]} file"
    assert refused in capsys.readouterr().err
    with pytest.raises(UserError, match=refused):
        convert(tmp_path / "y.PARQUET", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["y.PARQUET"]


def test_nothing_is_overwritten_and_no_folder_is_invented(tmp_path, capsys):
    kept = tmp_path / "mine.parquet"
    kept.write_text("precious")
    assert main([str(kept), "--stars", "3"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert kept.read_text() == "precious"
    assert main([str(tmp_path / "none" / "x.parquet"), "--stars", "3"]) == 2
    assert "cannot be written" in capsys.readouterr().err
