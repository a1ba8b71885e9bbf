"""The watch over a command: what it counts, and that it stops a command in time."""

import json

import numpy as np

from tests.load.watch import _load, watch


def test_a_command_is_watched_and_stopped(tmp_path):
    log, samples = tmp_path / "log", tmp_path / "samples"
    load = watch(["simulate", str(tmp_path / "s.parquet"), "--stars", "1000000"], log, samples, every=0.1, limit=2.0)
    assert load.status != 0
    assert 2 < load.seconds < 60
    assert load.peak_mb > 20
    assert load.threads >= 1
    assert load.files >= 3
    assert len(json.loads(samples.read_text().splitlines()[-1])) == 5


def test_slopes_are_an_hour_and_leave_out_the_beginning():
    seconds = np.arange(0.0, 1000)
    memory = 100 + seconds / 3600 * 7 + 500 * (seconds < 150)
    taken = np.stack([seconds, memory, np.full(1000, 4.0), 10 + seconds / 3600, seconds], axis=1)
    load = _load(0, 1000.0, taken)
    assert (load.memory_slope, load.thread_slope, load.file_slope) == (7.0, 0.0, 1.0)
    assert (load.threads, load.files, load.processor_seconds) == (4, 10, 999.0)
    assert load.peak_mb == 600
