"""AstroCo in plain PyTorch, the truth that every kernel is checked against, and the baselines."""

# In a checkout's root, `import reference` would load a second copy, whose modules no kernel would know.
if __name__ != "astroco_fast.reference":
    raise ImportError(f"{__name__} is a folder of the package astroco_fast: import astroco_fast.reference instead")
