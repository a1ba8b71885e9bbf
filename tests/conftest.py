"""Settings that must stand before anything is imported."""

import os

import torch

# Without a GPU, kernels run in Triton's interpreter; triton reads this once, when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
