"""Image classification data sets in memory as bytes, read from what is on this machine: nothing is downloaded."""

from __future__ import annotations

import importlib
from pathlib import Path

from ...shuffling import derived_seed, training_steps
from ..console import UsageError
from .base import Dataset, FolderSplit, MemorySplit, Split
from .batches import Preprocess, evaluation_batches
from .inspection import LEVELS, account, check
from .layout import LAYOUTS
from .split import balanced_subset, read_index

# Name -> (module with `load(name, root, image_size) -> Dataset`, default root).
SOURCES: dict[str, tuple[str, str | None]] = {
    "digits": ("digits", None),
    "digit-canvas": ("canvas", None),
    "mnist5k": ("mnist5k", None),
    "fashion-mnist": ("idx", "/usr/share/datasets/fashion-mnist"),
    "mnist": ("idx", "data/mnist"),
    "cifar10": ("cifar", "data/cifar10"),
    "cifar100": ("cifar", "data/cifar100"),
    "folder": ("folder", None),
}


def load(name: str, root: str | None = None, image_size: int | None = None, limit: int | None = None,
         layout: str = "auto", classes: list[str] | None = None) -> Dataset:
    """A data set by name.

    Args:
        name: a key of :data:`SOURCES`.
        root: the directory with its files; None takes the default. digits, digit-canvas and mnist5k come
            with a Python package.
        image_size: side in pixels to which a folder's images are resized (default 64); the others keep their own.
        limit: how many training images to keep, the same number of every class (drawn with a fixed seed); None: all.
        layout: of a folder. split: train and test are folders of their own; flat: every folder is a class, whatever its
            name; auto: as the names and what is in them say.
        classes: of a folder, those of the model that is to be tested, which give the labels.
    Raises: CommandError naming the file, what was expected and where to get it; UsageError for the arguments.
    """
    module, default_root = SOURCES[name]
    if name in ("digits", "digit-canvas", "mnist5k") and root is not None:
        raise UsageError(f"--data {name} comes with a Python package and reads no --root")
    if name == "folder" and root is None:
        raise UsageError("--data folder needs --root, a directory with one directory per class")
    if name != "folder" and image_size is not None:
        raise UsageError(f"--image-size is for --data folder; {name} keeps its own size")
    path = Path(root if root is not None else default_root) if (root or default_root) else None
    if name != "folder" and layout != "auto":
        raise UsageError(f"--layout is for --data folder, not for {name}")
    more = {"layout": layout, "classes": classes} if name == "folder" else {}
    dataset = importlib.import_module(f".{module}", __name__).load(name, path, image_size, **more)
    if limit is not None:
        dataset.train = dataset.train.subset(balanced_subset(dataset.train.labels, limit, "--limit"))
    return dataset


__all__ = ["LAYOUTS", "LEVELS", "SOURCES", "Dataset", "FolderSplit", "MemorySplit", "Preprocess", "Split", "account",
           "check", "derived_seed", "evaluation_batches", "load", "read_index", "training_steps"]
