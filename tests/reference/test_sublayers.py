"""Each sublayer, compared with a slow, independent implementation of the paper."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from astroco_fast import Layout
from astroco_fast.reference.sublayers import (
    Attention,
    Convolution,
    FeedForward,
    InputEmbed,
    LastLayer,
    LayerMix,
    PlainFeedForward,
)

D = 8


def full(batch: int, length: int) -> Layout:
    return Layout.packed(torch.full((batch,), length), length)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolution_reaches_16_left_and_15_right() -> None:
    conv = Convolution(1, 32, 0.0)
    conv.depthwise.data = torch.arange(1.0, 33.0)[None]  # tap k is k + 1
    impulse = torch.zeros(1, 100, 1)
    impulse[0, 50] = 1.0
    out = conv.convolve(impulse)[0, :, 0]
    reached = out.nonzero().squeeze(1)
    # Y[t] = sum_k W[k] X[t + k - 16]: the point at 50 is seen from 35 (its 15 right) to 66 (its 16 left).
    assert (reached.min().item(), reached.max().item()) == (50 - 15, 50 + 16)
    assert out[66].item() == 1.0  # k = 0 looks 16 to the left
    assert out[35].item() == 32.0  # k = 31 looks 15 to the right
    assert not torch.equal(out, F.conv1d(impulse.mT, conv.depthwise[:, None], padding="same")[0, 0])


@pytest.mark.parametrize("length", [1, 31, 32, 33])
@pytest.mark.parametrize("kernel", [2, 5, 32])
def test_convolution_is_the_sum_it_says(length: int, kernel: int) -> None:
    conv = Convolution(D, kernel, 0.0).double()
    x = torch.randn(2, length, D, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for t in range(length):
        for k in range(kernel):
            if 0 <= t + k - kernel // 2 < length:
                expected[:, t] += conv.depthwise[:, k] * x[:, t + k - kernel // 2]
    torch.testing.assert_close(conv.convolve(x), expected)


def test_convolutional_sublayer_step_by_step() -> None:
    conv, layout = Convolution(D, 4, 0.0).double(), full(2, 9)
    x = torch.randn(18, D, dtype=torch.float64)
    both = conv.pointwise_in(F.layer_norm(x, (D,), conv.norm_in.weight, conv.norm_in.bias))
    value, gate = both[:, :D], both[:, D:]  # the first half is the value, the second its gate
    convolved = conv.convolve((value * torch.sigmoid(gate)).view(2, 9, D)).reshape(18, D)
    normal = F.batch_norm(convolved, None, None, training=True)
    out = x + conv.pointwise_out(normal * torch.sigmoid(normal))
    torch.testing.assert_close(conv(x, layout), conv.norm_out(out))


def test_depthwise_has_no_bias_and_linear_layers_do() -> None:
    names = dict(Convolution(D, 4, 0.0).named_parameters())
    assert names["depthwise"].shape == (D, 4)
    assert {"pointwise_in.bias", "pointwise_out.bias"} <= set(names)
    assert not [name for name in names if name.startswith("depthwise.")]


def test_feed_forward_gates_an_exact_gelu() -> None:
    ffn = FeedForward(D, 4, 0.0).double()
    x = 3 * torch.randn(5, D, dtype=torch.float64)
    v, g = ffn.w_val(x), ffn.w_gate(x)
    gelu = torch.tensor([[0.5 * e * (1 + math.erf(e / math.sqrt(2))) for e in row] for row in v.tolist()]).double()
    expected = ffn.norm(x + ffn.w_out(gelu / (1 + torch.exp(-g))))
    torch.testing.assert_close(ffn(x, full(1, 5)), expected)
    approximate = ffn.norm(x + ffn.w_out(F.gelu(v, approximate="tanh") * torch.sigmoid(g)))
    assert (approximate - expected).abs().max() > 1e-6  # so the test distinguishes the two
    assert set(ffn.state_dict()) == {
        f"{n}.{p}" for n in ("w_val", "w_gate", "w_out", "norm") for p in ("weight", "bias")
    }


def test_plain_feed_forward() -> None:
    ffn = PlainFeedForward(D, 4, 0.0).double()
    x = torch.randn(5, D, dtype=torch.float64)
    torch.testing.assert_close(ffn(x, full(1, 5)), ffn.norm(x + ffn.w_out(F.gelu(ffn.w_in(x)))))


def test_attention_equals_torch_multihead_attention() -> None:
    ours, theirs = Attention(D, 2, 0.0).double(), nn.MultiheadAttention(D, 2, batch_first=True, dtype=torch.float64)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    layout = Layout.packed(torch.tensor([6, 3]), 6, capacity=9)
    windows = torch.randn(2, 6, D, dtype=torch.float64)
    attended, _ = theirs(windows, windows, windows, key_padding_mask=~layout.positions)
    x = layout.unpad(windows)
    torch.testing.assert_close(ours(x, layout), ours.norm(x + layout.unpad(attended)))


def test_input_embedding_step_by_step() -> None:
    embed = InputEmbed(D, 10000.0, ("magnitude", "time")).double()
    time, mag, err = (torch.randn(5, dtype=torch.float64) for _ in range(3))
    time = 300 * time
    hidden = torch.tensor([False, True, False, False, True])
    out = embed(time, mag, err, hidden, full(1, 5))
    for i in range(5):
        t, m = (0.0, 0.0) if hidden[i] else (time[i].item(), mag[i].item())  # the uncertainty stays
        angles = [t * 10000.0 ** (-2 * k / (D // 2)) for k in range(D // 4)]
        sinusoids = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        photometry = embed.photometry(torch.tensor([m, err[i].item()], dtype=torch.float64))
        x = torch.cat([photometry, torch.tensor(sinusoids, dtype=torch.float64)])
        torch.testing.assert_close(out[i], embed.norm(F.gelu(embed.fuse(x))))


@pytest.mark.parametrize(
    ("hide", "blind_to"),
    [(("magnitude",), "magnitude"), (("time",), "time"), (("magnitude", "time", "uncertainty"), "uncertainty")],
)
def test_hidden_fields_are_hidden_and_the_others_seen(hide: tuple[str, ...], blind_to: str) -> None:
    embed = InputEmbed(D, 10000.0, hide)
    values = {name: torch.randn(4) for name in ("time", "magnitude", "uncertainty")}
    everything = torch.ones(4, dtype=torch.bool)
    before = embed(*values.values(), everything, full(1, 4))
    for name in values:
        changed = {**values, name: values[name] + 1}
        after = embed(*changed.values(), everything, full(1, 4))
        assert torch.equal(before, after) == (name in hide), name
    assert blind_to in hide


def test_layer_mix_is_a_softmax_over_input_and_layers() -> None:
    mix, layout = LayerMix(2), Layout.packed(torch.tensor([3, 0, 1]), 3, capacity=4)
    states = [torch.randn(4, D) for _ in range(3)]
    sequence, pooled = mix(iter(states), layout)
    torch.testing.assert_close(sequence, (states[0] + states[1] + states[2]) / 3)  # uniform at the start
    mix.logits.data = torch.tensor([0.0, 1.0, 2.0])
    sequence, pooled = mix(iter(states), layout)
    total = 1 + math.e + math.e**2
    torch.testing.assert_close(sequence, (states[0] + math.e * states[1] + math.e**2 * states[2]) / total)
    torch.testing.assert_close(pooled, torch.stack([sequence[:3].mean(0), torch.zeros(D), sequence[3]]))
    with pytest.raises(ValueError, match="zip"):
        mix(iter(states[:2]), layout)


def test_last_layer_takes_the_last() -> None:
    layout = full(1, 4)
    states = [torch.randn(4, D) for _ in range(3)]
    sequence, pooled = LastLayer()(iter(states), layout)
    assert torch.equal(sequence, states[2])
    torch.testing.assert_close(pooled[0], states[2].mean(0))
