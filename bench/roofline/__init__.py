"""What AstroCo moves, launches and computes: eager, by Inductor's schedule and by this project's kernels, *modelled*.

python -m bench.roofline --preset L --batch 256

No GPU is needed, and nothing is measured: the real code runs on tensors without data, and every op is counted.
"""
