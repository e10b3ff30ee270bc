"""One run: set up, resume, train, report, draw."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastmix

from .. import data, models
from .._cli import CommandError, UsageError, first_line, require
from . import checkpoint, methods, pictures, schedules
from .augment import policy
from .distributed import Processes
from .loop import (
    Mixed,
    NotFinite,
    Setup,
    augmented_risk,
    evaluate,
    play,
    seed_everything,
    train_epoch,
    training_step,
    update,
)
from .objectives import Isda, LabelledDraws
from .options import Options
from .timing import StepTimer

WEIGHTS, SAMPLES, POLICY = 0, 4, 8  # more streams of random numbers, see loop.py
SHOWN = 8
CONFIG, METRICS, REPORT = "config.json", "metrics.jsonl", "report.json"
Bar = Callable[[int, int, int], AbstractContextManager[Callable[[], None]]]
FILES = (CONFIG, METRICS, REPORT, checkpoint.NAME, "curves.png", "samples.png")
EVALUATION = ("evaluation.json", "evaluation.png")  # what the evaluate command adds


def load_data(options: Options) -> data.Dataset:
    dataset = data.load(options.data, options.root, options.image_size, options.limit)
    if options.subset is not None:
        dataset.train = dataset.train.subset(data.read_index(Path(options.subset), len(dataset.train.labels)))
    for split in (dataset.train, dataset.test):
        if isinstance(split, data.FolderSplit):
            split.workers = options.workers
    return dataset


def build_model(options: Options, dataset: data.Dataset) -> nn.Module:
    """The model with the weights of the run's seed, the same in every process and for every method."""
    seed_everything(options.seed, WEIGHTS)
    model = models.build(options.model, len(dataset.classes), dataset.shape)
    return model.to(memory_format=torch.channels_last) if options.channels_last else model


def over_processes(model: nn.Module, processes: Processes) -> nn.Module:
    """The model under DistributedDataParallel if there is more than one process."""
    if processes.world == 1:
        return model
    ids = [processes.device.index] if processes.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def check_size(dataset: data.Dataset, world: int) -> int:
    """The number of training images. UsageError if there are too few."""
    images = len(dataset.train.labels)
    if images < 2 * world or len(dataset.test.labels) < world:
        raise UsageError(f"{images} training and {len(dataset.test.labels)} test images are too few for {world} "
                         f"process{'es' if world > 1 else ''}")
    return images


