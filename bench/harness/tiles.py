"""How the GPU's image kernels divide a batch, in the order of their blocks: the index arithmetic of
csrc/cuda/lib/tile.cuh and of kernels/_tiles.py. Tests hold both to what the kernels themselves compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

THREADS, PACK_BYTES = 128, 16


@dataclass(frozen=True)
class Images:
    """A packed batch, NCHW or with channels last."""

    count: int
    channels: int
    height: int
    width: int
    itemsize: int
    channels_last: bool = False

    @property
    def rows(self) -> int:
        return self.height if self.channels_last else self.channels * self.height

    @property
    def length(self) -> int:
        """Elements of a row."""
        return self.width * (self.channels if self.channels_last else 1)

    @property
    def bytes(self) -> int:
        """Of an image."""
        return self.rows * self.length * self.itemsize

    @property
    def name(self) -> str:
        return f"{self.count}x{self.channels}x{self.height}x{self.width}"


# (first element, elements) of an image that lie side by side.
Segments = list[tuple[int, int]]


def cuda(images: Images, rows_together: int = 2) -> Iterator[Segments]:
    """The tiles of an image, in their order: of PlanePieces or RowPieces.

    rows_together: rows of a thread in images of one plane, see `with_pieces`.
    """
    pack = PACK_BYTES // images.itemsize
    planes = 1 if images.channels_last else images.channels
    plane = images.rows * images.length // planes
    if plane % pack:
        pack = 1
    if planes == 1 and pack > 1 and images.length % pack == 0:
        yield from _cuda_rows(images, pack, rows_together)
        return
    together = 3 if pack > 1 and images.itemsize < 8 and planes % 3 == 0 else 4
    for first in range(0, plane, THREADS * pack):
        for group in range(0, planes, together):
            yield [((group + i) * plane + first, min(THREADS * pack, plane - first))
                   for i in range(min(together, planes - group))]


def _cuda_rows(images: Images, pack: int, together: int) -> Iterator[Segments]:
    packs = images.length // pack
    total = -(-images.height // together) * packs
    for first in range(0, total, THREADS):
        found: Segments = []
        at = first
        while at < min(first + THREADS, total):
            group, column = divmod(at, packs)
            count = min(packs - column, first + THREADS - at)
            found += [((group * together + i) * images.length + column * pack, count * pack)
                      for i in range(together) if group * together + i < images.height]
            at += count
        yield found


def triton(images: Images, tile_rows: int, tile_columns: int) -> Iterator[Segments]:
    """The same of `kernels._tiles.Tiles`, whose tile has so many rows and columns."""
    for row in range(0, images.rows, tile_rows):
        for column in range(0, images.length, tile_columns):
            yield [(r * images.length + column, min(tile_columns, images.length - column))
                   for r in range(row, min(row + tile_rows, images.rows))]
