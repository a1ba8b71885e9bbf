"""The doctor's report: this machine's parts, and which op runs where and why."""

import platform
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from astroco_fast import doctor, ops


def test_it_tells_versions_devices_and_a_backend_for_every_op(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASTROCO_BACKEND", raising=False)
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert platform.python_version() in out
    assert torch.__version__ in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert all(set(rows[op]) <= set(ops.BACKENDS) and len(rows[op]) >= 2 for op in ops.OPS)


def test_it_says_why_a_better_backend_is_passed_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(
        op: str, device: torch.device, dtype: torch.dtype, training: bool, module: Any = None
    ) -> str | None:
        return "no half precision yet" if op == "attention" and dtype is torch.bfloat16 else None

    quick = {"quick": SimpleNamespace(unsupported=unsupported), **ops.BACKENDS}
    monkeypatch.setattr(ops, "BACKENDS", quick)
    monkeypatch.setattr(ops, "_choice", None)
    assert doctor.main([]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "convolution quick quick" in [line[:23] for line in lines]
    assert any(line.startswith("attention quick reference") for line in lines)
    assert "attention on cpu bfloat16 not by quick no half precision yet" in lines


def test_a_wrong_backend_in_the_environment_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_choice", "warp")
    assert doctor.main([]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert "'warp'" in line


def test_an_absent_extra_comes_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "plots", "no-such-package")
    assert any("pip install 'astroco_fast[plots]'" in line for line in doctor.report())


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("flags\t\t: fpu fma avx2 avx512_bf16\nflags\t\t: fpu\n", ["avx2", "fma", "avx512_bf16"]),
        ("Features\t: asimd bf16\n", ["asimd", "bf16"]),
        ("", []),
    ],
)
def test_cpu_features_on_x86_arm_and_elsewhere(text: str, features: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.Path, "read_text", lambda self: text)
    assert doctor.cpu_features() == features
