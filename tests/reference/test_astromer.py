"""Astromer: equal to the original code, and with the properties of every encoder of this package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astroco_fast import AstroCoOutput, AstromerConfig
from astroco_fast.reference.astromer import ReferenceAstromer
from tests.windows import Windows, make_windows

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="../shared/fixtures is not here")

V1: dict[str, Any] = {"leak": False, "mask_logit": 1.0, "mask_queries": True, "hidden_magnitude": "shown"}
V2: dict[str, Any] = {}
VERSIONS = pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
TINY: dict[str, Any] = {"width": 16, "heads": 2, "layers": 2, "feed_forward": 24, "dropout": 0.0}


def model(version: dict[str, Any], **overrides: Any) -> ReferenceAstromer:
    torch.manual_seed(1)
    built = ReferenceAstromer(AstromerConfig(**{**TINY, **version, **overrides})).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():  # initial biases and token are zero, which would hide a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def run(m: ReferenceAstromer, w: Windows) -> AstroCoOutput:
    return m(w.time, w.mag, w.err, w.mask, hidden=w.hidden)


def load_keras(m: ReferenceAstromer, weights: list[Tensor]) -> None:
    """Copy weights in the order of the original code's list: layer by layer, kernel or scale first, then bias."""
    layers: list[Any] = [m.magnitude]
    for block in m.blocks:
        attention = block.attention
        layers += [attention.query, attention.key, attention.value, attention.out]
        layers += [block.feed_forward[0], block.feed_forward[2], block.norm_attention, block.norm_feed_forward]
        if block.leak_attention is not None:
            layers += [block.leak_attention, block.leak_feed_forward]
    layers += [m.head, m.norm]
    with torch.no_grad():
        for layer, first, second in zip(layers, weights[::2], weights[1::2], strict=True):
            layer.weight.copy_(first.T if isinstance(layer, nn.Linear) else first)
            layer.bias.copy_(second)


