"""Does a call that is made again and again keep memory or files? Resident memory and descriptors, before and after."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")


class Growth(NamedTuple):
    """bytes: of resident memory. files: of open descriptors."""

    bytes: int
    files: int


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def growth(call: Callable[[], object], calls: int, warm: int = 200, parts: int = 4) -> Growth:
    """What so many calls add after the first ones.

    The least growth of a part, times the parts: what grows once (a pool, an arena) is no leak, which grows in each.
    Sizes are read where the garbage has been collected.
    """
    for _ in range(warm):
        call()
    files, marks = len(os.listdir("/proc/self/fd")), []
    gc.collect()
    gc.freeze()  # what is here already need not be looked at again and again
    try:
        for part in range(parts + 1):
            if part:
                for _ in range(calls // parts):
                    call()
            gc.collect()
            marks.append(resident())
    finally:
        gc.unfreeze()
    steps = [after - before for before, after in pairwise(marks)]
    return Growth(max(0, min(steps)) * parts, len(os.listdir("/proc/self/fd")) - files)
