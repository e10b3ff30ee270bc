"""What the commands share: one way out of them, lines of progress, optional packages."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

from .. import _starting
from . import import_torchvision
from .command_line import Parser
from .errors import FAILURE, INTERRUPTED, USAGE, CommandError, UsageError, explained, first_line
from .names import print_anything, printable

__all__ = ["FAILURE", "INTERRUPTED", "USAGE", "CommandError", "Parser", "UsageError", "explained", "failed",
           "first_line", "note", "printer", "progress_bar", "require", "run"]


def require(module: str, package: str, need: str, extra: str = "train") -> ModuleType:
    """Import a module of an extra, or say what to install. need: what asks for it."""
    import_torchvision.prepare()  # torchmetrics imports it
    if package == "matplotlib":  # of fonts that it looks for
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise CommandError(f"{need} needs {package}, which does not import: {error}") from error
        raise CommandError(f"{need} needs {package}: pip install 'fastmix[{extra}]'") from None


def printer(first: bool) -> Callable[[str], None]:
    """Prints lines of progress in the first process, nothing in the others."""
    return (lambda line: print(line, flush=True)) if first else (lambda line: None)


note = _starting.say


@contextmanager
def progress_bar(text: str, steps: int | None, show: bool = True) -> Iterator[Callable[..., None]]:
    """A bar on stderr if a person watches it; yields what to call after a step, or with a part of one.

    steps: None where their number is not known. A step after a signal that was lost raises it again.
    """
    if not show or sys.stderr is None or not sys.stderr.isatty():
        yield lambda part=1.0: _starting.raise_received()
        return
    progress = require("rich.progress", "rich", "the progress bar")
    console = require("rich.console", "rich", "the progress bar").Console(stderr=True)
    what = progress.TextColumn("{task.description}", markup=False)  # names are no markup
    others = progress.Progress.get_default_columns()[1:]
    with progress.Progress(what, *others, console=console, transient=True) as shown:
        task = shown.add_task(text, total=steps)
        yield lambda part=1.0: (_starting.raise_received(), shown.advance(task, part))


def run(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """The exit status of a command. What a person can cause ends in one line on stderr; FASTMIX_DEBUG=1 shows the
    traceback."""
    print_anything()
    with _starting.signals_raised():
        try:
            try:
                status = command(argv)
                stopped = _starting.received()
                if stopped is not None and status != stopped.status:
                    raise stopped  # it was lost
                return status
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # here, where it may fail
        except (Exception, KeyboardInterrupt) as error:
            return failed(error)


def failed(error: BaseException, more: str = "") -> int:
    """Says what an error was, and more about it; its exit status."""
    if _starting.debug():
        with suppress(OSError, ValueError):
            traceback.print_exception(error)
    stopped = _starting.received()
    if stopped is not None and not isinstance(error, CommandError):
        error = stopped  # what else has failed is its consequence
    _give_up_output()
    ended = explained(error)
    # | head: it has what it wanted. Of a signal to all processes the first one speaks.
    silent = isinstance(error, BrokenPipeError) or (
        (stopped is not None or ended.everywhere) and not _starting.first_rank())
    if not silent and str(ended):
        _starting.say(printable("; ".join(filter(None, [str(ended), more]))))
    _starting.let_speak(False)  # of a signal that comes now, as torchrun's to what is left, nothing is to be said
    return ended.code


def _give_up_output() -> None:
    """Nothing more is written to a stdout that takes nothing: Python flushes it once more at its end."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
