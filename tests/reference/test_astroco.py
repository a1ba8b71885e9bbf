"""The whole reference encoder: sizes, padding, layouts, ablations."""

from typing import Any

import numpy as np
import pytest
import torch

from astroco_fast import AstroCoConfig, AstroCoOutput, Layout
from astroco_fast.reference.astroco import ReferenceAstroCo
from astroco_fast.reference.astromer import ReferenceAstromer
from astroco_fast.reference.config import AstromerConfig
from astroco_fast.reference.encoder import center
from tests.windows import Windows, make_windows

SMALL: dict[str, Any] = {"width": 16, "heads": 2, "layers": 2, "dropout": 0.0}


def model(train: bool = False, **overrides: Any) -> ReferenceAstroCo:
    torch.manual_seed(1)
    built = ReferenceAstroCo(AstroCoConfig(**{**SMALL, **overrides})).double()
    for module in built.modules():  # running statistics other than the initial ones, so that a leak shows
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return built.train(train)


def run(m: ReferenceAstroCo, w: Windows) -> AstroCoOutput:
    return m(w.time, w.mag, w.err, w.mask, hidden=w.hidden)


def assert_same(a: AstroCoOutput, b: AstroCoOutput) -> None:
    for name, left, right in zip(AstroCoOutput._fields, a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("overrides", "millions"),
    [
        ({}, 5.9),  # S
        ({"width": 256, "layers": 12}, 15.2),  # L
    ],
)
def test_parameter_counts_of_the_paper(overrides: dict[str, Any], millions: float) -> None:
    with torch.device("meta"):
        built = ReferenceAstroCo(AstroCoConfig(**overrides))
    assert round(sum(p.numel() for p in built.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("ablation", [{}, {"convolution": False}, {"gate": False}, {"mix": False}])
def test_padding_never_leaks(train: bool, ablation: dict[str, Any]) -> None:
    # The windows are padded with NaN; 40 further positions have huge numbers, and hidden points.
    lengths = [33, 7, 1, 0]
    snug, roomy = make_windows(lengths, 33), make_windows(lengths, 33)
    pad = [torch.nn.functional.pad(x, (0, 40), value=v) for x, v in zip(roomy[:5], [1e30, 1e30, -1, 0, 1], strict=True)]
    roomy = Windows(*pad, roomy.lengths)
    a, b = model(train, **ablation), model(train, **ablation)
    out, padded = run(a, snug), run(b, roomy)
    assert torch.equal(padded.sequence[:, 33:], torch.zeros(4, 40, 16))
    assert torch.equal(padded.reconstruction[:, 33:], torch.zeros(4, 40))
    assert_same(out, AstroCoOutput(padded.sequence[:, :33], padded.embedding, padded.reconstruction[:, :33]))
    for (key, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("train", [False, True])
def test_padded_and_packed_layouts_are_equal(train: bool) -> None:
    w = make_windows([20, 0, 31, 5], 31)
    layouts = [Layout.padded(w.lengths, 31), *(Layout.packed(w.lengths, 31, capacity=rows) for rows in (56, 80, None))]
    outputs, gradients = [], []
    for layout in layouts:
        m = model(train)
        time, mag, err, hidden = (layout.enter(x) for x in (w.time, w.mag, w.err, w.hidden))
        out = m.encode(center(time, layout), center(mag, layout), err, hidden, layout)
        (out.sequence.square().sum() + out.embedding.sum() + out.reconstruction.sum()).backward()
        outputs.append(out)
        gradients.append({name: p.grad for name, p in m.named_parameters()})
    for other in outputs[1:]:
        assert_same(outputs[0], other)
    for other in gradients[1:]:
        for name, grad in gradients[0].items():
            torch.testing.assert_close(other[name], grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_a_window_without_points_gives_zeros() -> None:
    out = run(model(), make_windows([0, 4, 0], 6))
    for value in out:
        assert value.isfinite().all()
        assert (value[[0, 2]] == 0).all()
        assert (value[1] != 0).any()
    for value in run(model(train=True), make_windows([0, 0], 6)):
        assert (value == 0).all()


def test_where_the_padding_stands_does_not_matter() -> None:
    w = make_windows([6], 6)
    spread = torch.full((1, 10), float("nan"), dtype=torch.float64)
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[0, [1, 2, 4, 5, 8, 9]] = True
    time, mag, err = (spread.masked_scatter(mask, x) for x in w[:3])
    hidden = torch.zeros_like(mask).masked_scatter(mask, w.hidden)
    snug, holey = run(model(), w), model()(time, mag, err, mask, hidden=hidden)
    torch.testing.assert_close(holey.embedding, snug.embedding)
    torch.testing.assert_close(holey.sequence[mask], snug.sequence[0])
    assert (holey.sequence[~mask] == 0).all()


def test_lengths_stand_for_a_mask() -> None:
    w = make_windows([9, 3], 9)
    assert_same(run(model(), w), model()(w.time, w.mag, w.err, hidden=w.hidden, lengths=w.lengths))


def test_windows_do_not_see_each_other_in_evaluation() -> None:
    w = make_windows([12, 9, 12], 12)
    together = run(model(), w)
    for i in range(3):
        alone = run(model(), Windows(*(x[i : i + 1] for x in w)))
        assert_same(alone, AstroCoOutput(*(x[i : i + 1] for x in together)))


def test_centring_happens_in_float64_and_removes_any_zero_point() -> None:
    w = make_windows([30, 12], 30)
    m = model().float()
    shifted = w._replace(time=w.time + 2_400_000.5, mag=w.mag - 5)
    torch.testing.assert_close(run(m, w).embedding, run(m, shifted).embedding, rtol=1e-5, atol=1e-5)
    careless = m(w.time.float() + 2_400_000.5, w.mag, w.err, w.mask, hidden=w.hidden)
    assert (careless.embedding - run(m, w).embedding).abs().max() > 1e-3  # the error of float32 times


def test_centered_input_is_taken_as_it_is() -> None:
    w = make_windows([8], 8)
    time, mag = (x - x[~w.hidden].mean() for x in (w.time, w.mag))
    assert_same(run(model(), w), model()(time, mag, w.err, hidden=w.hidden, centered=True))
    moved = model()(time + 1, mag, w.err, hidden=w.hidden, centered=True)
    assert (moved.embedding - run(model(), w).embedding).abs().max() > 1e-6


def test_hidden_magnitudes_have_no_influence_once_centred() -> None:
    w = make_windows([20], 20)
    other = torch.where(w.hidden, torch.randn(1, 20, dtype=torch.float64), w.mag)
    a = model()(w.time, w.mag, w.err, hidden=w.hidden, centered=True)
    b = model()(w.time, other, w.err, hidden=w.hidden, centered=True)
    assert_same(a, b)


@pytest.mark.parametrize("placeholder", [0.0, 99.0, float("nan")])
def test_what_is_hidden_does_not_move_the_centre(placeholder: float) -> None:
    """In a window with one hidden point, its magnitude would be minus the sum of the others about their centre."""
    w = make_windows([20, 7], 20)
    one = torch.zeros_like(w.mask)
    one[0, 4] = one[1, 0] = True
    for m in (model(), ReferenceAstromer(AstromerConfig(width=16, heads=2, layers=1, feed_forward=8)).double().eval()):
        before = m(w.time, w.mag, w.err, w.mask, hidden=one)
        time = w.time.masked_fill(one, placeholder) if "time" in m.hides else w.time
        after = m(time, w.mag.masked_fill(one, placeholder), w.err, w.mask, hidden=one)
        assert before.embedding.norm(dim=1).min() > 0.1
        assert_same(before, after)


def test_what_stays_visible_at_hidden_points_counts_in_the_centre() -> None:
    w = make_windows([20], 20)
    time, mag = (x - x.mean() for x in (w.time, w.mag))
    m = model(hide=("uncertainty",))
    assert_same(run(m, w), m(time, mag, w.err, hidden=w.hidden, centered=True))


def test_a_window_of_hidden_points_only_has_no_centre() -> None:
    w = make_windows([5], 5)
    out = run(model(), w._replace(hidden=w.mask))
    moved = run(model(), w._replace(hidden=w.mask, mag=w.mag + 3, time=w.time * 2))
    assert out.embedding.isfinite().all()
    assert_same(out, moved)


def test_ablations_drop_what_they_say() -> None:
    keys = {name: set(model(**{name: False}).state_dict()) for name in ("convolution", "gate", "mix")}
    everything = set(model().state_dict())
    assert {k.split(".")[2] for k in everything - keys["convolution"]} == {"convolution"}
    assert everything - keys["mix"] == {"mix_pool.logits"}
    assert not [k for k in keys["gate"] if "w_gate" in k]
    assert {k for k in everything if "w_gate" in k}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mag": torch.zeros(2, 5)}, r"mag must have time's shape \(2, 4\)"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, "mask must have"),
        ({"lengths": torch.tensor([1])}, r"lengths must be a tensor \(2,\)"),
        ({"lengths": torch.tensor([1, 5])}, "lengths must lie in 0..4"),
        ({"time": torch.zeros(8)}, r"time must be \(B, T\)"),
        ({"hidden": torch.zeros(2, 4)}, "hidden must be bool, got torch.float32"),
        ({"mask": torch.ones(2, 4, dtype=torch.uint8)}, "mask must be bool"),
        ({"mask": [[True] * 4] * 2}, r"mask must be a tensor \(B, T\), got list"),
        ({"time": np.zeros((2, 4))}, r"time must be a tensor \(B, T\), got ndarray"),
        ({"err": torch.zeros(2, 4, device="meta")}, "err must be on time's device cpu, got meta"),
        ({"mag": torch.zeros(2, 4, dtype=torch.complex64)}, "mag must hold real numbers, got torch.complex64"),
        ({"lengths": [2, 4]}, r"lengths must be a tensor \(2,\), got list"),
        ({"lengths": torch.tensor([2.7, 4.0])}, "lengths must be integers, got torch.float32"),
        ({"lengths": torch.tensor([True, True])}, "lengths must be integers, got torch.bool"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {name: torch.zeros(2, 4) for name in ("time", "mag", "err")}
    with pytest.raises(ValueError, match=message):
        model()(**{**arguments, **change})


@pytest.mark.parametrize("training", [True, False])
def test_no_positions_and_no_windows(training: bool) -> None:
    for batch, length in ((2, 0), (0, 0), (0, 4)):
        out = model(train=training)(*(torch.zeros(batch, length) for _ in range(3)))
        assert [x.shape[:2] for x in (out.sequence, out.reconstruction)] == [(batch, length)] * 2
        assert out.embedding.abs().sum() == 0


def test_half_precision_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must stay float32, got torch.bfloat16; .* torch.autocast"):
        model().bfloat16()(*(torch.zeros(1, 4) for _ in range(3)))


def test_every_parameter_learns() -> None:
    w = make_windows([20, 14], 20)
    m = model(train=True)
    out = run(m, w)
    (out.reconstruction.square().sum() + out.embedding.sum()).backward()
    dead = [name for name, p in m.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []
