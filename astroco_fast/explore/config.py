"""Settings of `astroco explore`."""

from dataclasses import dataclass, field
from typing import Literal

from astroco_fast.data.columns import Columns

Method = Literal["pca", "umap", "pacmap"]


@dataclass
class ExploreConfig:
    """Settings of `astroco explore`.

    Args:
        source: table of embeddings that `astroco embed` wrote.
        curves: the light curves: the table, folder or store that was embedded.
        out: HTML file to write. An existing file is replaced if it is such a page.
        also: tables with a column id, such as that of `astroco anomalies` or a catalogue, whose other columns can
            colour the points, too. A column `period` (days) is taken for the folds.
        stars: light curves on the page, at most; of more, a random sample is shown, and the page says so.
        points: points of a light curve on the page, at most; of more, a random sample is shown, and the page says so.
            Default: 2.5 million by the number of light curves, from 100 to 1000.
        projections: pca, umap, pacmap; pca is always there. Default: those whose packages are installed.
        title: the page's heading. Default: the name of the table of embeddings.
        columns: names of the columns of `curves` that are not found by themselves.
        band: read only this band of `curves`.
        seed: of the samples and the projections.
    """

    source: str
    curves: str | None = None
    out: str | None = None
    also: list[str] = field(default_factory=list)
    stars: int = 20_000
    points: int | None = None
    projections: list[Method] | None = None
    title: str | None = None
    columns: Columns = field(default_factory=Columns)
    band: str | None = None
    seed: int = 0
