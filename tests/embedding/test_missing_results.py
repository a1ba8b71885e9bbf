"""Light curves without a result, and input without light curves."""

import copy
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

import astroco_fast as af
from astroco_fast.errors import UserError
from tests.embedding.curves import Curve, curve, long_table


@pytest.mark.parametrize("output", ["embedding", "sequence"])
def test_curves_without_a_result_have_a_row_of_nan_or_none(model: af.AstroCo, curves: list[Curve], output: str) -> None:
    frame = long_table(curves).sort_values(["id", "mjd"])
    frame.loc[frame["id"] == "star0", "mag"] = np.nan
    embed = partial(model.embed, min_points=10, output=output)
    with pytest.warns(UserWarning, match="2 curves: too few points"):
        kept = embed(frame)
    with pytest.warns(UserWarning, match="2 of 4 light curves have too few good points: their rows are NaN"):
        rows = embed(frame, short="nan")
    assert rows["id"].tolist() == ["star0", "star1", "star2", "star3"]
    assert rows["n_points"].tolist() == [0, 45, 7, 61]
    assert kept["id"].tolist() == ["star1", "star3"]
    assert all(map(np.array_equal, rows[output].iloc[[1, 3]], kept[output]))
    shape = (7, 16) if output == "sequence" else (16,)
    assert rows[output].iloc[2].shape == shape
    assert np.isnan(rows[output].iloc[2]).all()
    with pytest.warns(UserWarning, match="1 curves: too few points"):
        assert len(model.embed(curves, min_points=10, short="drop")) == 3
    with pytest.warns(UserWarning, match="1 curves: too few points"):
        assert len(embed(frame[frame["id"] == "star2"], short="drop")) == 0


@pytest.mark.parametrize("output", ["embedding", "sequence", "reconstruction"])
@pytest.mark.parametrize("windows", ["mean", "all"])
def test_empty_in_typed_and_empty_out(model: af.AstroCo, mixed: list[Curve], output: str, windows: str) -> None:
    embed = partial(model.embed, output=output, windows=windows, views="folded")
    full = embed(long_table(mixed))
    nested = {name: pa.array([], pa.list_(pa.float64())) for name in ("time", "mag", "err")}
    empty = long_table(mixed).iloc[:0]
    for source in (empty, empty.astype(object), pa.table({"id": pa.array([], pa.string()), **nested})):
        frame = embed(source)
        assert len(frame) == 0
        assert frame.dtypes.to_dict() == full.dtypes.to_dict()
    vectors = model.embed([])
    assert (vectors.shape, vectors.dtype) == ((0, 16), np.float32)


def test_a_bad_curve_keeps_its_row(model: af.AstroCo, curves: list[Curve]) -> None:
    empty = np.full((5, 3), np.nan)
    with pytest.warns(UserWarning, match="1 of 3 light curves have too few good points: their rows are NaN"):
        vectors = model.embed([curves[0], empty, curves[2]])
    assert np.isnan(vectors[1]).all()
    assert np.array_equal(vectors[[0, 2]], model.embed([curves[0], curves[2]]))


def test_stars_left_out_of_a_table_are_counted(model: af.AstroCo, curves: list[Curve]) -> None:
    frame = long_table(curves)
    frame.loc[frame["id"] == "star1", "mag"] = np.nan
    with pytest.warns(UserWarning, match="1 curves: too few points"):
        assert len(model.embed(frame)) == 3


def test_vectors_that_are_not_finite_are_left_out_and_counted(model: af.AstroCo) -> None:
    arrays = [curve(20), curve(20), curve(3)]
    broken = copy.deepcopy(model)
    plain = broken.forward

    def forward(*args: object, **keywords: object) -> object:
        out = plain(*args, **keywords)
        out.embedding[0] = float("nan")
        return out

    broken.forward = forward  # type: ignore[method-assign]
    with pytest.warns(
        UserWarning, match="1 of 3 light curves have an embedding that is not finite: their rows are NaN"
    ):
        vectors = broken.embed(arrays)
    assert np.isnan(vectors[0]).all()
    assert np.isfinite(vectors[1:]).all()
    with pytest.warns(UserWarning, match="dropped 1 curves: embedding not finite"):
        assert len(broken.embed(long_table(arrays))) == 2
    with pytest.raises(UserError, match="no light curve left to embed; dropped 1 curves: embedding not finite"):
        broken.embed(arrays[:1])


def test_nothing_to_embed_is_an_error(model: af.AstroCo) -> None:
    frame = long_table([curve(3)]).assign(magerr=-1.0)
    with pytest.raises(UserError, match="no light curve left"):
        model.embed(frame)
