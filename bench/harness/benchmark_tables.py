"""The Markdown of the measured figures: the README's headline and the tables of docs/benchmarks.md.

Every function takes its results as (link, content).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastmix.app.results.render import markdown

from .entries import Entry, median
from .growth import exchanged_bytes, predicted
from .host_table import rows as host_rows
from .report import duration, ours, peers, size, speedup, times_floor
from .steps import judged

Found = list[tuple[str, Entry]]

SPEED = ("operator", "case", "fastmix", "vs torch.compile", "vs eager", "vs fastest peer", "times the floor")
PHASES = ("data", "saliency", "mix", "plan", "model", "loss")
STEP = ("method", "step", "added", *PHASES, "goal")
# What it does, operator, case and mode of the headline's rows, and the training step in its last one.
HEADLINE = (
    ("loss of a mixed label, with gradient", "soft_target", "256x21841 fp32", "forward+backward"),
    ("blend two images (Mixup)", "blend", "64x3x224x224 K=2", "forward"),
    ("paste nested boxes (DCutMix)", "paste", "64x3x224x224 K=3", "forward"),
    ("mix patches by saliency (R-Mix)", "patch_mix", "64x3x224x224 +saliency_mask", "forward"),
    ("move every image (SoftCrop)", "crop", "64x3x224x224 crop", "forward"),
    ("bytes to pasted, normalised images", "view", "64x3x224x224 paste", "forward"),
    ("ISDA's logits, with gradients", "isda", "full N=128 J=100 A=640 (70 present)", "forward+backward"),
)
HEADLINE_STEP = ("preact-resnet18", "dcutmix")


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.2g}x" if value < 100 else f"{value:.0f}x"
    return f"**{text}** (slower)" if value < 0.995 else text


def _machine(result: Entry) -> str:
    """Where, with what and when."""
    machine = result["machine"]
    commit = (machine["commit"] or "unknown")[:12] + (" with changes" if machine["uncommitted_changes"] else "")
    return (f"{machine['name']} ({machine['threads']} threads, torch {machine['packages'].get('torch', '?')}, "
            f"{result['date'][:10]}, commit {commit})")


def _link(source: str) -> str:
    return f"[{Path(source).name}]({source})"


def _missing(command: str) -> str:
    return f"No result is committed yet; `{command}` makes one, and `python -m fastmix bench pages` puts it here."


def headline(operators: Found, steps: Found, benchmarks: str) -> str:
    """A small table for the README. benchmarks: the link to the page with all figures."""
    if not operators:
        return _missing("python -m fastmix bench")
    (source, results), = operators
    by_name = {(case["op"], case["case"], case["mode"]): case for case in results["cases"] if ours(case)}
    rows = [["what", "shape", "fastmix", "vs torch.compile", "vs eager"]]
    for what, *name in HEADLINE:
        case = by_name.get(tuple(name))
        if case is not None:
            backend = ours(case)[0]
            rows.append([f"{what}, `{case['op']}`", case["case"], duration(median(case, backend)),
                         _ratio(speedup(case, backend, "compile")), _ratio(speedup(case, backend, "eager"))])
    sources = [source]
    for path, result in steps:
        settings = result["settings"]
        for row in result["rows"] if settings["model"] == HEADLINE_STEP[0] else ():
            if row["method"] == HEADLINE_STEP[1]:
                side = settings["size"]
                rows.append([f"a training step, `{row['method']}`",
                             f"{settings['model']}, {settings['batch']} images of {side}x{side}",
                             f"{row['added_percent']:+.2f} % of a plain step", "-", "-"])
                sources.append(path)
    return (f"{markdown(rows)}\n\nMeasured on {_machine(results)}; above 1x fastmix is faster. From "
            f"{' and '.join(map(_link, sources))}; every case, losses like wins: [{benchmarks}]({benchmarks}).")


def speed(found: Found) -> str:
    """A row per case, losses like wins."""
    if not found:
        return _missing("python -m fastmix bench")
    (source, results), = found
    rows = [list(SPEED)]
    for case in results["cases"]:
        if not ours(case):
            continue
        name = ours(case)[0]
        best = peers(case)[:1]
        against_peer = f"{_ratio(speedup(case, name, best[0]))} `{best[0]}`" if best else "-"
        rows.append([f"`{case['op']}`", f"{case['case']}, {case['mode']}", f"{duration(median(case, name))} ({name})",
                     _ratio(speedup(case, name, "compile")), _ratio(speedup(case, name, "eager")), against_peer,
                     f"{times_floor(case, name):.2g}"])
    notes = ["The floor is the time that the bytes which must move once take at the rate of a clone of the batch, "
             "measured in the same run" + (", in memory that the process holds already."
                                           if results["settings"].get("keeps_memory") else ".")]
    if any(case.get("compiled_without_loops") for case in results["cases"]):
        notes.append("torch.compile gets the eager code; of `isda` and `covariance`, which loop over the classes "
                     "there, the same function without loops.")
    return (f"Measured on {_machine(results)}; medians of interleaved repeats in one process, from {_link(source)}. "
            f"Above 1x fastmix is faster.\n\n{markdown(rows)}\n\n{' '.join(notes)}")


def compat(found: Found) -> str:
    """Every drop-in beside the class that it stands for."""
    if not found:
        return _missing("python -m fastmix bench --op compat")
    (source, results), = found
    rows = [["class and batch", "fastmix", "the original", "fastmix is"]]
    for case in results["cases"]:
        if ours(case) and peers(case):
            name, theirs = ours(case)[0], peers(case)[0]
            rows.append([case["case"], duration(median(case, name)), duration(median(case, theirs)),
                         _ratio(speedup(case, name, theirs))])
    return (f"Measured on {_machine(results)}; medians of interleaved repeats in one process, from {_link(source)}; "
            f"losses with their gradients. Above 1x fastmix is faster.\n\n{markdown(rows)}")


def steps(found: Found) -> str:
    """A table per model."""
    if not found:
        return _missing("python -m fastmix bench step")
    parts = []
    for source, result in found:
        settings = result["settings"]
        parts.append(f"`{settings['model']}`, {settings['size']}x{settings['size']}, batch {settings['batch']}, "
                     f"{settings['classes']} classes, {settings['repeats']} rounds: {_machine(result)}, from "
                     f"{_link(source)}.")
        parts.append(markdown([list(STEP), *map(_step_row, result["rows"])]))
    return "\n\n".join(parts)


def _step_row(row: Entry) -> list[str]:
    ms = row["ms"] | {"plan": row["plan_ms"]}
    verdicts = [f"{what} <= {goal:g}{unit}: {'met' if met else '**missed**'}"
                for what, _, goal, unit, met in judged(row)]
    plain = row["method"] == "none"
    return [f"`{row['method']}`", f"{ms['step']:.0f}" if plain else f"{row['ratio']:.3f}x",
            "-" if plain else f"{row['added_percent']:.2f} %", *(_ms(ms[phase]) for phase in PHASES),
            "; ".join(verdicts) or "-"]


def _ms(value: float) -> str:
    return "-" if value == 0 else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


# ImageNet-21k as it is trained, and the ranks that share its batch.
CLASSES, IMAGES, SIDE, FEATURES, RANKS = 21841, 256, 224, 2048, 8
ISDA_SIZES = {"J": CLASSES, "A": FEATURES}
# What a row says, the operator's sweeps, and its sizes beside N; none where nothing of the size is predicted.
GROWTH = (
    ("blend of 2", "blend", {"side": SIDE, "K": 2}),
    ("paste of 3", "paste", {"side": SIDE, "K": 3}),
    ("R-Mix after its saliency", "patch_mix", {"side": SIDE}),
    ("loss with its gradient", "soft_target", {"J": CLASSES, "K": 2}),
    (f"diagonal ISDA at A = {FEATURES}: statistics", "covariance diag", ISDA_SIZES),
    (f"diagonal ISDA at A = {FEATURES}: logits with gradients", "isda diag", ISDA_SIZES),
    ("full ISDA: statistics", "covariance full", None),
    ("full ISDA: logits with gradients", "isda full", None),
)


def _growth(sweeps: list[Entry]) -> Iterator[list[str]]:
    yield ["what", "grows as", f"{IMAGES} images of {SIDE}x{SIDE}, {CLASSES} classes",
           f"a rank of {RANKS}: {IMAGES // RANKS} images"]
    for what, op, sizes in GROWTH:
        exponents = ", ".join(f"{row['size']}^{row['exponent']:.2f}" for row in sweeps if row["op"] == op)
        times = ["-", "-"] if sizes is None else [duration(predicted(sweeps, op, N=n, **sizes))
                                                  for n in (IMAGES, IMAGES // RANKS)]
        yield [f"{what}, `{op}`", exponents, *times]


def _exchange() -> Iterator[list[str]]:
    yield ["ISDA's statistics", "kept", "exchanged by a rank in a step"]
    for kind, classes, features, present in (("diag", CLASSES, FEATURES, IMAGES), ("full", CLASSES, FEATURES, IMAGES),
                                             ("full", 100, 640, 100)):
        kept = 4 * classes * features * (features if kind == "full" else 1)
        detail = f", {present} classes present" if kind == "full" else ""
        yield [f"{kind}, {classes} classes, A = {features}{detail}", size(kept),
               size(exchanged_bytes(kind, classes, features, present))]


def scale(found: Found) -> str:
    """Two tables, computed."""
    if not found:
        return _missing("python -m fastmix bench scale")
    (source, result), = found
    return (f"Computed, not measured, along the exponents of {_link(source)} ({_machine(result)}), from the nearest "
            f"measured call.\n\n{markdown(list(_growth(result['sweeps'])))}\n\nMixing and losses communicate nothing; "
            "what does is ISDA, whose ranks exchange sums and moments, never features, so its bytes do not grow with "
            f"the batch or the ranks.\n\n{markdown(list(_exchange()))}")


def host(found: Found) -> str:
    if not found:
        return _missing("python -m fastmix bench host")
    (source, result), = found
    return (f"Measured on {_machine(result)}, from {_link(source)}: processor time of one thread, medians of "
            f"interleaved rounds.\n\n{markdown(host_rows(result['cases']))}")
