"""Bad input, and numbers that are not finite: all ranks soon exit with the same status, and rank 0 prints one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from astroco_fast import ops
from astroco_fast.data.convert import convert
from astroco_fast.errors import UserError
from astroco_fast.pretrain.step import Trainer
from tests.pretrain.patches import command, evaluations, not_finite_at, pretend_gpus, this_rank
from tests.pretrain.processes import Ended, on_ranks
from tests.pretrain.test_resume import expected, outcome, unbroken

__all__ = ["unbroken"]  # a fixture


def one_line(ended: list[Ended], code: int) -> str:
    """The line that rank 0 printed, after asserting that all ranks exited with this code and the others were silent."""
    assert [rank.code for rank in ended] == [code] * len(ended), ended[0].err + ended[-1].err
    assert all(rank.err == "" and rank.out == "" for rank in ended[1:])
    lines = ended[0].err.strip().splitlines()
    assert len(lines) == 1, ended[0].err
    return lines[0]


def missing(argv: list[str], tmp_path: Path) -> list[str]:
    return [*argv, "--data", str(tmp_path / "nowhere.csv")]


def empty(argv: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "empty.csv").write_text("")
    return [*argv, "--data", str(tmp_path / "empty.csv")]


def unknown_columns(argv: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    return [*argv, "--data", str(tmp_path / "odd.csv")]


def changed_store(argv: list[str], tmp_path: Path) -> list[str]:
    path = Path(argv[argv.index("--data") + 1])
    shutil.copytree(path, tmp_path / "changed")
    file = tmp_path / "changed" / "mag.f32"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    return [*argv, "--data", str(tmp_path / "changed")]


def unknown_key(argv: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "config.yaml").write_text("train:\n  epoch: 3\n")
    return [*argv, "--config", str(tmp_path / "config.yaml")]


def wrong_type(argv: list[str], tmp_path: Path) -> list[str]:
    return [*argv, "--train.global_batch", "many"]


def out_of_range(argv: list[str], tmp_path: Path) -> list[str]:
    return [*argv, "--train.patience", "0"]


def unknown_preset(argv: list[str], tmp_path: Path) -> list[str]:
    return [*argv, "--preset", "XL"]


def unknown_model_field(argv: list[str], tmp_path: Path) -> list[str]:
    return [*argv, "--model.depth", "3"]


def absent_band(argv: list[str], tmp_path: Path) -> list[str]:
    return [*argv, "--band", "Z"]


def no_room(argv: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "file").write_text("")
    return [*argv, "--out", str(tmp_path / "file" / "run")]


CASES = [
    (missing, "nowhere.csv"),
    (empty, "empty.csv"),
    (unknown_columns, "tried: mjd"),
    (changed_store, "mag.f32"),
    (unknown_key, "epoch"),
    (wrong_type, "global_batch"),
    (out_of_range, "train.patience must be at least 1"),
    (unknown_preset, "XL"),
    (unknown_model_field, "depth"),
    (absent_band, "'Z'"),
    (no_room, "file"),
]


def choose_backend(name: str) -> None:
    """Choose a backend as `ASTROCO_BACKEND` does."""
    ops._choice = name


def own_mistake(count: int, rank: int) -> None:
    """Raise a `UserError` in the count-th forward pass of one rank; the others go on to the next collective."""
    original, left = Trainer.forward_backward, [count]

    def replacement(self: Trainer, *args: Any, **keywords: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and this_rank() == rank:
            raise UserError("only mine")
        return original(self, *args, **keywords)

    Trainer.forward_backward = replacement  # type: ignore[method-assign]


@pytest.mark.parametrize(("spoil", "words"), CASES, ids=[case[0].__name__ for case in CASES])
def test_bad_input_ends_all_ranks(spoil, words, arguments, tmp_path):
    argv = spoil([*arguments, "--out", str(tmp_path / "run")], tmp_path)
    line = one_line(on_ranks(2, command, argv, tmp_path=tmp_path), 2)
    assert line.startswith("astroco: error: ")
    assert words in line


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_mistake_that_one_rank_alone_makes(rank, arguments, tmp_path):
    """The message names the rank, and the rank does not wait for the others."""
    argv = [*arguments, "--out", str(tmp_path / "run")]
    ended = on_ranks(2, command, argv, (own_mistake, (3, rank)), tmp_path=tmp_path)
    assert ended[rank].code == 2
    assert ended[rank].err == f"astroco: error: rank {rank} of 2: only mine\n"
    assert ended[1 - rank].code == 1


def test_an_unknown_backend_is_told_once(arguments, tmp_path):
    argv = [*arguments, "--out", str(tmp_path / "run")]
    line = one_line(on_ranks(2, command, argv, (choose_backend, ("nope",)), tmp_path=tmp_path), 2)
    assert "nope" in line


def test_other_settings_are_named(arguments, tmp_path):
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.max_steps", "1"]
    assert [rank.code for rank in on_ranks(None, command, argv, tmp_path=tmp_path)] == [0]
    changed = [*argv, "--train.weight_decay", "0.5", "--model.dropout", "0.3", "--train.patience", "7"]
    line = one_line(on_ranks(2, command, changed, tmp_path=tmp_path), 2)
    assert "model.dropout, train.weight_decay" in line
    assert "patience" not in line


def test_other_data_are_noticed(arguments, tmp_path):
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.max_steps", "1"]
    assert [rank.code for rank in on_ranks(None, command, argv, tmp_path=tmp_path)] == [0]
    table = "id,mjd,mag,err\n" + "".join(f"s{i // 20},{i},1{i % 7},0.1\n" for i in range(2000))
    (tmp_path / "other.csv").write_text(table)
    line = one_line(on_ranks(2, command, [*argv, "--data", str(tmp_path / "other.csv")], tmp_path=tmp_path), 2)
    assert "other settings (data)" in line
    convert(tmp_path / "other.csv", tmp_path / "other")
    line = one_line(on_ranks(2, command, [*argv, "--data", str(tmp_path / "other")], tmp_path=tmp_path), 2)
    assert "not the light curves" in line


def test_a_store_may_move(arguments, store, tmp_path):
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.max_steps", "1"]
    assert [rank.code for rank in on_ranks(None, command, argv, tmp_path=tmp_path)] == [0]
    shutil.copytree(store, tmp_path / "moved")
    moved = [*argv, "--data", str(tmp_path / "moved"), "--train.max_steps", "2"]
    assert [rank.code for rank in on_ranks(None, command, moved, tmp_path=tmp_path)] == [0]


def test_a_run_keeps_the_store_that_it_made(arguments, tmp_path):
    """The run goes on with its first light curves, even if the input file has changed or is gone."""
    table = "id,mjd,mag,err\n" + "".join(f"s{i // 20},{i},1{i % 7},0.1\n" for i in range(2000))
    (tmp_path / "survey.csv").write_text(table)
    argv = [*arguments, "--data", str(tmp_path / "survey.csv"), "--out", str(tmp_path / "run"), "--train.max_steps"]
    (ended,) = on_ranks(None, command, [*argv, "1"], tmp_path=tmp_path)
    assert ended.code == 0, ended.err
    assert "kept" in ended.out  # the report of the conversion
    (tmp_path / "survey.csv").unlink()
    (again,) = on_ranks(None, command, [*argv, "2"], tmp_path=tmp_path)
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("what", "world"),
    [
        ("loss", 2),
        ("gradient", None),
        pytest.param("loss", None, marks=pytest.mark.slow),
        pytest.param("gradient", 2, marks=pytest.mark.slow),
    ],
)
def test_a_step_that_is_not_finite_is_skipped_everywhere(what, world, arguments, tmp_path):
    out, last = tmp_path / "run", (world or 1) - 1
    argv = [*arguments, "--out", str(out)]
    ended = on_ranks(world, command, argv, (not_finite_at, ((2,), last, what)), tmp_path=tmp_path)
    assert [rank.code for rank in ended] == [0] * (world or 1), ended[0].err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (skipped,) = [line for line in lines if line["split"] == "skipped"]
    assert skipped["step"] == 3
    assert len(skipped["windows"]) == len(skipped["curves"]) == 40
    assert (len(skipped["suspects"]) > 0) == (what == "loss")
    assert set(skipped["suspects"]) <= set(skipped["windows"])
    assert [line["skipped"] for line in lines if line["split"] == "train"][:2] == [0, 1]
    assert all(line["loss"] == line["loss"] for line in lines if line["split"] != "skipped")
    assert json.loads((out / "summary.json").read_text())["skipped_steps"] == 1


def test_a_skipped_step_leaves_no_trace(arguments, unbroken, tmp_path):
    """Skipping the run's last step leaves weights, optimiser and running statistics as they were before it."""
    argv = [*arguments, "--train.max_steps", "5"]
    on_ranks(2, command, [*argv, "--out", str(tmp_path / "a")], (not_finite_at, ((4,), 1)), tmp_path=tmp_path)
    argv[argv.index("--train.max_steps") + 1] = "4"
    on_ranks(2, command, [*argv, "--out", str(tmp_path / "b")], tmp_path=tmp_path)
    skipped, before = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    for file in ("last/model.safetensors", "last/optimizer.safetensors"):
        assert skipped[file] == before[file]