def setup(options: Options, dataset: data.Dataset, processes: Processes) -> Setup:
    """Everything a run works on, at epoch 0."""
    device, world = processes.device, processes.world
    images = check_size(dataset, world)
    model = build_model(options, dataset).to(device)
    parallel = over_processes(model, processes)
    optimizer = schedules.optimizer(options, model)
    steps = len(data.training_steps(images, options.batch, 0, 0, world))
    moved = dataclasses.replace(dataset, train=dataset.train.to(device), test=dataset.test.to(device))
    objective = draws = None
    if methods.METHODS[options.method].isda:
        objective = Isda(options, model, len(dataset.classes), (options.epochs - options.refine_epochs) * steps, device)
        if objective.unlabelled:
            draws = LabelledDraws(dataset.train.labels, options.labelled)
    if options.saliency == "half" and any(side % 2 for side in dataset.shape[1:]):
        raise UsageError(f"--saliency half: the images are {dataset.shape[1]} x {dataset.shape[2]}, want even sides")
    policy(options)  # a missing torchvision is reported now
    mixer = methods.build(options, dataset.shape, device, len(dataset.classes))
    methods.check_layers(mixer, model)
    chooser = None
    if methods.METHODS[options.method].policy:
        chooser = _policy(options, mixer, len(dataset.classes), images // steps // world, steps, processes)
    return Setup(options, processes, moved, data.Preprocess(dataset, device), model, parallel, optimizer,
                 schedules.scheduler(options, optimizer, steps), mixer, methods.loss(options), objective, draws,
                 schedules.refinement(options), chooser)


def _policy(options: Options, mixer: Any, classes: int, rows: int, steps: int, processes: Processes) -> Any:
    """The same in every process. rows: of the smallest batch of any."""
    for module, package in (("gymnasium", "gymnasium"), ("stable_baselines3", "stable-baselines3")):
        require(module, package, f"method {options.method}", "rl")
    from .. import rl

    seed_everything(options.seed, POLICY)
    average = processes.mean if processes.world > 1 else None
    return rl.Policy(mixer, classes, rl.acting(rows), steps, average, options.discount)


class Run:
    """A run in its folder; only the first process writes there.

    say: prints a line of progress. bar: called with (epoch, epochs, steps), yields what to call after a step.
    """

    make = staticmethod(setup)
    files = FILES

    def __init__(self, options: Options, dataset: data.Dataset, processes: Processes, folder: Path,
                 say: Callable[[str], None], bar: Bar) -> None:
        self.folder, self.say, self.bar = folder, say, bar
        self.setup = self.make(options, dataset, processes)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0}

    @property
    def options(self) -> Options:
        return self.setup.options

    @property
    def writes(self) -> bool:
        return self.setup.processes.first

    def start(self, resume: bool) -> None:
        """Takes up the folder's checkpoint, or begins."""
        state = checkpoint.load(self.folder) if resume else None
        if state is not None:
            if state["world"] != self.setup.processes.world:
                raise UsageError(f"{self.folder} was trained by {state['world']} processes, this is "
                                 f"{self.setup.processes.world}: a run continues with as many")
            self.setup.model.load_state_dict(state["model"])
            self.setup.optimizer.load_state_dict(state["optimizer"])
            self.setup.scheduler.load_state_dict(state["scheduler"])
            self.history, self.best = state["history"], state["best"]
            if self.setup.objective is not None:
                self.setup.objective.load_state_dict(state["objective"])
            if self.setup.policy is not None:
                self.setup.policy.load_state_dict(state["policy"])
        elif resume:
            self.say(f"{self.folder} has no checkpoint: no epoch was finished; starting anew")
        self.setup.processes.barrier()  # nobody may write before everybody has read
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if state is None:
            clear(self.folder, self.files)
        checkpoint.write_json(self.folder / CONFIG, self.options.to_json())
        # A kill may have come between a checkpoint and its line, or within a line.
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        checkpoint.write_atomically(self.folder / METRICS, lines.encode())

    def train(self) -> None:
        """The epochs that are left."""
        done = len(self.history)
        if done:
            self.say(f"continuing {self.folder} after epoch {done} of {self.options.epochs}")
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
            self.say(f"epoch {epoch:>{len(str(self.options.epochs))}}/{self.options.epochs}  lr {entry['lr']:<8.3g} "
                     f"{self.describe(entry)}  {entry['ms']['step']:.1f} ms/step  {entry['seconds']:.1f} s")

    def describe(self, entry: dict[str, Any]) -> str:
        """What an epoch came to, in the line that reports it."""
        said = f"train loss {entry['train_loss']:.3f} acc {100 * entry['train_accuracy']:5.1f} %"
        if "test_loss" in entry:
            said += f"  test loss {entry['test_loss']:.3f} acc {100 * entry['test_accuracy']:5.2f} %"
        if "reward" in entry:
            random = f" (random {entry['random_reward']:.3f})" if "random_reward" in entry else ""
            said += f"  reward {entry['reward']:.3f}{random} q {entry['q']:.2f}"
        return said

    def _epoch(self, epoch: int, timer: StepTimer) -> dict[str, Any]:
        setup = self.setup
        steps = len(data.training_steps(len(setup.dataset.train.labels), self.options.batch, 0, 0,
                                        setup.processes.world))
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
        # The last update of an epoch may be the one that diverged: no loss has seen it, the test set does.
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
        setup = self.setup
        checkpoint.save(self.folder, {
            "options": self.options.to_json(), "world": setup.processes.world, "epoch": entry["epoch"],
            "model": setup.model.state_dict(), "optimizer": setup.optimizer.state_dict(),
            "scheduler": setup.scheduler.state_dict(),
            "objective": None if setup.objective is None else setup.objective.state_dict(),
            "policy": None if setup.policy is None else setup.policy.state_dict(),
            "history": self.history, "best": self.best})
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def report(self) -> dict[str, Any]:
        """The result of a finished run, and its pictures. Every process must call it."""
        setup, options, last = self.setup, self.options, self.history[-1]
        train = evaluate(setup, setup.dataset.train)
        mixing = self.history[:setup.refinement.first - 1]  # the steps of a refinement are plain ones
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
            if options.method != "none":
                result["step_ratio"] = step_ratio(setup)
            pictures.curves(self.history, f"{options.method} on {options.data}, {options.model}",
                            self.folder / "curves.png")
            draw_samples(setup, setup.dataset.test, self.folder / "samples.png")
            checkpoint.write_json(self.folder / REPORT, result)
        setup.processes.barrier()
        return result


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _some_images(setup: Setup, split: data.Split, count: int) -> tuple[Tensor, Tensor]:
    """Random images, the same for every method."""
    index = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(setup.options.seed))[:count]
    images, y = next(split.batches([index]))
    return setup.inputs(images, None), y


