"""Who is how fast, on this machine: `pytest bench --benchmark-only`, then `python -m bench.report`."""
