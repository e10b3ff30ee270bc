"""The rows of a result of `bench host`."""

from __future__ import annotations

from .entries import Entry
from .report import duration

FORMAT = "host-1"


def rows(entries: list[Entry]) -> list[list[str]]:
    found = [["call", "time", "beside", "its time", "times", "goal"]]
    for e in entries:
        goal = "-" if e["met"] is None else f"<= {e['goal_us']:g} us" if e["goal_us"] else f"<= {e['goal_times']:g}x"
        found.append([e["name"], duration(e["us"]), e["beside"] or "-",
                      duration(e["beside_us"]) if e["beside_us"] else "-",
                      f"{e['ratio']:.2f}x" if e["ratio"] else "-", goal + (" MISSED" if e["met"] is False else "")])
    return found
