"""Views of text and lists in Arrow tables become the plain forms that hold the same values."""

from typing import Any

import pyarrow as pa
import pytest

from astroco_fast.data.tables import without_views

LISTS = [[1, 2], [3, 4], None, [], [5, 6, 7]]
ROWS: list[tuple[Any, list[Any]]] = [
    (pa.list_view(pa.int8()), LISTS),
    (pa.large_list_view(pa.int8()), LISTS),
    (pa.list_(pa.list_view(pa.int8())), [[[1], [2, 3]], None, [], [None, [4]], [[5]]]),
    (pa.list_(pa.string_view(), 2), [["a", "b"], None, ["c", None], ["d" * 20, "e"], ["f", "g"]]),
    (pa.list_(pa.struct([("x", pa.string_view())])), [[{"x": "a"}], None, [], [None, {"x": "b" * 20}], [{"x": None}]]),
    (
        pa.struct([("a", pa.list_view(pa.string_view())), ("b", pa.int8())]),
        [{"a": ["x", None], "b": 1}, None, {"a": None, "b": 2}, {"a": [], "b": None}, {"a": ["y" * 20], "b": 3}],
    ),
]


@pytest.mark.parametrize(("kind", "rows"), ROWS, ids=[str(kind) for kind, _ in ROWS])
@pytest.mark.parametrize("part", [slice(None), slice(1, None), slice(2, 4), slice(0)], ids=str)
def test_values_stay(kind: Any, rows: list[Any], part: slice) -> None:
    array = pa.array(rows, kind)
    for column in (array[part], pa.chunked_array([array[part], array])):
        table = pa.table({"c": column})
        plain = without_views(table)
        plain.validate(full=True)
        assert "view" not in str(plain.schema)
        assert plain["c"].to_pylist() == table["c"].to_pylist()
    assert without_views(pa.RecordBatch.from_arrays([array], ["c"]))["c"].to_pylist() == rows


def test_views_in_another_order_than_their_values() -> None:
    starts, sizes = pa.array([2, 0], pa.int32()), pa.array([2, 2], pa.int32())
    views = pa.ListViewArray.from_arrays(starts, sizes, pa.array([1, 2, 3, 4], pa.int8()))
    assert without_views(pa.table({"c": views}))["c"].to_pylist() == [[3, 4], [1, 2]]
