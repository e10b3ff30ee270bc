"""Presets: how the hyper-parameters of a paper fill the options of a run."""

from __future__ import annotations

import difflib
from typing import Any

from ..console import UsageError
from ..methods import METHODS, is_own
from .recipes import PRESETS, Preset


def get(name: str) -> Preset:
    """The preset of this name; UsageError with the nearest names for an unknown one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 3)
        raise UsageError(f"--preset: there is no {name!r}" + (f"; near are {', '.join(near)}" if near else "") +
                         " (python -m fastmix presets lists all)")
    return PRESETS[name]


def fill(given: dict[str, Any], method: str | None = None) -> dict[str, Any]:
    """The fields of `Options`: those given, and for the others those of the preset in ``given["preset"]``, if any.

    method: the one of --compare; None is that of the flags, or of the preset.
    """
    preset = get(given["preset"]) if given.get("preset") is not None else None
    if preset is None:
        return given if method is None else given | {"method": method}
    chosen = method or given.get("method", preset.options["method"])
    if chosen not in METHODS:
        raise UsageError(f"--preset {preset.name}: there is no method {chosen!r} here; --method takes "
                         f"{', '.join(METHODS)}")
    options = dict(preset.options)
    if chosen != options["method"]:
        options = {name: value for name, value in options.items() if not is_own(name)}
    if given.get("schedule", options["schedule"]) != options["schedule"]:
        for name in ("milestones", "gamma", "warmup"):
            options.pop(name, None)
    scale = given.get("epochs", options["epochs"]) / options["epochs"]
    if scale != 1:
        options |= _scaled(options, scale)
    return options | given | {"method": chosen}


def _scaled(options: dict[str, Any], scale: float) -> dict[str, Any]:
    """What is counted in epochs, for a run of another length."""
    changed: dict[str, Any] = {}
    if "milestones" in options:
        changed["milestones"] = tuple(sorted({max(1, round(epoch * scale)) for epoch in options["milestones"]}))
    if options.get("refine_epochs"):
        epochs = round(options["epochs"] * scale)
        changed["refine_epochs"] = min(max(1, round(options["refine_epochs"] * scale)), epochs - 1)
        if not changed["refine_epochs"]:
            changed["refine_lr"] = None
    if options.get("warmup"):
        changed["warmup"] = round(options["warmup"] * scale)
    return changed


def flags(preset: Preset) -> str:
    """The command line that the preset stands for."""
    parts = []
    for name, value in preset.options.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        parts.append(f"--{name.replace('_', '-')} {text}")
    return " ".join(parts)
