"""MNIST and Fashion-MNIST from idx files, plain or gzipped.

Source of the format: the idx description published with MNIST (two zero bytes, type 8 = unsigned byte, the number of
dimensions, big-endian sizes, data).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..console import CommandError, first_line
from ..names import printable
from .base import Dataset, MemorySplit

GET = {
    "fashion-mnist": "apt-get install dataset-fashion-mnist (Debian, Ubuntu), "
                     "or the four .gz files of github.com/zalandoresearch/fashion-mnist, and --root DIR",
    "mnist": "the four .gz files of MNIST (train-images-idx3-ubyte.gz, ...) from a mirror of "
             "yann.lecun.com/exdb/mnist, and --root DIR",
}
CLASSES = {
    "fashion-mnist": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"],
    "mnist": [str(c) for c in range(10)],
}
LARGEST = 1024  # pixels, a side
EXPANSION = 1032  # by which deflate packs at most
CHUNK = 2**24  # bytes
STATISTICS = {"fashion-mnist": (0.2860, 0.3530), "mnist": (0.1307, 0.3081)}


def _find(folder: Path, stem: str, get: str) -> Path:
    names = (f"{stem}-ubyte.gz", f"{stem}-ubyte")
    for path in (folder / name for name in names):
        if path.is_file():
            return path
    raise CommandError(f"missing {folder / names[0]} (or without .gz), an idx file. Get it by: {get}")


def read_idx(path: Path, dimensions: int, get: str) -> Tensor:
    """The uint8 array of an idx file; CommandError if it is damaged or holds something else."""
    want = f"want an idx file of unsigned bytes with {dimensions} dimension{'s' if dimensions > 1 else ''}"
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, dimensions, want, get)
    except (OSError, EOFError, zlib.error) as error:
        raise CommandError(f"{printable(path)} is damaged or unreadable ({first_line(error)}), {want}. Get it by: {get}"
                           ) from None


def _read(file: Any, path: Path, dimensions: int, want: str, get: str) -> Tensor:
    """The header, and then no more than it promises; a small file may unpack to anything."""
    name, magic = printable(path), bytes([0, 0, 8, dimensions])
    header = file.read(4 + 4 * dimensions)
    if header[:4] != magic or len(header) < 4 + 4 * dimensions:
        raise CommandError(f"{name} begins with {header[:4].hex(' ') or 'nothing'}, {want}, which begins with "
                           f"{magic.hex(' ')}. Get it by: {get}")
    sizes = struct.unpack(f">{dimensions}I", header[4:])
    shape, promised, there = " x ".join(map(str, sizes)), math.prod(sizes), os.path.getsize(path)
    most = there * EXPANSION if path.suffix == ".gz" else there
    if promised > most:
        raise CommandError(f"{name} has {there} bytes, which cannot hold {shape} as its header says. Get it by: {get}")
    if 0 in sizes or max(sizes[1:], default=1) > LARGEST:
        raise CommandError(f"{name} holds {shape}, want images of 1 to {LARGEST} pixels a side. Get it by: {get}")
    data = torch.empty(sizes, dtype=torch.uint8)
    filled, view = 0, memoryview(data.numpy().reshape(-1))
    while filled < promised and (count := file.readinto(view[filled:filled + CHUNK])):
        filled += count
    if filled < promised or file.read(1):
        held = f"{filled}" if filled < promised else f"more than {promised}"
        raise CommandError(f"{name} holds {held} bytes of data, want {shape} as its header says. Get it by: {get}")
    return data


def _split(folder: Path, part: str, classes: int, get: str) -> MemorySplit:
    image_path, label_path = (_find(folder, f"{part}-{kind}", get) for kind in ("images-idx3", "labels-idx1"))
    images, labels = read_idx(image_path, 3, get), read_idx(label_path, 1, get)
    if len(images) != len(labels) or len(labels) == 0:
        raise CommandError(f"{image_path} has {len(images)} images and {label_path} {len(labels)} labels, want as many")
    if int(labels.max()) >= classes:
        raise CommandError(f"{label_path} holds label {int(labels.max())}, want 0 to {classes - 1}")
    return MemorySplit(images.unsqueeze(1), labels.to(torch.int64))


def load(name: str, root: Path, image_size: int | None) -> Dataset:
    classes, (mean, std) = CLASSES[name], STATISTICS[name]
    train, test = (_split(root, part, len(classes), GET[name]) for part in ("train", "t10k"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise CommandError(f"{root}: training images are {tuple(train.images.shape[2:])} and test images "
                           f"{tuple(test.images.shape[2:])}, want one size")
    return Dataset(name, train, test, classes, tuple(train.images.shape[1:]), (mean,), (std,))  # type: ignore[arg-type]
