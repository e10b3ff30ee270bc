"""A report as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..methods import PLAIN
from ..results.render import rows
from . import drawing

PANELS = (("test_accuracy", "test accuracy, %"), ("ece", "ECE, % (less is better)"),
          ("fgsm", "accuracy under FGSM, %"))


def _label(name: str) -> str:
    """The method, and under it its flags."""
    return "\n".join(drawing.lines(part, 60) for part in name.replace(" --", "\n--", 1).split("\n"))


@drawing.picture
def draw(results: dict[str, Any], path: Path) -> None:
    """Test accuracy, ECE and accuracy under FGSM: a line per row, best accuracy first.

    A large point is the mean, its bar the standard deviation, small points the seeds; the dashed line is `none`.
    """
    found = sorted(rows(results), key=lambda row: -row["test_accuracy"]["mean"])
    panels = [(key, title) for key, title in PANELS if all(key in row for row in found)]
    figure, (axes,) = drawing.new(1, len(panels), (3.0 + 3.4 * len(panels), 1.3 + 0.3 * len(found)), sharey=True)
    for axis, (key, title), colour in zip(axes, panels, drawing.COLOURS, strict=False):
        for i, row in enumerate(found):
            seeds = [100 * one[key] for one in row["runs"] if key in one]
            axis.scatter(seeds, [i] * len(seeds), s=9, color="#aaaaaa", zorder=2)
            axis.errorbar(100 * row[key]["mean"], i, xerr=100 * (row[key]["std"] or 0), fmt="o", markersize=5,
                          color=colour, capsize=2.5, linewidth=1.2, zorder=3)
            if row["name"] == PLAIN:
                axis.axvline(100 * row[key]["mean"], color="#888888", linestyle="--", linewidth=1, zorder=1)
        drawing.grid(axis, title, xlabel=None)
    axes[0].set_yticks(range(len(found)), [_label(row["name"]) for row in found])
    axes[0].set_ylim(len(found) - 0.4, -0.6)
    figure.suptitle(results["title"], fontsize=11)
    drawing.save(figure, path)
