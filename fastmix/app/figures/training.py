"""curves.png, samples.png and compare.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...targets import SoftTarget
from ..console import require
from ..training.timing import phases
from .drawing import COLOURS, picture
from .drawing import grid as _grid
from .drawing import lines as _lines
from .drawing import new as _new
from .drawing import save as _save


def _focus(axis: Any, percents: list[float]) -> None:
    """Limits that show differences near the end of training: the first epochs may leave the frame below."""
    ordered = sorted(percents)
    low = ordered[len(ordered) // 5]
    top = max(ordered)
    axis.set_ylim(max(0.0, low - 0.6 * (top - low) - 1), min(100.5, top + 0.15 * (top - low) + 0.5))


def _tested(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs with a test, see --test-every."""
    return [entry for entry in history if "test_accuracy" in entry]


@picture
def curves(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Loss, accuracy and learning rate of a run by epoch.

    With a refinement, whose beginning is a dashed line, the loss of the clean training images too, and that of the
    augmented ones ends there: refined data augmentation Fig. 1. With a policy (rlmix) two more: its reward beside
    that of the images that drew at random, and how often it chooses each level.
    """
    augmented = [entry for entry in history if entry.get("phase") != "refinement"]
    refined = len(augmented) < len(history)
    epochs, tested = [entry["epoch"] for entry in history], _tested(history)
    learnt = [entry for entry in history if "reward" in entry]
    figure, ((loss, accuracy, rate, *policy),) = _new(1, 5 if learnt else 3, (20 if learnt else 12, 3.6))
    marker = "o" if len(epochs) < 3 else None
    for axis, key, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for part, colour in (("train", COLOURS[0]), ("test", COLOURS[1])):
            shown = augmented if part == "train" else tested
            axis.plot([entry["epoch"] for entry in shown], [scale * entry[f"{part}_{key}"] for entry in shown],
                      color=colour, marker=marker, markersize=4, linewidth=1.5,
                      label={"train": "train, as mixed", "test": "test"}[part])
    if refined:
        loss.plot([entry["epoch"] for entry in tested], [entry["clean_loss"] for entry in tested], color=COLOURS[2],
                  marker=marker, markersize=4, linewidth=1.5, label="train, clean")
        for axis in (loss, accuracy, rate):
            axis.axvline(len(augmented) + 0.5, color="#888888", linestyle="--", linewidth=1)
    for axis in (loss, accuracy):
        axis.legend(fontsize=8, frameon=False)
    _grid(loss, "loss")
    _grid(accuracy, "accuracy, %")
    rate.plot(epochs, [entry["lr"] for entry in history], color=COLOURS[2], marker=marker, markersize=4, linewidth=1.5)
    rate.set_yscale("log")
    _grid(rate, "learning rate, end of the epoch")
    if learnt:
        _policy(*policy, learnt, marker)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _policy(reward: Any, percentile: Any, history: list[dict[str, Any]], marker: str | None) -> None:
    """What a policy earns and chooses, by epoch."""
    for key, name, colour in (("reward", "chosen by the policy", COLOURS[0]),
                              ("random_reward", "drawn at random, same batches", "#888888")):
        shown = [(entry["epoch"], entry[key]) for entry in history if key in entry]
        reward.plot([epoch for epoch, _ in shown], [value for _, value in shown], color=colour, marker=marker,
                    markersize=4, linewidth=1.5, label=name)
    reward.legend(fontsize=8, frameon=False)
    _grid(reward, "reward: cosine of the saliency maps")
    first, last, levels = history[0]["epoch"], history[-1]["epoch"], len(history[0]["levels"])
    shares = percentile.imshow([list(row) for row in zip(*(entry["levels"] for entry in history), strict=True)],
                               origin="lower", aspect="auto", cmap="viridis", vmin=0,
                               extent=(first - 0.5, last + 0.5, -0.5, levels - 0.5))
    percentile.figure.colorbar(shares, ax=percentile, fraction=0.05).ax.tick_params(labelsize=8)
    _grid(percentile, "share of each level (0: all salient)")
    percentile.grid(False)


@picture
def lines(history: list[dict[str, Any]], wanted: dict[str, str], title: str, path: Path) -> None:
    """A curve by epoch for each of these metrics. wanted: key -> heading."""
    figure, (axes,) = _new(1, len(wanted), (4 * len(wanted), 3.6))
    for axis, (key, heading), colour in zip(axes, wanted.items(), COLOURS, strict=False):
        axis.plot([entry["epoch"] for entry in history], [entry[key] for entry in history], color=colour,
                  marker="o" if len(history) < 3 else None, markersize=4, linewidth=1.5)
        _grid(axis, heading)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def shares(target: SoftTarget, classes: list[str], row: int) -> list[str]:
    """A line for every class of a label, or some for a long name, largest share first; the same class twice counts
    once."""
    total: dict[int, float] = {}
    for label, weight in zip(target.index[row].tolist(), target.weight[row].tolist(), strict=True):
        total[label] = total.get(label, 0.0) + weight
    ordered = sorted(total.items(), key=lambda item: -item[1])
    lines = [_share(classes[label], weight) for label, weight in ordered if weight >= 0.005]
    return lines or [_share(classes[ordered[0][0]], 0)]


def _share(name: str, weight: float) -> str:
    """A class and its share, which is in a line of its own where the name leaves no room."""
    text = _lines(name)
    separator = ": " if len(text.split("\n")[-1]) <= 16 else "\n"
    return f"{text}{separator}{100 * weight:.0f} %"


def _show(axis: Any, image: Tensor) -> None:
    """image: (H, W) values in colours, (H, W, 1) grey or (H, W, 3)."""
    colours = {"cmap": "inferno"} if image.ndim == 2 else {"cmap": "gray"}
    axis.imshow(image.squeeze(-1).numpy(), vmin=0, vmax=1, interpolation="nearest", **colours)


class Attention(NamedTuple):
    """What a method's saliency shows. heat: (N, H, W) in [0, 1]. mask: (N, H, W) bool, salient patches, or None."""

    heat: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, grad: Tensor, mask: Tensor | None) -> Attention:
        """grad: (N, C, H, W) input gradient; mask: (>= N, h, w) bool of a plan."""
        heat = grad.float().square().mean(1).sqrt()
        heat = heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        if mask is not None:
            n, h, w = grad.shape[0], *mask.shape[1:]
            mask = mask[:n].repeat_interleave(grad.shape[2] // h, 1).repeat_interleave(grad.shape[3] // w, 2).cpu()
        return cls(heat.sqrt().cpu(), mask)  # sqrt lifts the small values


@picture
def samples(before: Tensor, after: Tensor | None, names: list[str], lines: list[list[str]], attention: Attention | None,
            title: str, path: Path) -> None:
    """Images before a method, their saliency, and after it.

    Args:
        before, after: (N, H, W, C) in [0, 1]; after None draws one row.
        names: of the images' classes, N.
        lines: what to write under the mixed images, N lists.
        attention: what to draw in between, or None.
    """
    count = len(before)
    rows: list[tuple[str, Tensor]] = [("before", before)]
    if attention is not None:
        rows.append(("saliency", attention.heat))
        if attention.mask is not None:
            # Patches that are not salient are faded to a middle blue-grey, which no grey image holds.
            faded = 0.25 * before + 0.75 * torch.tensor([0.35, 0.42, 0.55])
            rows.append(("salient\npatches", torch.where(attention.mask.unsqueeze(-1), before, faded)))
    if after is not None:
        rows.append(("after", after))
    under = ["\n".join(entry) for entry in lines]
    names = [_lines(name) for name in names[:count]]
    longest_name = max(len(line) for name in names for line in name.split("\n"))
    text = max((1 + entry.count("\n") for entry in under), default=1) + max(name.count("\n") for name in names)
    longest = max((len(line) for entry in under for line in entry.split("\n")), default=0)
    height = 1.42 * len(rows) + 0.15 * text + (0.75 if len(rows) > 1 else 0.3)
    figure, axes = _new(len(rows), count, (1.35 * count + 0.7, height))
    for r, (heading, images) in enumerate(rows):
        for i in range(count):
            axis = axes[r, i]
            _show(axis, images[i])
            axis.set_xticks([])
            axis.set_yticks([])
            if heading == "before":
                axis.set_xlabel(names[i], fontsize=8 if longest_name < 16 else 6.5, labelpad=2)
            elif heading == "after":
                axis.set_xlabel(under[i], fontsize=8 if longest < 16 else 6.5, labelpad=2)
        axes[r, 0].set_ylabel(heading, fontsize=9)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


@picture
def pairs(images: Tensor, first: Tensor, second: Tensor, boxes: Tensor, lines: list[list[str]], title: str,
          path: Path) -> None:
    """Images with two boxes, and the views cut out there.

    Args:
        images, first, second: (N, H, W, C) in [0, 1].
        boxes: (N, 2, 4) (top, left, height, width) in pixels, in the order of the views.
        lines: what to write under each column.
    """
    patches = require("matplotlib.patches", "matplotlib", "drawing")
    figure, axes = _new(3, len(images), (1.35 * len(images) + 0.7, 5.2))
    colours = (COLOURS[4], COLOURS[5])
    for r, (heading, shown) in enumerate((("crops", images), ("view 1", first), ("view 2", second))):
        for i, axis in enumerate(axes[r]):
            _show(axis, shown[i])
            axis.set_xticks([])
            axis.set_yticks([])
            if r == 0:
                for (top, left, height, width), colour in zip(boxes[i].tolist(), colours, strict=True):
                    axis.add_patch(patches.Rectangle((left - 0.5, top - 0.5), width, height, fill=False,
                                                     edgecolor=colour, linewidth=1.8, clip_on=False))
            else:
                axis.spines[:].set_color(colours[r - 1])
                axis.spines[:].set_linewidth(1.8)
            if r == 2:
                axis.set_xlabel("\n".join(lines[i]), fontsize=8, labelpad=2)
        axes[r, 0].set_ylabel(heading, fontsize=9)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


@picture
def gallery(before: Tensor, names: list[str], methods: dict[str, tuple[Tensor, list[list[str]]]], title: str,
            path: Path) -> None:
    """The same images before and after several methods, a row each.

    Args:
        before: (N, H, W, C) in [0, 1]; names: of their classes.
        methods: name -> (images after it, lines to write under them).
    """
    rows = {"before": (before, [[_lines(name)] for name in names]), **methods}
    tallest = [max("\n".join(entry).count("\n") + 1 for entry in lines) for _, lines in rows.values()]
    size = (1.35 * len(before) + 0.9, 1.5 * len(rows) + 0.14 * (sum(tallest) - 1) + 0.5)
    figure, axes = _new(1 + len(methods), len(before), size)
    for row, (heading, (images, lines)) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(heading, fontsize=9)
        for axis, image, text in zip(row, images, lines, strict=True):
            _show(axis, image)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel("\n".join(text), fontsize=7, labelpad=2)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


@picture
def compare(groups: dict[str, list[dict[str, Any]]], histories: dict[str, list[list[dict[str, Any]]]], title: str,
            path: Path) -> None:
    """Test accuracy by epoch, final accuracies, and the time of a step.

    Args:
        groups: method -> its reports, one a seed.
        histories: method -> the same runs' metrics by epoch.
    """
    figure, ((curve, final, cost),) = _new(1, 3, (14, 4.2), width_ratios=(1.5, 1, 1.1))
    everything: list[float] = []
    names = list(groups)
    for colour, name in zip(COLOURS * len(names), names, strict=False):
        tested = [_tested(history) for history in histories[name]]
        runs = torch.tensor([[100 * entry["test_accuracy"] for entry in run] for run in tested])
        epochs = [entry["epoch"] for entry in tested[0]]
        curve.plot(epochs, runs.mean(0), color=colour, linewidth=1.6, label=name,
                   marker="o" if len(epochs) < 3 else None)
        if len(runs) > 1:
            curve.fill_between(epochs, runs.amin(0), runs.amax(0), color=colour, alpha=0.15, linewidth=0)
        everything += runs.flatten().tolist()
    _focus(curve, everything)
    seeds = max(len(reports) for reports in groups.values())
    _grid(curve, "test accuracy, %" + (f" (mean and range of {seeds} seeds)" if seeds > 1 else ""))
    curve.legend(fontsize=8, frameon=False, loc="lower right")

    for i, name in enumerate(names):
        own = COLOURS[i % len(COLOURS)]
        for key, colour, mark in (("train_accuracy", "#888888", "s"), ("test_accuracy", own, "o")):
            values = [100 * report[key] for report in groups[name]]
            final.scatter(values, [i] * len(values), color=colour, marker=mark, s=28, zorder=3,
                          label="train, clean" if key == "train_accuracy" and i == 0 else None)
            mean = sum(values) / len(values)
            if key == "test_accuracy":
                final.annotate(f"{mean:.2f}", (mean, i), xytext=(0, 7), textcoords="offset points", ha="center",
                               fontsize=8)
    final.margins(x=0.12)
    _rows(final, names, "final accuracy, % (squares: clean training images)")

    shown = phases(report for reports in groups.values() for report in reports)
    for i, name in enumerate(names):
        left = 0.0
        for phase, colour in zip(shown, COLOURS, strict=False):
            width = sum(report["ms"].get(phase, 0.0) for report in groups[name]) / len(groups[name])
            cost.barh(i, width, left=left, height=0.55, color=colour, label=phase if i == 0 else None)
            left += width
        ratio = sum(report["step_ratio"] for report in groups[name]) / len(groups[name])
        step = sum(report["ms"]["step"] for report in groups[name]) / len(groups[name])
        cost.annotate(f" {step:.1f} ms, {ratio:.2f}x", (left, i), va="center", fontsize=8)
    cost.set_xlim(right=cost.get_xlim()[1] * 1.35)
    cost.legend(fontsize=7, frameon=False, ncols=len(shown), loc="upper center", bbox_to_anchor=(0.5, -0.1),
                handlelength=1, columnspacing=1)
    _rows(cost, names, "a step, ms (and against a plain step)")
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _rows(axis: Any, names: list[str], title: str) -> None:
    _grid(axis, title, xlabel=None)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
