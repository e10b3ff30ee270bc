"""What a run works on: data, model, optimiser, and what its method makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastmix

from ...mixers import Mixer
from ...refinement import Refinement
from .. import data, methods, models
from ..console import CommandError, UsageError, first_line
from ..methods import Method, Objective
from ..streams import TrainingStream, seed_everything
from . import checkpoint, schedules
from .augment import Augmentation, policy
from .distributed import Processes
from .options import Options, RunOptions


class ByteBatch(NamedTuple):
    """A batch of bytes that a mixer reads through its view, in one pass."""

    bytes: Tensor
    view: fastmix.View

    def images(self) -> Tensor:
        """The view alone: floats."""
        return self.view.apply(self.bytes)


@dataclass
class Setup:
    """What training works on.

    parallel: the model under DistributedDataParallel, or the model itself. draws: the labelled images of
    semi-supervised training. policy: what chooses for the mixer, a `fastmix.app.policy.Policy`.
    """

    options: RunOptions
    processes: Processes
    dataset: data.Dataset
    preprocess: data.Preprocess
    model: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    method: Method
    mixer: Mixer | None
    objective: Objective
    draws: Any = None
    refinement: Refinement = field(default_factory=lambda: Refinement(1, 0))
    policy: Any = None

    @property
    def device(self) -> torch.device:
        return self.processes.device

    @property
    def classes(self) -> int:
        return len(self.dataset.classes)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.options.amp == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def plain(self) -> Setup:
        """The same without what the method adds: no mixer, cross-entropy."""
        method = methods.plain(self.options)
        return dataclasses.replace(self, method=method, mixer=None, policy=None,
                                   objective=method.objective(self.model, self.classes, 1, self.device))

    def byte_batch(self, images: Tensor, augmentation: Augmentation | None) -> ByteBatch:
        """Bytes, and the view that makes them the model's input."""
        crops = pad = None
        if augmentation is not None:
            images, crops, pad = augmentation(images), augmentation.crops, augmentation.pad
        memory_format = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return ByteBatch(images, self.preprocess.view(images, crops, pad, memory_format=memory_format))

    def inputs(self, images: Tensor, augmentation: Augmentation | None) -> Tensor:
        """Bytes to the model's input."""
        return self.byte_batch(images, augmentation).images()

    def augmentation(self, epoch: int) -> Augmentation | None:
        """What an epoch does to its images before the method; None for nothing."""
        options = self.options
        chosen, crops = policy(options), None
        if options.augment == "crop-flip" or (options.augment != "none" and self.dataset.flips):
            crops = torch.Generator(self.device)
            crops.manual_seed(data.derived_seed(options.seed, TrainingStream.CROPPING, epoch, self.processes.rank))
        if crops is None and chosen is None:
            return None
        pad = 0 if self.method.own_crops else self.dataset.shape[-1] // 8
        seed = data.derived_seed(options.seed, TrainingStream.AUGMENTING, epoch, self.processes.rank)
        return Augmentation(crops, pad, chosen, seed)


def load_data(options: RunOptions, first: bool = True, classes: list[str] | None = None) -> data.Dataset:
    """The data set of the options; the first process checks its images and says in its account what was read.

    classes: those of a model that is to be tested. Raises: CommandError for images that cannot be read.
    """
    dataset = data.load(options.data, options.root, options.image_size, options.limit, options.layout, classes)
    if options.subset is not None:
        dataset.train = dataset.train.subset(data.read_index(Path(options.subset), len(dataset.train.labels)))
    for split in (dataset.train, dataset.test):
        if isinstance(split, data.FolderSplit):
            split.workers = options.workers
    if options.data != "folder" and options.check_data != "headers":
        raise UsageError(f"--check-data is for --data folder; the files of {options.data} are read as a whole")
    if first and options.root is not None:
        dataset.account = data.account(dataset, options.root, data.check(dataset, options.check_data))
    return dataset


def build_model(options: RunOptions, dataset: data.Dataset) -> nn.Module:
    """The model with the weights of the run's seed, the same in every process and for every method."""
    seed_everything(options.seed, TrainingStream.WEIGHTS)
    model = models.build(options.model, len(dataset.classes), dataset.shape)
    return model.to(memory_format=torch.channels_last) if options.channels_last else model


def load_weights(model: nn.Module, folder: Path, policy: Any = None) -> int:
    """The weights of the run in this folder, which must be of such a model; and its policy, if it has one.

    Returns: their epoch.
    """
    state = checkpoint.load(folder)
    if state is None:
        raise CommandError(f"{folder} has no {checkpoint.NAME}: no epoch was finished")
    try:
        checkpoint.restore("model", model, state["model"])
        if policy is not None and state.get("policy") is not None:
            checkpoint.restore("policy", policy, state["policy"])
        return state["epoch"]
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CommandError(f"the weights in {folder} are those of another model or of other images "
                           f"({first_line(error)})") from None


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
    device, world, classes = processes.device, processes.world, len(dataset.classes)
    method = methods.of(options)
    images = check_size(dataset, world)
    model = build_model(options, dataset).to(device)
    parallel = over_processes(model, processes)
    optimizer = schedules.optimizer(options, model)
    steps = len(data.training_steps(images, options.batch, 0, 0, world))
    moved = dataclasses.replace(dataset, train=dataset.train.to(device), test=dataset.test.to(device))
    objective = method.objective(model, classes, (options.epochs - options.refine_epochs) * steps, device)
    draws = method.labelled_images(dataset.train.labels)
    method.check_images(dataset.shape)
    policy(options)  # a missing torchvision is reported now
    mixer = method.build_mixer(dataset.shape, classes, device)
    method.check_model(mixer, model)
    average: Callable[[Tensor], object] | None = processes.mean if world > 1 else None
    chooser = method.policy(mixer, classes, images // steps // world, steps, average)
    return Setup(options, processes, moved, data.Preprocess(dataset, device), model, parallel, optimizer,
                 schedules.scheduler(options, optimizer, steps), method, mixer, objective, draws,
                 schedules.refinement(options), chooser)
