"""The results as a table and as JSON; ratios and goals are computed here and nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from fastmix.app.tables import fitted, output_width, table
from fastmix.files import make_folder, write_atomically
from fastmix.ops.dispatch import OPERATORS

from .entries import Entry, median
from .runner import OURS

FORMAT = 1


def ran(case: Entry) -> list[str]:
    return [name for name in case["providers"] if median(case, name) is not None]


def ours(case: Entry) -> list[str]:
    """The fastmix backends that ran, fastest first."""
    return sorted((name for name in ran(case) if name in OURS), key=lambda name: median(case, name))


def peers(case: Entry) -> list[str]:
    """The peers that ran, fastest first."""
    fixed = {"clone", "eager", "compile", *OURS}
    return sorted((name for name in ran(case) if name not in fixed), key=lambda name: median(case, name))


def speedup(case: Entry, provider: str, against: str) -> float | None:
    """How many times faster ``provider`` is than ``against``: below 1 is a loss."""
    own, other = median(case, provider), median(case, against)
    return None if own is None or other is None else other / own


def times_floor(case: Entry, provider: str) -> float | None:
    own = median(case, provider)
    return None if own is None else own / case["floor_us"]


def judged(case: Entry, provider: str) -> list[tuple[str, float, str, bool]]:
    """(what, measured, goal as text, met) of every goal of the case, memory included, for one of our backends."""
    found = []
    for what, goal in case["goals"].items():
        value = times_floor(case, provider) if what == "floor" else speedup(case, provider, what)
        if value is not None:
            met = value <= goal if what == "floor" else value >= goal
            found.append((what, value, f"{'<=' if what == 'floor' else '>='}{goal:g}x", met))
    extra = case["providers"][provider]["extra_bytes"]
    found.append(("memory", extra, f"<={size(case['scratch_bytes'])}", extra <= case["scratch_bytes"]))
    return found


def duration(us: float) -> str:
    if us < 1000:
        return f"{us:.3g} us"
    return f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}x" if value < 100 else f"{value:.0f}x"


def _shown(what: str, value: float) -> str:
    return size(value) if what == "memory" else _ratio(value)


def _goal_name(what: str) -> str:
    return {"floor": "times floor", "memory": "extra memory"}.get(what, f"vs {what}")


BUSY = 0.1  # cores that others may use before a case is marked as disturbed
HEADER = ("provider", "median", "IQR", "GB/s", "x floor", "vs compile", "vs eager", "extra memory")


def case_table(case: Entry) -> str:
    """One case: a line per provider, then a line per goal."""
    floor = f"floor {duration(case['floor_us'])}"
    title = f"{case['op']} {case['case']}, {case['mode']}: {size(case['moved_bytes'])} ({case['formula']}), {floor}"
    rows = [HEADER]
    notes = []
    for name, p in case["providers"].items():
        if "median_us" not in p:
            if "error" in p:
                notes.append(f"  {name}: FAILED: {p['error']}")
            continue
        clone = name == "clone"
        rate = (case["clone_bytes"] if clone else case["moved_bytes"]) / p["median_us"] / 1e3
        label = "clone of the batch" if clone else f"fastmix {name}" if name in OURS else name
        iqr = f"{duration(p['q1_us'])} .. {duration(p['q3_us'])}"
        rows.append((label, duration(p["median_us"]), iqr, f"{rate:.1f}",
                     "" if clone else _ratio(times_floor(case, name)),
                     "" if clone else _ratio(speedup(case, name, "compile")),
                     "" if clone else _ratio(speedup(case, name, "eager")),
                     size(p["extra_bytes"])))
        if "host_us" in p:
            notes.append(f"  {name}: host {duration(p['host_us'])} a call, "
                         + ("replayed as a CUDA graph" if p["graph"] else "launched call by call"))
    for name in ours(case):
        marks = [f"{_goal_name(what)} {_shown(what, value)} (goal {goal}) {'met' if met else 'MISSED'}"
                 for what, value, goal, met in judged(case, name)]
        notes.append(f"  fastmix {name}: {'; '.join(marks)}")
    if case["cores_used_by_others"] > BUSY:
        notes.append(f"  note: disturbed, other processes used {case['cores_used_by_others']:.1f} cores meanwhile")
    return "\n".join([fitted(title, "  "), *aligned(rows), *(fitted(note, "    ") for note in notes)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table with its heading, folded to the terminal."""
    return [f"  {line}".rstrip() for line in table(rows[0], rows[1:], output_width() - 2, rule=False).splitlines()]


def summary(results: Entry) -> str:
    """What did not run and why, then goals, then every win and loss against every other provider."""
    skipped: dict[str, list[str]] = {}
    goals: list[bool] = []
    wins = 0
    losses, missed = [], []
    for case in results["cases"]:
        label = f"{case['op']} {case['case']}, {case['mode']}"
        for name, p in case["providers"].items():
            if "skipped" in p:
                reason = re.sub(rf"\b({'|'.join(OPERATORS)})\b", "it", p["skipped"])
                ops = skipped.setdefault(f"{name}: {reason}", [])
                ops += [case["op"]] if case["op"] not in ops else []
        for name in ours(case):
            for what, value, goal, met in judged(case, name):
                goals.append(met)
                if not met:
                    missed.append(f"  {label}: {name} {_goal_name(what)} {_shown(what, value)}, goal {goal}")
            for other in ("eager", "compile", *peers(case)):
                factor = speedup(case, name, other)
                if factor is not None and factor >= 1:
                    wins += 1
                elif factor is not None:
                    losses.append(f"  {label}: {name} takes {1 / factor:.2f}x the time of {other}")
    lines = [f"not run ({', '.join(ops)}): {reason}" for reason, ops in skipped.items()]
    if goals:
        lines += [f"goals: {sum(goals)} met, {len(missed)} missed", *missed]
        lines += [f"against eager, compile and peers: faster {wins} times, slower {len(losses)} times", *losses]
    return "\n".join(lines)


def failures(results: Entry) -> list[str]:
    """Our own backends that say they serve a case and then fail or compute something else."""
    return [f"{case['op']} {case['case']}, {case['mode']}: {name}: {p['error']}"
            for case in results["cases"] for name, p in case["providers"].items() if name in OURS and "error" in p]


def save(results: Entry, path: Path) -> None:
    make_folder(path.parent)
    write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())


def load(path: Path, formats: Collection[int | str] = (FORMAT,)) -> Entry:
    """A result of one of these formats (default: of `python -m fastmix bench`); ValueError for any other file."""
    try:
        results = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"bench: {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"bench: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"bench: {path} is not JSON: {error}") from None
    if not isinstance(results, dict) or results.get("format") not in formats:
        wanted = " or ".join(map(str, formats))
        raise ValueError(f"bench: {path} is not a result of `python -m fastmix bench` (format {wanted})")
    return results
