"""The model of a run's folder with its data set, for the commands that evaluate it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import data
from ..console import UsageError
from ..data.base import Batch
from . import checkpoint
from .options import FREE_ON_RESUME, Options
from .places import run_folder
from .run import CONFIG, check_classes
from .setup import build_model, load_data, load_weights


@dataclass
class Trained:
    """options: those of the run, for all images of its data set. model: in evaluation mode, on the device. epoch: of
    its weights. stored: the options as they stand in the folder."""

    folder: Path
    options: Options
    dataset: data.Dataset
    preprocess: data.Preprocess
    model: nn.Module
    device: torch.device
    epoch: int
    stored: Options

    @classmethod
    def load(cls, folder: Path, device: torch.device, name: str | None = None, root: str | None = None,
             workers: int = 0, dataset: data.Dataset | None = None, first: bool = True) -> Trained:
        """The last finished epoch of the run in this folder.

        Args: folder: or the checkpoint.pt in it. name: of the data set, if asked for. root: where its files are now.
            dataset: that of the run with all its images, if the caller has read it. first: as of `load_data`.
        Raises: CommandError for a folder without a run and for weights that do not fit, UsageError for another name.
        """
        folder = run_folder(folder)
        if not folder.is_dir():
            raise UsageError(f"--checkpoint: there is no folder {folder}; python -m fastmix train writes one")
        stored = Options.from_json(folder / CONFIG)
        if name is not None and name != stored.data:
            raise UsageError(f"--data is {name}, but {folder} was trained on {stored.data}")
        options = dataclasses.replace(stored, limit=None, subset=None, workers=workers,
                                      root=stored.root if root is None else root)
        state = checkpoint.load(folder) or {}
        dataset = load_data(options, first, state.get("classes")) if dataset is None else dataset
        check_classes(folder, state, dataset)
        model = build_model(options, dataset)
        epoch = load_weights(model, folder)
        return cls(folder, options, dataset, data.Preprocess(dataset, device), model.to(device).eval(), device, epoch,
                   stored)

    def replaced(self) -> bool:
        """Whether the folder holds a run with other settings by now."""
        now = Options.from_json(self.folder / CONFIG)
        free = {name: getattr(now, name) for name in (*FREE_ON_RESUME, "epochs")}
        return now != dataclasses.replace(self.stored, **free)

    def inputs(self, images: Tensor) -> Tensor:
        """(N, C, H, W) bytes to the model's input."""
        return self.layout(self.preprocess.view(images).apply(images))

    def forward_pixels(self, pixels: Tensor) -> Tensor:
        """Logits of (N, C, H, W) pixels in [0, 1]."""
        return self.model(self.layout(self.preprocess.normalise(pixels)))

    def layout(self, x: Tensor) -> Tensor:
        """x in the memory order the model was trained with."""
        return x.contiguous(memory_format=torch.channels_last) if self.options.channels_last else x


class Inputs:
    """A split as the model takes it: ``len`` and ``batches(indices)`` of normalised floats and labels."""

    def __init__(self, trained: Trained, split: data.Split) -> None:
        self.labels = split.labels
        self._trained, self._split = trained, split.to(trained.device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        for images, y in self._split.batches(indices):
            yield self._trained.inputs(images), y
