"""The doctor's report: the machine's devices and packages, and the backend that runs each op, with reasons."""

import ctypes
import platform
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from astroco_fast import diagnosis, doctor, ops, selfcheck
from astroco_fast.kernels.cpu import build
from tests.fake_backends import FAULTS, Fake, every_op, raising, sound, wrong_numbers


def test_it_tells_versions_devices_and_a_backend_for_every_op(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASTROCO_BACKEND", raising=False)
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert platform.python_version() in out
    assert torch.__version__ in out
    table = rows(out)
    assert all(set(table[op]) <= set(ops.BACKENDS) and len(table[op]) >= 2 for op in ops.OPS)


def rows(out: str) -> dict[str, list[str]]:
    """The report's lines by their first cell."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines() if line.strip()]
    return {first: others for first, *others in cells}


def test_it_says_why_a_better_backend_is_passed_over(
    fresh_selfcheck: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(op: str, device: torch.device, dtype: torch.dtype, training: bool, module: Any) -> str | None:
        return "no half precision yet" if op == "attention" and dtype is torch.bfloat16 else None

    monkeypatch.setattr(ops, "BACKENDS", {"quick": Fake("quick", refusal, **every_op()), **ops.BACKENDS})
    monkeypatch.setattr(ops, "_choice", None)
    monkeypatch.setattr(diagnosis, "PRESETS", ("tiny",))
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert rows(out)["convolution"][:2] == ["quick", "quick"]
    assert rows(out)["attention"][:2] == ["quick", "reference"]
    assert "  not quick: no half precision yet\n    on cpu bfloat16: attention\n" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_no_op_is_checked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_choice", None)
    monkeypatch.setattr(selfcheck, "rerun", raising("rerun"))
    assert doctor.main([]) == 0
    told = "  not triton: needs a CUDA or ROCm GPU\n    on cpu float32: every op\n    on cpu bfloat16: every op\n"
    assert told in capsys.readouterr().out


def test_it_runs_the_self_check_again_and_tells_what_failed(
    fresh_selfcheck: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = {**every_op(), "attention": wrong_numbers("attention"), "mix_pool": raising("mix_pool")}

    def feed_forward(module: Any, x: Any, layout: Any) -> Any:
        return FAULTS["wrong backward" if x.shape[1] == 276 else "none"]("feed_forward")(module, x, layout)

    monkeypatch.setitem(FAULTS, "none", sound)
    quick = Fake("quick", **{**functions, "feed_forward": feed_forward})
    monkeypatch.setattr(ops, "BACKENDS", {"quick": quick, **ops.BACKENDS})
    monkeypatch.setattr(ops, "_choice", None)
    monkeypatch.setattr(diagnosis, "DTYPES", (torch.float32,))
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert table["convolution"][0] == "quick"
    assert table["masked_loss"][0] == "quick"
    assert table["attention"][0] == "reference"
    assert table["mix_pool"][0] == "reference"
    assert table["feed_forward"][0] == "quick or reference"
    assert "not quick: self-check failed in tiny: output 0 is off by" in out
    assert re.search(
        "not quick: self-check failed in S: the gradient of .* in training\n    on cpu float32: feed_f", out
    )
    assert "RuntimeError: no such instruction on this GPU" in out
    assert str(fresh_selfcheck) in out
    # Verdicts cached earlier do not count, but those of this report do.
    monkeypatch.setattr(ops, "BACKENDS", {**ops.BACKENDS, "quick": Fake("quick", **every_op())})
    assert doctor.main([]) == 0
    assert rows(capsys.readouterr().out)["attention"][0] == "quick"
    assert set(selfcheck._verdicts.values()) == {None}


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
    monkeypatch.setitem(diagnosis.EXTRAS, "plots", "no-such-package")
    assert any("pip install 'astroco_fast[plots]'" in line for line in diagnosis.report())


def test_compiler_of_the_cpu_kernels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> list[str]:
        return [
            line.strip() for line in diagnosis.rows(diagnosis._devices()) if "kernels: " in line or "prebuilt" in line
        ]

    monkeypatch.setattr(ops, "_choice", None)
    monkeypatch.setattr(diagnosis.native, "missing", lambda: "no C++ compiler; apt install g++")
    assert told() == ["kernels: none: no C++ compiler; apt install g++"]
    for path, where in (
        (Path("/cache/native/x.so"), "/cache/native/x.so"),
        (None, "memory, and compiled again by every process: no space"),
    ):
        monkeypatch.setattr(diagnosis.native, "missing", lambda: None)
        library = build.Library(ctypes.CDLL(None), build.ISAS["avx2"], "g++ 12.2", "key", path, "no space", "too old")
        monkeypatch.setattr(diagnosis.native, "library", lambda library=library: library)
        assert told() == [f"kernels: for avx2, compiled here by g++ 12.2, in {where}", "not prebuilt: too old"]
    prebuilt = library._replace(path=Path("/package/avx2.so"), unused="")
    monkeypatch.setattr(diagnosis.native, "library", lambda: prebuilt)
    assert told() == ["kernels: for avx2, prebuilt by g++ 12.2, in /package/avx2.so"]
    for choice in ("reference", "triton"):
        monkeypatch.setattr(ops, "_choice", choice)
        assert told() == ["kernels: not used, since ASTROCO_BACKEND chooses another backend"]


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("flags\t\t: fpu fma avx2 avx512_bf16\nflags\t\t: fpu\n", ["avx2", "fma", "avx512_bf16"]),
        ("Features\t: asimd bf16\n", ["asimd", "bf16"]),
        ("", []),
    ],
)
def test_cpu_features_on_x86_arm_and_elsewhere(text: str, features: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.Path, "read_text", lambda self: text)
    assert diagnosis.cpu_features() == features
