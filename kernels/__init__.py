"""Fused kernels, a folder a backend: `triton` for GPUs."""
