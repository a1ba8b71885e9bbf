"""Time and memory of conversion, each run in a process of its own, so that its peak of memory is its own.

pytest bench/bench_convert.py --benchmark-only
pytest bench/bench_convert.py --benchmark-only -m slow        # 20,000 against 200,000 simulated stars
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CATALINA = ROOT.parent / "shared" / "data" / "catalina.parquet"
MB = 1024 * 1024

# Runs its first argument as a program, then prints the process's peak memory in bytes: VmHWM where it exists, since on
# Linux ru_maxrss of a new process starts from its parent's.
MEASURE = """
import sys
sys.argv = sys.argv[1:]
exec(sys.argv.pop(0))
try:
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
except FileNotFoundError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(peak)
"""
CONVERT = "from astroco_fast.convert import main; assert main(sys.argv) == 0"
SIMULATE = """
from astroco_fast.data.convert import convert
from astroco_fast.data.simulate import simulate_survey
convert(simulate_survey(int(sys.argv[0]), 0), sys.argv[1], provenance={"simulated": True})
"""


def peak_memory(program: str, *arguments: object) -> int:
    """Run a program in a new process; returns its peak resident memory in bytes."""
    words = [sys.executable, "-c", MEASURE, program, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not CATALINA.exists(), reason="the real light curves are not beside this checkout")
def test_convert_catalina(benchmark, tmp_path):
    """30,048 stars with 6.7 million points take under 30 s and 1.5 GB, the start of the process included."""
    peaks = []

    def convert():
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        peaks.append(peak_memory(CONVERT, CATALINA, tmp_path / "store"))

    benchmark.pedantic(convert, rounds=3)
    benchmark.extra_info["peak_rss_mb"] = round(max(peaks) / MB)
    assert benchmark.stats.stats.max < 30
    assert max(peaks) < 1500 * MB


@pytest.mark.slow
def test_convert_memory_does_not_grow_with_the_survey(benchmark, tmp_path):
    """Ten times the stars take the same memory, except for 8 bytes a curve to find duplicates by."""
    small = peak_memory(SIMULATE, 20_000, tmp_path / "small")
    large = benchmark.pedantic(peak_memory, args=(SIMULATE, 200_000, tmp_path / "large"), rounds=1)
    benchmark.extra_info.update(peak_rss_mb_20k=round(small / MB), peak_rss_mb_200k=round(large / MB))
    assert large < small + 50 * MB
