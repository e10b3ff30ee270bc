"""What a GPU reads from memory for an operator on images: the kernels' own order of accesses through a second-level
cache that keeps what was used last. No GPU, no timing.

Blocks run one after the other in the order of their numbers. Writes go through the cache as reads do. So it counts what
the order of blocks does, and not conflicts of blocks in flight. Of the lines of an image some are followed, the same in
every image, through a cache as much smaller (SHARDS, Waldspurger et al. 2015).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmix import DCutMix

from .tiles import Images, Segments, cuda

LINE = 32  # bytes; memory is read by such sectors of a cache line
SAMPLED = 32  # one line of so many
IMAGES_INNERMOST, IMAGE_BY_IMAGE = "images innermost", "image by image"


@dataclass(frozen=True)
class Traffic:
    """In batches, the bytes of all images: read by the kernel, of these from memory, and written."""

    issued: float
    read: float
    written: float = 1.0


# (image n, line) -> the images that are read there.
Sources = Callable[[int, int], list[int]]


def paste(images: Images, seed: int = 0, k: int = 5, alpha: float = 1 / 3) -> Sources:
    """DCutMix: every pixel from the one image that shows there."""
    torch.manual_seed(seed)
    plan = DCutMix(k, alpha).plan(torch.empty(images.count, images.channels, images.height, images.width))
    owner = torch.zeros(images.count, images.height, images.width, dtype=torch.uint8)
    for n, boxes in enumerate(plan.boxes.tolist()):
        for number, (top, left, tall, wide) in enumerate(boxes, 1):
            owner[n, top:top + tall, left:left + wide] = number
    bits = _lines(images, torch.ones_like(owner) << owner)
    index = plan.index.tolist()
    return lambda n, line: [index[n][owner] for owner in range(k) if bits[n][line] >> owner & 1]


def patch_mix(images: Images, seed: int = 0, grid: int = 4) -> Sources:
    """R-Mix: an image, its partner or both, cell by cell, by masks of which half is set."""
    torch.manual_seed(seed)
    partner = torch.randperm(images.count).tolist()
    mask = torch.rand(images.count, grid, grid) < 0.5
    other = mask[torch.tensor(partner)]
    reads = (~other | mask).to(torch.uint8) | (~mask | other).to(torch.uint8) << 1
    pixels = reads.repeat_interleave(images.height // grid, 1).repeat_interleave(images.width // grid, 2)
    bits = _lines(images, pixels)
    return lambda n, line: [source for bit, source in ((0, n), (1, partner[n])) if bits[n][line] >> bit & 1]


def blend(images: Images, seed: int = 0, k: int = 2) -> Sources:
    """Mixup and DMixup: k images, all of each."""
    torch.manual_seed(seed)
    index = [list(range(images.count)), *(torch.randperm(images.count).tolist() for _ in range(k - 1))]
    return lambda n, line: [column[n] for column in index]


def _lines(images: Images, bits: Tensor) -> list[list[int]]:
    """(N, H, W) sets of bits of pixels -> the union in every line of an image's memory, a list for each image."""
    flat = bits.repeat_interleave(images.channels, 2) if images.channels_last else bits.unsqueeze(1).expand(
        -1, images.channels, -1, -1)
    flat = flat.reshape(images.count, -1)
    elements = LINE // images.itemsize
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % elements)).view(images.count, -1, elements)
    found = torch.zeros(flat.shape[:2], dtype=torch.uint8)
    for bit in range(8):
        found |= (flat >> bit & 1).amax(2) << bit
    return found.tolist()


class Cache:
    """Lines that were used last."""

    def __init__(self, size: float) -> None:
        self._lines: OrderedDict[int, None] = OrderedDict()
        self._capacity = int(size // (LINE * SAMPLED))

    def touch(self, line: int) -> bool:
        """Whether it was there."""
        lines = self._lines
        if line in lines:
            lines.move_to_end(line)
            return True
        lines[line] = None
        if len(lines) > self._capacity:
            lines.popitem(last=False)
        return False


def simulate(images: Images, sources: Sources, l2: float, order: str = IMAGES_INNERMOST,
             tiles: list[Segments] | None = None) -> Traffic:
    """l2: bytes of the cache. tiles: of an image, those of the CUDA kernels unless given."""
    lines_of_image = -(-images.bytes // LINE)
    touched = [_lines_of(tile, images.itemsize) for tile in (tiles or list(cuda(images)))]
    cache, issued, missed, written = Cache(l2), 0, 0, 0
    for n, tile in _blocks(images.count, len(touched), order):
        for line in touched[tile]:
            for source in sources(n, line):
                issued += 1
                missed += not cache.touch(source * lines_of_image + line)
            cache.touch((images.count + n) * lines_of_image + line)
            written += 1
    return Traffic(issued / written, missed / written)


def _blocks(images: int, tiles: int, order: str) -> Iterator[tuple[int, int]]:
    """(image, tile) of every block in its order."""
    if order == IMAGES_INNERMOST:
        return ((block % images, block // images) for block in range(images * tiles))
    return ((block // tiles, block % tiles) for block in range(images * tiles))


def _lines_of(tile: Segments, itemsize: int) -> list[int]:
    """Those that are followed among a tile's lines; a line that two tiles share belongs to the one it begins in."""
    return [line for first, count in tile
            for line in range(-(-first * itemsize // LINE), -(-(first + count) * itemsize // LINE))
            if line * 0x9E3779B1 % 2**32 >> 16 & (SAMPLED - 1) == 0]
