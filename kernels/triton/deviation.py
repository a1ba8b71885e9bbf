"""LayerNorm's scale of a row, for every kernel that computes one."""

import triton
import triton.language as tl


@triton.jit
def reciprocal_deviations(squares, D: tl.constexpr, eps):
    """1 / sqrt(variance + eps) of rows, from the sums of their squares about the mean; NaN where those overflow."""
    variances = squares / D
    # The last term is zero or NaN: 1 / sqrt(inf) = 0 alone would give finite, wrong rows.
    return 1.0 / tl.sqrt_rn(variances + eps) + (variances - variances)
