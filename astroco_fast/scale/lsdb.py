"""Catalogues in the HATS format, embedded by LSDB on Dask's workers (https://docs.lsdb.io)."""

from __future__ import annotations

from typing import Any

from astroco_fast.embedding_formats import KEY
from astroco_fast.errors import MissingExtraError
from astroco_fast.scale.partition import embed_partition, provenance


def embed_catalog(catalog: Any, model: str | None = None, **settings: Any) -> Any:
    """A catalogue of vectors, computed partition by partition when it is written or computed.

    Args:
        catalog: an `lsdb.Catalog` whose rows are stars with nested light curves (`join_nested` makes it of a catalogue
            of stars and one of points).
        model, settings: as for `embed_partition`.

    Returns:
        An `lsdb.Catalog` with the plain columns of `catalog`, ra and dec among them, and those of `embed_partition`.
        Property `astroco_fast` of the catalogue, in `hats.properties` once it is written, is the vectors' provenance.
        `write_catalog(PATH, resume=True)` goes on after a crash with the partitions that are missing.

    Raises:
        UserError: LSDB is not installed, or a partition without rows shows that the settings are wrong.

    Examples:
        >>> import lsdb
        >>> from astroco_fast.scale.lsdb import embed_catalog
        >>> embed_catalog(lsdb.open_catalog("survey"), model="fold-small").write_catalog("vectors")
    """
    try:
        import lsdb  # noqa: F401
    except ImportError:
        raise MissingExtraError("lsdb", "lsdb", "embed_catalog") from None
    vectors = catalog.map_partitions(embed_partition, model=model, **settings)
    structure = vectors.hc_structure
    told = provenance(model, catalog.name, **settings)
    structure.catalog_info = structure.catalog_info.copy_and_update(**{KEY: told})
    return vectors
