"""A report as a table, in Markdown or for the terminal.

Reads what `collect` writes and what train --compare leaves as compare.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import names
from ..console import CommandError
from ..methods import PLAIN
from ..training import report
from .collect import KEYS, spread

Row = dict[str, Any]


def rows(results: dict[str, Any]) -> list[Row]:
    """Means and deviations by method. CommandError for a JSON of another kind."""
    if "rows" in results:
        return results["rows"]
    groups: dict[str, list[Row]] = {}
    try:
        for one in results["runs"]:
            groups.setdefault(one["method"], []).append(one)
        return [{"name": name, "method": name, "flags": [], "seeds": len(runs), "runs": runs}
                | {key: spread([one[key] for one in runs]) for key in KEYS if all(key in one for one in runs)}
                for name, runs in groups.items()]
    except (KeyError, TypeError):
        raise CommandError("this JSON holds neither a report nor a comparison") from None


def _percent(key: str, digits: int) -> Callable[[Row], str | None]:
    def cell(row: Row) -> str | None:
        if key not in row:
            return None
        mean, std = row[key]["mean"], row[key]["std"]
        shown = f"{100 * mean:.{digits}f}"
        if std is not None and row["seeds"] > 1:
            shown += f" ± {100 * std:.{digits}f}"
        return f"{shown} %"
    return cell


def _ratio(row: Row) -> str | None:
    if "step_ratio" not in row:
        return None
    if row["method"] == PLAIN:
        return "1"
    return f"{row['bench_step_ratio']:.2f}x" if "bench_step_ratio" in row else f"{row['step_ratio']['mean']:.2f}x*"


def _reward(row: Row) -> str | None:
    if "reward" not in row:
        return None
    random = f" ({row['random_reward']['mean']:.3f})" if "random_reward" in row else ""
    return f"{row['reward']['mean']:.3f}{random} at {row['q']['mean']:.2f}"


COLUMNS: dict[str, Callable[[Row], str | None]] = {
    "method": lambda row: row["name"],
    "test accuracy": _percent("test_accuracy", 2),
    "training accuracy": _percent("train_accuracy", 1),
    "ECE": _percent("ece", 1),
    "under FGSM": _percent("fgsm", 1),
    "step": _ratio,
    "reward": _reward,
}


def table(results: dict[str, Any], more: dict[str, Callable[[Row], str | None]] | None = None) -> list[list[str]]:
    """The heading and a line for every row. more: further columns. A column without any value is left out."""
    found = rows(results)
    columns = {heading: [cell(row) for row in found] for heading, cell in (COLUMNS | (more or {})).items()}
    kept = {heading: cells for heading, cells in columns.items() if any(cell is not None for cell in cells)}
    return [list(kept), *([cells[i] or "-" for cells in kept.values()] for i in range(len(found)))]


def markdown(lines: list[list[str]], named: bool = False) -> str:
    """Lines as of `table`. named: the first cells hold names, which are no Markdown."""
    body = [[cell.replace("|", "\\|") for cell in line] for line in lines[1:]]
    if named:
        body = [[names.markdown(line[0]), *cells[1:]] for line, cells in zip(lines[1:], body, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(lines[0]), *body])


def plain(title: str, lines: list[list[str]]) -> str:
    return report.plain(title, tuple(lines[0]), lines[1:])


RISKS = ("method", "before: augmented", "before: clean", "after: augmented", "after: clean")


def risks(results: dict[str, Any]) -> list[list[str]]:
    """The risks of the refined rows as in refined data augmentation Table 2; empty without such a row."""
    refined = [row for row in rows(results) if all("risk" in one for one in row["runs"])]
    return [list(RISKS), *(report.risk_row(row["name"], row["runs"]) for row in refined)] if refined else []


def notes(results: dict[str, Any]) -> list[str]:
    """What the columns mean."""
    lines = ["± is the standard deviation over the seeds"] if any(row["seeds"] > 1 for row in rows(results)) else []
    lines.append("training accuracy is that of the clean training images; ECE has 10 bins")
    if results.get("fgsm"):
        lines.append(f"under FGSM: the accuracy on {results['fgsm']['images']} test images, each pixel moved by at "
                     f"most {255 * results['fgsm']['epsilon']:g}/255")
    step = "step: the time of a step over that of a plain one"
    if "step" in results:
        used = results["step"]["settings"]
        step += (f", by the step benchmark with {used['model']}, {used['batch']} images of {used['size']} x "
                 f"{used['size']} on {results['step']['machine']}")
    if any((_ratio(row) or "").endswith("*") for row in rows(results)):
        step += "; *: the median of pairs of steps after training, on a machine that may have had other work"
    lines.append(step)
    if any("reward" in row for row in rows(results)):
        lines.append("reward: of the policy, in brackets that of the images of the same batches that drew at random, "
                     "and the mean percentile that it chose, in the last fifth of the epochs")
    return lines
