"""How a command ends: the exit codes of DESIGN 6, and the two endings that are not a user's mistake."""

DONE, BAD_INPUT, DIVERGED, INTERRUPTED = 0, 2, 3, 75


class Diverged(Exception):
    """Too many steps in a row had a loss or gradient that is not finite; says which windows the last one held."""


class Interrupted(Exception):
    """A signal asked the run to stop before training began; there is nothing to save yet."""
