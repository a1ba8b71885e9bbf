"""Fused kernels: a folder for each backend (`triton` for GPUs, `cpu` for CPUs), and modules that the backends share."""

# In a checkout's root, `import kernels` would load a second copy, whose ops PyTorch's registry would refuse.
if __name__ != "astroco_fast.kernels":
    raise ImportError(f"{__name__} is a folder of the package astroco_fast: import astroco_fast.kernels instead")
