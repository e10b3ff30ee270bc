"""Where the time of a step goes, without waiting for the device while training."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch

PHASES = ("data", "saliency", "mix", "model", "loss")
# Of rlmix alone: it learns once a rollout, so the mean is taken here, and the median over steps leaves it out.
POLICY = "policy"


def phases(reports: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """The phases that these runs have."""
    return (*PHASES, POLICY) if any(POLICY in report["ms"] for report in reports) else PHASES


class StepTimer:
    """Marks the ends of a step's phases: CUDA events on a GPU, read once an epoch, the clock on the CPU.

        timer.start()
        ...; timer.end("data")
        ...; timer.end("mix")
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._steps: list[list[tuple[str, float | torch.cuda.Event]]] = []

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        self._steps.append([("", self._now())])

    def end(self, phase: str) -> None:
        self._steps[-1].append((phase, self._now()))

    def _between(self, a: float | torch.cuda.Event, b: float | torch.cuda.Event) -> float:
        return a.elapsed_time(b) if self._cuda else (b - a) * 1e3  # type: ignore[union-attr, operator]

    def collect(self) -> dict[str, float]:
        """Median milliseconds of a step ("step") and of every phase since the last call. Waits for a GPU."""
        if self._cuda:
            torch.cuda.synchronize()
        times: dict[str, list[float]] = {phase: [] for phase in ("step", *PHASES)}
        # The first steps of an epoch warm caches and allocators.
        for marks in self._steps[min(3, len(self._steps) - 1):]:
            step = dict.fromkeys(PHASES, 0.0)
            for (_, before), (phase, now) in itertools.pairwise(marks):
                if phase != POLICY:
                    step[phase] += self._between(before, now)
            times["step"].append(sum(step.values()))
            for phase in PHASES:
                times[phase].append(step[phase])
        self._steps = []
        return {name: statistics.median(values) if values else 0.0 for name, values in times.items()}
