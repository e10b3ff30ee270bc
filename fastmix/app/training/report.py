"""Results as a table: rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from ..console import require
from .timing import PHASES, phases

COLUMNS = ("method", "test acc %", "best %", "train acc %", "ECE %", "ms/step", "vs plain step")


def spread(values: list[float], digits: int) -> str:
    """The mean, and the sample standard deviation of two or more."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def row(name: str, reports: list[dict[str, Any]], shown: tuple[str, ...] = PHASES) -> list[str]:
    """A line of the table from the reports of one method's seeds; shown: the phases with a column."""
    def column(key: str, scale: float = 100, digits: int = 2) -> str:
        return spread([scale * report[key] for report in reports], digits)

    totals = [sum(report["ms"].get(phase, 0.0) for phase in shown) for report in reports]
    parts = [statistics.fmean(100 * report["ms"].get(phase, 0.0) / total
                              for report, total in zip(reports, totals, strict=True)) for phase in shown]
    return [name, column("test_accuracy"), column("best_accuracy"), column("train_accuracy"), column("ece"),
            f"{statistics.fmean(report['ms']['step'] for report in reports):.1f}",
            f"{statistics.fmean(report['step_ratio'] for report in reports):.2f}x", *(f"{part:.0f}" for part in parts)]


def plain(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [list(columns), *rows]) for i in range(len(columns))]

    def render(line: list[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells[1:]])

    return "\n".join([title, render(list(columns)), "  ".join("-" * w for w in widths), *map(render, rows)])


RISKS = ("method", "augmented", "clean", "refined: augmented", "refined: clean")
RISK_TITLE = "cross-entropy of the training images x 1000, before and after the refinement"


def risk_row(name: str, reports: list[dict[str, Any]]) -> list[str]:
    """A line as in refined data augmentation Table 2, from the reports of one method's seeds."""
    return [name, *(spread([1e3 * report["risk"][phase][kind] for report in reports], 1)
                    for phase in ("augmentation", "refinement") for kind in ("augmented", "clean"))]


def show(title: str, groups: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the table of one or several methods, and a second one of their risks if they were refined."""
    shown = phases(report for reports in groups.values() for report in reports)
    rows = [row(name, reports, shown) for name, reports in groups.items()]
    _table(title, (*COLUMNS, *(f"{phase} %" for phase in shown)), rows)
    refined = [risk_row(name, reports) for name, reports in groups.items() if all("risk" in r for r in reports)]
    if refined:
        _table(RISK_TITLE, RISKS, refined)


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    if not sys.stdout.isatty():
        print(plain(title, columns, rows), flush=True)
        return
    # Names are no markup and hold no codes of emoji.
    console = require("rich.console", "rich", "the table").Console(markup=False, emoji=False, highlight=False)
    table = require("rich.table", "rich", "the table").Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    for line in rows:
        table.add_row(*line)
    console.print(table)


EXPLANATION = ("train acc: clean training images after the last epoch; vs plain step: the same model without mixing, "
               "alternating steps; the shares are of a step's time, model includes the backward pass and the update")
