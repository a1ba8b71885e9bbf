"""Overhead of a training step of AstroCo-S besides model and optimiser: data, masks, metrics, logging.

pytest bench/bench_pretrain.py --benchmark-only -s

The real loop runs under cProfile. Everything in a step outside of forward and backward passes and the optimiser counts
as overhead, and so does all processor time of the thread that assembles windows, although it runs beside them. It uses
the real light curves if they lie beside the checkout, else a simulated survey.
"""

from __future__ import annotations

import cProfile
import json
import pstats

from astroco_fast.pretrain import main

STEPS, WINDOWS = 6, 64  # a quarter of the usual batch, so that fixed costs of a step count four times as much
TARGET = 0.03


def cumulative(stats: pstats.Stats, file: str, function: str) -> float:
    """Seconds spent in a function and in everything that it calls."""
    found = [entry[3] for (path, _, name), entry in stats.stats.items() if name == function and path.endswith(file)]
    assert len(found) == 1, f"{function} of {file} is not where the profile looks for it"
    return found[0]


def test_overhead(benchmark, store_folder, tmp_path):
    """The overhead is under 3 % of a step."""
    out = tmp_path / "run"
    steps = {"max_steps": STEPS, "log_every": 1, "global_batch": WINDOWS, "evaluate_windows": 1, "plots": "false"}
    flags = [text for name, value in steps.items() for text in (f"--train.{name}", str(value))]
    profile = cProfile.Profile()
    argv = ["--preset", "S", "--data", str(store_folder), "--out", str(out), "--train.device", "cpu", *flags]
    assert benchmark.pedantic(lambda: profile.runcall(main, argv), rounds=1) == 0
    stats = pstats.Stats(profile)
    parts = {
        "forward and backward": cumulative(stats, "pretrain/step.py", "forward_backward"),
        "optimiser": cumulative(stats, "pretrain/loop.py", "update"),
    }
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    step = sum(WINDOWS / line["windows_per_s"] for line in train)  # without evaluations and checkpoints
    assembly = sum(line["share_assembly"] for line in train) / len(train)
    parts |= {"the rest of the step": step - sum(parts.values()), "assembly (a thread)": assembly * step}
    print(f"\nAstroCo-S, {STEPS} steps of {WINDOWS} windows, {step / STEPS:.2f} s a step")
    for name, seconds in parts.items():
        print(f"  {name:<24}{1e3 * seconds / STEPS:10.2f} ms{100 * seconds / step:9.3f} %")
    overhead = (parts["the rest of the step"] + parts["assembly (a thread)"]) / step
    benchmark.extra_info["overhead"] = overhead
    assert overhead < TARGET
