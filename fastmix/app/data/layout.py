"""Which folders of a data set are splits, and which are classes."""

from __future__ import annotations

import itertools
import os
import unicodedata
from pathlib import Path

from ..console import CommandError
from ..names import listed, printable, quoted
from .scan import LeftOut, folders, holds_images

TRAIN = ("train", "training")
# The first that is there is used.
HELD_OUT = ("test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev")
LAYOUTS = ("auto", "split", "flat")
LAYOUT = ("want ROOT/CLASS/*.jpg, or ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val, valid, validation, "
          "eval, dev)")
FLAT = "--layout flat if every folder there is a class"
_ORDER = {name: i for i, name in enumerate((*TRAIN, *HELD_OUT))}


def class_name(folder: str) -> str:
    """The name of a class from that of its folder, the same under every locale: its bytes as UTF-8."""
    return os.fsencode(folder).decode("utf-8", "surrogateescape")


def by_class(folders: list[str], classes: list[str]) -> tuple[dict[str, str], list[str]]:
    """The folder of each class that has one, and the folders of none. Names that differ only in how their accents are
    stored, as those from a Mac do, are the same where nothing fits better."""
    exact, found = set(classes), {class_name(folder): folder for folder in folders}
    composed = {unicodedata.normalize("NFC", name): name for name in classes}
    of = {name: folder for name, folder in found.items() if name in exact}
    left = []
    for name, folder in found.items():
        close = composed.get(unicodedata.normalize("NFC", name))
        if name not in of and close is not None and close not in of:
            of[close] = folder
        elif name not in of:
            left.append(folder)
    return of, left


def _inside(folder: Path) -> list[str]:
    return folders(str(folder), str(folder), LeftOut())


def splits(root: Path, layout: str, names: list[str], classes: list[str] | None) -> tuple[str | None, list[str]]:
    """The name of the folder to train on, None where the folders of root are classes, and the names of those that are
    held out, the one to prefer first.

    Args: names: of the folders in root. classes: those of a model, for whose test a split to train on may be missing.
    Raises: CommandError where the folders could be read in two ways.
    """
    if layout == "flat":
        return None, []
    known = sorted((name for name in names if name.casefold() in _ORDER), key=lambda name: _ORDER[name.casefold()])
    train = [name for name in known if name.casefold() in TRAIN]
    held_out = [name for name in known if name.casefold() in HELD_OUT]
    others = [name for name in names if name not in known]
    for a, b in itertools.pairwise(known):
        if a.casefold() == b.casefold() or b in train:
            raise CommandError(f"{printable(root)} has {a}/ and {b}/, which mean the same; want one of them, or {FLAT}")
    if not train:
        if classes is not None and held_out and by_class(names, classes)[1]:
            return None, held_out
        if layout == "split" or (held_out and not others) or any(_inside(root / name) for name in held_out):
            found = " and ".join(f"{name}/" for name in held_out) or "no split"
            raise CommandError(f"{printable(root)} has {found} but no train/; {LAYOUT}, or {FLAT}")
        return None, []
    if layout == "auto" and not held_out and any(holds_images(str(root / name)) for name in others):
        if _inside(root / train[0]):
            raise CommandError(f"{printable(root)} has {train[0]}/ beside {listed(others, 3)}: is it a split or a "
                               f"class? --layout split trains on {train[0]}/ alone, {FLAT}")
        return None, []  # its images lie in it as those of the other classes do
    return train[0], held_out


def check_class(folder: Path, files: list[str]) -> None:
    """CommandError for a class whose images lie in splits, some of them to be tested on."""
    start = len(str(folder)) + 1
    inside = {name.casefold(): name for name in {file[start:].split(os.sep, 1)[0] for file in files
                                                 if os.sep in file[start:]}}
    train, test = (next((inside[name] for name in some if name in inside), None) for some in (TRAIN, HELD_OUT))
    if train is not None and test is not None:
        raise CommandError(f"{printable(folder)} holds {train}/ and {test}/, so it is no class; want splits right in "
                           f"the folder of --root (--root {quoted(folder)}?), or {FLAT}")
