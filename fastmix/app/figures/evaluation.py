"""The page of an evaluation: a panel for every part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..console import require
from ..evaluation.parts import Evaluation, mean
from . import drawing
from .drawing import COLOURS, grid


def _reliability(axis: Any, part: dict[str, Any]) -> None:
    bins = part["bins"]
    width = bins[0]["high"] - bins[0]["low"]
    centres = [b["low"] + width / 2 for b in bins]
    axis.bar(centres, [b["accuracy"] for b in bins], width=0.92 * width, color=COLOURS[0], label="accuracy")
    filled = [b for b in bins if b["count"]]
    for b in filled:
        axis.plot([b["low"], b["high"]], [b["confidence"]] * 2, color=COLOURS[1], linewidth=1.8,
                  label="mean confidence" if b is filled[0] else None)
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    total = sum(b["count"] for b in bins)
    for b, centre in zip(bins, centres, strict=True):
        axis.annotate(f"{b['count'] / total:.0%}", (centre, 0.01), ha="center", fontsize=6.5,
                      color="white" if b["accuracy"] > 0.06 else "black")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    grid(axis, f"accuracy {100 * part['accuracy']:.2f} %, ECE {100 * part['ece']:.2f} %",
         "confidence (numbers: share of the images)", "accuracy")


def _occlusion(axis: Any, part: dict[str, Any]) -> None:
    hidden = [100 * entry["hidden"] for entry in part["curve"]]
    accuracy = [100 * entry["accuracy"] for entry in part["curve"]]
    axis.plot(hidden, accuracy, color=COLOURS[0], marker="o", markersize=4)
    for x, y in zip(hidden, accuracy, strict=True):
        axis.annotate(f"{y:.1f}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axis.set_xlim(-4, 92)
    axis.set_ylim(0, 108)
    grid(axis, "occlusion", "area hidden, %", "accuracy, %")


def _attacks(axis: Any, part: dict[str, Any]) -> None:
    for i, value in enumerate(part["accuracy"].values()):
        axis.bar(i, 100 * value, width=0.6, color=COLOURS[i])
        axis.annotate(f"{100 * value:.1f}", (i, 100 * value), xytext=(0, 3), textcoords="offset points", ha="center",
                      fontsize=8)
    axis.set_xticks(range(3), ["clean", "FGSM", f"PGD, {part['pgd_steps']} steps"])
    axis.set_ylim(0, 108)
    grid(axis, f"attacks, epsilon {255 * part['epsilon']:g}/255", None, "accuracy, %")


def _noise(axis: Any, part: dict[str, Any]) -> None:
    curve = [entry for entry in part["curve"] if None not in entry["loss"]]
    sigmas = [entry["sigma"] for entry in curve]
    axis.plot(sigmas, [mean(entry["loss"]) for entry in curve], color=COLOURS[0], marker="o", markersize=4,
              label="mean")
    axis.fill_between(sigmas, [min(entry["loss"]) for entry in curve], [max(entry["loss"]) for entry in curve],
                      color=COLOURS[0], alpha=0.2, linewidth=0, label="range of the draws")
    axis.set_yscale("log")
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    grid(axis, "loss around the minimum", "standard deviation of the noise on every weight", "loss")


def distinct(values: np.ndarray) -> list[str]:
    """The numbers with as few digits, at least two, as tell them apart: a flat surface is not 2.3 everywhere."""
    texts: list[str] = []
    for digits in range(2, 9):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts


def _surface(axis: Any, part: dict[str, Any], which: str) -> None:
    ticker = require("matplotlib.ticker", "matplotlib", "drawing")
    steps = part[which]["steps"]
    losses = np.array([[np.nan if value is None else value for value in row] for row in part[which]["loss"]])
    low, high = np.nanmin(losses), np.nanmax(losses)
    low = max(low, 1e-6 * high, np.finfo(float).tiny)
    shades = axis.contourf(steps, steps, losses.T.clip(low), levels=np.geomspace(low, max(high, 1.001 * low), 24),
                           cmap="viridis", locator=ticker.LogLocator())
    axis.plot(0, 0, "+", color="white", markersize=9)
    bar = axis.figure.colorbar(shades, ax=axis)
    ticks = np.geomspace(low, max(high, 1.001 * low), 6)
    bar.set_ticks(ticks, labels=distinct(ticks))
    bar.ax.tick_params(labelsize=7)
    if which == "hessian":
        names = [f"along the eigenvector of {value:.3g}" for value in part["eigenvalues"]]
        grid(axis, "loss, two eigenvectors of the Hessian", *names)
    else:
        grid(axis, "loss, two random directions (filter-normalised)", "direction 1", "direction 2")
    axis.set_aspect("equal")


def _localisation(axis: Any, part: dict[str, Any]) -> None:
    axis.plot([entry["threshold"] for entry in part["curve"]], [100 * entry["known"] for entry in part["curve"]],
              color=COLOURS[0], marker="o", markersize=3.5, label="class known")
    best = part["best"]
    axis.plot(best["threshold"], 100 * best["known"], "*", markersize=11, color=COLOURS[0],
              label=f"best: {100 * best['known']:.1f} % at {best['threshold']:.2f}")
    axis.plot(part["threshold"], 100 * part["top1"], "s", color=COLOURS[1],
              label=f"top-1: {100 * part['top1']:.1f} % at {part['threshold']:g}")
    axis.set_ylim(0, 104)
    axis.legend(fontsize=8, frameon=False)
    grid(axis, f"localisation, IoU at least {part['overlap']:g}", "threshold of the map", "found, %")


def _examples(axis: Any, examples: list, columns: int = 4) -> None:
    """Images under their maps; white: true boxes, red: found ones."""
    rectangle = require("matplotlib.patches", "matplotlib", "drawing").Rectangle
    heat = require("matplotlib", "matplotlib", "drawing").colormaps["inferno"]
    height, width = examples[0][1].shape
    gap = max(1, height // 16)
    rows = -(-len(examples) // columns)
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for i, (picture, activation, truth, box) in enumerate(examples):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        colours = picture.expand(-1, -1, 3).numpy()
        canvas[top:top + height, left:left + width] = 0.45 * colours + 0.55 * heat(activation.numpy())[..., :3]
        for colour, boxes in (("white", truth.tolist()), ("#FF3030", [box])):
            for a, b, h, w in boxes:
                axis.add_patch(rectangle((left + b - 0.5, top + a - 0.5), w, h, fill=False, color=colour,
                                         linewidth=1.3))
    axis.imshow(canvas.clip(0, 1), interpolation="nearest")
    axis.set_axis_off()
    axis.set_title("class activation maps; white: true box, red: found", fontsize=10)


@drawing.picture
def page(parts: dict[str, dict[str, Any]], evaluation: Evaluation, title: str, path: Path) -> None:
    """A PNG with every part. Parts without a result are left out."""
    panels: list[tuple[Any, tuple]] = []
    simple = {"calibration": _reliability, "occlusion": _occlusion, "attacks": _attacks, "noise": _noise}
    for name, part in parts.items():
        if name in simple:
            panels.append((simple[name], (part,)))
        elif name == "surface":
            panels += [(_surface, (part, "hessian")), (_surface, (part, "random"))]
        else:
            panels += [(_localisation, (part,)), (_examples, (evaluation.examples,))]
    columns = min(len(panels), 4 if len(panels) > 6 else 3)
    rows = -(-len(panels) // columns)
    figure, axes = drawing.new(rows, columns, (4.7 * columns, 3.9 * rows + 0.4))
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    for axis, (draw, arguments) in zip(axes.flat, panels, strict=False):
        draw(axis, *arguments)
    figure.suptitle(title, fontsize=11)
    drawing.save(figure, path)
