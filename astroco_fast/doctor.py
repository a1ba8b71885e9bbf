"""`astroco doctor`: what this machine has, and which op runs where and why."""

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
        0; 2 where `ASTROCO_BACKEND` names no backend.
    """

    def body() -> int:
        commands.parse(DoctorConfig, "astroco doctor", "What this machine has, and which op runs where and why.", argv)

        from astroco_fast.diagnosis import report

        for line in report():  # printed as it comes: the self-check compiles kernels, which takes a minute
            print(line, flush=True)
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