@pytest.mark.parametrize("world", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_many_in_a_row_are_a_divergence(world, arguments, tmp_path):
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.max_bad_steps", "3"]
    accident = (not_finite_at, ((1, 3, 4, 5), (world or 1) - 1))
    ended = on_ranks(world, command, argv, accident, tmp_path=tmp_path)
    line = one_line(ended, 3)
    assert "3 steps in a row" in line
    assert "step 6" in line
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "skipped"][-1]
    assert f"windows {last['windows'][0]} ({last['curves'][0]})" in line
    assert f"not finite by themselves: windows {last['suspects'][0]} " in line


def test_a_run_that_learnt_nothing_is_not_finished(arguments, tmp_path):
    """Neither by its exit status nor by what it says, whether it ends or is started again."""
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.max_steps", "2"]
    for steps in ((0, 1), ()):
        (ended,) = on_ranks(None, command, argv, (not_finite_at, (steps, 0)), tmp_path=tmp_path)
        assert ended.code == 3, ended.err
        assert "no step was applied, and 2 of 2 steps were skipped" in ended.err
        assert "Finished" not in ended.out
    (partly,) = on_ranks(
        None, command, [*argv, "--out", str(tmp_path / "partly")], (not_finite_at, ((1,), 0)), tmp_path=tmp_path
    )
    assert partly.code == 0, partly.err
    assert "1 of 2 steps were skipped, since they were not finite" in partly.out


