"""Fused kernels, a folder a backend. None is shipped yet: `astroco_fast.ops` runs the reference."""
