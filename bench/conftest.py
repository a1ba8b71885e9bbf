"""Shared parts of the suite: `--full`, the machine in the saved JSON, the summary at the end, and fixtures."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from astroco_fast.data.convert import convert
from astroco_fast.data.simulate import simulate_survey
from bench.measuring import device, environment, gemm_peak
from bench.providers import DTYPES, providers

CATALINA = Path(__file__).resolve().parents[2] / "shared" / "data" / "catalina.parquet"
DEFAULT_BUDGET, FULL_BUDGET = 2.0, 15.0  # seconds of interleaved rounds, for a provider


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run all benchmarks, with longer rounds: hours, and 24 GB of memory"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: runs only with --full, since it takes long or much memory")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    chosen = [item for item in items if item.get_closest_marker("full") is None]
    left = [item for item in items if item.get_closest_marker("full") is not None]
    config.stash[_LEFT] = [item.name for item in left]
    config.hook.pytest_deselected(items=left)
    items[:] = chosen


_LEFT = pytest.StashKey[list[str]]()


def pytest_report_header(config: pytest.Config) -> list[str]:
    told = environment(device())
    missing = {provider.name: provider.unavailable(device()) for provider in providers()}
    lines = [f"measured on: {told['device']}, {told['threads']} threads"]
    return lines + [f"not measured: {name}: {reason}" for name, reason in missing.items() if reason]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if left := config.stash.get(_LEFT, []):
        counts = Counter(name.partition("[")[0].removeprefix("test_") for name in left)
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        terminalreporter.write_line(
            f"--full would add {len(left)} benchmarks ({told}): training at batch 1 and 256, torch.compile of all "
            "models, ragged windows and every rival at batch 256, ops of L and ragged ones; and longer rounds"
        )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["astroco"] = {
        **environment(device()),
        "gemm_gflops": {name: gemm_peak(dtype, device()) / 1e9 for name, dtype in DTYPES.items()},
        "full": bool(config.getoption("--full")),
    }


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> float:
    """Seconds that the interleaved rounds of a provider may take."""
    return FULL_BUDGET if request.config.getoption("--full") else DEFAULT_BUDGET


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the real light curves if they lie beside the checkout, else of a simulated survey."""
    out = tmp_path_factory.mktemp("bench") / "store"
    if CATALINA.exists():
        convert(CATALINA, out)
    else:
        convert(simulate_survey(20_000, seed=0), out, provenance={"simulated": True})
    return out


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Ignore the compilers' warnings of deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
