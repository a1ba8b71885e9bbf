"""Products in int8 in plain PyTorch: what kernels in int8 are compared with.

A row x is rounded to q = round(x / s), s = max |x| / 127, a column of weights likewise; the product is the exact sum of
whole numbers, times both scales. This is dynamic quantisation by row and channel, as in LLM.int8() (arXiv 2208.07339,
section 2.1) without its outliers.
"""

import copy

import torch
from torch import Tensor, nn

LEVELS = 127
LEAST = 1e-30  # the largest size of a row counts as no less


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers, float64, and their scales (..., 1): rows (..., K) rounded. A row that is not finite gets NaN."""
    most = x.detach().abs().amax(-1, keepdim=True).clamp_min(LEAST)
    scale = torch.where(most.isfinite(), most / LEVELS, torch.nan)
    return (x.detach() / scale).double().round(), scale.double()


class Int8Linear(nn.Module):
    """`nn.Linear` with its product in int8; under autocast the result has autocast's dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            (q, row), (w, column) = quantised(x), quantised(self.weight)
            return (q @ w.t() * row * column.t() + self.bias).to(dtype)


def int8_of(module: nn.Module) -> nn.Module:
    """A copy of a sublayer, or of a model's sublayers, whose products with weights are in int8."""
    module = copy.deepcopy(module)
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.Linear):
                setattr(part, name, Int8Linear(child))
    return module
