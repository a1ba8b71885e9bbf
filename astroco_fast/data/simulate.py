"""A simulated survey of variable stars, so that a first run needs no download. Its light curves are marked simulated.

The stars are those of `shapes`; this module observes them from the ground and in one band. Its assumptions are round,
typical numbers, which describe no survey in particular:

| quantity          | assumption                                                                                  |
|-------------------|---------------------------------------------------------------------------------------------|
| fields            | 64 of them; stars of a field share season, weather and the nights' order                    |
| span              | 7 years from MJD 53500                                                                      |
| season            | 200 to 300 nights around opposition                                                         |
| Moon              | nights within 2.5 days of full moon are skipped; other moonlit nights have a brighter sky   |
| weather           | a third of all nights lost, in runs of about 3 nights; seeing and transparency vary nightly |
| visits            | 1 a night, or (40 % of fields) 4 a night some 10 minutes apart                              |
| points            | 40 to 1000 a star, median near 250                                                          |
| mean magnitude    | 13 to 18, more faint stars than bright                                                      |
| error             | photon noise of star and sky, and a floor of 0.012 to 0.03 mag; 0.02 to 0.05 mag for bright |
|                   | stars, 0.1 to 0.2 mag for the faintest                                                      |
| noise             | normal, of exactly the error quoted                                                         |
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from astroco_fast.data.curves import CurveBatch, offsets_of
from astroco_fast.data.hashing import STREAM_SIMULATION, hash64, normal, uniform
from astroco_fast.data.shapes import LABELS, StarDraws, draw_stars, magnitudes
from astroco_fast.errors import UserError

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

SURVEY = "simulated"
BAND = "V"
FIRST_NIGHT = 53500.0
NIGHTS = 7 * 365
MIN_POINTS, MAX_POINTS = 40, 1000

_FIELDS = 64
_LUNATION = 29.530588
_LOCAL_MIDNIGHT = 0.2  # as a fraction of the MJD, at a site in the west
_SIDEREAL_DRIFT = 1 / 365.25  # days by which a field crosses the meridian earlier each night
_PORTION = 512  # stars computed at once, which bounds memory and does not change the stars

# Counters of draws for points and nights. They differ from those of the stars, whose names hash to 32 bits.
_NIGHT_KEY, _WEATHER, _QUALITY, _CLOCK, _VISIT, _NOISE_1, _NOISE_2 = (2**32 + i for i in range(7))


def simulate_survey(n_stars: int, seed: int) -> Iterator[CurveBatch]:
    """Make the light curves of `n_stars` simulated variable stars, in portions.

    Star i is a function of (seed, i) alone: the first 10 of 1,000 stars are the 10 of a survey of 10.

    Args:
        n_stars: number of stars, 0 or more.
        seed: seed of the survey.

    Yields:
        Batches of light curves: ids "sim-0000000" onwards, band "V", label one of `shapes.LABELS`, time in days (MJD,
        rising), magnitudes and their errors.

    Raises:
        UserError: the number of stars is negative.
    """
    for batch, _ in simulate_portions(n_stars, seed):
        yield batch


def simulate_portions(n_stars: int, seed: int) -> Iterator[tuple[CurveBatch, Float64Array]]:
    """Make the light curves of `simulate_survey`, with the true periods (n,) of each portion's stars, in days."""
    if n_stars < 0:
        raise UserError(f"the number of stars must not be negative: {n_stars}")
    for first in range(0, n_stars, _PORTION):
        yield simulate_stars(np.arange(first, min(first + _PORTION, n_stars)), seed)


def simulate_stars(stars: Int64Array, seed: int) -> tuple[CurveBatch, Float64Array]:
    """Make the light curves of the stars of these numbers (n,), and their true periods (n,) in days."""
    stars = np.asarray(stars, dtype=np.int64)
    draws = StarDraws(seed, stars)
    variables = draw_stars(draws)
    star, visit, time, field = _cadence(draws)
    mean_magnitude = 13 + 5 * draws.unit("mean magnitude") ** 0.6
    mag = mean_magnitude[star] + magnitudes(variables, star, time)
    err = _errors(draws, star, time, field, mag)
    noise = normal(*(hash64(STREAM_SIMULATION, seed, key, stars[star], visit) for key in (_NOISE_1, _NOISE_2)))
    # The noise follows the error that is quoted, which is float32.
    err = err.astype(np.float32).astype(np.float64)
    batch = CurveBatch(
        ids=np.array([f"sim-{i:07d}" for i in stars], dtype=object),
        band=np.full(len(stars), BAND, dtype=object),
        label=np.array(LABELS, dtype=object)[variables.kind],
        offsets=offsets_of(np.bincount(star, minlength=len(stars))),
        time=time,
        mag=(mag + err * noise).astype(np.float32),
        err=err.astype(np.float32),
        source="simulated survey",
        simulated=True,
    )
    return batch, variables.period


