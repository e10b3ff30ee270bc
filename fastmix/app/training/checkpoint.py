"""A run's state on disk. A kill at any moment leaves the file of the last finished epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ...files import DamagedFile, write_atomically
from ...states import misfit, optimizer_misfit, read_state, write_state
from ..console import CommandError
from ..names import printable

NAME = "checkpoint.pt"
KINDS = {"model": dict, "options": dict, "world": int, "epoch": int, "history": list, "best": dict}
ENTRY = {"epoch": int, "train_loss": float, "lr": float, "seconds": float, "ms": dict}  # of every epoch's line


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def wrong_entry(value: Any, kinds: dict[str, type]) -> str | None:
    """The first name that is missing in a dictionary or of another type, in words; None: it has all."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__} instead of names and values"
    for name, kind in kinds.items():
        found = value.get(name)
        if isinstance(found, bool) or not isinstance(found, (int, float) if kind is float else kind):
            return f"{name} is {'missing' if name not in value else type(found).__name__}"
    return None


def read(path: Path) -> dict[str, Any] | None:
    """`states.read_state`, its error one of the command."""
    try:
        return read_state(path)
    except DamagedFile as error:
        raise CommandError(printable(str(error))) from None


def save(folder: Path, state: dict[str, Any]) -> None:
    write_state(folder / NAME, state)


def load(folder: Path) -> dict[str, Any] | None:
    """The last state of the run in this folder; None if it finished no epoch. CommandError for another file."""
    state = read(folder / NAME)
    if state is None:
        return None
    wrong = wrong_entry(state, KINDS)
    history = [] if wrong else state["history"]
    for number, entry in enumerate(history, 1):
        wrong = wrong or wrong_entry(entry, ENTRY) or wrong_entry(entry["ms"], {"step": float})
        if not wrong and entry["epoch"] != number:
            wrong = f"epoch {number} is missing"
    if not wrong and (state["epoch"] != len(history) or not history):
        wrong = f"epoch is {state['epoch']}, and there are {len(history)} in its history"
    classes = [] if wrong else state.get("classes", [])
    if not isinstance(classes, list) or any(type(name) is not str for name in classes):
        wrong = wrong or "classes is no list of names"
    wrong = wrong or wrong_entry(state["best"], {"accuracy": float, "epoch": int})
    if wrong:
        raise CommandError(f"{printable(folder / NAME)} is no checkpoint of a run ({wrong})")
    return state


def restore(name: str, part: Any, state: Any) -> None:
    """Gives a part of a run, as its model, the state that was kept of it. ValueError: it is that of another."""
    if isinstance(part, torch.optim.Optimizer):
        wrong = optimizer_misfit(state, part)
    elif hasattr(part, "misfit"):
        wrong = part.misfit(state)
    else:
        wrong = misfit(state, part.state_dict(), name)
    if wrong:
        raise ValueError(wrong)
    part.load_state_dict(state)
