"""Figures: their size, colours and axes, and how they are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ..console import require

# Okabe and Ito's palette: distinguishable in grey and by the colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 120


def new(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[Any, Any]:
    """A figure of size inches with rows x columns axes."""
    figures = require("matplotlib.figure", "matplotlib", "drawing")
    figure = figures.Figure(figsize=size, dpi=DPI, layout="constrained")  # no pyplot: no display, no global state
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def grid(axis: Any, title: str, xlabel: str | None = "epoch", ylabel: str | None = None) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", labelsize=8)
    if xlabel == "epoch":
        axis.xaxis.get_major_locator().set_params(integer=True)
    if xlabel is not None:
        axis.set_xlabel(xlabel, fontsize=9)
    if ylabel is not None:
        axis.set_ylabel(ylabel, fontsize=9)
