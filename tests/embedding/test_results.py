"""What `embed` returns: one row for each light curve, from every kind of input."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import astroco_fast as af
from astroco_fast import embedding, machine
from astroco_fast.encoding import PARTS
from astroco_fast.errors import UserError
from astroco_fast.kernels.cpu import build, native
from astroco_fast.ops import no_int8
from tests.conftest import CPU_ISA
from tests.embedding.curves import Curve, curve, long_table, periodic


def by_hand(model: af.AstroCo, c: Curve) -> np.ndarray:
    parts = [c[i : i + 20] for i in range(0, len(c), 20)]
    vectors = [model(*(torch.from_numpy(p[:, k])[None] for k in range(3))).embedding[0].detach().numpy() for p in parts]
    return np.average(vectors, axis=0, weights=[len(p) for p in parts])


def test_arrays_in_array_out_averaged_over_windows_by_points(model: af.AstroCo, curves: list[Curve]) -> None:
    vectors = model.embed(curves, precision="fp32")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [by_hand(model, c) for c in curves], rtol=1e-4, atol=1e-5)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the compiled CPU kernels, which the tests switch off elsewhere."""
    monkeypatch.setattr(build, "wish", CPU_ISA)
    if native.missing() is not None:
        pytest.skip("no C++ compiler, or a CPU without kernels")


def test_a_change_of_weights_that_no_call_counts_is_seen(compiled: None, curves: list[Curve]) -> None:
    """A write through `.data` to a number that is not in the sample which every call of the model compares."""
    model = af.AstroCo.from_preset("tiny").eval()
    before = [model.embed(curves) for _ in range(3)][-1]
    model.blocks[0].feed_forward.w_val.weight.data[0, 1] += 5
    found = model.embed(curves)
    assert not np.array_equal(found, before)
    assert np.array_equal(found, copy.deepcopy(model).embed(curves))


def test_each_part_has_its_own_mode_again(model: af.AstroCo, curves: list[Curve]) -> None:
    model = copy.deepcopy(model).train()
    model.blocks[0].eval()
    model.empty = torch.nn.ModuleList()  # false as a condition
    modes = [part.training for part in model.modules()]
    model.embed(curves)
    assert [part.training for part in model.modules()] == modes


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("width", [16, 36])
def test_the_batch_changes_no_bit(compiled: None, precision: str, width: int) -> None:
    if precision == "int8" and no_int8(torch.device("cpu")) is not None:
        pytest.skip("a CPU without int8 products")
    torch.manual_seed(1)
    model = af.AstroCo.from_preset("tiny", width=width, heads=2, window=20).eval()
    curves = [curve(int(n), seed) for seed, n in enumerate(np.random.default_rng(0).integers(1, 75, 12))]
    curves[5:7] = periodic(80, 0.37, 1), periodic(40, 2.3, 2)

    def vectors(chosen: list[Curve], batch_size: int = 256) -> Curve:
        return model.embed(chosen, parts=PARTS, precision=precision, batch_size=batch_size)

    wanted = vectors(curves)
    for batch_size in (1, 7):
        assert np.array_equal(vectors(curves, batch_size), wanted)
    order = np.random.default_rng(1).permutation(len(curves))
    assert np.array_equal(vectors([curves[i] for i in order]), wanted[order])
    assert all(np.array_equal(vectors([curves[i]])[0], wanted[i]) for i in (0, 5))


