"""Images in a folder for each class: ROOT/CLASS/*.jpg, or ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg.

The names of the splits are those of `layout.TRAIN` and `layout.HELD_OUT`, in small or capital letters. Without a split
that is held out 20 % of every class are. A class that the test images lack keeps its label.

A file boxes.csv in the test directory (or in ROOT) says where the objects of the test images are: a line per object,
after the line ``file,top,left,height,width``, in pixels of the picture as it is seen, upright; file is relative to
boxes.csv.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from pathlib import Path

import torch
from torch import Tensor

from ...files import DamagedFile, read_bytes
from ..console import CommandError, first_line
from ..names import listed, printable, shortened
from .base import Dataset, FolderSplit, Reading
from .images import centre_square, opened, pillow, unreadable, upright_size
from .layout import FLAT, LAYOUT, by_class, check_class, class_name, splits
from .scan import SUFFIXES, LeftOut, folders, holds_images, images
from .split import stratified_split

DEFAULT_SIZE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
BOXES = "boxes.csv"
COLUMNS = ["file", "top", "left", "height", "width"]
BOXES_MOST = 2**30  # bytes
FARTHEST = 1e7  # pixels
KINDS = ", ".join(sorted(SUFFIXES))


class _Folder:
    """What is found in a folder of images. classes: those that give the labels, in their order."""

    def __init__(self, root: Path, size: int) -> None:
        self.root, self.size, self.left = root, size, LeftOut()
        self.classes: list[str] = []

    def inside(self, folder: Path) -> list[str]:
        """The folders in a folder."""
        return folders(str(folder), str(self.root), self.left, (BOXES,))

    def read(self, base: Path, present: list[str], whole: bool, mixed: bool) -> FolderSplit:
        """The images of the folders in base that are classes. present: the folders there; whole: every class must have
        images; mixed: a class may hold folders with the names of splits."""
        of, _ = by_class(present, self.classes)
        known = [(label, of[name]) for label, name in enumerate(self.classes) if name in of]
        found = images([str(base / name) for _, name in known], str(self.root), self.left)
        for (_, name), files in zip(known, found, strict=True):
            if not mixed:
                check_class(base / name, files)
            if whole and not files:
                inside = f"{os.path.relpath(base / name, self.root)}{os.sep}"
                broken = [link for link in self.left.broken if link.startswith(inside)]
                links = f", but broken links ({listed(broken, 3)})" if broken else ""
                raise CommandError(f"{printable(base / name)} has no images ({KINDS}){links}; {LAYOUT}")
        labels = torch.tensor([label for label, _ in known], dtype=torch.int64)
        counts = torch.tensor([len(files) for files in found], dtype=torch.int64)
        return FolderSplit([file for files in found for file in files], labels.repeat_interleave(counts), self.size)

    def held_out(self, names: list[str], where: str) -> tuple[str | None, FolderSplit | None]:
        """The first of these folders that has images with labels, and its images. where: what has the classes."""
        chosen, split = None, None
        for name in names:
            base = self.root / name
            if chosen is not None:
                self.left.unused.append(f"{printable(name)}/ ({printable(chosen)}/ is tested on)")
                continue
            present = self.inside(base)
            extra = [each for each in by_class(present, self.classes)[1] if holds_images(str(base / each))]
            if extra:
                raise CommandError(f"{printable(base)} has classes that {where} lacks: {listed(extra)}")
            found = self.read(base, present, False, False)
            if len(found):
                chosen, split = name, found
            else:
                self.left.unused.append(f"{printable(name)}/ (no images in class folders)")
        return chosen, split


def load(name: str, root: Path, image_size: int | None, layout: str = "auto", classes: list[str] | None = None
         ) -> Dataset:
    """Args:
        layout: one of `layout.LAYOUTS`.
        classes: those of a model, which give the labels; a folder of test images alone will do then. None: those that
            are found.
    """
    pillow()
    if not root.is_dir():
        raise CommandError(f"{printable(root)} is not a directory; {LAYOUT}")
    folder = _Folder(root, image_size or DEFAULT_SIZE)
    top = folder.inside(root)
    train_name, held_out = splits(root, layout, top, classes)
    base = root if train_name is None else root / train_name
    if train_name is None:
        present = [] if held_out else top
    else:
        present = folder.inside(base)
        folder.left.unused += [f"{printable(each)}/ (beside {printable(train_name)}/)" for each in top
                               if each != train_name and each not in held_out]
    if classes is None and not present:
        hint = f", or {FLAT}" if train_name is not None else ""
        raise CommandError(f"{printable(base)} has no class directories, so its images have no labels; {LAYOUT}{hint}")
    folder.classes = [*map(class_name, present)] if classes is None else classes
    _, unknown = by_class(present, folder.classes)
    if unknown:
        raise CommandError(f"{printable(base)} has classes that the model was not trained on: {listed(unknown)}")
    train = folder.read(base, present, classes is None, layout == "flat")
    test_name, test = folder.held_out(held_out, printable(base) if present else "the model")
    if test is None:
        kept, apart = stratified_split(train.labels, 0.2)
        if len(apart) == 0:
            raise CommandError(f"{printable(root)} has {len(train)} images, too few to hold 20 % of every class out")
        train, test = train.subset(kept), train.subset(apart)
    reading = Reading("" if train_name is None else f"{train_name}/",
                      "20 % of every class, held out" if test_name is None else f"{test_name}/", folder.left.lines())
    boxes = (root if test_name is None else root / test_name) / BOXES
    reader = (lambda: read_boxes(boxes, test)) if boxes.is_file() else None
    return Dataset(name, train, test, folder.classes, (3, folder.size, folder.size), MEAN, STD, flips=True,
                   test_boxes=reader, reading=reading)


def read_boxes(path: Path, split: FolderSplit) -> list[Tensor]:
    """For every image of a split its boxes (m, 4) float (top, left, height, width), m >= 1, in pixels of what
    `read_image` gives; what was cut off is cut off here.

    Raises: CommandError naming the line, or the image that has no box.
    """
    found: dict[Path, list[list[float]]] = {}
    try:
        text = read_bytes(path, BOXES_MOST).decode("utf-8-sig", "surrogateescape")
    except (OSError, DamagedFile) as error:
        raise CommandError(f"{printable(path)} cannot be read ({first_line(error)})") from None
    lines = csv.reader(io.StringIO(text, newline=""))
    for number in itertools.count(1):
        try:
            line = next(lines, None)
        except csv.Error as error:
            raise CommandError(f"{printable(path)}, line {number}: {error}, want {','.join(COLUMNS)}") from None
        if line is None and number > 1:
            break
        line = line or []
        if number == 1 and line == COLUMNS:
            continue
        try:
            name, box = line[0], [float(value) for value in line[1:]]
        except (IndexError, ValueError):
            name, box = "", []
        right = len(box) == 4 and all(abs(value) < FARTHEST for value in box) and min(box[2:]) > 0
        if number == 1 or not right:  # NaN is not right
            want = ",".join(COLUMNS) if number == 1 else "a file and four numbers, the sizes above 0"
            given = shortened(printable(repr(",".join(line))), 200)
            raise CommandError(f"{printable(path)}, line {number}: is {given}, want {want}")
        name = os.fsdecode(name.encode("utf-8", "surrogateescape"))  # as the names of the folder are read
        found.setdefault(path.parent / name, []).append(box)
    boxes = []
    for picture in split.paths:
        if picture not in found:
            raise CommandError(f"{path} has no box for {picture.relative_to(path.parent)}, want one for every test "
                               "image")
        try:
            with opened(picture) as file:
                left, top, side = centre_square(upright_size(file))
        except Exception as error:
            raise unreadable(picture, error) from None
        scale, corner = split.image_size / side, torch.tensor([top, left])
        box = torch.tensor(found[picture])
        start = ((box[:, :2] - corner) * scale).clamp(0, split.image_size)
        end = ((box[:, :2] + box[:, 2:] - corner) * scale).clamp(0, split.image_size)
        boxes.append(torch.cat([start, end - start], 1))
    return boxes


def labelled(root: Path) -> bool:
    """Whether a folder has folders in it, which may be classes."""
    return bool(folders(str(root), str(root), LeftOut()))


def load_unlabelled(root: Path, image_size: int | None) -> Dataset:
    """Images without labels, for a preview: each of a class of its own, named as the file."""
    size, left = image_size or DEFAULT_SIZE, LeftOut()
    files = images([str(root)], str(root), left)[0] if root.is_dir() else []
    if not files:
        raise CommandError(f"{printable(root)} has no images ({KINDS})")
    split = FolderSplit(files, torch.arange(len(files)), size)
    return Dataset("folder", split, split, [path.stem for path in split.paths], (3, size, size), MEAN, STD,
                   reading=Reading("", "", left.lines()))
