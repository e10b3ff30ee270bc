"""Two results of one machine: where a fastmix backend became slower or vanished.

Slower means: the median more than 10 % above the old one and the two interquartile ranges apart. Vanished is a case or
a backend of the old result that the new run was asked for and does not have: renamed, removed, stopped before it, or
no longer served. Results of another machine or thread count, or with nothing in common, cannot be compared.
"""

from __future__ import annotations

from .entries import Entry
from .report import aligned, duration, ours

LIMIT = 1.10
SAME = ("name", "threads")


def regressed(old: Entry, new: Entry) -> bool:
    """Whether provider entry ``new`` is a regression from ``old``."""
    return new["median_us"] > LIMIT * old["median_us"] and new["q1_us"] > old["q3_us"]


def asked_for(case: Entry, old: Entry, new: Entry) -> bool:
    """Whether a run with the settings ``new`` has a case of the run with the settings ``old``, unless it vanished."""
    ops = new.get("ops")
    return (ops is None or case["op"] in ops) and (not new.get("quick") or case.get("quick", old["quick"]))


def compare(old: Entry, new: Entry) -> tuple[str, int]:
    """(report, exit code) of two results."""
    for what in SAME:
        before, now = old["machine"].get(what), new["machine"].get(what)
        if before != now:
            return f"compare: machine {what} was {before!r}, is {now!r}: times cannot be compared", 2
    after = {(c["op"], c["case"], c["mode"]): c["providers"] for c in new["cases"]}
    providers = new["settings"].get("providers")
    rows, worse, vanished = [], 0, 0
    for case in old["cases"]:
        key = (case["op"], case["case"], case["mode"])
        if key not in after and not asked_for(case, old["settings"], new["settings"]):
            continue
        for name in ours(case):
            if providers is not None and name not in providers:
                continue
            was, now = case["providers"][name], after.get(key, {}).get(name, {})
            gone = "median_us" not in now
            bad = not gone and regressed(was, now)
            worse, vanished = worse + bad, vanished + gone
            found = now.get("error") or now.get("skipped") or "not in the new result" if gone else (
                duration(now["median_us"]))
            change = "" if gone else f"{now['median_us'] / was['median_us'] - 1:+.0%}"
            rows.append((f"{case['op']} {case['case']}, {case['mode']}", name, duration(was["median_us"]), found,
                         change, "VANISHED" if gone else "REGRESSION" if bad else ""))
    if not rows:
        return "compare: no fastmix backend ran in the old result for what the new run was asked", 2
    table = aligned([("case", "backend", "old", "new", "change", ""), *rows])
    last = (f"compare: of {len(rows)} {worse} became slower by more than {LIMIT - 1:.0%} outside the IQR, "
            f"{vanished} vanished")
    return "\n".join([*table, last]), 1 if worse or vanished else 0
