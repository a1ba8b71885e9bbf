"""Checksums of a folder's files, a checkpoint's or a released model's: a manifest lists the SHA-256 of each."""

import json
from collections.abc import Collection
from pathlib import Path

from astroco_fast.errors import UserError
from astroco_fast.files import read_json, sha256, write_text

MANIFEST = "manifest.json"


def write_manifest(folder: Path, names: Collection[str] | None = None) -> None:
    """Write the manifest of these files of a folder, or of all of them."""
    chosen = sorted({path.name for path in folder.iterdir()} - {MANIFEST} if names is None else names)
    manifest = {"files": {name: sha256(folder / name) for name in chosen}}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def check_files(folder: Path, names: Collection[str] | None = None) -> None:
    """Compare files with the checksums in their folder's manifest.

    Args:
        folder: the folder of the files and the manifest.
        names: the files to compare; None: all that the manifest lists.

    Raises:
        UserError: names a file that is missing or changed, or a damaged manifest.
    """
    try:
        files = read_json(folder / MANIFEST)["files"]
        if names is not None and (absent := sorted({*names} - {*files})):
            raise UserError(f"checkpoint {folder}: {MANIFEST} does not list {absent[0]}")
        for file, digest in files.items():
            if (names is None or file in names) and sha256(folder / file) != digest:
                raise UserError(
                    f"checkpoint {folder}: {file} is damaged (its checksum differs)"
                    f"; if it was changed on purpose, load a copy of the folder without {MANIFEST}"
                )
    except OSError as error:
        raise UserError(f"checkpoint {folder}: {error.filename or MANIFEST} cannot be read") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {folder}: {MANIFEST} is damaged") from error
