"""A light curve that comes twice, or a star with two labels, is found, however the curves are cut into batches."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from astroco_fast.data import convert as convert_module
from astroco_fast.data import writer
from astroco_fast.data.convert import convert
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.hashing import star_hash
from astroco_fast.data.seen import Seen, _Keys
from astroco_fast.errors import UserError
from tests.data.curve_factory import make_batch, write_nested


def curves(ids: list[str], band: str, label: str) -> CurveBatch:
    batch = make_batch(len(ids), bands=(band,))
    return replace(batch, ids=np.array(ids, dtype=object), label=np.full(len(ids), label, dtype=object))


def check(seen: Seen, batch: CurveBatch) -> None:
    seen.check(batch)


def test_keys_are_found_in_any_order_and_runs_stay_few() -> None:
    keys = np.random.default_rng(0).permutation(5000).astype(np.uint64)
    seen = _Keys()
    for part in np.array_split(keys, 60):
        assert seen.add(part) is None
    assert len(seen._runs) < 12
    for i in (0, 2500, 4999):
        fresh = np.arange(10_000, 10_005, dtype=np.uint64)
        fresh[3] = keys[i]
        assert seen.add(fresh) == (3, 0)


def test_keys_may_come_again_with_the_same_number_only() -> None:
    keys = np.random.default_rng(0).permutation(5000).astype(np.uint64)
    numbers = (keys % 7).astype(np.int32)
    seen = _Keys()
    for part in np.array_split(np.arange(5000), 60):
        assert seen.add(keys[part], numbers[part]) is None
    assert seen.add(keys, numbers) is None
    assert sum(len(run) for run, _ in seen._runs) == 5000
    for i in (0, 2500, 4999):
        assert seen.add(keys[i : i + 1], numbers[i : i + 1] + 1) == (0, numbers[i])


def test_one_star_has_one_label_in_all_its_bands() -> None:
    seen = Seen()
    check(seen, curves(["a", "b"], "R", "EW"))
    with pytest.raises(UserError, match=r"test: id 'b' has two labels, 'EA' and 'EW'; keep one .* --columns\.label"):
        check(seen, curves(["c", "b"], "B", "EA"))


def test_two_labels_in_one_batch() -> None:
    batch = curves(["a", "b", "c", "b"], "R", "EW")
    batch.band[3], batch.label[3] = "B", "EA"
    with pytest.raises(UserError, match="id 'b' has two labels"):
        check(Seen(), batch)


def test_an_unlabelled_band_takes_no_part() -> None:
    seen = Seen()
    for band, label in (("R", "EW"), ("B", ""), ("I", "EW")):
        check(seen, curves(["a", "b"], band, label))


def test_a_light_curve_comes_once() -> None:
    seen = Seen()
    check(seen, curves(["a", "b"], "R", ""))
    check(seen, curves(["a", "b"], "B", ""))
    with pytest.raises(UserError, match="id 'b' has two light curves in band 'B'"):
        check(seen, curves(["c", "b"], "B", ""))


def test_recorded_rows_count_as_seen() -> None:
    seen = Seen()
    rows = {"band": ["R", "R"], "label": ["EW", ""], "star_hash": star_hash(["a", "b"])}
    seen.add_rows(pa.table(rows))
    check(seen, curves(["a", "b"], "B", "EW"))
    with pytest.raises(UserError, match="two labels"):
        check(seen, curves(["a"], "I", "EA"))
    with pytest.raises(UserError, match="two light curves"):
        check(seen, curves(["b"], "R", ""))


def test_a_resumed_conversion_still_knows_the_labels(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The star's first row is in a recorded step of an interrupted conversion, its second row in a later step."""
    monkeypatch.setattr(writer, "STEP_CURVES", 1)
    monkeypatch.setattr("astroco_fast.data.sources.BATCH_POINTS", 1)
    rows = make_batch(3, lengths=[20] * 3)
    labels = np.array(["EW", "EW", "EA"], dtype=object)
    rows = replace(rows, ids=np.array(["a", "b", "a"], dtype=object), band=np.array(["R", "R", "B"], dtype=object))
    path = write_nested(replace(rows, label=labels), tmp_path / "in.parquet")

    class Killed(BaseException):
        pass

    clean, calls = convert_module.clean_batch, []

    def killing(batch, config):
        calls.append(len(batch))
        if len(calls) == 3:
            raise Killed
        return clean(batch, config)

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "clean_batch", killing)
        patch.setattr(Seen, "check", lambda _, batch: star_hash(batch.ids))
        with pytest.raises(Killed):
            convert(path, tmp_path / "store")
    with pytest.raises(UserError, match="id 'a' has two labels, 'EA' and 'EW'"):
        convert(path, tmp_path / "store")