@needs_fixtures
@pytest.mark.parametrize(("number", "version"), [(1, V1), (2, V2)])
def test_equal_to_the_original_code_at_every_block_and_the_output(number: int, version: dict[str, Any]) -> None:
    with np.load(FIXTURES / f"astromer_v{number}_tiny.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    # Both fixtures have magnitudes at masked points, because version 2's inputs were saved behind its token's layer.
    m = ReferenceAstromer(AstromerConfig(**{**TINY, **version, "hidden_magnitude": "shown"})).eval()
    load_keras(m, [value for name, value in arrays.items() if name.startswith("w/")])
    blocks: list[Tensor] = []
    for block in m.blocks:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    time, mag, masked = (arrays[name].squeeze(-1) for name in ("times", "input", "mask_in"))
    with torch.no_grad():
        out = m(time, mag, torch.zeros_like(mag), hidden=masked > 0, centered=True)
    for i, rows in enumerate(blocks):
        got = rows[: time.numel()].view(*time.shape, -1)
        torch.testing.assert_close(got, arrays[f"layer_{i}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(out.sequence, arrays["layer_1"], rtol=0, atol=1e-5)
    torch.testing.assert_close(out.reconstruction, arrays["output"].squeeze(-1), rtol=0, atol=1e-5)


@VERSIONS
def test_padding_never_leaks(version: dict[str, Any]) -> None:
    lengths = [33, 7, 1, 0]
    snug, roomy = make_windows(lengths, 33), make_windows(lengths, 33)
    pad = [nn.functional.pad(x, (0, 40), value=v) for x, v in zip(roomy[:5], [1e30, 1e30, -1, 0, 1], strict=True)]
    m = model(version)
    out, padded = run(m, snug), run(m, Windows(*pad, roomy.lengths))
    assert not padded.sequence[:, 33:].any()
    assert not padded.reconstruction[:, 33:].any()
    cut = AstroCoOutput(padded.sequence[:, :33], padded.embedding, padded.reconstruction[:, :33])
    for a, b in zip(out, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@VERSIONS
def test_an_all_padded_row_gives_zeros(version: dict[str, Any]) -> None:
    for value in run(model(version), make_windows([0, 4, 0], 6)):
        assert value.isfinite().all()
        assert not value[[0, 2]].any()
        assert value[1].any()
    m = model(version).train()
    nothing = run(m, make_windows([0, 0], 6))  # a rank without windows passes this through the model
    assert not any(value.any() for value in nothing)
    nothing.reconstruction.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in m.parameters())


@VERSIONS
def test_the_embedding_is_the_mean_over_real_points(version: dict[str, Any]) -> None:
    out = run(model(version), make_windows([9, 5], 9))
    torch.testing.assert_close(out.embedding[1], out.sequence[1, :5].mean(0))


@VERSIONS
def test_every_parameter_learns(version: dict[str, Any]) -> None:
    m = model(version).train()
    out = run(m, make_windows([20, 14], 20))
    (out.reconstruction.square().sum() + out.embedding.square().sum()).backward()
    dead = [name for name, p in m.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A key's bias adds the same number to all logits of a query, which does not change the softmax.
    assert [name for name in dead if not name.endswith("key.bias")] == []


def changed(m: ReferenceAstromer, w: Windows, **new: Tensor) -> Tensor:
    """The change of the reconstruction with new inputs, point by point."""
    before = m(w.time, w.mag, w.err, hidden=w.hidden, centered=True).reconstruction
    return (m(**{**w._asdict(), **new}, centered=True).reconstruction - before).abs()


def test_version_2_sees_neither_hidden_magnitudes_nor_hidden_points_as_keys() -> None:
    w = make_windows([20], 20)
    arguments = w._replace(lengths=None, mask=None)
    other = torch.where(w.hidden, w.mag + 1, w.mag)
    assert changed(model(V2), arguments, mag=other).max() == 0
    moved = changed(model(V2), arguments, time=torch.where(w.hidden, w.time + 1, w.time))
    assert moved[~w.hidden].max() == 0
    assert moved[w.hidden].min() > 0  # each hidden point still has its own time


def test_version_1_leaks_hidden_magnitudes() -> None:
    """The original code has this leak, which evaluation must avoid; `hidden_magnitude: zero` closes it."""
    w = make_windows([20], 20)._replace(lengths=None, mask=None)
    other = torch.where(w.hidden, w.mag + 1, w.mag)
    assert changed(model(V1), w, mag=other).min() > 0
    assert changed(model(V1, hidden_magnitude="zero"), w, mag=other).max() == 0


def test_the_token_stands_for_hidden_magnitudes() -> None:
    w = make_windows([20], 20)
    m = model(V2)
    assert m.mask_token is not None
    shown = model(V2, hidden_magnitude="shown")
    shown.load_state_dict({key: value for key, value in m.state_dict().items() if key != "mask_token"})
    by_hand = torch.where(w.hidden, m.mask_token, w.mag)
    expected = shown(w.time, by_hand, w.err, hidden=w.hidden, centered=True)
    got = m(w.time, w.mag, w.err, hidden=w.hidden, centered=True)
    torch.testing.assert_close(got.reconstruction, expected.reconstruction)


def test_raw_values_are_centred_in_float64() -> None:
    w = make_windows([30, 12], 30)
    m = model(V2).float()
    shifted = w._replace(time=w.time + 2_400_000.5, mag=w.mag - 5)
    torch.testing.assert_close(run(m, w).embedding, run(m, shifted).embedding, rtol=1e-5, atol=1e-5)


def test_messages_name_the_model() -> None:
    with pytest.raises(ValueError, match=r"^Astromer: mag must have time's shape \(2, 4\)"):
        model(V2)(torch.zeros(2, 4), torch.zeros(2, 5), torch.zeros(2, 4))


@pytest.mark.slow
@VERSIONS
def test_compiles_as_one_graph(version: dict[str, Any]) -> None:
    m = model(version)
    w = make_windows([12, 7, 0], 12)
    got = torch.compile(m, fullgraph=True)(w.time, w.mag, w.err, w.mask, hidden=w.hidden)
    for a, b in zip(got, run(m, w), strict=True):
        torch.testing.assert_close(a, b)
