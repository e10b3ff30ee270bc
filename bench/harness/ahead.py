"""Compiles the references of many cases before the first one is timed, in as many processes as there are cores.

What they leave behind is Inductor's cache on disk. Its keys hold the graph, the options and the number of threads, all
of which are the bench's own here, so that the bench finds the code that it would have generated and compiled itself:
torch.compile's default settings, one case after another. Nothing is timed before all of them have ended.

Not on a GPU, where Inductor times candidates while it compiles and must have the device to itself.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor

import torch

from ..cases.base import Case, select_cases
from .machine import cores
from .runner import compile_reference

VARIABLE = "TORCHINDUCTOR_COMPILE_THREADS"
Key = tuple[str, str, str]


def key(case: Case) -> Key:
    return case.op, case.name, case.mode


@functools.cache
def _known() -> dict[Key, Case]:
    return {key(case): case for case in select_cases(None, quick=False)}


def _end_with(parent: multiprocessing.process.ParentProcess) -> None:
    parent.join()
    os._exit(1)


def _prepare(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bench answers, and ends them
    torch.set_num_threads(threads)  # generated code has their number in it
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed bench would leave its workers waiting
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _compile(wanted: Key) -> bool:
    """Whether the case's reference is compiled now. Why not, the bench finds out when it tries."""
    try:
        compile_reference(_known()[wanted], torch.device("cpu"))
    except Exception:
        return False
    return True


def compile_ahead(cases: list[Case], workers: int | None = None) -> int:
    """Compiles the references of ``cases``, all of them found by `select_cases`; returns how many could be.

    workers: processes (default: one a core). With fewer than two there is nothing to gain, and nothing is done.
    """
    workers = min(cores() if workers is None else workers, len(cases) // 2)
    if workers < 2:
        return 0
    # One compiler a process; a process of this kind must not start a pool of its own either.
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare,
                                 (torch.get_num_threads(),)) as pool:
            return sum(pool.map(_compile, [key(case) for case in cases]))
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
