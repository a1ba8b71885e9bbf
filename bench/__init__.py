"""Benchmark suite for speed and memory: `pytest bench --benchmark-only`, then `python -m bench.report`."""
