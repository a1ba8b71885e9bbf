"""Tables embedded by Ray Data's actors (https://docs.ray.io)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astroco_fast.scale.partition import embed_partition

if TYPE_CHECKING:
    import pyarrow as pa


class Embedder:
    """An actor class for `ray.data.Dataset.map_batches`, with `batch_format="pyarrow"`.

    Args:
        model, settings: as for `embed_partition`.

    Examples:
        >>> import ray
        >>> from astroco_fast.scale.ray import Embedder
        >>> stars = ray.data.read_parquet("survey")  # one row a light curve, with list columns
        >>> vectors = stars.map_batches(
        ...     Embedder, fn_constructor_args=("fold-small",), batch_format="pyarrow", batch_size=2048, concurrency=4
        ... )
        >>> vectors.write_parquet("vectors")
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        self._model, self._settings = model, settings

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed a batch: a table with one row a light curve in, one with vectors out; see `embed_partition`."""
        import pandas as pd
        import pyarrow as pa

        frame = table.to_pandas(types_mapper=pd.ArrowDtype)
        found = pa.Table.from_pandas(embed_partition(frame, self._model, **self._settings), preserve_index=False)
        return found.replace_schema_metadata(None)  # pandas' own would keep pandas from reading what Ray writes
