"""`astroco embed` after a kill, in shares and in ranks."""

import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import astroco_fast as af
from astroco_fast import embedding
from astroco_fast.data.curves import CurveBatch
from tests.embedding.curves import command


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PIECE_CURVES", 2)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows in the process counts."""


def killed_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Let the command end once it has embedded this many pieces in this process."""
    whole, made = embedding.embed_curves, []

    def embed_curves(model: af.AstroCo, raw: CurveBatch, choice: embedding.Choice) -> object:
        if len(raw) and len(made) == parts:
            raise Killed
        made.append(raw)
        return whole(model, raw, choice)

    monkeypatch.setattr(embedding, "embed_curves", embed_curves)


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".csv", ".fits", ".npz"])
def test_a_killed_command_goes_on_and_writes_the_same_bytes(
    tmp_path: Path, model: af.AstroCo, survey: Path, suffix: str, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    assert command(tmp_path, model, str(survey), str(whole)) == 0
    for done in (2, 1):
        with monkeypatch.context() as patch:
            killed_after(patch, done)
            with pytest.raises(Killed):
                command(tmp_path, model, str(survey), str(out))
        assert not out.exists()
    parts = sorted((tmp_path / f"out{suffix}.partial").glob("*.parquet"))
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"!")  # is made again
    with monkeypatch.context() as patch:
        killed_after(patch, 4)
        assert command(tmp_path, model, str(survey), str(out)) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / f"out{suffix}.partial").exists()


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2]])
def test_shares_are_joined_by_the_last(
    tmp_path: Path, model: af.AstroCo, survey: Path, order: list[int], small_pieces: None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert command(tmp_path, model, str(survey), str(whole)) == 0
    for share in order:
        assert not out.exists()
        if share == 2:  # as a rank of torchrun, which takes its share of the share
            for rank in (0, 1):
                with monkeypatch.context() as patch:
                    patch.setenv("RANK", str(rank))
                    patch.setenv("WORLD_SIZE", "2")
                    assert command(tmp_path, model, str(survey), str(out), "--shard", "2/3") == 0
            continue
        assert command(tmp_path, model, str(survey), str(out), "--shard", f"{share}/3") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert "share 1 of 3 is done" in capsys.readouterr().out


@pytest.mark.slow
def test_ranks_of_torchrun_share_the_work(tmp_path: Path, model: af.AstroCo, survey: Path) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert command(tmp_path, model, str(survey), str(whole)) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["-m", "astroco_fast.embed", str(survey), str(out), "--model", str(tmp_path / "model")]
    subprocess.run([*launch, *arguments], check=True, timeout=300)
    assert out.read_bytes() == whole.read_bytes()


def test_parts_of_other_settings_are_never_mixed(
    tmp_path: Path, model: af.AstroCo, survey: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert command(tmp_path, model, str(survey), str(whole), "--windows", "first") == 0
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            command(tmp_path, model, str(survey), str(out))
    again = [str(survey), str(out), "--windows", "first"]
    assert command(tmp_path, model, *again) == 2
    assert "holds parts of an embedding with another settings; give the same" in capsys.readouterr().err
    assert command(tmp_path, model, *again, "--overwrite") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert command(tmp_path, model, *again) == 2
    assert command(tmp_path, model, *again, "--overwrite") == 0
    (tmp_path / "out2.parquet.partial").mkdir()
    (tmp_path / "out2.parquet.partial" / "thesis.tex").touch()
    assert command(tmp_path, model, str(survey), str(tmp_path / "out2.parquet"), "--overwrite") == 2
    assert "holds 'thesis.tex', which astroco embed did not write" in capsys.readouterr().err


def test_a_star_that_comes_twice_is_found_across_shares(
    tmp_path: Path, model: af.AstroCo, capsys: pytest.CaptureFixture[str], small_pieces: None
) -> None:
    table = pa.table({"id": ["a", "b", "c", "a"], **{name: [[1.0, 2.0, 3.0]] * 4 for name in ("time", "mag", "err")}})
    pq.write_table(table, tmp_path / "in.parquet")
    assert command(tmp_path, model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")) == 2
    assert "id 'a' has two light curves" in capsys.readouterr().err


def test_sigterm_leaves_what_resumes(tmp_path: Path, model: af.AstroCo, survey: Path, small_pieces: None) -> None:
    out = tmp_path / "out.parquet"
    with pytest.MonkeyPatch.context() as patch:
        whole, made = embedding.embed_curves, []

        def embed_curves(model: af.AstroCo, raw: CurveBatch, choice: embedding.Choice) -> object:
            made.append(raw)
            if len(made) == 2:
                signal.raise_signal(signal.SIGTERM)
            return whole(model, raw, choice)

        patch.setattr(embedding, "embed_curves", embed_curves)
        assert command(tmp_path, model, str(survey), str(out)) == 75
    left = [path.name for path in (tmp_path / "out.parquet.partial").iterdir()]
    assert sum("of" in name and name.endswith(".parquet") for name in left) == 1
    assert not [name for name in left if name.endswith(".partial")]
    assert command(tmp_path, model, str(survey), str(out)) == 0
