"""The CPU backend: C++ kernels, which the package brings compiled, or the system's compiler compiles at first use."""

import torch
from torch import Tensor, nn

from astroco_fast.kernels.backend import OPS, Backend, constant_while_tracing
from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.fitness import Limits, short, unfit
from astroco_fast.kernels.int8 import OPS as INT8_OPS
from astroco_fast.reference.layout import Layout

DTYPES = (torch.float32, torch.bfloat16)
LIMITS = Limits(widths=(16, 1024), head_size=256, taps=(1, 128))


class Cpu(Backend):
    """The kernels in this folder. The first question about the CPU loads or compiles them."""

    name = "cpu"
    package = __name__
    ops = tuple(op for op in OPS if op != "masked_loss")  # too little work to be worth a kernel

    def refusal(
        self, op: str, device: torch.device, dtype: torch.dtype, training: bool, module: nn.Module | None
    ) -> str | None:
        if device.type != "cpu":
            return "runs on the CPU only"
        if dtype not in (*DTYPES, torch.int8):
            return f"no kernels for {short(dtype)}"
        if dtype is torch.int8 and (op not in INT8_OPS or training):
            return "int8 is for inference: call model.eval()" if training else f"no kernels for {op} in int8"
        if module is not None and (reason := unfit(op, module, device, LIMITS)) is not None:
            return reason
        return lacking(dtype)

    def versions(self) -> tuple[str, ...]:
        library = native.library()
        return library.compiler, library.isa.name, f"library {library.key}"

    def dropout_mask(self, layout: Layout, salt: int, p: float, width: int) -> Tensor:
        from astroco_fast.kernels.cpu.dropout import cpu_dropout_mask

        return cpu_dropout_mask(layout.seed(), salt, p, layout.rows, width)


@constant_while_tracing
def lacking(dtype: torch.dtype) -> str | None:
    """The reason why this machine cannot run kernels in `dtype`; None: it can."""
    if (reason := native.missing()) is not None:
        return reason
    # Without dot products of bfloat16 numbers plain PyTorch is as fast.
    flags = native.library().isa.flags
    if dtype is torch.bfloat16 and "-mavx512bf16" not in flags:
        return "bfloat16 needs a CPU with AVX512-BF16"
    if dtype is torch.int8 and not {"-mavx512vnni", "-mavx512bf16"} <= set(flags):
        return "int8 needs a CPU with AVX512-VNNI and AVX512-BF16"
    return None
