"""Two pictures of one result: how many times faster fastmix is than the others, and how near the roof.

All these operators do a few operations a byte, far left of a classic roofline's ridge: the only roof over them is
bandwidth, the rate of a clone of the same batch. The second picture therefore draws, case by case, which share of
that roof each provider reaches (the floor over its time).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastmix.app.figures import drawing

from .entries import Entry, median
from .report import ours, peers, speedup
from .runner import OURS

COLOURS = {"eager": "#9a9a9a", "compile": "#1f77b4", "peer": "#e08214", "ours": "#1b7837"}
MARKERS = {"eager": "s", "compile": "D", "peer": "^", "ours": "o"}
NAMES = {"eager": "PyTorch eager", "compile": "torch.compile", "peer": "fastest peer"}
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw(results: Entry, beside: Path) -> list[str]:
    """Writes <stem>-speedup.png and <stem>-roofline.png next to the JSON; returns a line for each, or why not."""
    if find_spec("matplotlib") is None:
        return ["no plots: matplotlib is not installed"]
    backends = [name for name in OURS if any(name in ours(case) for case in results["cases"])]
    if not backends:
        return ["no plots: no fastmix backend ran"]
    cases = [case for case in results["cases"] if ours(case)]
    lines = []
    for kind, panel in (("speedup", _speedups), ("roofline", _shares)):
        path = beside.with_name(f"{beside.stem}-{kind}.png")
        with drawing.optional(path):
            _write(results, cases, backends, panel, path)
            lines.append(f"wrote {path}")
    return lines


@drawing.picture
def _write(results: Entry, cases: list[Entry], backends: list[str], panel: Any, path: Path) -> None:
    drawing.save(_figure(results, cases, backends, panel), path)


def _figure(results: Entry, cases: list[Entry], backends: list[str], panel: Any) -> Any:
    """A row per case and a panel per backend; ``panel(axis, cases, backend)`` draws one and returns its values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 + 6 * len(backends), 2.2 + 0.27 * len(cases)), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(backends), sharey=True, sharex=True, squeeze=False)[0]
    for axis in axes:
        axis.set_xscale("log")  # replaces the tick formatter, so before the panel sets its own
    values = [v for axis, backend in zip(axes, backends, strict=True) for v in panel(axis, cases, backend)]
    low, high = min(0.7, 0.8 * min(values, default=1)), max(1.5, 1.3 * max(values, default=1))
    ticks = [t for t in (TICKS if high / low < 2000 else TICKS[::3]) if low <= t <= high]  # else they overlap
    for axis, backend in zip(axes, backends, strict=True):
        axis.axvline(1, color="#b03020", lw=1, zorder=1)
        axis.set_xlim(low, high)
        axis.set_xticks(ticks)
        axis.minorticks_off()
        axis.grid(axis="x", color="#eeeeee", zorder=0)
        axis.set_axisbelow(True)
        axis.set_yticks(range(len(cases)), [_label(case) for case in cases], fontsize=9)
        axis.set_ylim(len(cases) - 0.4, -0.6)
        axis.tick_params(axis="x", top=True, labeltop=True)  # a tall picture is read from both ends
        axis.set_title(f"fastmix {backend}")
        for first, last in _groups(cases)[1::2]:
            axis.axhspan(first - 0.5, last + 0.5, color="#f3f4f6", zorder=-1)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    machine = results["machine"]
    figure.suptitle(f"{machine['name']}, {machine['threads']} threads, torch {machine['packages'].get('torch', '?')}, "
                    f"{results['date'][:10]}", fontsize=10)
    return figure


def _groups(cases: list[Entry]) -> list[tuple[int, int]]:
    """First and last row of every operator's block."""
    starts = [row for row, case in enumerate(cases) if row == 0 or case["op"] != cases[row - 1]["op"]]
    return [(start, after - 1) for start, after in zip(starts, [*starts[1:], len(cases)], strict=True)]


def _label(case: Entry) -> str:
    return f"{case['op']}  {case['case']}{' +backward' if case['mode'] != 'forward' else ''}"


def _others(case: Entry) -> dict[str, str]:
    """Kind -> provider, of those that ran."""
    found = {kind: kind for kind in ("eager", "compile") if median(case, kind) is not None}
    return found | ({"peer": peers(case)[0]} if peers(case) else {})


def _row(axis: Any, row: int, values: list[float]) -> None:
    axis.plot([min(values), max(values)], [row, row], color="#dddddd", lw=2, zorder=1)


def _speedups(axis: Any, cases: list[Entry], backend: str) -> list[float]:
    """How many times as long the others take, with the goals as ticks."""
    shown = [1.0]
    for row, case in enumerate(cases):
        if median(case, backend) is None:
            continue
        values = {kind: speedup(case, backend, other) for kind, other in _others(case).items()}
        _row(axis, row, [1, *values.values()])
        for kind, value in values.items():
            axis.scatter(value, row, s=38, color=COLOURS[kind], marker=MARKERS[kind], edgecolor="white", lw=0.6,
                         zorder=3, label=NAMES[kind])
        goals = {kind: goal for kind, goal in case["goals"].items() if kind in NAMES}
        for kind, goal in goals.items():
            axis.scatter(goal, row, marker="|", s=150, lw=2, color=COLOURS[kind], zorder=2,
                         label=f"goal against {NAMES[kind]}")
        shown += [*values.values(), *goals.values()]
    axis.axvspan(1e-3, 1, color="#fbe3e0", zorder=0)
    axis.xaxis.set_major_formatter(lambda v, _: f"{v:g}x")
    axis.set_xlabel(f"time of the other / time of fastmix {backend}\nleft of 1: fastmix is slower")
    return shown


def _shares(axis: Any, cases: list[Entry], backend: str) -> list[float]:
    """The share of the roof, and the roof itself in GB/s at the right-hand edge."""
    shown = [1.0]
    for row, case in enumerate(cases):
        roof = case["clone_bytes"] / median(case, "clone") / 1e3
        rate = f"{roof:.0f} GB/s" if roof >= 100 else f"{roof:.3g} GB/s"
        axis.annotate(rate, (1, row), xycoords=("axes fraction", "data"), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=8, color="#555555")
        if median(case, backend) is None:
            continue
        values = {kind: case["floor_us"] / median(case, other) for kind, other in _others(case).items()}
        own = case["floor_us"] / median(case, backend)
        _row(axis, row, [own, 1, *values.values()])
        axis.scatter(own, row, s=56, color=COLOURS["ours"], marker=MARKERS["ours"], edgecolor="white", lw=0.6,
                     zorder=4, label="fastmix")
        for kind, value in values.items():
            axis.scatter(value, row, s=34, color=COLOURS[kind], marker=MARKERS[kind], edgecolor="white", lw=0.6,
                         zorder=3, label=NAMES[kind])
        if "floor" in case["goals"]:
            axis.scatter(1 / case["goals"]["floor"], row, marker="|", s=150, lw=2, color=COLOURS["ours"], zorder=2,
                         label="goal")
        shown += [own, *values.values()]
    axis.xaxis.set_major_formatter(lambda v, _: f"{100 * v:g}%")
    axis.set_xlabel("share of the roof reached (bytes that must move once, at the rate of\n"
                    "a clone of the batch, whose GB/s are at the right)")
    return shown
