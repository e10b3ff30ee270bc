"""What the commands share: errors meant for the person at the keyboard, exit codes, optional packages."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn

from . import import_torchvision
from .errors import FAILURE, INTERRUPTED, USAGE, CommandError, UsageError, first_line
from .names import print_anything, printable

_interrupted = False

__all__ = ["FAILURE", "INTERRUPTED", "USAGE", "CommandError", "Parser", "UsageError", "first_line", "printer",
           "progress_bar", "require", "run"]


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of exiting, so that there is one way out; no abbreviated flags."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                         **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def require(module: str, package: str, need: str, extra: str = "train") -> ModuleType:
    """Import a module of an extra, or say what to install. need: what asks for it."""
    import_torchvision.prepare()  # torchmetrics imports it
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise CommandError(f"{need} needs {package}, which does not import: {error}") from error
        raise CommandError(f"{need} needs {package}: pip install 'fastmix[{extra}]'") from None


def printer(first: bool) -> Callable[[str], None]:
    """Prints lines of progress in the first process, nothing in the others."""
    return (lambda line: print(line, flush=True)) if first else (lambda line: None)


@contextmanager
def progress_bar(text: str, steps: int | None, show: bool = True) -> Iterator[Callable[..., None]]:
    """A bar on stderr if a person watches it; yields what to call after a step, or with a part of one.

    steps: None where their number is not known. A step after an interrupt that was lost raises it again.
    """
    if not show or not sys.stderr.isatty():
        yield lambda part=1.0: _raise_interrupt()
        return
    progress = require("rich.progress", "rich", "the progress bar")
    console = require("rich.console", "rich", "the progress bar").Console(stderr=True)
    what = progress.TextColumn("{task.description}", markup=False)  # names are no markup
    others = progress.Progress.get_default_columns()[1:]
    with progress.Progress(what, *others, console=console, transient=True) as shown:
        task = shown.add_task(text, total=steps)
        yield lambda part=1.0: (_raise_interrupt(), shown.advance(task, part))


def _on_interrupt(number: int, frame: object) -> NoReturn:
    """Python drops an exception that is raised while it destroys an object, so that it was raised is remembered."""
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _raise_interrupt() -> None:
    if _interrupted:
        raise KeyboardInterrupt


def run(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """The exit status of a command; expected failures end in one line on stderr, without a traceback."""
    global _interrupted
    _interrupted = False
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)
    print_anything()
    try:
        return command(argv)
    except CommandError as error:
        print(f"fastmix: {printable(str(error))}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("fastmix: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # | head
        return FAILURE
