"""Commands that are killed, or run out of disk, lose nothing; `python -m tests.crash` tries many more places."""

import pytest

from tests.crash import disturb
from tests.crash.__main__ import trials
from tests.crash.commands import COMMANDS, Command, make_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    ended = disturb.call(make_inputs, folder, log=folder / "log")
    assert ended.code == 0, ended.said
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_killed_and_full_lose_nothing(command: Command, inputs, tmp_path):
    outcomes = list(trials(command, inputs, points=4, sizes=3, scratch=tmp_path))
    assert {kind for kind, _ in outcomes} == ({"killed", "no room"} if command.ranks == 1 else {"killed"})
    assert [loss for _, loss in outcomes if loss] == []
