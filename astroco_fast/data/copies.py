"""Copies between the host and a GPU that let the host go on: through pinned memory, waited for when they are read."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor on the device; on the CPU it shares the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Arrivals:
    """Tensors of one device on their way to the host. A GPU's copies begin when its work so far is done."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # From a GPU, PyTorch copies to pinned memory if it is not to wait.
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        gpu = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        self._done = None if gpu is None else torch.cuda.current_stream(gpu).record_event()

    def arrays(self) -> list[NDArray[Any]]:
        """The tensors as arrays, once they have arrived."""
        if self._done is not None:
            self._done.synchronize()
        return [tensor.numpy() for tensor in self._tensors]