def test_a_run_without_a_finite_evaluation_names_no_best_model(arguments, tmp_path):
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.max_steps", "2"]
    (ended,) = on_ranks(None, command, argv, (evaluations, ([float("nan")],)), tmp_path=tmp_path)
    assert ended.code == 3, ended.err
    assert "no evaluation was finite" in ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["best"], summary["best_checkpoint"]) == (None, None)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_ranks_than_gpus(device, arguments, tmp_path):
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.device", device]
    line = one_line(on_ranks(2, command, argv, (pretend_gpus, (1,)), tmp_path=tmp_path), 2)
    assert "2 ranks but 1 GPU(s)" in line
    assert "--nproc_per_node 1" in line


def test_no_gpu(arguments, tmp_path):
    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.device", "cuda"]
    assert "no GPU" in one_line(on_ranks(2, command, argv, (pretend_gpus, (0,)), tmp_path=tmp_path), 2)


def test_config_yaml_repeats_the_run(arguments, unbroken, tmp_path):
    expected(unbroken, None, arguments, tmp_path)
    config = yaml.safe_load((tmp_path / "unbroken" / "config.yaml").read_text())
    assert config["train"]["learning_rate"] == 1e-3
    again = ["--config", str(tmp_path / "unbroken" / "config.yaml"), "--out", str(tmp_path / "again")]
    assert [rank.code for rank in on_ranks(None, command, again, tmp_path=tmp_path)] == [0]
    assert outcome(tmp_path / "again") == expected(unbroken, None, arguments, tmp_path)
