"""The parts of vectors, and the views that they are of."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import astroco_fast as af
from astroco_fast import encoding
from astroco_fast.data.convert import convert
from astroco_fast.data.periods import find_periods
from astroco_fast.data.store import Store
from astroco_fast.embedding import dimensions, layout
from astroco_fast.encoding import PARTS
from astroco_fast.errors import UserError
from tests.embedding.curves import Curve, command, long_table


def test_vector_parts_hold_their_named_values(model: af.AstroCo, mixed: list[Curve]) -> None:
    vectors = model.embed(mixed, parts=PARTS)
    where = layout(model, PARTS)
    assert list(where) == list(PARTS)
    assert vectors.shape == (3, where["magnitudes"].stop) == (3, dimensions(model, PARTS))
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(vectors[:, where["time_mean"]], model.embed(mixed))
    np.testing.assert_array_equal(
        model.embed(mixed, parts=["period", "time_mean"])[:, :28], vectors[:, where["period"]]
    )
    # Without a period the time view stands in, and no number tells of a period.
    for part in ("mean", "spread"):
        one, other = (vectors[:, where[f"{view}_{part}"]] for view in ("time", "folded"))
        assert np.array_equal(one[2], other[2])
        assert not np.allclose(one[:2], other[:2])
    assert not vectors[2, where["period"]].any()
    np.testing.assert_allclose(vectors[:2, where["period"].start], np.log10([0.37, 2.3]), atol=1e-3)
    spread = vectors[:, where["magnitudes"].start + 3]
    np.testing.assert_allclose(10**spread, [c[:, 1].std() for c in mixed], rtol=0.1)


def test_store_periods_are_used_again(model: af.AstroCo, mixed: list[Curve], tmp_path: Path) -> None:
    table = tmp_path / "curves.parquet"
    long_table(mixed).to_parquet(table)
    convert(table, tmp_path / "store")
    searched = model.embed(tmp_path / "store", parts=PARTS)
    store = Store.open(tmp_path / "store")
    store.add_periods(find_periods, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "find_periods", None)
        again = model.embed(tmp_path / "store", parts=PARTS)
        with pytest.warns(UserWarning, match="1 curves: too few points"):
            longer = model.embed(tmp_path / "store", parts=PARTS, min_points=50)
    pd.testing.assert_frame_equal(again, searched)
    assert np.array_equal(longer["period"], searched["period"][searched["n_points"] >= 50], equal_nan=True)


def test_mean_and_spread_are_over_all_points_of_a_curve(model: af.AstroCo, mixed: list[Curve]) -> None:
    where = layout(model, PARTS)
    vectors = model.embed(mixed, parts=PARTS, precision="fp32")
    windows = [mixed[0][i : i + 20] for i in range(0, 70, 20)]
    with torch.no_grad():
        states = [model(*(torch.from_numpy(w[:, k])[None] for k in range(3))).sequence[0] for w in windows]
    together = torch.cat(states).numpy()
    np.testing.assert_allclose(vectors[0, where["time_mean"]], together.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vectors[0, where["time_spread"]], together.std(0), rtol=1e-3, atol=1e-4)


def test_the_views_of_pretraining_decide_the_default_parts(
    model: af.AstroCo, mixed: list[Curve], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "time")
    assert "views" not in json.loads((tmp_path / "time" / "config.json").read_text())
    folded = af.load(tmp_path / "time")
    folded.views = "folded"
    folded.save_pretrained(tmp_path / "folded")
    loaded = af.load(tmp_path / "folded")
    assert loaded.views == "folded"
    expected = model.embed(mixed, parts=["folded_mean", "period", "shape", "magnitudes"])
    np.testing.assert_array_equal(loaded.embed(mixed), expected)
    config = tmp_path / "folded" / "config.json"
    config.write_text(config.read_text().replace('"folded"', '"sideways"'))
    (config.parent / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"config.json: 'views' is 'sideways'; there are: time, folded, both"):
        af.load(tmp_path / "folded")


@pytest.mark.parametrize(
    ("parts", "message"),
    [(["period", "mean"], "no part 'mean'; there are: time_mean,"), ([], "at least one"), (["period"] * 2, "once")],
)
def test_unknown_parts_are_named(model: af.AstroCo, mixed: list[Curve], parts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.embed(mixed, parts=parts)


def test_the_table_says_where_each_part_lies(model: af.AstroCo, mixed: list[Curve], tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.parquet"
    long_table(mixed).to_csv(source, index=False)
    assert command(tmp_path, model, str(source), str(out), "--views", "folded") == 0
    table = pq.read_table(out)
    assert table.column_names == ["id", "band", "label", "n_points", "period", "embedding"]
    places = json.loads(table.schema.field("embedding").metadata[b"parts"])
    assert places == {"folded_mean": [0, 16], "period": [16, 44], "shape": [44, 50], "magnitudes": [50, 63]}
    frame = table.to_pandas().sort_values("id")
    assert np.isnan(frame["period"].iloc[2])
    np.testing.assert_allclose(frame["period"].iloc[:2], [0.37, 2.3], rtol=1e-3)
    np.testing.assert_allclose(np.stack(frame["embedding"]), model.embed(mixed, parts=list(places)), atol=1e-5)
