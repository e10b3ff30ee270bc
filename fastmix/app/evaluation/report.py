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
from ..training import checkpoint
from ..training.run import EVALUATION, device_name
from . import parts


def judge(judged: parts.Judged, wanted: list[str], strict: bool,
          log: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The results of the wanted parts. strict: a part that cannot be judged is an error, not left out."""
    results = {}
    for name in wanted:
        started = time.perf_counter()
        try:
            part = parts.run(name, judged)
        except parts.Skipped as error:
            if strict:
                raise CommandError(f"part {name}: {error}") from None
            log(f"{name}: left out, {error}")
            continue
        results[name] = part | {"seconds": time.perf_counter() - started}
        log(f"{name}: {parts.summary(name, part)} ({results[name]['seconds']:.1f} s)")
    return results


def write(judged: parts.Judged, results: dict[str, dict[str, Any]], out: Path | None) -> str:
    """The JSON and the page; their names. out: of the JSON, None: in the run's folder."""
    trained = judged.trained
    settings, state = trained.options, checkpoint.load(trained.folder)
    report = {"run": trained.folder.name, "method": settings.method, "data": settings.data, "model": settings.model,
              "train_seed": settings.seed, "epoch": state["epoch"] if state else None, "images": len(judged.index),
              "seed": judged.seed, "device": device_name(trained.device), "processes": judged.processes.world,
              "torch": torch.__version__, "fastmix": fastmix.__version__, "parts": results}
    out = out or trained.folder / EVALUATION[0]
    checkpoint.write_json(out, report)
    title = f"{settings.method} on {settings.data}, {settings.model}, {len(judged.index)} test images"
    plots.page(results, judged, title, out.with_suffix(".png"))
    return f"{out} and {out.with_suffix('.png')}"
