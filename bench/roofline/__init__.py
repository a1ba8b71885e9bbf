"""A model of what AstroCo moves, launches and computes: eager PyTorch beside this project's Triton kernels.

python -m bench.roofline --preset L --batch 256

Nothing is measured, and no GPU is needed: the real code runs on tensors without data, and every op is counted.
"""
