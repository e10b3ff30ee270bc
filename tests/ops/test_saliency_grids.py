"""saliency_mask_of_grid: the mask of saliency_mask on a grid that is drawn on the device."""

import math

import pytest
import torch
from helpers.support import DTYPES, LAYOUTS, compiled, dtype_id

import fastmix.functional as F
from fastmix.ops import saliency

pytestmark = pytest.mark.operator("saliency")
NAN, INF = float("nan"), float("inf")
# Shapes of images, small and divided among blocks, and their grids.
CASES = [((5, 3, 32, 32), (2, 4)), ((3, 1, 12, 24), (2, 3)), ((2, 3, 12, 24), (1, 4, 6)), ((2, 5, 8, 8), (8, 1)),
         ((1, 3, 132, 136), (2, 4)), ((0, 3, 8, 8), (2, 4))]


def gradient(shape, dtype=torch.float32):
    """With ties, zeros, NaN and infinities."""
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    for row, change in enumerate((lambda g: g.zero_(), lambda g: g.sign_(), lambda g: g[..., 2, 3].fill_(NAN),
                                  lambda g: g[..., 5, 6].fill_(INF))):
        if row + 1 < len(grad):
            change(grad[row + 1])
    return grad


def expected(grad, p, side, q):
    mask = F.saliency_mask(grad, (p, p), q)
    return mask.repeat_interleave(side // p, 1).repeat_interleave(side // p, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_it_is_the_mask_of_the_drawn_grid(variant, layout, dtype):
    for shape, patches in CASES:
        grad, side = LAYOUTS[layout](gradient(shape, dtype)), math.lcm(*patches)
        for q in (torch.rand(shape[0]) * 0.99, torch.tensor(0.5, dtype=torch.float64)):
            for number, p in enumerate(patches):
                got = saliency.saliency_mask_of_grid(grad, patches, torch.tensor(number), q)
                assert got.dtype == torch.bool and got.shape == (shape[0], side, side)
                assert torch.equal(got, expected(grad, p, side, q)), (shape, p)


def test_cells_of_equal_content_tie_on_every_grid(variant):
    tile = torch.randn(2, 3, 4, 4)
    grad = tile.repeat(1, 1, 8, 8)
    for number in range(3):
        if variant != "reference" or number == 0:  # torch's own mean rounds equal cells differently
            assert saliency.saliency_mask_of_grid(grad, (1, 2, 8), torch.tensor(number), torch.tensor(0.99)).all()


def test_more_and_finer_grids_than_the_kernels_have_room_for(variant):
    grad, q = torch.randn(2, 2, 80, 80), torch.rand(2)
    for patches in ((1, 2, 4, 5, 8), (40, 4)):
        for number, p in enumerate(patches):
            got = saliency.saliency_mask_of_grid(grad, patches, torch.tensor(number), q)
            assert torch.equal(got, expected(grad, p, math.lcm(*patches), q))


def test_compiled_equals_eager(variant):
    grad, q = torch.randn(3, 3, 8, 8), torch.rand(3)

    def mask(g, number, q):
        return saliency.saliency_mask_of_grid(g * 2, (2, 4), number, q)

    for number in map(torch.tensor, (0, 1)):
        assert torch.equal(compiled(mask)(grad, number, q), mask(grad, number, q))


def test_opcheck():
    torch.library.opcheck(torch.ops.fastmix.saliency_mask_of_grid.default,
                          (torch.randn(3, 3, 8, 8), [2, 4], torch.tensor(1), torch.rand(3)))


def test_errors(variant):
    grad, q = torch.randn(2, 3, 8, 8), torch.rand(2)
    with pytest.raises(ValueError, match=r"saliency_mask_of_grid: grid is \(12, 12\)"):
        saliency.saliency_mask_of_grid(grad, (3, 4), torch.tensor(0), q)
    with pytest.raises(ValueError, match="grid has shape"):
        saliency.saliency_mask_of_grid(grad, (2, 4), torch.zeros(1, dtype=torch.int64), q)
    with pytest.raises(TypeError, match="grid has dtype float32, want int64"):
        saliency.saliency_mask_of_grid(grad, (2, 4), torch.tensor(0.0), q)
    if variant.startswith("cpu"):
        with pytest.raises(RuntimeError, match=r"grid is 2, want a value in \[0, 2\)"):
            saliency.saliency_mask_of_grid(grad, (2, 4), torch.tensor(2), q)
