"""MNIST and Fashion-MNIST from idx files, plain or gzipped.

Source of the format: the idx description published with MNIST (two zero bytes, type 8 = unsigned byte, the number of
dimensions, big-endian sizes, data).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..console import CommandError
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
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise CommandError(f"{path} is damaged or unreadable ({error}), {want}. Get it by: {get}") from None
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, 8, dimensions])
    if data[:4] != magic or len(data) < header:
        raise CommandError(f"{path} begins with {data[:4].hex(' ') or 'nothing'}, {want}, which begins with "
                           f"{magic.hex(' ')}. Get it by: {get}")
    sizes = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != int(np.prod(sizes, dtype=np.int64)):
        raise CommandError(f"{path} holds {len(data) - header} bytes of data, want {' x '.join(map(str, sizes))} as "
                           f"its header says. Get it by: {get}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).reshape(sizes).copy())


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
