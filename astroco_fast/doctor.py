"""`astroco doctor`: the machine's devices and packages, and the backend that runs each op, with reasons."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from astroco_fast import commands


@dataclass
class DoctorConfig:
    """There are no settings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report on stdout.

    Returns:
        The exit status: 0, or 2 if `ASTROCO_BACKEND` names no backend.
    """

    def body() -> int:
        description = "Report this machine's devices and packages, and the backend that runs each op, with reasons."
        commands.parse(DoctorConfig, "astroco doctor", description, argv)

        from astroco_fast.diagnosis import report

        for line in report():  # printed as it comes: the self-check compiles kernels, which takes a minute
            print(line, flush=True)
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
