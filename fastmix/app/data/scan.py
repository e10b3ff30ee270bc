"""The image files under a folder, and what is there besides."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ..console import CommandError
from ..names import listed, printable

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif",
            ".tiff", ".jp2", ".avif"}
# What systems and tools leave in folders, besides names that begin with a dot.
LEFT_BEHIND = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found",
               "system volume information", "__pycache__", "icon\r"}
THREADS = 16  # reading folders waits for the disk


def hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_BEHIND


@dataclass
class LeftOut:
    """What is no image to train on, by reason; the names are relative to the data set's folder."""

    hidden: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def add(self, others: LeftOut) -> None:
        for name, found in vars(others).items():
            getattr(self, name).extend(found)

    def lines(self) -> list[str]:
        """In a few words each, for one line."""
        suffixes = Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in self.other)
        kinds = listed([suffix for suffix, _ in suffixes.most_common()], 5)
        return [text for found, text in [
            (self.unused, ", ".join(self.unused)),
            (self.hidden, f"{len(self.hidden)} hidden ({listed(sorted(self.hidden), 3)})"),
            (self.broken, f"{_count(self.broken, 'broken link')} ({listed(sorted(self.broken))})"),
            (self.outside, f"{_count(self.outside, 'image')} in no class folder ({listed(sorted(self.outside), 3)})"),
            (self.other, f"{_count(self.other, 'file')} of other kinds ({kinds})")] if found]


def _count(found: list[str], what: str) -> str:
    return f"{len(found)} {what}{'s' if len(found) > 1 else ''}"


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise CommandError(f"{printable(folder)} cannot be read ({error.strerror})") from None


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry, or what a link leads to, is: folder, file, broken or other."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "broken" if entry.is_symlink() and not os.path.exists(entry.path) else "other"
    except OSError:  # a link to itself
        return "broken"


def folders(folder: str, root: str, left: LeftOut, ignored: Iterable[str] = ()) -> list[str]:
    """The names of the folders in a folder, linked ones too, sorted. root: to which the names in left are relative;
    ignored: files that are not left out."""
    found = []
    for entry in _entries(folder):
        kind, name = _kind(entry), os.path.relpath(entry.path, root)
        if hidden(entry.name):
            left.hidden.append(name)
        elif kind == "folder":
            found.append(entry.name)
        elif kind == "broken":
            left.broken.append(name)
        elif kind == "file" and is_image(entry.name):
            left.outside.append(name)
        elif entry.name not in ignored:
            left.other.append(name)
    return sorted(found)


def _identity(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise CommandError(f"{printable(path)} cannot be read ({error.strerror})") from None
    return found.st_dev, found.st_ino


def walk(folder: str, root: str, left: LeftOut) -> Iterator[str]:
    """The image files under a folder, in no order. root: to which the names in left are relative.

    Raises: CommandError for a folder that cannot be read, and for a link to a folder that holds it.
    """
    start = tuple({_identity(root), _identity(os.path.dirname(folder) or os.curdir)} if folder != root else ())
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [(folder, start)]
    while pending:
        path, above = pending.pop()
        own = _identity(path)
        if own in above:
            raise CommandError(f"{printable(path)} leads back to {printable(os.path.realpath(path))}, in which it is: "
                               "its images would have no end; remove the link")
        for entry in _entries(path):
            if hidden(entry.name):
                left.hidden.append(os.path.relpath(entry.path, root))
                continue
            kind = _kind(entry)
            if kind == "folder":
                pending.append((entry.path, (*above, own)))
            elif kind == "file" and is_image(entry.name):
                yield entry.path
            else:
                (left.broken if kind == "broken" else left.other).append(os.path.relpath(entry.path, root))


def holds_images(folder: str) -> bool:
    return next(walk(folder, folder, LeftOut()), None) is not None


def images(parents: list[str], root: str, left: LeftOut) -> list[list[str]]:
    """The image files under each of some folders, in an order that is the same everywhere; see `walk`."""
    def one(folder: str) -> tuple[list[str], LeftOut]:
        own, start = LeftOut(), len(folder) + 1
        files = list(walk(folder, root, own))
        nested = any(os.sep in file[start:] for file in files)
        return sorted(files, key=(lambda file: file[start:].split(os.sep)) if nested else None), own

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(one, parents))
    for _, own in found:
        left.add(own)
    return [files for files, _ in found]
