"""The part of `mix_pool` that the backends share."""

from torch import Tensor


def logits_gradient(logits: Tensor, dots: Tensor) -> Tensor:
    """The gradient of the logits, (L + 1,), from each state's product with the mix's gradient, (B, L + 1) float64."""
    weights, sums = logits.double().softmax(0), dots.sum(0)
    return (weights * (sums - (weights * sums).sum())).to(logits.dtype)