def step_ratio(setup: Setup, repeats: int = 15) -> float:
    """Time of this method's step over that of a plain step of the same model, on copies: the median over pairs of
    steps, one after the other, so that a slow moment of the machine meets both. With a policy over pairs of rollouts
    and as many plain steps, what it learns in between included. Draws from the global generators."""
    torch.manual_seed(0)
    model = copy.deepcopy(setup.model).train()
    objective = None if setup.objective is None else setup.objective.alone()
    alone = dataclasses.replace(setup, model=model, parallel=model, optimizer=schedules.optimizer(setup.options, model),
                                objective=objective)
    plain = dataclasses.replace(alone, mixer=None, objective=None, policy=None,
                                loss=methods.cross_entropy(setup.options))
    x, y = _some_images(setup, setup.dataset.train, setup.options.batch)
    own = (x, y) if setup.draws is None else (torch.cat([x, x]), torch.cat([y, y]))

    def step(variant: Setup) -> float:
        timer = StepTimer(setup.device)
        timer.start()
        training_step(variant, *(own if variant is alone else (x, y)), 1.0, timer)
        return timer.collect()["step"]

    def rollout() -> float:
        timer, count = StepTimer(setup.device), setup.policy.rollout
        timer.start()

        def learn(y: Tensor, mixed: Mixed) -> None:
            update(alone, y, mixed, 1.0, timer)

        started = time.perf_counter()
        setup.policy.learn(play(alone, itertools.repeat((x, y)), count, learn, timer))
        return 1e3 * (time.perf_counter() - started) / count

    if setup.policy is None:
        pairs = [(step(alone), step(plain)) for _ in range(repeats + 3)]
        return statistics.median(mixed / unmixed for mixed, unmixed in pairs[3:])
    with setup.policy.alone():
        count = setup.policy.rollout
        pairs = [(rollout(), statistics.fmean(step(plain) for _ in range(count))) for _ in range(repeats // 3 + 1)]
    return statistics.median(mixed / unmixed for mixed, unmixed in pairs[1:])


class Samples(NamedTuple):
    """What a method made of some images: see `pictures.samples`. after: None for a method that leaves them alone."""

    before: Tensor
    after: Tensor | None
    names: list[str]
    lines: list[list[str]]
    look: pictures.Look | None


def take_samples(setup: Setup, split: data.Split, count: int = SHOWN) -> Samples:
    """What the method makes of a batch, with the model as it is now. Drawn the same every time.

    Mixed as one batch with others: in a batch of eight an image often meets itself.
    """
    seed_everything(setup.options.seed, SAMPLES)
    x, y = _some_images(setup, split, 8 * count)
    names = [setup.dataset.classes[label] for label in y.tolist()]
    before = setup.preprocess.displayable(x[:count])
    if setup.mixer is None:
        return Samples(before, None, names, [], None)
    grad = None
    setup.model.eval()
    methods.begin_epoch(setup.mixer, setup.options, 1)  # as strong as in training, not as at its end
    if setup.policy is not None:
        grad, q = setup.policy.choose(setup.model, x, y)
        plan = setup.mixer.plan(x, grad, q)
    else:
        if setup.mixer.needs_saliency:
            grad = fastmix.input_saliency(setup.model, x, y)
        plan = setup.mixer.plan(x, grad)
    target = plan.target(y)
    after = setup.preprocess.displayable(plan.apply(x)[:count])
    confidence = getattr(plan, "confidence", None)
    if confidence is None:
        lines = [pictures.shares(target, setup.dataset.classes, row) for row in range(len(before))]
    else:
        lines = [[f"confidence {value:.2f}"] for value in confidence[:count].tolist()]
    look = None if grad is None else pictures.Look.of(grad[:count], getattr(plan, "mask", None))
    return Samples(before, after, names[:count], lines, look)


def draw_samples(setup: Setup, split: data.Split, path: Path, count: int = SHOWN) -> None:
    """A picture of `take_samples`."""
    pictures.samples(*take_samples(setup, split, count), f"{setup.options.method} on {setup.options.data}", path)


def clear(folder: Path, files: tuple[str, ...] = FILES) -> None:
    """Removes what a run has written, and nothing else."""
    for name in (*files, *EVALUATION):
        (folder / name).unlink(missing_ok=True)


def load_weights(model: nn.Module, folder: Path, policy: Any = None) -> None:
    """The weights of the run in this folder, which must be of such a model; and its policy, if it has one."""
    state = checkpoint.load(folder)
    if state is None:
        raise CommandError(f"{folder} has no {checkpoint.NAME}: no epoch was finished")
    try:
        model.load_state_dict(state["model"])
        if policy is not None and state.get("policy") is not None:
            policy.load_state_dict(state["policy"])
    except RuntimeError as error:
        raise CommandError(f"the weights in {folder} are those of another model or of other images "
                           f"({first_line(error)})") from None


def check_extras() -> None:
    """Before an hour of training, not after it."""
    require("matplotlib", "matplotlib", "training")
    require("torchmetrics", "torchmetrics", "training")


def finished(folder: Path) -> dict[str, Any] | None:
    """The report of a finished run, or None."""
    try:
        return json.loads((folder / REPORT).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CommandError(f"{folder / REPORT} is damaged ({error}); remove it") from None
