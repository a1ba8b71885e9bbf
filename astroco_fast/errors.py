"""Errors that a user can mend, with messages of one line."""


class UserError(Exception):
    """Bad input or configuration.

    The message is one clear line: it names the file, column, row or argument, and the way out. Commands print it
    without a traceback and exit with status 2.
    """


class MissingExtraError(UserError):
    """A missing optional dependency; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'astroco_fast[{extra}]'")
