"""Fused kernels, a folder a backend: `triton` for GPUs, `cpu` for CPUs; what they share lies here."""
