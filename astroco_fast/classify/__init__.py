"""`astroco classify`: a calibrated classifier of light curves on a frozen encoder's vectors.

astroco classify fit survey.parquet --out classifiers/survey
astroco classify predict others.parquet classes.parquet --classifier classifiers/survey
"""

import sys
from collections.abc import Sequence

from astroco_fast import commands
from astroco_fast.classify.config import FitConfig, PredictConfig

__all__ = ["FitConfig", "PredictConfig", "main"]

_USAGE = """usage: astroco classify fit DATA --out FOLDER ...
       astroco classify predict DATA OUT --classifier FOLDER ...

  fit      fit a classifier to labelled light curves or embeddings, and report how good it is by folds
  predict  the classes of other light curves or embeddings, with calibrated probabilities

astroco classify fit --help and astroco classify predict --help describe every setting."""
_FIT = (
    "Fit a logistic regression to a frozen encoder's vectors of labelled light curves, calibrate its probabilities, "
    "and report by folds how good both are."
)
_PREDICT = (
    "Predict the classes of light curves, with calibrated probabilities, by a classifier of astroco classify fit."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco classify`; returns its exit status: 0 done, 2 bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if not words or words[0] not in ("fit", "predict"):
        wrong = f"astroco: error: no action {commands.one_line(words[0])!r}; choose fit or predict" if words else _USAGE
        print(wrong, file=sys.stderr)
        return commands.BAD_INPUT
    action, *rest = words

    def body() -> int:
        name = f"astroco classify {action}"
        if action == "fit":
            config = commands.parse(FitConfig, name, _FIT, rest, ("data",))
            from astroco_fast.classify.fit import fit  # only now: `--help` needs no PyTorch

            fit(config)
        else:
            wanted = commands.parse(PredictConfig, name, _PREDICT, rest, ("data", "out"))
            from astroco_fast.classify.predict import predict

            predict(wanted)
        return 0

    return commands.run(body)
