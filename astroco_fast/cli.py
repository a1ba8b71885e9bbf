"""`astroco NAME ...`: the package's commands under one name.

`astroco NAME` and `python -m astroco_fast.NAME` are the same. A command's module is imported only when it is chosen, so
that help appears at once.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "pretrain": "pretrain an encoder by masked reconstruction",
    "embed": "light curves to vectors, one row a light curve",
    "models": "the models that ship with the package",
    "export": "an encoder as an ONNX graph, or a program of torch.export",
    "finetune": "train an encoder further to tell labelled classes",
    "classify": "fit a calibrated classifier on a frozen encoder's vectors, and predict with it",
    "probe": "classify stars by a frozen encoder's embeddings, from few labels",
    "reproduce": "the paper's tables on your survey: models, ablations and baselines under one budget",
    "periods": "periods of light curves, and how many are those of a catalogue",
    "explore": "a page to look at vectors, light curves and neighbours",
    "neighbours": "the stars nearest to others, or to new light curves, by their vectors",
    "anomalies": "the stars whose vectors are unlike the others'",
    "convert": "light curves of any format to a packed store",
    "simulate": "a simulated survey of variable stars",
    "report": "plots of a run: loss and RMSE, reconstructed light curves, layer mix",
    "doctor": "this machine's devices and packages, and the backend that runs each op, with reasons",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, with the other arguments.

    Args:
        argv: arguments without the program's name; None: the process's own.

    Returns:
        The command's exit status; 2 for an unknown command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(_help(), file=sys.stderr)
        return 2
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        from astroco_fast import __version__

        print(f"astroco_fast {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"astroco: error: no command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    status: int = import_module(f"astroco_fast.{name}").main(rest)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: astroco COMMAND ...",
            "       astroco COMMAND --help",
            "       astroco --version",
            "",
            "commands:",
            *lines,
        ]
    )
