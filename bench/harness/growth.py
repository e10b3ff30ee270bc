"""How the time of a call grows: exponents fitted to measured sizes, and what they predict for others.

A time is fitted as ``c * size^e`` over the larger half of the sizes, where the fixed cost of a call no longer hides the
growth: 1 is proportional.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .entries import Entry

FORMAT = "scale-2"


def exponent(values: Sequence[int], times: Sequence[float]) -> float:
    """The slope of log time over log size, least squares over the larger half of the sizes (at least three)."""
    count = max(3, (len(values) + 1) // 2)
    x, y = ([math.log(v) for v in series[-count:]] for series in (values, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def predicted(sweeps: list[Entry], op: str, **sizes: int) -> float:
    """Microseconds of a call of these sizes: from the measured call that is nearest to it in work, along the fitted
    exponents. ValueError for an operator or a size without a sweep.
    """
    own = {sweep["size"]: sweep for sweep in sweeps if sweep["op"] == op}
    if not own:
        raise ValueError(f"there is no sweep of {op}")

    def along(sweep: Entry) -> tuple[float, float]:
        """(how far the call lies from this sweep's last, its time)."""
        measured = {**sweep["fixed"], sweep["size"]: sweep["values"][-1]}
        time, distance = sweep["median_us"][-1], 0.0
        for name, value in sizes.items():
            if value == measured[name]:
                continue
            if name not in own:
                raise ValueError(f"there is no sweep of {op} over {name}")
            change = math.log(value / measured[name]) * own[name]["exponent"]
            time, distance = time * math.exp(change), distance + abs(change)
        return distance, time
    return min(map(along, own.values()))[1]


def exchanged_bytes(kind: str, classes: int, features: int, present: int) -> int:
    """What every rank puts into the all-reduces of one ISDA update (fastmix/losses/isda_ranks.py), independent of N.

    present: classes in the whole batch.
    """
    second = {"full": 0, "diag": classes * features, "shared": features**2, "identity": 0}
    matrices = 4 * present * features**2 if kind == "full" else 0
    return 8 * (classes * (features + 1) + 1 + second[kind]) + matrices