def _cadence(draws: StarDraws) -> tuple[Int64Array, Int64Array, Float64Array, Int64Array]:
    """The times at which each star is observed.

    Returns:
        star: int64 (P,), row of the star, rising.
        visit: int64 (P,), the number of the visit, unique for the star.
        time: float64 (P,), days (MJD), rising in each star.
        field: int64 (n,), the field of each star.
    """
    field = (draws.unit("field") * _FIELDS).astype(np.int64)
    fields = StarDraws(draws.seed, -1 - field)  # numbers below those of stars
    visits = np.where(fields.unit("visits") < 0.4, 4, 1)
    points = np.clip(250 * np.exp(0.55 * draws.gaussian("points")), MIN_POINTS, MAX_POINTS)
    wanted = np.ceil(points / visits).astype(np.int64)

    # Nights are drawn without replacement from those on which the field can be observed: those with the lowest keys.
    keys = hash64(STREAM_SIMULATION, draws.seed, _NIGHT_KEY, draws.stars[:, None], np.arange(NIGHTS)) >> np.uint64(1)
    usable = _usable_nights(draws.seed)[field]
    keys[~usable] = np.uint64(2**64 - 1)
    wanted = np.minimum(wanted, usable.sum(axis=1))
    bound = np.take_along_axis(np.sort(keys, axis=1), wanted[:, None] - 1, axis=1)
    star, night = np.nonzero(keys <= bound)

    # Fields are observed as near to the meridian as the night allows.
    opposition = _oppositions(fields)[star]
    from_opposition = (night - opposition + 182.625) % 365.25 - 182.625
    clock = uniform(hash64(STREAM_SIMULATION, draws.seed, _CLOCK, draws.stars[star], night)) - 0.5
    hour = np.clip(-_SIDEREAL_DRIFT * from_opposition, -0.12, 0.12) + 0.1 * clock
    begin = FIRST_NIGHT + night + _LOCAL_MIDNIGHT + hour

    repeats = visits[star]
    star, begin, night = np.repeat(star, repeats), np.repeat(begin, repeats), np.repeat(night, repeats)
    rank = np.arange(len(star)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    visit = 4 * night + rank
    jitter = uniform(hash64(STREAM_SIMULATION, draws.seed, _VISIT, draws.stars[star], visit))
    return star, visit, begin + 0.007 * rank + 0.001 * jitter, field


def _oppositions(fields: StarDraws) -> Float64Array:
    """The night of the year on which each field culminates at midnight."""
    return fields.between("opposition", 0.0, 365.25)


def _usable_nights(seed: int) -> npt.NDArray[np.bool_]:
    """Nights that are in season, dark enough and clear, bool (fields, nights)."""
    night = np.arange(NIGHTS)
    fields = StarDraws(seed, -1 - np.arange(_FIELDS))
    half_season = fields.between("season", 100.0, 150.0)[:, None]
    from_opposition = (night - _oppositions(fields)[:, None] + 182.625) % 365.25 - 182.625
    # All fields share the weather: a spell of about three nights is lost as a whole.
    clear = uniform(hash64(STREAM_SIMULATION, seed, _WEATHER, night // 3)) > 0.33
    dark = np.abs(_from_full_moon(night)) > 2.5
    return (np.abs(from_opposition) < half_season) & (clear & dark)


def _from_full_moon(night: Int64Array) -> Float64Array:
    """Days to the nearest full moon, -14.8 to 14.8."""
    return (night.astype(np.float64) + 0.5 * _LUNATION) % _LUNATION - 0.5 * _LUNATION


def _errors(
    draws: StarDraws, star: Int64Array, time: Float64Array, field: Int64Array, mag: Float64Array
) -> Float64Array:
    """Errors (P,), magnitudes, of points of true magnitude `mag` (P,): photon noise of star and sky, and a floor."""
    night = np.floor(time - FIRST_NIGHT).astype(np.int64)
    bits = (hash64(STREAM_SIMULATION, draws.seed, _QUALITY, field[star], night, i) for i in range(2))
    transparency = np.exp(-0.25 * np.abs(normal(*bits)))
    moonlight = np.exp(-((_from_full_moon(night) / 5) ** 2))
    photons = 150.0 * transparency * 10 ** (-0.4 * (mag - 18))
    sky = 60.0 * (1 + 2.0 * moonlight)
    relative = np.sqrt(photons + sky) / photons
    floor = draws.between("floor", 0.012, 0.03)[star]
    return np.hypot(2.5 / np.log(10) * relative, floor)
