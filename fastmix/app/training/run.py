"""One run: set up, resume, train, report, draw."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

import fastmix

from ...files import DamagedFile, append, make_folder, read_json, remove, sweep, write_atomically
from .. import data
from ..console import CommandError, UsageError, first_line, require
from ..figures import training as pictures
from ..figures.drawing import optional
from ..methods import PLAIN
from ..names import listed, printable, shortened
from ..tables import line_of
from . import checkpoint, schedules
from .distributed import Processes
from .evaluate import augmented_risk, evaluate
from .loop import NotFinite, train_epoch
from .options import FREE_ON_RESUME, RunOptions
from .ratio import step_ratio
from .samples import draw_samples
from .setup import setup
from .timing import StepTimer

CONFIG, METRICS, REPORT = "config.json", "metrics.jsonl", "report.json"
CURVES, SAMPLES = "curves.png", "samples.png"
Bar = Callable[[int, int, int], AbstractContextManager[Callable[[], None]]]
FILES = (CONFIG, METRICS, REPORT, checkpoint.NAME, CURVES, SAMPLES)
EVALUATION = ("evaluation.json", "evaluation.png")  # what the evaluate command adds


class Run:
    """A run in its folder; only the first process writes there.

    log: prints a line of progress. bar: called with (epoch, epochs, steps), yields what to call after a step.
    """

    make = staticmethod(setup)
    files = FILES

    def __init__(self, options: RunOptions, dataset: data.Dataset, processes: Processes, folder: Path,
                 log: Callable[[str], None], bar: Bar) -> None:
        self.folder, self.log, self.bar = folder, log, bar
        self.setup = self.make(options, dataset, processes)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0}

    @property
    def options(self) -> RunOptions:
        return self.setup.options

    @property
    def writes(self) -> bool:
        return self.setup.processes.first

    def _parts(self) -> dict[str, Any]:
        """What a checkpoint keeps the state of; None for what this run does without."""
        setup = self.setup
        return {"model": setup.model, "optimizer": setup.optimizer, "scheduler": setup.scheduler,
                "objective": setup.objective, "policy": setup.policy}

    def start(self, resume: bool) -> None:
        """Takes up the folder's checkpoint, or begins."""
        state = checkpoint.load(self.folder) if resume else None
        if state is not None:
            if state["world"] != self.setup.processes.world:
                raise UsageError(f"{self.folder} was trained by {state['world']} processes, this is "
                                 f"{self.setup.processes.world}: a run continues with as many")
            check_options(self.folder, state["options"], self.options)
            check_classes(self.folder, state, self.setup.dataset)
            longer = state["options"]["epochs"] != self.options.epochs
            for name, part in self._parts().items():
                if part is None or (longer and name == "scheduler"):
                    continue
                try:
                    checkpoint.restore(name, part, state[name])
                except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                    reason = f"{name} is missing" if isinstance(error, KeyError) else first_line(error)
                    raise CommandError(f"{printable(self.folder / checkpoint.NAME)} is of another run than {CONFIG} "
                                       f"beside it ({reason})") from None
            self.history, self.best = state["history"], state["best"]
            if longer:
                self._extend(state["options"]["epochs"])
        elif resume:
            self.log(f"{printable(self.folder)} has no checkpoint: no epoch was finished; starting anew")
        self.setup.processes.barrier()  # nobody may write before everybody has read
        if not self.writes:
            return
        make_folder(self.folder)
        for name in self.files:
            sweep(self.folder / name)
        if state is None:
            clear(self.folder, self.files)
        else:
            remove(self.folder / REPORT)  # of fewer epochs
        checkpoint.write_json(self.folder / CONFIG, self.options.to_json())
        # A kill may have come between a checkpoint and its line, or within a line.
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.folder / METRICS, lines.encode())

    def _extend(self, before: int) -> None:
        """Another number of epochs than the checkpoint's run was to have: its schedule continues as that of the new."""
        now, done = self.options.epochs, len(self.history)
        old = self.history[-1]["lr"]
        reached = min(done, now - self.options.refine_epochs) * self.steps
        new = schedules.move(self.setup.scheduler, self.setup.optimizer, reached)
        self.log(f"epochs {done + 1} to {now} follow the {self.options.schedule} schedule of {now} epochs (lr "
                 f"{old:.3g} -> {new:.3g}) after {done} of {before}: not the result of {now} epochs from the start")

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return len(data.training_steps(len(self.setup.dataset.train.labels), self.options.batch, 0, 0,
                                       self.setup.processes.world))

    def train(self) -> None:
        """The epochs that are left."""
        done = len(self.history)
        if done:
            self.log(f"continuing {printable(self.folder)} after epoch {done} of {self.options.epochs}")
        timer = StepTimer(self.setup.device)
        for epoch in range(done + 1, self.options.epochs + 1):
            try:
                entry = self._epoch(epoch, timer)
            except NotFinite as error:
                last = len(self.history)
                kept = (f"the checkpoint of epoch {last} is kept in {self.folder / checkpoint.NAME}" if last else
                        "no epoch was finished, so there is no checkpoint")
                raise NotFinite(f"{error}; {kept}. A smaller --lr may help") from None
            self.history.append(entry)
            if entry.get("test_accuracy", -1.0) > self.best["accuracy"]:
                self.best = {"accuracy": entry["test_accuracy"], "epoch": epoch}
            if self.writes:
                self._save(entry)
            number = f"{epoch:>{len(str(self.options.epochs))}}/{self.options.epochs}"
            self.log(line_of([(0, f"epoch {number}"), (2, f"lr {entry['lr']:<8.3g}"), *self.describe(entry),
                              (4, f"{entry['ms']['step']:.1f} ms/step"), (3, f"{entry['seconds']:.1f} s")]))

    def describe(self, entry: dict[str, Any]) -> list[tuple[int, str]]:
        """What an epoch came to, in the line that reports it: see `tables.line_of`."""
        parts = [(0, f"train {entry['train_loss']:.3f} {100 * entry['train_accuracy']:5.1f} %")]
        if "test_loss" in entry:
            parts.append((0, f"test {entry['test_loss']:.3f} {100 * entry['test_accuracy']:5.2f} %"))
        if "reward" in entry:
            random = f" (random {entry['random_reward']:.3f})" if "random_reward" in entry else ""
            parts.append((1, f"reward {entry['reward']:.3f}{random} q {entry['q']:.2f}"))
        return parts

    def _epoch(self, epoch: int, timer: StepTimer) -> dict[str, Any]:
        setup = self.setup
        steps = self.steps
        entry: dict[str, Any] = {"epoch": epoch}
        refinement = setup.refinement
        with self.bar(epoch, self.options.epochs, steps) as advance:
            entry |= train_epoch(setup, epoch, timer, advance)
        if refinement.refine_epochs:
            entry["phase"] = "refinement" if refinement.refining else "augmentation"
        boundary = epoch in (refinement.first - 1, refinement.epochs)  # the last of each phase
        if epoch % self.options.test_every and not boundary:
            return entry
        test = evaluate(setup, setup.dataset.test)
        # The last update of an epoch may be the one that diverged: the test loss shows it, no training loss does.
        if not math.isfinite(test["loss"]):
            raise NotFinite(f"the test loss after epoch {epoch} is not a finite number: step {steps} of the epoch, the "
                            f"last, diverged (learning rate {entry['lr']:.4g})")
        entry |= {f"test_{key}": value for key, value in test.items()}
        if refinement.refine_epochs:
            entry["clean_loss"] = evaluate(setup, setup.dataset.train)["loss"]
            if boundary:
                entry["augmented_loss"] = augmented_risk(setup, epoch)
        return entry

    def _save(self, entry: dict[str, Any]) -> None:
        state = {name: None if part is None else part.state_dict() for name, part in self._parts().items()}
        checkpoint.save(self.folder, state | {
            "fastmix": fastmix.__version__, "options": self.options.to_json(), "world": self.setup.processes.world,
            "epoch": entry["epoch"],
            "history": self.history, "best": self.best,
            "classes": self.setup.dataset.classes})
        append(self.folder / METRICS, json.dumps(entry) + "\n")

    def report(self) -> dict[str, Any]:
        """The result of a finished run, and its pictures. Every process must call it."""
        setup, options, last = self.setup, self.options, self.history[-1]
        train = evaluate(setup, setup.dataset.train)
        mixing = [entry for entry in self.history if entry.get("phase") != "refinement"]  # whose steps are plain ones
        ms = {name: statistics.median(entry["ms"][name] for entry in mixing) for name in last["ms"]}
        result = {
            "method": options.method, "data": options.data, "model": options.model, "seed": options.seed,
            "epochs": options.epochs, "train_images": len(setup.dataset.train.labels),
            "test_images": len(setup.dataset.test.labels), "test_accuracy": last["test_accuracy"],
            "test_loss": last["test_loss"], "ece": last["test_ece"], "best_accuracy": self.best["accuracy"],
            "best_epoch": self.best["epoch"], "train_accuracy": train["accuracy"], "train_loss": train["loss"],
            "ms": ms, "step_ratio": 1.0, "seconds": sum(entry["seconds"] for entry in self.history),
            "weights": sum(p.numel() for p in setup.model.parameters()), "device": device_name(setup.device),
            "threads": torch.get_num_threads(), "processes": setup.processes.world, "torch": torch.__version__,
            "fastmix": fastmix.__version__,
        }
        if options.preset is not None:
            result["preset"] = options.preset
        risks = {entry["phase"]: {"epoch": entry["epoch"], "clean": entry["clean_loss"],
                                  "augmented": entry["augmented_loss"]}
                 for entry in self.history if "augmented_loss" in entry}
        if risks:
            result["risk"] = risks
        if "reward" in mixing[-1]:
            late = mixing[-max(1, len(mixing) // 5):]
            result["policy"] = {key: statistics.fmean(entry[key] for entry in late)
                                for key in ("reward", "random_reward", "q") if key in late[-1]}
            result["policy"]["levels"] = [statistics.fmean(shares) for shares in
                                          zip(*(entry["levels"] for entry in late), strict=True)]
        setup.refinement.begin(1, setup.mixer)  # time and pictures are of the mixing
        if self.writes:
            if options.method != PLAIN:
                result["step_ratio"] = step_ratio(setup)
            checkpoint.write_json(self.folder / REPORT, result)
            with optional(self.folder / CURVES):
                pictures.curves(self.history, f"{options.method} on {options.data}, {options.model}",
                                self.folder / CURVES)
            with optional(self.folder / SAMPLES):
                draw_samples(setup, setup.dataset.test, self.folder / SAMPLES)
        setup.processes.barrier()
        return result


def check_options(folder: Path, stored: dict[str, Any], options: RunOptions) -> None:
    """CommandError if the checkpoint in this folder was trained with other options than these, those of config.json."""
    where, now = printable(folder / checkpoint.NAME), options.to_json()
    if type(stored.get("epochs")) is not int:
        raise CommandError(f"{where} is no checkpoint of a run (options: epochs is missing)")
    for name, value in now.items():
        if name in stored and name not in (*FREE_ON_RESUME, "epochs") and stored[name] != value:
            raise CommandError(f"{where} is of a run with {name} = {shown(stored[name])}, {CONFIG} beside it says "
                               f"{shown(value)}: one of the two belongs to another run")


def shown(value: Any) -> str:
    """A value of a file in a message."""
    return shortened(printable(repr(value)), 60)


def check_classes(folder: Path, state: dict[str, Any], dataset: data.Dataset) -> None:
    """CommandError if the checkpoint in this folder is of a model for other classes: its labels would mean others."""
    classes = state.get("classes", dataset.classes)
    if classes != dataset.classes:
        gone, new = (listed(name for name in a if name not in b) or "none" for a, b in
                     ((classes, dataset.classes), (dataset.classes, classes)))
        raise CommandError(f"{printable(folder)} was trained on other classes (only there: {gone}; only in the data: "
                           f"{new})")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def clear(folder: Path, files: tuple[str, ...] = FILES) -> None:
    """Removes what a run has written, and nothing else."""
    for name in (*files, *EVALUATION):
        remove(folder / name)


def check_extras() -> None:
    """Before an hour of training, not after it."""
    require("matplotlib", "matplotlib", "training")
    require("torchmetrics", "torchmetrics", "training")


# What a report has to have, for the table that shows it and for what is made of it; the first four in that of any run.
REPORT_ENTRIES = {"epochs": int, "method": str, "ms": dict, "model": str}
TRAINED_ENTRIES = REPORT_ENTRIES | {
    "data": str, "seed": int, "train_images": int, "processes": int, "threads": int, "device": str, "torch": str,
    "fastmix": str, "test_accuracy": float, "best_accuracy": float, "train_accuracy": float, "ece": float,
    "step_ratio": float}


def finished(folder: Path, epochs: int, entries: dict[str, type] = TRAINED_ENTRIES) -> dict[str, Any] | None:
    """The report of a run that has finished so many epochs, or None. entries: what it has to have."""
    try:
        found = read_json(folder / REPORT)
    except FileNotFoundError:
        return None
    except (OSError, DamagedFile) as error:
        raise CommandError(f"{printable(folder / REPORT)} is damaged ({error}); remove it") from None
    wrong = checkpoint.wrong_entry(found, entries) or checkpoint.wrong_entry(found["ms"], {"step": float})
    if wrong:
        raise CommandError(f"{printable(folder / REPORT)} is damaged ({wrong}); remove it")
    return found if found["epochs"] == epochs else None
