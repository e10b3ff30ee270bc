"""How a process that is the program (``python -m fastmix``, ``fastmix``) begins: what must be in place before torch is
imported, and its signals.

Importing torch takes a second or more. An interrupt meanwhile, a wrong variable of the environment and a library that
does not load end in one line, as all that a person can cause does later (`fastmix.app.console`). A process that imports
the library is left alone: `begin`, the last line, does nothing there.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
# Signal -> what it did. The exit status is 128 and its number, as shells have it.
SIGNALS = {getattr(signal, name): word for name, word in
           (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "the terminal was closed"))
           if hasattr(signal, name)}
_PACKAGE = __name__.partition(".")[0]
TWICE = 1.0  # seconds: `timeout` sends its signal to the process and to its group
SHOW_CURSOR = b"\x1b[?25h"

_received: Stopped | None = None
_when = 0.0
_speaks: bool | None = None


class Stopped(KeyboardInterrupt):
    """A signal has asked this process to end. A KeyboardInterrupt, so that what makes way for one makes way for it."""

    def __init__(self, number: int) -> None:
        super().__init__(SIGNALS[number])
        self.status = 128 + number


def debug() -> bool:
    """Whether errors are to be shown with their traceback: FASTMIX_DEBUG=1."""
    return os.environ.get("FASTMIX_DEBUG", "0") not in ("", "0")


def first_rank() -> bool:
    """Whether this process prints: all of them under torchrun would print the same."""
    return os.environ.get("RANK", "0") == "0" if _speaks is None else _speaks


def let_speak(speaks: bool) -> None:
    """Which of several processes says why all of them end, where that need not be the first."""
    global _speaks
    _speaks = speaks


def say(line: str) -> None:
    """One line on stderr, whatever state that is in; on a terminal not behind what is there (^C, a bar)."""
    with suppress(OSError, ValueError, AttributeError):
        start = "\n" if sys.stderr.isatty() and _received is not None else ""
        print(f"{start}fastmix: {line}", file=sys.stderr, flush=True)


def end(status: int) -> NoReturn:
    """Ends the process here, where nothing is left to be put in order."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


# Signals

def received() -> Stopped | None:
    """The signal that this process was sent while a command runs. It may have been lost: Python drops an exception that
    is raised while it destroys an object."""
    return _received


def raise_received() -> None:
    if _received is not None:
        raise _received


def _raise(number: int, frame: FrameType | None) -> None:
    global _received, _when
    if _received is None:
        _received, _when = Stopped(number), time.monotonic()
        raise _received
    if time.monotonic() - _when > TWICE:
        _leave(number, frame)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """At once: before torch is there, after the command has ended, or where a second signal finds it still busy."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, SHOW_CURSOR + b"\n")
        if first_rank():
            os.write(2, f"fastmix: {SIGNALS[number]}\n".encode())
    os._exit(128 + number)


def _in_child() -> None:
    """Children that are forked (which decode images) end with their parent: it alone answers."""
    for number in SIGNALS:
        if signal.getsignal(number) in (_raise, _leave):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _unraisable(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, Stopped):  # else it is remembered, see `received`
        sys.__unraisablehook__(unraisable)


@contextmanager
def signals_raised() -> Iterator[None]:
    """Signals raise `Stopped` inside. Handlers of others, nohup's SIG_IGN too, stay."""
    global _received, _speaks
    _received = _speaks = None
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items()
                  if handler in (signal.default_int_handler, signal.SIG_DFL, _leave)}
    hook = sys.unraisablehook
    for number in before:
        signal.signal(number, _raise)
    if hook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


# Before torch

def _is_program() -> bool:
    """Whether Python was started with -m fastmix, which it looks for now, or with the script ``fastmix``."""
    if sys.argv and os.path.basename(sys.argv[0]) == _PACKAGE and sys.argv[0] in sys.orig_argv[1:]:
        return True  # not in a process that multiprocessing spawned: its argv is its parent's, its orig_argv is not
    names = (re.fullmatch(r"-[bBdEhiIOPqRsSuvVx]*m(.*)", word) for word in sys.orig_argv[1:])
    at, found = next(((i, found) for i, found in enumerate(names, 1) if found), (0, None))
    if found is None or sys.argv[:1] != ["-m"]:
        return False
    name = found[1] or "".join(sys.orig_argv[at + 1:at + 2])
    return name.partition(".")[0] == _PACKAGE


def _open_streams() -> None:
    """A closed standard stream (``>&-``) becomes /dev/null: else the next file that is opened has its number, and gets
    what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _only_own_warnings() -> None:
    """What other packages warn of is nothing that a person at the command line can act on; python -W shows it."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.ERROR)
    warnings.formatwarning = _one_line
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", message="fastmix")


def _one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int,
              line: str | None = None) -> str:
    text = str(message)
    return f"{text}\n" if text.startswith("fastmix") else f"{filename}:{lineno}: {category.__name__}: {text}\n"


def _before_the_commands(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: of an error while the library is imported."""
    if debug():
        traceback.print_exception(kind, error, trace)
    if isinstance(error, KeyboardInterrupt):
        if first_rank():
            say(SIGNALS[signal.SIGINT])
        end(INTERRUPTED)
    text = " ".join(str(error).split()) or kind.__name__
    if isinstance(error, ImportError):
        text = text if text.startswith("fastmix") else f"a package that it needs cannot be imported: {text}"
    elif not isinstance(error, ValueError):  # of a variable of the environment
        text = f"{kind.__name__}: {text} (FASTMIX_DEBUG=1 shows where)"
    say(text.removeprefix("fastmix: "))
    end(USAGE if isinstance(error, ValueError) else FAILURE)


def begin() -> None:
    """Of this process, if it is the program."""
    if not _is_program():
        return
    _open_streams()
    _only_own_warnings()
    sys.excepthook = _before_the_commands
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _leave)


begin()
