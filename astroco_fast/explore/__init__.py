"""`astroco explore EMBEDDINGS --curves TABLE --out page.html`: a page on which to look at a survey's vectors.

Data pass through these modules from top to bottom:

    columns     what is known of each star: words and numbers, by which the page colours the points
    projection  vectors -> places on the page: PCA, UMAP, PaCMAP
    curves      the stars' light curves, thinned, with their periods
    pack        arrays -> bytes of the page: whole numbers, deflated, in base64
    page        all of it -> one HTML file with the code in `page/`, which needs no network
    build       the whole way, for the command
"""

from collections.abc import Sequence

from astroco_fast import commands
from astroco_fast.explore.config import ExploreConfig

__all__ = ["ExploreConfig", "main"]

_DESCRIPTION = (
    "Write a page that shows the vectors of light curves as points, with each star's light curve and its nearest "
    "neighbours: one HTML file that any browser opens from disk. --curves and --out are needed."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco explore`; returns its exit status: 0 done, 2 bad input."""

    def body() -> int:
        config = commands.parse(ExploreConfig, "astroco explore", _DESCRIPTION, argv, ("source",))
        from astroco_fast.explore.build import explore  # only now: `--help` needs no Arrow

        explore(config)
        return 0

    return commands.run(body)
