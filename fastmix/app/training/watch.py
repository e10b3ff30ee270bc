"""The processes of a run watch each other: where one has stopped, the others end instead of waiting for it.

A process that is killed closes its connections, which the others notice at once. One that is stopped (SIGSTOP, a
machine that swaps or is gone) does not, and a collective waits for it for half an hour. So every process counts in the
store of the process group while it lives, whatever it is busy with, and looks at the numbers of the others.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ..._starting import FAILURE, end, say
from ..names import printable

BEAT = 2.0  # seconds between two counts
SILENCE = 30.0  # after which a process counts as stopped


class Watch:
    """left: what an early end leaves, and how to go on; for the message."""

    def __init__(self, rank: int, world: int, left: Callable[[], str]) -> None:
        self._rank, self._world, self._left = rank, world, left
        self._done = threading.Event()
        self._store: Any = None
        self._prefix = f"fastmix/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._thread = threading.Thread(target=self._watch, daemon=True, name="fastmix-watch")

    def start(self) -> None:
        """To be called in a process group that torchrun's environment describes."""
        try:  # a connection of its own: that of the group may be busy waiting
            self._store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                                        wait_for_workers=False, timeout=timedelta(seconds=max(1.0, SILENCE / 3)))
            self._count(self._rank, 1)
        except (KeyError, ValueError, RuntimeError):  # another way of meeting: nothing is watched
            return
        self._thread.start()

    def stop(self) -> None:
        self._done.set()

    def speaks(self) -> bool:
        """Whether this process is the first of those that end to say why; the first rank where nobody can tell."""
        try:
            return bool(self._store.add(f"{self._prefix}/said", 1) == 1)
        except (AttributeError, RuntimeError):
            return self._rank == 0

    def _count(self, rank: int, by: int = 0) -> int:
        return int(self._store.add(f"{self._prefix}/alive/{rank}", by))

    def _watch(self) -> None:
        others = [rank for rank in range(self._world) if rank != self._rank]
        counts: dict[int, int] = {}
        heard: dict[int, float] = {}
        last = reached = time.monotonic()
        while not self._done.wait(BEAT):
            now = time.monotonic()
            if now - last > SILENCE / 2:  # this process stood still itself, and knows nothing of the others
                counts, heard, reached = {}, {}, now
            last = now
            try:
                self._count(self._rank, 1)
                for rank in others:
                    count = self._count(rank)
                    if counts.get(rank) != count:
                        counts[rank], heard[rank] = count, time.monotonic()
                reached = time.monotonic()
            except RuntimeError:
                if time.monotonic() - reached > SILENCE:
                    self._end("the processes of this run cannot reach each other any more", self._rank == 0 or
                              self._world == 2)
                continue
            silent = [rank for rank in others if now - heard[rank] > SILENCE]
            if silent:
                lowest = min(rank for rank in range(self._world) if rank not in silent)
                self._end(f"process {', '.join(map(str, silent))} of this run has not answered for {SILENCE:.0f} s: it "
                          "was stopped, or its machine is gone", lowest == self._rank)

    def _end(self, reason: str, speak: bool) -> None:
        """Of the whole process, whose main thread waits in a collective, where no exception reaches it."""
        if self._done.is_set():
            return
        if speak:
            say(printable("; ".join(filter(None, [reason, self._left()]))))
        end(FAILURE)
