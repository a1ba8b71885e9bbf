"""The same settings on the same machine give the same bits."""

import numpy as np
import pytest

import astroco_fast as af
from tests.pretrain.patches import command
from tests.pretrain.processes import on_ranks
from tests.pretrain.test_resume import outcome

CURVES = [np.column_stack([np.arange(n) * 1.37, np.sin(np.arange(n)), np.full(n, 0.02)]) for n in (9, 24, 70)]


@pytest.mark.parametrize("world", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_of_the_same_seed_has_the_same_bits(world, arguments, tmp_path):
    found = []
    for name in ("once", "twice"):
        argv = [*arguments, "--seed", "5", "--out", str(tmp_path / name)]
        assert {rank.code for rank in on_ranks(world, command, argv, tmp_path=tmp_path)} == {0}
        vectors = af.load(tmp_path / name / "checkpoints" / "best").embed(CURVES)
        found.append({**outcome(tmp_path / name), "vectors": vectors.tobytes()})
    assert found[0] == found[1]


def test_another_seed_gives_others(arguments, tmp_path):
    found = []
    for seed in ("5", "6"):
        argv = [*arguments, "--train.max_steps", "1", "--seed", seed, "--out", str(tmp_path / seed)]
        assert on_ranks(None, command, argv, tmp_path=tmp_path)[0].code == 0
        found.append(outcome(tmp_path / seed))
    assert found[0]["last/model.safetensors"] != found[1]["last/model.safetensors"]
