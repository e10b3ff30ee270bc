"""Whether the image files of a data set can be read, before an hour of training needs them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from ..console import CommandError, progress_bar
from ..names import listed, printable
from .base import Dataset, FolderSplit
from .images import by_range, opened, pillow, rgb, transparent, unreadable, upright_size

LEVELS = ("headers", "full", "none")
CORES = os.cpu_count() or 1
CHUNK = 256
NAMED = 20  # damaged files, at most
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325  # TIFF tags
Bar = Callable[[str, int | None], AbstractContextManager[Callable[..., None]]]


class Found(NamedTuple):
    """size: (width, height). wide: of other values than unsigned bytes. damaged: why the file cannot be read."""

    size: tuple[int, int] | None
    pictures: int = 1
    wide: bool = False
    transparent: bool = False
    damaged: str | None = None


def _ends_well(file: Any) -> bool:
    """Whether the end of an opened file is that of a whole one; False if that is not known."""
    raw = file.fp
    place = raw.tell()
    length = raw.seek(0, os.SEEK_END)

    def at(start: int, count: int) -> bytes:
        raw.seek(max(0, start))
        return raw.read(count)

    try:
        if file.format in ("JPEG", "MPO"):
            return at(length - 2, 2) == b"\xff\xd9"
        if file.format == "PNG":
            return at(length - 8, 4) == b"IEND"
        if file.format == "GIF":
            return at(length - 1, 1) == b";"
        if file.format == "WEBP":
            return int.from_bytes(at(4, 4), "little") + 8 <= length
        if file.format == "TIFF":
            starts, sizes = (file.tag_v2.get(a) or file.tag_v2.get(b) for a, b in
                             ((_STRIPS, _TILES), (_STRIP_BYTES, _TILE_BYTES)))
            return bool(starts and sizes) and max(a + b for a, b in zip(starts, sizes, strict=False)) <= length
        return False
    finally:
        raw.seek(place)


def inspect(path: str, full: bool) -> Found:
    """What the file's header says; its pixels are decoded too if full, or where header and end leave a doubt: in files
    that may have been cut off, and of values that may be refused."""
    try:
        with opened(path) as file:
            size = file.size if file.format == "PNG" else upright_size(file)
            pictures = getattr(file, "n_frames", 1) if file.format in ("TIFF", "GIF", "WEBP") else 1
            clear, wide = transparent(file), by_range(file)
            if full or (wide and not file.mode.startswith("I;16")) or not _ends_well(file):
                rgb(file)
            return Found(size, pictures, wide, clear)
    except Exception as error:  # damaged files make Pillow raise almost anything
        return Found(None, damaged=str(unreadable(path, error)))


def _sizes(found: list[Found]) -> str:
    """``20x30``, or ``20x30 to 640x480``: the smallest and the largest picture."""
    sizes = sorted({each.size for each in found if each.size is not None}, key=lambda size: (size[0] * size[1], size))
    return " to ".join(dict.fromkeys("x".join(map(str, size)) for size in (sizes[0], sizes[-1])))


def account(dataset: Dataset, root: str | None, facts: list[str]) -> str:
    """One line about what was read. facts: what `check` found."""
    h, w = dataset.shape[1:]
    reading = dataset.reading
    train, test = ("", "") if reading is None else (reading.train and f" ({reading.train})", f" ({reading.test})")
    seen = [f"{_count(len(dataset.classes), 'class', 'es')} ({listed(dataset.classes)})",
            _count(len(dataset.train.labels), "training image") + train,
            _count(len(dataset.test.labels), "test image") + test]
    if reading is None:
        return f"{dataset.name}: {', '.join(seen)}, {w}x{h} pixels"
    text = f"{dataset.name} {printable(root or '')}: {', '.join([*seen, *facts])}, read as {w}x{h} RGB"
    return "; left out: ".join([text, *([', '.join(reading.left_out)] if reading.left_out else [])])


def _count(number: int, what: str, several: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else several}"


def check(dataset: Dataset, level: str, bar: Bar = progress_bar) -> list[str]:
    """What the image files of a folder are, in words. level: one of `LEVELS`; none looks at no file.

    Raises: CommandError that names the files that cannot be read.
    """
    files = [*dict.fromkeys(file for split in (dataset.train, dataset.test) if isinstance(split, FolderSplit)
                            for file in split.files)]
    if level == "none" or not files:
        return []
    pillow()
    found: list[Found] = []
    chunks = [files[start:start + CHUNK] for start in range(0, len(files), CHUNK)]
    threads = CORES if level == "full" else 4 * CORES  # headers wait for the disk; every thread holds a whole image
    with ThreadPoolExecutor(threads) as pool, bar("checking the images", len(files)) as advance:
        try:
            for some in pool.map(lambda chunk: [inspect(file, level == "full") for file in chunk], chunks):
                found += some
                advance(len(some))
        except BaseException:  # Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    damaged = [each.damaged for each in found if each.damaged is not None]
    if len(damaged) == 1:
        raise CommandError(f"{damaged[0]}; remove or replace it")
    if damaged:
        more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise CommandError(f"{len(damaged)} of {len(files)} images cannot be used: {', '.join(damaged[:NAMED])}{more}; "
                           "remove or replace them")
    kinds = [(sum(each.wide for each in found), "of more than 8 bits, scaled to 8"),
             (sum(each.transparent for each in found), "with transparency, laid over white"),
             (sum(each.pictures > 1 for each in found), "with several pictures, of which the first is read")]
    return [f"of {_sizes(found)} pixels", *(f"{count} {what}" for count, what in kinds if count)]
