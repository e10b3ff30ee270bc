"""Errors that are meant for the person at the keyboard, and the exit statuses of the commands."""

from __future__ import annotations

import errno

import torch

from .._starting import FAILURE, INTERRUPTED, USAGE, Stopped
from ..files import WriteError
from ..ops.dispatch import CannotServe

__all__ = ["FAILURE", "INTERRUPTED", "USAGE", "CommandError", "UsageError", "expected", "explained", "first_line"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Unable to find a valid cuDNN algorithm")
WORKER = "DataLoader worker"


class CommandError(Exception):
    """A failed command: the message is all that the user sees. code: the exit status. everywhere: whether all processes
    of torchrun fail alike, so that the first one alone says so."""

    everywhere = False

    def __init__(self, message: str, code: int = FAILURE) -> None:
        super().__init__(message)
        self.code = code


class UsageError(CommandError):
    """Flags that make no sense, alone or together."""

    everywhere = True

    def __init__(self, message: str) -> None:
        super().__init__(message, USAGE)


def first_line(error: BaseException) -> str:
    """An error of another library in a few words."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def explained(error: BaseException) -> CommandError:
    """What an error is to the person at the keyboard: one line. One that nobody expected is named, with how to see
    where it comes from."""
    return expected(error) or CommandError(f"{type(error).__name__}: {first_line(error)} (FASTMIX_DEBUG=1 shows where)")


def expected(error: BaseException) -> CommandError | None:
    """The line of an error that a person can cause, with the remedy where there is one; None for any other."""
    text = str(error)
    if isinstance(error, CommandError):
        # As a process that decodes images hands it over: with its traceback, whose last line it is.
        if "Original Traceback" in text:
            return CommandError(text.strip().splitlines()[-1].partition(": ")[2], error.code)
        return error
    if isinstance(error, Stopped):
        return CommandError(text, error.status)
    if isinstance(error, KeyboardInterrupt):
        return CommandError("interrupted", INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        return CommandError("nobody reads the output any more")
    if isinstance(error, WriteError):
        return _unwritten(error)
    if isinstance(error, OSError):
        if error.filename is None and error.errno in FULL:  # all files name themselves
            return CommandError(f"the output cannot be written: {error.strerror}; make room for it")
        where = f"{error.filename}: " if error.filename is not None else ""
        return CommandError(f"{where}{error.strerror or first_line(error)}")
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)):
        return CommandError(f"out of memory ({first_line(error)}); try a smaller --batch")
    if isinstance(error, CannotServe):
        return UsageError(f"{first_line(error)}; FASTMIX_BACKEND=auto takes what is there")
    if isinstance(error, RuntimeError) and WORKER in text:
        return CommandError(f"a process that decodes images has ended ({first_line(error)}): it may lack memory; try "
                            "fewer --workers, or 0")
    return None


def _unwritten(error: WriteError) -> CommandError:
    if error.errno in FULL:
        return CommandError(f"{error}; make room, or write to another place")
    return UsageError(f"{error}; choose a place that can be written to")
