"""What each plan operator reads of its random numbers: which pieces, in which order, of which size.

A plan operator takes one tensor of int64 uniform in [0, 2^63 - 1). These descriptions are the only place that says what
the numbers are for: `fastmix.ops.plan` draws as many as they sum up to, the reference takes the pieces by name, and a
test holds the C++ and Triton kernels, which walk the same order, to them piece by piece.

In a description ``rows`` is N, the images of the batch, ``draws`` is R, 1 for the batch or N, and k is K, the images
mixed into one.
"""

from __future__ import annotations

from torch import Tensor


class Stream:
    """Pieces of random numbers, one after the other: ``Stream(keys=(1, 100), chance=(1, 1))``.

    Each piece is a matrix, its rows side by side. Pieces of size 0 are left out of the numbers, not of the description.
    """

    def __init__(self, **pieces: tuple[int, int]) -> None:
        self.pieces = pieces

    @property
    def size(self) -> int:
        """How many numbers."""
        return sum(rows * columns for rows, columns in self.pieces.values())

    def split(self, bits: Tensor) -> dict[str, Tensor]:
        """The pieces of bits (size,) by name, views of their shapes."""
        flat = bits.split([rows * columns for rows, columns in self.pieces.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.pieces.items(), flat, strict=True)}


def _chance(rows: int, prob: float, each: bool) -> tuple[int, int]:
    """What is compared with ``prob``: nothing where it is 1, else a number for every image, or one for the batch."""
    return 1, 0 if prob >= 1 else rows if each else 1


def _exponents(k: int, draws: int, alpha: float) -> tuple[int, int]:
    """What turns gamma variates into shares; alpha 0 says that they are shares already."""
    return k if alpha else 0, draws


def blend(rows: int, k: int, draws: int, alpha: float, prob: float, each: bool) -> Stream:
    """keys: of k - 1 permutations of the batch. chance, exponents: as above."""
    return Stream(keys=(k - 1, rows), chance=_chance(rows, prob, each), exponents=_exponents(k, draws, alpha))


def paste(rows: int, k: int, draws: int, alpha: float, prob: float, each: bool, peaks: bool, centred: bool) -> Stream:
    """position: row and column of every box, of one box per draw where it is ``centred``, of none with ``peaks``."""
    position = (2, draws) if centred else (0 if peaks else 2 * (k - 1), rows)
    return Stream(keys=(k - 1, rows), chance=_chance(rows, prob, each), exponents=_exponents(k, draws, alpha),
                  position=position)


def cutout(rows: int, draws: int, prob: float, each: bool) -> Stream:
    """position: row and column of a box per draw."""
    return Stream(chance=_chance(rows, prob, each), position=(2, draws))


def patch(rows: int, alpha: float, prob: float, flip: bool) -> Stream:
    """keys: of one permutation, of none where the batch is reversed (``flip``). level: which percentile, an image each.
    grid: which grid, once."""
    return Stream(keys=(0 if flip else 1, rows), chance=_chance(rows, prob, False), exponents=_exponents(2, 1, alpha),
                  level=(1, rows), grid=(1, 1))


def crop(rows: int, prob: float) -> Stream:
    """position: the shifts down and right, their size from the leading bits and their sign from the last."""
    return Stream(chance=_chance(rows, prob, True), position=(2, rows))
