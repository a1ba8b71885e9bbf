"""The Triton backend: fused kernels for CUDA and ROCm GPUs.

A file named after an op joins the kernels of the other files to that op's forward and backward pass. Importing this
package does not import triton: the ops' modules are imported when the first of them runs.
"""

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from astroco_fast.kernels.backend import Backend
from astroco_fast.kernels.fitness import Limits, short, unfit
from astroco_fast.reference.layout import Layout

# Tests set it: the CPU then counts as a GPU, through Triton's interpreter (TRITON_INTERPRET=1). Much too slow for use.
interpreting = False

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Below 64 channels most lanes of a tile are idle; above 512 a tile of whole rows does not fit a block's registers.
# PyTorch's fused attention takes heads of at most 256.
LIMITS = Limits(widths=(64, 512), head_size=256, taps=(2, 128))

# Looked up once: the search through sys.path is slow, and torch.compile cannot trace it.
_installed = find_spec("triton") is not None


class Triton(Backend):
    """The kernels in this folder."""

    name = "triton"
    package = __name__

    def refusal(
        self, op: str, device: torch.device, dtype: torch.dtype, training: bool, module: nn.Module | None
    ) -> str | None:
        if device.type not in ("cuda", "meta") and not (device.type == "cpu" and interpreting):
            return "needs a CUDA or ROCm GPU"
        if not _installed:
            return "triton is not installed; pip install 'astroco_fast[triton]'"
        if dtype not in DTYPES:
            return f"no kernels for {short(dtype)}"
        return None if module is None else unfit(op, module, device, LIMITS)

    def versions(self) -> tuple[str, ...]:
        import triton

        from astroco_fast.kernels.triton.feed_forward import KEEP

        return f"triton {triton.__version__}", f"keep {int(KEEP)}"

    def dropout_mask(self, layout: Layout, salt: int, p: float, width: int) -> Tensor:
        from astroco_fast.kernels.triton.dropout import dropout_mask

        return dropout_mask(layout.seed(), salt, p, layout.rows, width)
