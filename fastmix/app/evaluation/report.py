"""The evaluation of a run: its parts one after the other, in one JSON and on one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastmix

from ..console import CommandError
from ..figures import evaluation as plots
from ..figures.drawing import optional
from ..names import printable
from ..tables import fitted
from ..training import checkpoint
from ..training.run import device_name
from . import parts


def evaluate_parts(evaluation: parts.Evaluation, wanted: list[str], strict: bool,
                   log: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The results of the wanted parts. strict: one that cannot be evaluated is an error, not left out."""
    results = {}
    for name in wanted:
        started = time.perf_counter()
        try:
            part = parts.run(name, evaluation)
        except parts.Skipped as error:
            if strict:
                raise CommandError(f"part {name}: {error}") from None
            log(fitted(f"{name}: left out, {error}", "  "))
            continue
        results[name] = part | {"seconds": time.perf_counter() - started}
        log(fitted(f"{name}: {parts.summary(name, part)} ({results[name]['seconds']:.1f} s)", "  "))
    return results


def write(evaluation: parts.Evaluation, results: dict[str, dict[str, Any]], out: Path) -> str:
    """The JSON and the page; their names. out: of the JSON."""
    trained = evaluation.trained
    settings = trained.options
    if out.parent == trained.folder and trained.replaced():
        raise CommandError(f"{trained.folder} holds another run than the one that was evaluated; call evaluate again")
    report = {"run": trained.folder.name, "method": settings.method, "data": settings.data, "model": settings.model,
              "train_seed": settings.seed, "epoch": trained.epoch, "images": len(evaluation.index),
              "seed": evaluation.seed, "device": device_name(trained.device), "processes": evaluation.processes.world,
              "torch": torch.__version__, "fastmix": fastmix.__version__, "parts": results}
    checkpoint.write_json(out, report)
    title = f"{settings.method} on {settings.data}, {settings.model}, {len(evaluation.index)} test images"
    with optional(out.with_suffix(".png")):
        plots.page(results, evaluation, title, out.with_suffix(".png"))
    return f"{printable(out)} and {printable(out.with_suffix('.png'))}"
