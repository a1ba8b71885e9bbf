"""`astroco probe`: classification of stars by a frozen encoder's embeddings, from few labels.

astroco probe --data survey.parquet --model RUN/checkpoints/best --out probes/survey

The protocol is the paper's where the paper describes it; docs/probe.md lists our own choices.
"""

from collections.abc import Sequence

from astroco_fast import commands
from astroco_fast.probe.config import ProbeConfig

__all__ = ["ProbeConfig", "main"]

_DESCRIPTION = (
    "Probe a frozen encoder: embed labelled light curves once, train a linear head (and scikit-learn's logistic "
    "regression and nearest neighbours) on a few stars a class, and test it on others. --data and --model are needed, "
    "and --out, the folder for splits, embeddings, tables and figures; run again, it embeds only what is missing."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco probe`; returns its exit status: 0 done, 2 bad input."""

    def body() -> int:
        config = commands.parse(ProbeConfig, "astroco probe", _DESCRIPTION, argv)
        from astroco_fast.probe.run import probe  # only now: `--help` needs no PyTorch

        probe(config)
        return 0

    return commands.run(body)
