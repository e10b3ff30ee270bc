"""The Markdown of the README's figures. Every function takes its files as (link, content)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import scale, step
from .report import duration, median, ours, peers, size, speedup, times_floor

Result = dict[str, Any]
Found = list[tuple[str, Result]]

SPEED = ("operator", "case", "fastmix", "vs torch.compile", "vs eager", "vs fastest peer", "times the floor")
PHASES = ("data", "saliency", "mix", "plan", "model", "loss")
STEP = ("method", "step", "added", *PHASES, "goal")


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(cells: tuple[str, ...]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.2g}x" if value < 100 else f"{value:.0f}x"
    return f"**{text}** (slower)" if value < 0.995 else text


def _machine(result: Result) -> str:
    """Where, with what and when."""
    machine = result["machine"]
    commit = (machine["commit"] or "unknown")[:12] + (" with changes" if machine["uncommitted_changes"] else "")
    return (f"{machine['name']} ({machine['threads']} threads, torch {machine['packages'].get('torch', '?')}, "
            f"{result['date'][:10]}, commit {commit})")


def _link(source: str) -> str:
    return f"[{Path(source).name}]({source})"


def _missing(command: str) -> str:
    return f"No result is committed yet; `{command}` makes one, and `python -m bench.readme` puts it here."


def render_speed(found: Found) -> str:
    """A row per case, losses like wins."""
    if not found:
        return _missing("python -m bench")
    (source, results), = found
    lines = [f"Measured on {_machine(results)}; medians of interleaved repeats in one process, from {_link(source)}. "
             "Above 1x fastmix is faster.", "", *_head(SPEED)]
    for case in results["cases"]:
        if not ours(case):
            continue
        name = ours(case)[0]
        best = peers(case)[:1]
        against_peer = f"{_ratio(speedup(case, name, best[0]))} `{best[0]}`" if best else "-"
        lines.append(_row((
            f"`{case['op']}`", f"{case['case']}, {case['mode']}", f"{duration(median(case, name))} ({name})",
            _ratio(speedup(case, name, "compile")), _ratio(speedup(case, name, "eager")), against_peer,
            f"{times_floor(case, name):.2g}")))
    lines += ["", "The floor is the time that the bytes which must move once take at the rate of a clone of the batch, "
              "measured in the same run" + (", in memory that the process holds already."
                                            if results["settings"].get("keeps_memory") else ".")]
    if any(case.get("compiled_without_loops") for case in results["cases"]):
        lines[-1] += (" torch.compile gets the eager code; of `isda` and `covariance`, which loop over the classes "
                      "there, the same function without loops.")
    return "\n".join(lines)


def render_steps(found: Found) -> str:
    """A table per model."""
    if not found:
        return _missing("python -m bench.step")
    lines = ["A training step from bytes to the optimizer, in ms. Step: the whole over a plain one's, median of "
             "interleaved pairs. Added: everything but the model's passes, and the loss's share of backward, beyond a "
             "plain step's, in percent of it. Mix contains plan, the drawing, which is timed once more by itself."]
    for source, result in found:
        settings = result["settings"]
        lines += ["", f"`{settings['model']}`, {settings['size']}x{settings['size']}, batch {settings['batch']}, "
                  f"{settings['classes']} classes, {settings['repeats']} rounds: {_machine(result)}, from "
                  f"{_link(source)}.", "", *_head(STEP)]
        for row in result["rows"]:
            ms = row["ms"] | {"plan": row["plan_ms"]}
            verdicts = [f"{what} <= {goal:g}{unit}: {'met' if met else '**missed**'}"
                        for what, _, goal, unit, met in step.judged(row)]
            plain = row["method"] == "none"
            lines.append(_row((
                f"`{row['method']}`", f"{ms['step']:.0f}" if plain else f"{row['ratio']:.3f}x",
                "-" if plain else f"{row['added_percent']:.2f} %", *(_ms(ms[phase]) for phase in PHASES),
                "; ".join(verdicts) or "-")))
    return "\n".join(lines)


def _ms(value: float) -> str:
    return "-" if value == 0 else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


# ImageNet-21k as it is trained, and the ranks that share its batch.
CLASSES, IMAGES, SIDE, FEATURES, RANKS = 21841, 256, 224, 2048, 8


def render_scale(found: Found) -> str:
    """One paragraph, computed."""
    if not found:
        return _missing("python -m bench.scale")
    (source, result), = found
    sweeps = result["sweeps"]

    def predicted(op: str, **sizes: int) -> str:
        return duration(scale.predicted(sweeps, op, **sizes))

    def state(kind: str) -> int:
        return 4 * CLASSES * FEATURES * (FEATURES if kind == "full" else 1)

    def cost(n: int) -> str:
        isda = {"N": n, "J": CLASSES, "A": FEATURES}
        return (f"blend of 2 {predicted('blend', N=n, side=SIDE, K=2)}, paste of 3 "
                f"{predicted('paste', N=n, side=SIDE, K=3)}, R-Mix after its saliency "
                f"{predicted('patch_mix', N=n, side=SIDE)}, the loss with its gradient "
                f"{predicted('soft_target', N=n, J=CLASSES, K=2)}, diagonal ISDA at A = {FEATURES} "
                f"{predicted('covariance diag', **isda)} for the statistics and {predicted('isda diag', **isda)} for "
                "the logits with their gradients")
    grow = "; ".join(f"`{op}` " + ", ".join(f"{row['size']}^{row['exponent']:.2f}" for row in sweeps if row["op"] == op)
                     for op in dict.fromkeys(row["op"] for row in sweeps))
    diag, full = (scale.exchanged_bytes(kind, CLASSES, FEATURES, IMAGES) for kind in ("diag", "full"))
    small = scale.exchanged_bytes("full", 100, 640, 100)
    return (
        f"Computed, not measured, along the exponents of {_link(source)} ({_machine(result)}): {grow}. "
        f"ImageNet-21k ({CLASSES} classes, {IMAGES} images of {SIDE}x{SIDE}) on this machine: {cost(IMAGES)}; the "
        f"diagonal statistics take {size(state('diag'))}, full ones would take {size(state('full'))}. On {RANKS} ranks "
        f"with {IMAGES // RANKS} images each, a rank: {cost(IMAGES // RANKS)}. Mixing and losses communicate nothing; "
        f"what does is ISDA, whose ranks exchange sums and moments, never features, so its bytes do not grow with the "
        f"batch or the ranks: {size(diag)} a step and rank here (full: {size(full)} with {IMAGES} classes present), at "
        f"most {size(small)} for full covariances of CIFAR-100 at A = 640.")
