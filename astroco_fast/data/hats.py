"""HATS catalogues: tables in pieces by their place on the sky, and collections of them with what is derived from them.

The format is that of hats and LSDB (Caplar et al., github.com/astronomy-commons/hats). A catalogue is a folder with
`hats.properties` (or `properties`) and the pieces `dataset/Norder=K/Dir=D/Npix=N.parquet` (or a folder Npix=N of
several files). A collection is a folder with `collection.properties` and catalogues: the catalogue itself and those
derived from it, such as its margin, which has the stars near the borders of its pieces once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astroco_fast.errors import UserError

_COLLECTION, _MAIN = "collection.properties", "hats_primary_table_url"
_CATALOGUE = ("hats.properties", "properties")
_KIND = "dataproduct_type"
_DERIVED = ("margin", "index", "map", "association")
INDEX = "_healpix_"  # the beginning of the name of the column with the rows' places on the sky
_PIECE = "Norder="  # the beginning of the name of the folder that a piece is in


def dataset(path: Any) -> Any:
    """The folder of the rows of a catalogue, or of a collection's own catalogue; any other folder as it is.

    Raises:
        UserError: the collection names no catalogue, or the folder is a margin or the like.
    """
    path = _catalogue(path)
    kind = _kind(path)
    if kind in _DERIVED:
        raise UserError(
            f"{path}: is no catalogue of its own, but the {kind} of one, by its {_KIND}; name the catalogue instead"
        )
    return path / "dataset" if kind is not None and (path / "dataset").is_dir() else path


def told(path: Any, key: str) -> str:
    """What a catalogue, or a collection's own catalogue, says by a key of its properties; "" if it says nothing."""
    file = _properties_file(_catalogue(path))
    return "" if file is None else _properties(file).get(key, "")


def _catalogue(path: Any) -> Any:
    """The folder of a collection's own catalogue; any other folder as it is."""
    if not (path / _COLLECTION).is_file():
        return path
    main = path / _properties(path / _COLLECTION).get(_MAIN, "")
    if main == path or not main.is_dir():
        raise UserError(
            f"{path}: {_COLLECTION} names no catalogue in this collection by {_MAIN}; name its folder instead"
        )
    return _catalogue(main)


def pieces(files: Sequence[Any], root: Any) -> list[Any]:
    """Those of the files below a folder that are pieces of catalogues, without the pieces of margins and the like.

    Raises:
        UserError: there are pieces of margins and the like alone.
    """
    kinds: dict[Any, str | None] = {}
    found = []
    for file in files:
        above = list(file.relative_to(root).parents)[:-1]  # from the file's folder up to below the root
        orders = [place for place in above if str(place.name).startswith(_PIECE)]
        if not orders:
            continue
        catalogue = (root / orders[-1]).parent
        if catalogue.name == "dataset":
            catalogue = catalogue.parent
        if catalogue not in kinds:
            kinds[catalogue] = _kind(catalogue)
        if kinds[catalogue] not in _DERIVED:
            found.append(file)
    if kinds and not found:
        raise UserError(
            f"{root}: there is no catalogue in it, but a {next(iter(kinds.values()))}; name the catalogue instead"
        )
    return found


def _kind(path: Any) -> str | None:
    """What kind of catalogue a folder is; "" if it does not say; None: it is no catalogue."""
    file = _properties_file(path)
    return None if file is None else _properties(file).get(_KIND, "").lower()


def _properties_file(path: Any) -> Any:
    return next((path / name for name in _CATALOGUE if (path / name).is_file()), None)


def _properties(file: Any) -> dict[str, str]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}
