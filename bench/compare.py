"""`python -m bench.compare old.json new.json`: exits 1 where a fastmix backend became slower.

Slower means: the median more than 10 % above the old one and the two interquartile ranges apart. Exits 2 where the
files cannot be compared (another machine or thread count, nothing in common).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .report import aligned, duration, load, ours
from .runner import OURS

LIMIT = 1.10
SAME = ("name", "threads")


def regressed(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether provider entry ``new`` is a regression from ``old``; one that no longer runs is."""
    if "median_us" not in new:
        return True
    return new["median_us"] > LIMIT * old["median_us"] and new["q1_us"] > old["q3_us"]


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, int]:
    """(report, exit code) of two results."""
    for key in SAME:
        before, now = old["machine"].get(key), new["machine"].get(key)
        if before != now:
            return f"compare: machine {key} was {before!r}, is {now!r}: times cannot be compared", 2
    before = {(c["op"], c["case"], c["mode"]): c for c in old["cases"]}
    rows, worse = [], 0
    for case in new["cases"]:
        key = (case["op"], case["case"], case["mode"])
        if key not in before:
            continue
        for name in OURS:
            was, now = before[key]["providers"].get(name, {}), case["providers"].get(name)
            if "median_us" not in was or now is None:
                continue
            bad = regressed(was, now)
            worse += bad
            after = duration(now["median_us"]) if "median_us" in now else now.get("error") or now.get("skipped", "")
            change = f"{now['median_us'] / was['median_us'] - 1:+.0%}" if "median_us" in now else ""
            rows.append((f"{case['op']} {case['case']}, {case['mode']}", name, duration(was["median_us"]), after,
                         change, "REGRESSION" if bad else ""))
    if not rows:
        had = any(ours(case) for case in old["cases"])
        return f"compare: {'no case in common' if had else 'no fastmix backend ran in the old result'}", 2
    table = aligned([("case", "backend", "old", "new", "change", ""), *rows])
    last = f"compare: {worse} of {len(rows)} became slower by more than {LIMIT - 1:.0%} outside the IQR"
    return "\n".join([*table, last]), 1 if worse else 0


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: python -m bench.compare old.json new.json", file=sys.stderr)
        return 2
    try:
        report, code = compare(*(load(Path(path)) for path in argv))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(report)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