def test_pieces_of_a_batch_change_no_bit(
    compiled: None, model: af.AstroCo, curves: list[Curve], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = long_table(curves)
    wanted = [model.embed(frame), model.embed(frame, output="sequence")]
    for name, value in (("PIECE_CURVES", 1), ("PIECE_POINTS", 50)):
        with monkeypatch.context() as patch:
            patch.setattr(embedding, name, value)
            for output, whole in zip(("embedding", "sequence"), wanted, strict=True):
                again = model.embed(frame, output=output)
                assert again["id"].tolist() == whole["id"].tolist()
                assert all(map(np.array_equal, again[output], whole[output]))


def test_precision_is_chosen_by_name_by_the_machine_and_by_autocast(
    model: af.AstroCo, curves: list[Curve], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, half = (model.embed(curves, precision=name) for name in ("fp32", "bf16"))
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.05)
    for fast, wanted in ((True, half), (False, full)):
        monkeypatch.setattr(machine, "multiplies_bfloat16", lambda device, fast=fast: fast)
        assert np.array_equal(model.embed(curves), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(model.embed(curves), half)
        assert np.array_equal(model.embed(curves, precision="fp32"), full)


@pytest.mark.parametrize("parts", [["time_mean", "time_spread"], ["folded_mean"], ["period", "time_mean"]])
def test_windows_policies(model: af.AstroCo, mixed: list[Curve], parts: list[str]) -> None:
    embed = partial(model.embed, parts=parts, precision="fp32")
    frame = embed(mixed, windows="all")
    assert frame["id"].tolist() == ["0"] * 4 + ["1"] * 3 + ["2"] * 4
    assert frame["window"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3]
    assert frame["window"].dtype == np.int32
    assert [group["n_points"].sum() for _, group in frame.groupby("id")] == [len(c) for c in mixed]
    if "time_spread" not in parts:
        weighted = [
            np.average(np.stack(group["embedding"]), axis=0, weights=group["n_points"])
            for _, group in frame.groupby("id")
        ]
        np.testing.assert_allclose(embed(mixed), weighted, atol=1e-5)
    if "folded_mean" not in parts:  # whose period would be that of the shorter curve
        where = slice(-16, None)
        for windows, ends in (("first", [c[:20] for c in mixed]), ("last", [c[-20:] for c in mixed])):
            np.testing.assert_allclose(embed(mixed, windows=windows)[:, where], embed(ends)[:, where], atol=1e-5)
    else:
        assert not np.array_equal(embed(mixed, windows="first"), embed(mixed))
    if "period" in parts:
        assert np.array_equal(embed(mixed, windows="last")[:, :28], embed(mixed)[:, :28])


@pytest.mark.parametrize("views", ["time", "folded"])
def test_sequences_and_reconstructions_are_of_points_in_time_order(
    model: af.AstroCo, mixed: list[Curve], views: str
) -> None:
    states, given = (
        model.embed(mixed, output=output, views=views, precision="fp32") for output in ("sequence", "reconstruction")
    )
    vectors = model.embed(mixed, parts=[f"{views}_mean"], precision="fp32")
    for i, c in enumerate(mixed):
        assert np.array_equal(states["time"][i], c[:, 0])
        assert np.array_equal(given["mag"][i], c[:, 1].astype(np.float32))
        assert states["sequence"][i].shape == (len(c), 16)
        assert states["sequence"][i].dtype == given["reconstruction"][i].dtype == np.float32
        np.testing.assert_allclose(states["sequence"][i].mean(0), vectors[i], atol=1e-5)
    window = mixed[0][:20]
    with torch.no_grad():
        out = model(*(torch.from_numpy(window[:, k])[None] for k in range(3)))
    if views == "time":
        np.testing.assert_allclose(states["sequence"][0][:20], out.sequence[0], atol=1e-4)
        middle = window[:, 1].mean()
        np.testing.assert_allclose(given["reconstruction"][0][:20], out.reconstruction[0] + middle, atol=1e-4)
    by_window = model.embed(mixed, output="sequence", views=views, windows="all", precision="fp32")
    assert by_window["sequence"].map(len).tolist() == by_window["n_points"].tolist()
    together = np.concatenate(by_window["time"][by_window["id"] == "0"])
    joined = np.concatenate(by_window["sequence"][by_window["id"] == "0"])
    np.testing.assert_allclose(joined[np.argsort(together)], states["sequence"][0], atol=1e-6)
    assert model.embed(mixed, output="sequence", views=views, windows="last")["n_points"].tolist() == [20] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"windows": "middle"}, "windows: there is no 'middle'; there are: mean, first, last, all"),
        ({"output": "image"}, "output: there is no 'image'"),
        ({"short": "zero"}, "short: there is no 'zero'"),
        ({"precision": "int4"}, "precision: there is no 'int4'"),
        ({"views": "sideways"}, "views: there is no 'sideways'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"min_points": 0}, "min_points must be at least 1"),
        ({"output": "sequence", "parts": ["period"]}, "parts: only vectors have parts"),
        ({"output": "sequence", "views": "both"}, "views: output 'sequence' is of one view"),
    ],
)
def test_wrong_arguments_are_named(
    model: af.AstroCo, curves: list[Curve], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        model.embed(curves, **arguments)


def test_frame_in_frame_with_ids_out(model: af.AstroCo, curves: list[Curve]) -> None:
    frame = model.embed(long_table(curves))
    assert list(frame.columns) == ["id", "band", "label", "n_points", "embedding"]
    frame = frame.set_index("id").loc[[f"star{i}" for i in range(4)]]
    assert frame["n_points"].tolist() == [len(c) for c in curves]
    assert np.array_equal(np.stack(frame["embedding"]), model.embed(curves))


def test_lists_of_tables_and_files_are_not_lists_of_arrays(
    model: af.AstroCo, curves: list[Curve], tmp_path: Path
) -> None:
    tables = [long_table([c]).assign(id=str(3 - i)) for i, c in enumerate(curves)]  # ids that look like positions
    expected = dict(zip("3210", model.embed(curves), strict=True))
    for i, table in enumerate(tables):
        table.to_csv(tmp_path / f"{i}.csv", index=False)
    for given in (tables, [tmp_path / f"{i}.csv" for i in range(4)], [str(tmp_path / "*.csv")]):
        frame = model.embed(given).set_index("id")
        assert sorted(frame.index) == ["0", "1", "2", "3"]
        for star, vector in frame["embedding"].items():
            assert np.array_equal(vector, expected[star])


def test_parts_that_are_frozen_stay_so(model: af.AstroCo, curves: list[Curve]) -> None:
    frozen = model.train().blocks[0].eval()
    try:
        model.embed(curves)
        assert not any(part.training for part in frozen.modules())
        assert all(part.training for part in model.blocks[1].modules())
    finally:
        model.eval()


def test_training_mode_is_restored(model: af.AstroCo, curves: list[Curve]) -> None:
    model.train()
    try:
        running = model.blocks[0].convolution.batch_norm.running_mean.clone()
        in_training = model.embed(curves)
        assert model.training
        assert torch.equal(model.blocks[0].convolution.batch_norm.running_mean, running)
    finally:
        model.eval()
    np.testing.assert_array_equal(in_training, model.embed(curves))
