"""The stars to probe: their labels and a hash of each light curve, read without keeping the points."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from astroco_fast.commands import tell
from astroco_fast.data.clean import CleanConfig, because, clean
from astroco_fast.data.columns import Columns, listed
from astroco_fast.data.curves import CurveBatch, two_labels
from astroco_fast.data.metadata import Text, read_text_table
from astroco_fast.data.notes import Notes
from astroco_fast.data.seen import Seen
from astroco_fast.data.sources import Source, open_source
from astroco_fast.errors import UserError
from astroco_fast.probe.splits import Split, split_name

_FOLD, _SIZE = re.compile(r"fold_?(\d+)", re.IGNORECASE), re.compile(r"(?:.*\D)?(\d+)")


@dataclass(frozen=True)
class Portion:
    """Light curves, with the size, fold and part of their folder; None: the folder is not one of a split."""

    source: Source
    place: tuple[int, int, str] | None = None

    def batches(
        self, min_points: int, dropped: Counter[str], short: set[str]
    ) -> Iterator[tuple[CurveBatch, list[str]]]:
        """Clean light curves, as in `astroco embed`, and a hash of the points of each.

        Adds to `dropped` by reason, and to `short` the stars that have a light curve with too few good points.
        """
        config = CleanConfig(min_points=min_points)
        for raw in self.source.batches():
            batch, reasons = clean(raw, config)
            dropped.update(reasons)
            short.update(set(raw.ids) - set(batch.ids))
            if len(batch):
                yield batch, _digests(batch)


@dataclass
class Stars:
    """The labels, light curves and parts of n stars.

    Attributes:
        labels: id -> class, for the stars that have one.
        curves: id -> hash of the points of the star's light curve.
        placed: (n, fold, part) -> ids, if the folders of the data are those of splits.
        short: stars that were left out, because their light curves have too few good points.
        copies: stars that were left out, because their light curves equal another star's point by point.
        dropped: numbers of points and curves that the cleaning dropped, by reason.
        simulated: whether any light curve is simulated.
    """

    labels: dict[str, str] = field(default_factory=dict)
    curves: dict[str, str] = field(default_factory=dict)
    placed: dict[tuple[int, int, str], list[str]] = field(default_factory=dict)
    short: set[str] = field(default_factory=set)
    copies: set[str] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)
    simulated: bool = False

    def digest(self, ids: Sequence[str]) -> str:
        """One hash of the ids, classes and light curves of these stars; their order does not matter."""
        text = "\n".join(f"{star}\t{self.labels[star]}\t{self.curves[star]}" for star in sorted(ids))
        return hashlib.sha256(text.encode()).hexdigest()

    def without_copies(self, ids: Collection[str]) -> list[str]:
        """Those of the ids whose light curves equal no earlier one's point by point; the others go to `copies`.

        Surveys list some stars under two ids. In two parts of a fold, they would be leakage.
        """
        first: dict[str, str] = {}
        kept = [star for star in ids if first.setdefault(self.curves[star], star) == star]
        self.copies |= {*ids} - {*kept}
        return kept

    def splits(self) -> list[Split]:
        """The splits that the folders of the data give.

        Raises:
            UserError: a star is in two parts of a fold (leakage), or a fold lacks a part.
        """
        folds = sorted({(n, fold) for n, fold, _ in self.placed})
        parts = ("train", "validation", "test")
        found = [{part: tuple(self.placed.get((n, fold, part), ())) for part in parts} for n, fold in folds]
        return [Split(n, fold, **stars) for (n, fold), stars in zip(folds, found, strict=True)]


def open_portions(data: str, columns: Columns, band: str | None) -> list[Portion]:
    """Open light curves: as one portion, or as one portion for each folder of given splits.

    A folder of splits is called train, val, validation or test. It is inside a folder called fold_K and one whose name
    ends with a number, the size: fold_0/alcock_20/train, or 20/fold_0/train. If there are such folders, others are not
    read.
    """
    root = Path(data)
    places = _places(root) if root.is_dir() else []
    if not places:
        return [Portion(open_source(data, columns, band))]
    return [Portion(open_source(folder, columns, band), place) for folder, place in places]


def read_survey(data: str, columns: Columns, band: str | None, min_points: int) -> tuple[list[Portion], Stars]:
    """The portions of light curves that a command is given, and their stars; tells notes and what was dropped.

    Args:
        data, columns, band: as for `open_portions`.
        min_points: as for `read_stars`.

    Raises:
        UserError: the light curves cannot be read; names what is wrong.
    """
    portions = open_portions(data, columns, band)
    stars = read_stars(portions, min_points)
    notes = Notes()
    for portion in portions:
        notes.update(portion.source.notes)
    tell(notes)
    if stars.dropped:
        tell([f"{data}{because(stars.dropped)}"])
    return portions, stars


def _places(root: Path) -> list[tuple[Path, tuple[int, int, str]]]:
    found = []
    for folder in sorted(path for path in root.rglob("*") if path.is_dir() and split_name(path.name)):
        above = folder.relative_to(root).parts[:-1]
        folds = [match for match in map(_FOLD.fullmatch, above) if match]
        sizes = [match for name in above if not _FOLD.fullmatch(name) and (match := _SIZE.fullmatch(name))]
        part = split_name(folder.name)
        if folds and sizes and part is not None:
            found.append((folder, (int(sizes[-1][1]), int(folds[-1][1]), part)))
    return found


def read_stars(portions: Sequence[Portion], min_points: int) -> Stars:
    """Read all light curves once, and keep their labels and hashes.

    Raises:
        UserError: a star has two light curves (bands) or two labels, or the input cannot be read.
    """
    stars = Stars()
    bands: dict[str, str] = {}
    for portion in portions:
        seen = Seen()
        here: set[str] = set()
        for batch, digests in portion.batches(min_points, stars.dropped, stars.short):
            seen.check(batch)
            stars.simulated |= batch.simulated
            for star, band, label, digest in zip(batch.ids, batch.band, batch.label, digests, strict=True):
                if star in here or stars.curves.get(star, digest) != digest:
                    raise UserError(_two_curves(batch.source, star, bands[star], band))
                if stars.labels.get(star, label) != label:
                    raise UserError(two_labels(batch.source, star, stars.labels[star], label))
                here.add(star)
                bands[star], stars.curves[star] = band, digest
                if label:
                    stars.labels[star] = label
        if portion.place is not None:
            stars.placed.setdefault(portion.place, []).extend(here)
    return stars


def _two_curves(source: str, star: str, one: str, other: str) -> str:
    start = f"{source or 'light curves'}: star {star!r} has two light curves"
    if one != other:
        return f"{start}, in bands {one!r} and {other!r}; choose one band by --band"
    return f"{start}, with other points in another fold's folder; keep one"


def relabel(stars: Stars, path: str, columns: Columns) -> str:
    """Replace the labels by those of a table with the columns id and label.

    Returns:
        A line that counts the stars that do not match, on either side; empty if all match.

    Raises:
        UserError: the table has two labels for one star, or none of its stars has a light curve.
    """
    table = read_text_table(path, {"id": columns.id, "label": columns.label})
    labels: dict[str, str] = {}
    for star, label in zip(table["id"], table["label"], strict=True):
        if label and labels.setdefault(star, label) != label:
            raise UserError(two_labels(path, star, labels[star], label))
    stars.labels = {star: labels[star] for star in stars.curves if star in labels}
    lost = [star for star in labels if star not in stars.curves and star not in stars.short]
    if not stars.labels:
        raise UserError(
            f"{path}: none of its stars ({listed(list(labels)[:3])}) has a light curve{_lost_zeros(lost, stars)}; "
            "compare the ids"
        )
    told = []
    if lost:
        which = f"{listed(map(repr, lost[:3]))}{' ...' if len(lost) > 3 else ''}"
        told.append(f"{len(lost):,} of {len(labels):,} stars have no light curve ({which}){_lost_zeros(lost, stars)}")
    if len(stars.labels) < len(stars.curves):
        told.append(f"{len(stars.curves) - len(stars.labels):,} of {len(stars.curves):,} light curves get no label")
    return f"{path}: {'; '.join(told)}" if told else ""


def _lost_zeros(lost: Sequence[str], stars: Stars) -> str:
    """A remark, if the id of a label is that of a light curve but for zeros in front, which some programs drop."""
    without = {star.lstrip("0"): star for star in stars.curves if star not in stars.labels}
    for star in lost:
        if star.lstrip("0") in without:
            return f": {star!r} is not {without[star.lstrip('0')]!r}"
    return ""


def choose(stars: Stars, classes: Sequence[str] | None) -> tuple[Text, Text]:
    """The ids and labels (n,) of the stars of these classes (None: of all labelled ones), without copies, sorted by id.

    Raises:
        UserError: no star has a label, or no star is of one of these classes.
    """
    if not stars.labels:
        raise UserError(
            "no light curve has a label: name the column by --columns.label, or give a table with --labels FILE"
        )
    unknown = sorted({*classes} - {*stars.labels.values()}) if classes is not None else []
    if unknown:
        raise UserError(f"no star of class {unknown[0]!r}; found: {listed(sorted({*stars.labels.values()}))}")
    ids = stars.without_copies(
        sorted(star for star, label in stars.labels.items() if classes is None or label in classes)
    )
    return np.array(ids, dtype=object), np.array([stars.labels[star] for star in ids], dtype=object)


def _digests(batch: CurveBatch) -> list[str]:
    digests = []
    for first, last in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for values in (batch.time, batch.mag, batch.err):
            digest.update(values[first:last].tobytes())
        digests.append(digest.hexdigest())
    return digests
