"""AstroCo in plain PyTorch: the truth that every kernel is checked against."""
