"""A library of a few functions that compiles in a second, to test how the kernels' library is made and called."""

import os
from pathlib import Path

import pytest
import torch

from astroco_fast.kernels.cpu import build
from astroco_fast.kernels.cpu.arguments import Kernel

SOURCE = """
#include <omp.h>
#include <unistd.h>
#include <cstdint>

#include "arguments.h"

static void sum_all(const SumArguments& a) {
  double* out = a.out;
  out[0] = double(a.threads), out[1] = a.x ? a.x[a.n] : -1, out[2] = a.y ? a.y[a.n] : -1, out[3] = double(a.n);
  out[4] = a.factor, out[5] = a.none == nullptr;
}
static void whole(const WholeArguments& a) { a.out[0] = a.one, a.out[1] = a.other; }
static void team(const TeamArguments& a) {
  int64_t all = 0;
#pragma omp parallel num_threads(a.threads) reduction(+ : all)
  all += 1;
  a.out[0] = a.threads, a.out[1] = omp_get_max_threads(), a.out[2] = all;
}
static void wait_for(const TeamArguments& a) {
  volatile int64_t* flag = a.out;
  for (int i = 0; i < 3000 && !*flag; ++i) usleep(1000);
  flag[1] = *flag;
}
#define EXPORT(name, function) \\
  extern "C" __attribute__((visibility("default"))) constexpr auto* const name = &function;
EXPORT(exported_sum, sum_all)
EXPORT(exported_whole, whole)
EXPORT(exported_team, team)
EXPORT(exported_wait, wait_for)
"""

ARGUMENTS = """
struct SumArguments {
  int64_t threads;
  double* out;
  const float* x;  // not all; of it
  const float* y;
  int64_t n;
  int64_t truth;
  double factor;
  const int64_t* none;
};

struct WholeArguments {
  int64_t threads;
  int64_t* out;
  int64_t one;
  int64_t other;
};

struct TeamArguments {
  int64_t threads;
  int64_t* out;
};
"""


def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(plan: build.Plan, scratch: Path) -> Path:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "compile", compile)


def call(name: str, **values: object) -> None:
    """Call `exported_<name>` with these arguments."""
    struct = "TeamArguments" if name == "wait" else f"{name.capitalize()}Arguments"
    Kernel(f"exported_{name}", struct, list(values))((*values.values(), torch.get_num_threads()))


def numbers(one: object, other: object) -> list[int]:
    """The two whole numbers as C++ reads them."""
    out = torch.zeros(2, dtype=torch.int64)
    call("whole", out=out, one=one, other=other)
    return out.tolist()


def given_away(path: Path) -> None:
    """Give a file or folder to another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 12345, -1)


def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str = "") -> Path:
    """Choose a compiler that writes a word to a log for each unit that it compiles; return the log's path."""
    log, script = tmp_path / "compiled", tmp_path / "counting-c++"
    monkeypatch.delenv("CXX", raising=False)
    (compiler, *_) = build.compilers()
    note = f'case "$*" in *" -c "*) echo one >> {log}; {before} ;; esac'
    script.write_text(f'#!/bin/sh\n{note}\nexec {" ".join(compiler)} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return log
