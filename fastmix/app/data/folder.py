"""A directory per class. `train` and `test` (or `val`) directories are the splits; without, 20 % are kept for test.

A file boxes.csv in the test directory (or in ROOT) says where the objects of the test images are: a line per object,
after the line ``file,top,left,height,width``, in pixels of the image file; file is relative to boxes.csv.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from ..console import CommandError, require
from .base import Dataset, FolderSplit
from .images import centre_square
from .split import stratified_split

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
LAYOUT = "want ROOT/CLASS/*.jpg, or ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val)"
DEFAULT_SIZE = 64
BOXES = "boxes.csv"
COLUMNS = ["file", "top", "left", "height", "width"]


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _class_folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _split(folder: Path, classes: list[str], size: int) -> FolderSplit:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = _images(folder / name) if (folder / name).is_dir() else []
        if not found:
            raise CommandError(f"{folder / name} has no images ({', '.join(sorted(SUFFIXES))}); {LAYOUT}")
        paths += found
        labels += [label] * len(found)
    return FolderSplit(paths, torch.tensor(labels), size)


def load(name: str, root: Path, image_size: int | None) -> Dataset:
    require("PIL.Image", "pillow", "--data folder")
    if not root.is_dir():
        raise CommandError(f"{root} is not a directory; {LAYOUT}")
    size = image_size or DEFAULT_SIZE
    held_out = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    base = root / "train" if (root / "train").is_dir() else root
    classes = _class_folders(base)
    if not classes:
        raise CommandError(f"{base} has no class directories, so its images have no labels; {LAYOUT}")
    train = _split(base, classes, size)
    if base != root and held_out is not None:
        extra = sorted(set(_class_folders(held_out)) - set(classes))
        if extra:
            raise CommandError(f"{held_out} has classes that {base} lacks: {', '.join(extra)}")
        test = _split(held_out, classes, size)
    else:
        kept, apart = stratified_split(train.labels, 0.2)
        if len(apart) == 0:
            raise CommandError(f"{root} has {len(train.labels)} images, too few to hold 20 % of every class out")
        train, test = train.subset(kept), train.subset(apart)
    boxes = (held_out if base != root and held_out is not None else root) / BOXES
    reader = (lambda: read_boxes(boxes, test)) if boxes.is_file() else None
    return Dataset(name, train, test, classes, (3, size, size), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
                   flips=True, test_boxes=reader)


def read_boxes(path: Path, split: FolderSplit) -> list[Tensor]:
    """For every image of a split its boxes (m, 4) float (top, left, height, width), m >= 1, in pixels of what
    `read_image` gives; what was cut off is cut off here.

    Raises: CommandError naming the line, or the image that has no box.
    """
    image = require("PIL.Image", "pillow", "--data folder")
    found: dict[Path, list[list[float]]] = {}
    with path.open(newline="") as file:
        for number, line in enumerate(csv.reader(file), 1):
            if number == 1 and line == COLUMNS:
                continue
            try:
                name, box = line[0], [float(value) for value in line[1:]]
            except (IndexError, ValueError):
                name, box = "", []
            if number == 1 or len(box) != 4 or not min(box[2:]) > 0:
                want = ",".join(COLUMNS) if number == 1 else "a file and four numbers, the sizes above 0"
                raise CommandError(f"{path}, line {number}: is {','.join(line)!r}, want {want}")
            found.setdefault(path.parent / name, []).append(box)
    boxes = []
    for picture in split.paths:
        if picture not in found:
            raise CommandError(f"{path} has no box for {picture.relative_to(path.parent)}, want one for every test "
                               "image")
        with image.open(picture) as file:
            left, top, side = centre_square(file.size)
        scale, corner = split.image_size / side, torch.tensor([top, left])
        box = torch.tensor(found[picture])
        start = ((box[:, :2] - corner) * scale).clamp(0, split.image_size)
        end = ((box[:, :2] + box[:, 2:] - corner) * scale).clamp(0, split.image_size)
        boxes.append(torch.cat([start, end - start], 1))
    return boxes


def load_unlabelled(root: Path, image_size: int | None) -> FolderSplit:
    """Images without labels, for a preview; every label is -1."""
    paths = _images(root) if root.is_dir() else []
    if not paths:
        raise CommandError(f"{root} has no images ({', '.join(sorted(SUFFIXES))})")
    return FolderSplit(paths, torch.full((len(paths),), -1), image_size or DEFAULT_SIZE)
