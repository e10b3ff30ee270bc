"""Errors that are meant for the person at the keyboard, and the exit statuses of the commands."""

from __future__ import annotations

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


class CommandError(Exception):
    """A failed command: the message is all that the user sees. code: the exit status."""

    def __init__(self, message: str, code: int = FAILURE) -> None:
        super().__init__(message)
        self.code = code


class UsageError(CommandError):
    """Flags that make no sense, alone or together."""

    def __init__(self, message: str) -> None:
        super().__init__(message, USAGE)


def first_line(error: BaseException) -> str:
    """An error of another library in a few words."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
