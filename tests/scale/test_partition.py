"""A worker's piece of a catalogue: rows and columns stay, vectors are those of `model.embed`."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import astroco_fast as af
from astroco_fast import embed
from astroco_fast.embedding_formats import KEY
from astroco_fast.errors import UserError
from astroco_fast.scale.partition import embed_partition, provenance
from astroco_fast.scale.ray import Embedder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    af.AstroCo.from_preset("tiny", width=16, heads=2, layers=1, window=20).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def stars():
    """Four stars under one id; the third has no point."""
    rng = np.random.default_rng(0)
    lengths = (30, 12, 0, 25)
    columns = {
        name: pd.Series([list(draw(n)) for n in lengths], dtype=pd.ArrowDtype(pa.list_(pa.float64())))
        for name, draw in (
            ("mjd", lambda n: 50_000 + np.sort(rng.uniform(0, 900, n))),
            ("mag", lambda n: 15 + rng.normal(0, 0.3, n)),
            ("magerr", lambda n: np.full(n, 0.02)),
        )
    }
    frame = pd.DataFrame({"objectid": [7] * 4, "ra": [1.0, 2.0, 3.0, 4.0], "dec": [-5.0] * 4, **columns})
    return frame.set_index(pd.Index([40, 30, 20, 10], name="_healpix_29"))


def test_rows_keep_their_order_index_and_plain_columns(model, stars):
    with pytest.warns(UserWarning, match="1 of 4 light curves have too few good points"):
        found = embed_partition(stars, model, precision="fp32")
    assert found.columns.tolist() == ["objectid", "ra", "dec", "band", "n_points", "embedding"]
    pd.testing.assert_frame_equal(found[["objectid", "ra", "dec"]], stars[["objectid", "ra", "dec"]])
    assert found["n_points"].tolist() == [30, 12, 0, 25]
    curves = [np.column_stack([stars[name].iloc[i] for name in ("mjd", "mag", "magerr")]) for i in (0, 1, 3)]
    vectors = np.array(found["embedding"].tolist(), dtype=np.float32)
    np.testing.assert_array_equal(vectors[[0, 1, 3]], af.load(model).embed(curves, precision="fp32"))
    assert np.isnan(vectors[2]).all()


def test_no_rows_have_the_same_columns_and_types(model, stars):
    with pytest.warns(UserWarning, match="too few"):
        some = embed_partition(stars, model, parts=["time_mean", "period"])
    none = embed_partition(stars.iloc[:0], model, parts=["time_mean", "period"])
    assert "period" in none
    assert none.dtypes.to_dict() == some.dtypes.to_dict()
    assert none.index.name == "_healpix_29"
    assert len(none) == 0


def test_the_provenance_is_what_astroco_embed_writes(model, stars, tmp_path):
    options = ["--model", model, "--band", "g", "--short", "nan", "--windows", "first"]
    star = pd.DataFrame({name: stars[name].iloc[0] for name in ("mjd", "mag", "magerr")}).assign(band="g")
    star.to_parquet(tmp_path / "one.parquet")
    assert embed.main([str(tmp_path / "one.parquet"), str(tmp_path / "out.parquet"), *options]) == 0
    written = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[KEY.encode()])
    told = json.loads(provenance(model, written["source"], band="g", windows="first", prefix="p", threads=2))
    assert written["settings"].pop("device") == "cpu"
    assert told == {key: written[key] for key in written if key not in ("counts", "simulated")}


def test_a_row_for_each_window_repeats_the_star(model, stars):
    found = embed_partition(stars.iloc[[0, 3]], model, windows="all")
    assert found["ra"].tolist() == [1.0, 1.0, 4.0, 4.0]
    assert found["window"].tolist() == [0, 1, 0, 1]


def test_a_name_that_is_taken_is_refused(model, stars):
    stars = stars.iloc[[0, 3]].assign(n_points=5)
    with pytest.raises(UserError, match=r"a column 'n_points' already; give another prefix"):
        embed_partition(stars, model)
    found = embed_partition(stars, model, prefix="fast_")
    assert found["n_points"].tolist() == [5, 5]
    assert found["fast_n_points"].tolist() == [30, 25]


def test_an_actor_embeds_arrow_tables(model, stars):
    stars = stars.iloc[[0, 1, 3]].reset_index(drop=True)
    found = Embedder(model)(pa.Table.from_pandas(stars, preserve_index=False))
    expected = embed_partition(stars, model)
    assert found["embedding"].to_pylist() == [list(row) for row in expected["embedding"]]
    assert found["ra"].to_pylist() == [1.0, 2.0, 4.0]
    assert len(found.to_pandas()) == 3
