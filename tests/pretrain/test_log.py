"""Metrics, progress and TensorBoard."""

import json

import pytest

from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.pretrain.log import Console, Log, MetricsFile
from tests.pretrain.patches import command
from tests.pretrain.processes import on_ranks

TRAIN = {"step": 1, "epoch": 1, "split": "train", "loss": 0.5, "windows_per_s": 3.0}


def test_metrics_go_on_where_a_checkpoint_was(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.write({"step": 1})
    known = metrics.size
    metrics.write({"step": 2, "loss": float("nan")})
    metrics.close()
    again = MetricsFile(path, known)
    again.write({"step": 3})
    again.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 3}]
    assert again.size == path.stat().st_size
    with pytest.raises(UserError, match="shorter"):
        MetricsFile(path, known + 1000)


def test_metrics_are_strict_json(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write({"loss": float("nan"), "rmse": float("inf"), "step": 1})
    metrics.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"loss": None, "rmse": None, "step": 1}


def test_only_rank_0_logs(tmp_path, capsys):
    with Log(tmp_path, Console(speaks=False), 0, 0, tensorboard=True) as log:
        log.write(TRAIN)
        log.console.say("hello")
        assert log.flushed_size() == 0
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_no_progress_bar_where_there_is_no_terminal(capsys):
    console = Console(speaks=True)
    console.start(10, 0)
    console.advance()
    console.progress(TRAIN)  # too early: there is at most one line every half minute
    assert capsys.readouterr() == ("", "")


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"astroco_fast\[tensorboard\]"):
        Log(tmp_path, Console(speaks=True), 0, 0, tensorboard=True)


def test_tensorboard_gets_the_same_numbers(arguments, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = [*arguments, "--out", str(tmp_path / "run"), "--train.tensorboard", "true"]
    (ended,) = on_ranks(None, command, argv, tmp_path=tmp_path)
    assert ended.code == 0, ended.err
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for split, key in (("validation", "rmse_hidden"), ("train", "loss")):
        expected = [(line["step"], line[key]) for line in lines if line["split"] == split]
        found = [(event.step, event.value) for event in events.Scalars(f"{split}/{key}")]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])
