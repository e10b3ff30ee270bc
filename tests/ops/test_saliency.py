"""saliency_map, saliency_mask, saliency_peak, percentile_mask against the float64 equations and plain loops."""

import math

import numpy as np
import pytest
import torch
from helpers.support import DTYPES, LAYOUTS, compiled, dtype_id, embedded, expanded, same_bits, within_budget
from hypothesis import given
from hypothesis import strategies as st

import fastmix.functional as F
from fastmix.ops import saliency as ops
from fastmix.reference import functional as reference

pytestmark = pytest.mark.operator("saliency")
NAN, INF = float("nan"), float("inf")
SHAPES = [((0, 3, 8, 8), (2, 2)), ((1, 1, 1, 1), (1, 1)), ((3, 3, 32, 32), (4, 4)), ((5, 1, 8, 12), (2, 4)),
          ((2, 4, 10, 6), (10, 6)), ((3, 7, 9, 15), (3, 5)), ((1, 3, 6, 1030), (1, 2)), ((2, 2, 5, 7), (1, 1)),
          ((1, 3, 20, 30), (20, 10)), ((1, 600, 3, 4), (3, 2)), ((1, 3, 80, 30), (2, 3))]


def gradient(shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def norms_by_loop(grad):
    """sqrt(mean_c g^2) per pixel as nested lists of Python floats."""
    n, channels, height, width = grad.shape
    values = grad.double().tolist()
    return [[[math.sqrt(sum(values[b][c][i][j] ** 2 for c in range(channels)) / channels) for j in range(width)]
             for i in range(height)] for b in range(n)]


def cells_by_loop(grad, grid):
    """Unnormalised cell averages, (N, h, w) float64."""
    n, _, height, width = grad.shape
    (h, w), s = grid, norms_by_loop(grad)
    out = torch.zeros(n, h, w, dtype=torch.float64)
    for b in range(n):
        for i in range(height):
            for j in range(width):
                out[b, i * h // height, j * w // width] += s[b][i][j]
    return out / (height // h * (width // w))


def check_mask(mask, grad, q):
    """Equal to the float64 mask but where a cell lies within rounding of the threshold."""
    cells = cells_by_loop(grad, mask.shape[1:]).flatten(1)
    eps = torch.finfo(torch.float64 if grad.dtype == torch.float64 else torch.float32).eps
    for row, got, share in zip(cells, mask.flatten(1), q.double().expand(len(cells)), strict=True):
        threshold = row.sort().values[math.ceil(share.item() * (len(row) - 1))]
        near = (row - threshold).abs() <= 8 * eps * threshold
        assert torch.equal(got | near, (row >= threshold) | near)
        assert got.any()


def mask_by_loop(map, q):
    """sorted() with NaN largest, v >= sorted[ceil(q (n - 1))]."""
    def key(v):
        return (1, 0.0) if math.isnan(v) else (0, v)

    out = []
    for row, share in zip(map.flatten(1).double().tolist(), q.double().expand(len(map)).tolist(), strict=True):
        keys = [key(v) for v in row]
        threshold = sorted(keys)[math.ceil(share * (len(row) - 1))]
        out.append([k >= threshold for k in keys])
    return torch.tensor(out, dtype=torch.bool).view(map.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape,grid", SHAPES)
def test_map(variant, shape, grid, dtype):
    grad = embedded(gradient(shape, dtype), 7)
    got = F.saliency_map(grad, grid)
    truth = reference.saliency_map(grad.double(), grid)
    within_budget(got, truth, reference.saliency_map(grad, grid), "saliency_map")
    pixels_per_cell = shape[2] * shape[3] / (grid[0] * grid[1])
    torch.testing.assert_close(got.double().sum((1, 2)), torch.full((shape[0],), 1 / pixels_per_cell).double())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape,grid", SHAPES)
def test_mask_and_peak(variant, shape, grid, dtype):
    grad = embedded(gradient(shape, dtype), 1)
    for q in (torch.rand(shape[0]) * 0.99, torch.tensor(0.5), torch.rand(shape[0], dtype=torch.float64)):
        mask = F.saliency_mask(grad, grid, q)
        assert mask.dtype == torch.bool and mask.shape == (shape[0], *grid)
        check_mask(mask, grad, q)
    assert F.saliency_mask(grad, grid, torch.tensor(0.0)).all()
    peak = F.saliency_peak(grad)
    assert peak.dtype == torch.int64 and peak.shape == (shape[0], 2)
    for (row, column), s in zip(peak.tolist(), norms_by_loop(grad), strict=True):
        assert s[row][column] >= max(max(line) for line in s) * (1 - 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
def test_percentiles_that_are_none(variant, dtype):
    """NaN and below 0: all True. 1 and above: the largest cell and its ties."""
    q = torch.tensor([NAN, -INF, -0.5, -0.0, 1.0, 1.5, 1e30, INF], dtype=dtype)
    map = torch.tensor([[0.1, 0.4], [0.4, 0.2]], dtype=dtype).expand(8, 2, 2)
    grad = map.unsqueeze(1).contiguous()
    for mask in (F.percentile_mask(map, q), F.saliency_mask(grad, (2, 2), q),
                 ops.saliency_mask_of_grid(grad, (1, 2), torch.tensor(1), q)):
        assert mask[:4].all()
        assert torch.equal(mask[4:], torch.tensor([[False, True], [True, False]]).expand(4, 2, 2))
    for each, want in zip(q, mask, strict=True):  # one for all images, and more cells than a block has threads
        assert torch.equal(F.percentile_mask(map, each), want.expand(8, 2, 2))
        wide = F.percentile_mask(torch.arange(6000, dtype=dtype).view(1, 60, 100), each)
        assert wide.sum() == (6000 if want.all() else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(variant, layout, channels, dtype):
    plain = gradient((3, channels, 12, 20), dtype)
    grad, q = LAYOUTS[layout](plain), torch.rand(6)[::2]
    for grid in ((3, 5), (12, 20)):
        torch.testing.assert_close(F.saliency_map(grad, grid), F.saliency_map(plain, grid), rtol=1e-6, atol=0)
        check_mask(F.saliency_mask(grad, grid, q), plain, q)
    assert torch.equal(F.saliency_peak(grad), F.saliency_peak(plain))
    same = expanded(LAYOUTS[layout](plain))
    torch.testing.assert_close(F.saliency_map(same, (3, 5)), F.saliency_map(same.contiguous(), (3, 5)))
    assert torch.equal(F.saliency_peak(same)[1], F.saliency_peak(plain)[0])


def test_more_channels_than_a_block_holds(variant):
    plain = gradient((2, 600, 4, 6), torch.float32)
    want = plain.double().square().mean(1).sqrt()
    for layout in ("contiguous", "channels_last"):
        got = F.saliency_map(LAYOUTS[layout](plain), (4, 6)).double()
        torch.testing.assert_close(got / got.sum((1, 2), keepdim=True), want / want.sum((1, 2), keepdim=True),
                                   rtol=1e-5, atol=0)


VALUES = {
    "random": lambda shape: torch.rand(shape),
    "negative": lambda shape: torch.randn(shape),
    "ties": lambda shape: torch.randint(-2, 3, shape).float(),
    "constant": lambda shape: torch.full(shape, 0.3),
    "zeros_of_both_signs": lambda shape: torch.where(torch.rand(shape) < 0.5, 0.0, -0.0),
    "nan": lambda shape: torch.where(torch.rand(shape) < 0.3, NAN, torch.randn(shape)),
    "negative_nan": lambda shape: torch.where(torch.rand(shape) < 0.3, -torch.tensor(NAN), torch.randn(shape)),
    "all_nan": lambda shape: torch.full(shape, NAN),
    "inf": lambda shape: torch.randn(shape).div(torch.randint(0, 2, shape)),
    "inf_and_nan": lambda shape: torch.tensor([NAN, INF, -INF, 0.0, 1.0])[torch.randint(0, 5, shape)],
    "tiny_and_huge": lambda shape: torch.randn(shape) * 10.0 ** torch.randint(-44, 38, shape),
    "close": lambda shape: 1 + torch.randint(0, 9, shape) * torch.finfo(torch.float32).eps,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (4, 4), (8, 8), (5, 13), (20, 31)])
def test_percentile_mask(variant, grid, values, dtype):
    map = embedded(VALUES[values]((4, *grid)).to(dtype), 1)
    cells = grid[0] * grid[1]
    exact = torch.arange(4, dtype=torch.float64) / max(cells - 1, 3)  # some land on a rank
    below_one = torch.tensor(1 - 2.0**-53, dtype=torch.float64)
    for q in (torch.tensor(0.0), torch.tensor(0.99), torch.rand(4), exact, below_one, below_one.float() - 2.0**-24):
        assert torch.equal(F.percentile_mask(map, q), mask_by_loop(map, q)), (values, q)


def test_percentile_at_full_resolution(variant):
    map = torch.randn(2, 224, 224).square()
    q = torch.tensor([0.37, 0.99])
    ordered = map.flatten(1).sort(1).values
    for n in range(2):
        threshold = ordered[n, math.ceil(q[n].double().item() * (224 * 224 - 1))]
        assert torch.equal(F.percentile_mask(map, q)[n], map[n] >= threshold)
    turned = map.transpose(1, 2)
    assert torch.equal(F.percentile_mask(turned, q), F.percentile_mask(map, q).transpose(1, 2))


def test_percentile_is_numpys(variant):
    for cells in ((3, 3), (9, 9)):  # q (n - 1) and the interpolation are exact: integers and eighths
        map = torch.randint(0, 1000, (5, *cells)).double()
        for eighth in range(8):
            threshold = np.quantile(map.flatten(1).cpu().numpy(), eighth / 8, axis=1)
            want = map.flatten(1).cpu().numpy() >= threshold[:, None]
            assert (F.percentile_mask(map, torch.tensor(eighth / 8)).flatten(1).cpu().numpy() == want).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_zero_and_constant(variant, dtype):
    for shape, grid in SHAPES[1:]:
        for layout in (torch.contiguous_format, torch.channels_last):
            zero = torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout)
            uniform = torch.full((shape[0], *grid), 1 / (shape[2] * shape[3]))
            torch.testing.assert_close(F.saliency_map(zero, grid).float(), uniform)
            assert F.saliency_mask(zero, grid, torch.tensor(0.99)).all()
            assert (F.saliency_peak(zero) == 0).all()
            if variant == "reference":  # torch's own mean rounds equal cells differently
                continue
            # Cells of equal content tie exactly, wherever they lie.
            h, w = shape[2] // grid[0], shape[3] // grid[1]
            tiled = gradient((*shape[:2], h, w), dtype).repeat(1, 1, *grid).contiguous(memory_format=layout)
            assert F.saliency_mask(tiled, grid, torch.tensor(0.99)).all(), (shape, grid)


def test_nan_counts_as_largest(variant):
    for shape, grid in (((2, 3, 8, 8), (4, 4)), ((2, 1, 16, 40), (16, 40))):
        grad = gradient(shape)
        grad[0, 0, 5, 6] = NAN
        grad[0, 0, 7, 7] = NAN
        grad[0, 0, 0, 1] = INF
        h, w = grid
        mask = F.saliency_mask(grad, grid, torch.tensor(1 - 1e-9, dtype=torch.float64))
        hot = {(5 * h // shape[2], 6 * w // shape[3]), (7 * h // shape[2], 7 * w // shape[3])}
        assert {tuple(c) for c in mask[0].nonzero().tolist()} == hot
        assert mask[1].sum() == 1
        assert F.saliency_peak(grad)[0].tolist() == [5, 6]
        got = F.saliency_map(grad, grid)
        assert got[0].isnan().all() and got[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("cells", [(4, 4), (20, 30)])
def test_every_nan_is_the_same_largest_value(variant, cells, dtype):
    """Of either sign and any payload: they tie. Sums of a NaN may have either."""
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    map = torch.rand(1, *cells).to(dtype)
    bits = map.view(integer)
    bits[0, 0, 1], bits[0, 2, 3] = torch.tensor(NAN).to(dtype).view(integer), torch.tensor(-1).to(integer)
    bits[0, 3, 0] = torch.tensor(INF).to(dtype).view(integer) + 1
    map[0, 1, 1], map[0, 1, 2] = INF, -INF
    count = cells[0] * cells[1]
    for below, held in ((count - 1, 3), (count - 3, 3), (count - 4, 4), (1, count - 1)):
        mask = F.percentile_mask(map, torch.tensor(below / (count - 1), dtype=torch.float64))
        assert mask.sum() == held and mask[map.isnan()].all()
        assert mask[0, 1, 1] == (held > 3) and not mask[0, 1, 2]


def test_a_percentile_outside_the_unit_interval_is_the_nearest(variant):
    map = torch.arange(16.0).view(1, 4, 4)
    for q, held in ((-0.5, 16), (1.0, 1), (1.5, 1)):
        assert F.percentile_mask(map, torch.tensor(q)).sum() == held


def test_infinity(variant):
    grad = gradient((2, 3, 8, 8))
    grad[0, 1, 6, 3] = -INF
    got, want = F.saliency_map(grad, (2, 2)), reference.saliency_map(grad, (2, 2))
    torch.testing.assert_close(got, want, equal_nan=True)
    assert F.saliency_peak(grad)[0].tolist() == [6, 3]
    mask = F.saliency_mask(grad, (2, 2), torch.tensor(0.99))
    assert mask[0].tolist() == [[False, False], [True, False]]


def test_half_precision_does_not_overflow(variant):
    grad = torch.full((1, 3, 4, 4), 6e4, dtype=torch.float16)
    grad[0, :, 2:, 2:] = 3e4
    torch.testing.assert_close(F.saliency_map(grad, (2, 2)).flatten(), torch.tensor([2., 2., 2., 1.]) / 28)
    assert F.saliency_mask(grad, (2, 2), torch.tensor(0.9)).flatten().tolist() == [True, True, True, False]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_peak_is_the_first(variant, layout):
    for shape in ((3, 3, 7, 9), (2, 2, 40, 31), (1, 1, 3, 700)):
        for _ in range(5):
            grad = gradient(shape)
            grad = LAYOUTS[layout](grad)
            places = torch.randint(0, shape[2] * shape[3], (shape[0], 3))
            for n, at in enumerate(places.tolist()):
                for p in at:
                    grad[n, :, p // shape[3], p % shape[3]] = 9.0
            first = places.amin(1)
            want = torch.stack([first // shape[3], first % shape[3]], 1)
            assert torch.equal(F.saliency_peak(grad), want)


@pytest.mark.parametrize("shape,grid", [((2, 3, 96, 128), (8, 4)), ((1, 3, 96, 128), (96, 128)),
                                        ((2, 1, 32, 32), (32, 32)), ((1, 1, 200, 200), (5, 5))])
def test_images_that_are_divided(variant, shape, grid):
    """More bytes or cells than one block takes, more keys than one thread has in smaller ones."""
    grad, q = gradient(shape), torch.rand(shape[0])
    torch.testing.assert_close(F.saliency_map(grad, grid), reference.saliency_map(grad.double(), grid).float())
    assert torch.equal(F.saliency_mask(grad, grid, q), reference.saliency_mask(grad, grid, q))
    for value, place in enumerate((-2, 2500, 1500, 500), start=100):  # parts of different blocks, larger each time
        row, column = divmod(place % (shape[2] * shape[3]), shape[3])
        grad[:, 0, row, column] = value
        assert F.saliency_peak(grad).tolist() == [[row, column]] * shape[0]


def test_map_ignores_scale(variant):
    grad = gradient((3, 3, 8, 8))
    base = F.saliency_map(grad, (4, 4))
    for scale in (2.0**-40, 2.0**40, -1.0):  # gradients of a mean loss are small: squares stay in range
        assert same_bits(F.saliency_map(grad * scale, (4, 4)), base)


def test_repeatable_and_independent_of_threads(variant, threads):
    n = 2 if variant == "triton" else 9  # the interpreter has no threads and is slow
    grad, q = gradient((n, 3, 96, 96)), torch.rand(n)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append((F.saliency_map(grad, (8, 8)), F.saliency_mask(grad, (96, 96), q), F.saliency_peak(grad)))
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert same_bits(a.to(torch.float64), b.to(torch.float64))


def test_carries_no_gradient(variant):
    grad = gradient((2, 3, 8, 8)).requires_grad_()
    assert not F.saliency_map(grad, (2, 2)).requires_grad
    F.saliency_mask(grad, (2, 2), torch.tensor(0.5))
    F.saliency_peak(grad)
    F.percentile_mask(F.saliency_map(grad, (2, 2)).requires_grad_(), torch.tensor(0.5))


@given(n=st.integers(0, 3), channels=st.integers(1, 9), h=st.integers(1, 9), w=st.integers(1, 9),
       cell_height=st.integers(1, 7), cell_width=st.integers(1, 7), last=st.booleans(), q=st.floats(0, 0.999))
def test_any_shape(n, channels, h, w, cell_height, cell_width, last, q):
    grad = gradient((n, channels, h * cell_height, w * cell_width), torch.float64)
    if last:
        grad = grad.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(F.saliency_map(grad, (h, w)), reference.saliency_map(grad, (h, w)))
    q = torch.tensor(q, dtype=torch.float64)
    check_mask(F.saliency_mask(grad, (h, w), q), grad, q)
    map = gradient((n, h * cell_height, w), torch.float32)
    assert torch.equal(F.percentile_mask(map, q), mask_by_loop(map, q).view(map.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=dtype_id)
def test_opcheck(dtype):
    ops = torch.ops.fastmix
    for layout in (torch.contiguous_format, torch.channels_last):
        grad = gradient((3, 3, 8, 8), dtype).contiguous(memory_format=layout)
        for op, args in ((ops.saliency_map, (2, 4)), (ops.saliency_mask, (2, 4, torch.rand(3))),
                         (ops.saliency_peak, ())):
            torch.library.opcheck(op.default, (grad, *args))
    torch.library.opcheck(ops.percentile_mask.default, (torch.rand(3, 4, 5), torch.tensor(0.3)))


def test_compiled_equals_eager(variant):
    grad, q = gradient((3, 3, 8, 8)), torch.rand(3)

    def masks(g, q):
        map = F.saliency_map(g * 2, (4, 4))
        return map + 0, F.saliency_mask(g * 2, (2, 4), q), F.saliency_peak(g * 2), F.percentile_mask(map, q)

    for got, want in zip(compiled(masks)(grad, q), masks(grad, q), strict=True):
        torch.testing.assert_close(got, want)


def test_inductor_compiles_the_mask():
    torch._dynamo.reset()
    grad, q = gradient((3, 3, 8, 8)), torch.rand(3)
    fast = torch.compile(lambda g, q: F.saliency_mask(g * 2, (2, 4), q), fullgraph=True)
    assert torch.equal(fast(grad, q), F.saliency_mask(grad * 2, (2, 4), q))


def test_registered_operator_equals_the_public_function():
    grad, q = gradient((3, 3, 8, 8)), torch.rand(3)
    ops = torch.ops.fastmix
    assert same_bits(ops.saliency_map(grad, 2, 4), F.saliency_map(grad, (2, 4)))
    assert torch.equal(ops.saliency_mask(grad, 2, 4, q), F.saliency_mask(grad, (2, 4), q))
    assert torch.equal(ops.saliency_peak(grad), F.saliency_peak(grad))
    map = F.saliency_map(grad, (8, 8))
    assert torch.equal(ops.percentile_mask(map, q), F.percentile_mask(map, q))


@pytest.mark.parametrize("call,error,text", [
    (lambda g, q: F.saliency_map(g[0], (2, 2)), ValueError,
     r"saliency_map: grad has shape \(3, 8, 8\), want 4 dimensions"),
    (lambda g, q: F.saliency_map(g.long(), (2, 2)), TypeError, "saliency_map: grad has dtype int64, want float32 or"),
    (lambda g, q: F.saliency_map(g, (3, 2)), ValueError, r"saliency_map: grid is \(3, 2\), want \(h, w\) where h div"),
    (lambda g, q: F.saliency_mask(g, (0, 2), q), ValueError, r"saliency_mask: grid is \(0, 2\)"),
    (lambda g, q: F.saliency_mask(g, (2, 2), q[:1]), ValueError, r"saliency_mask: q has shape \(1,\), want \(2,\)"),
    (lambda g, q: F.saliency_mask(g, (2, 2), 0.5), TypeError, "saliency_mask: q is float, want a tensor"),
    (lambda g, q: F.saliency_mask(g, (2, 2), q.half()), TypeError, "q has dtype float16, want float32 or float64"),
    (lambda g, q: F.saliency_mask(g, (2, 2), q.to("meta")), ValueError, "q is on meta, want c(pu|uda:0)"),
    (lambda g, q: F.saliency_peak(g[:, :, :0]), ValueError, "saliency_peak: grad has shape .* at least one pixel"),
    (lambda g, q: F.saliency_peak(None), TypeError, "saliency_peak: grad is NoneType, want a tensor"),
    (lambda g, q: F.percentile_mask(g, q), ValueError, "percentile_mask: map has shape .* want 3 dimensions"),
    (lambda g, q: F.percentile_mask(g[0].half(), q), TypeError, "percentile_mask: map has dtype float16"),
    (lambda g, q: F.percentile_mask(g[0, :, :0], q), ValueError, "percentile_mask: map has shape .* at least one cell"),
    (lambda g, q: F.percentile_mask(g[0], q), ValueError, r"percentile_mask: q has shape \(2,\), want \(3,\)"),
])
def test_errors(variant, call, error, text):
    with pytest.raises(error, match=text):
        call(torch.randn(2, 3, 8, 8), torch.rand(2))
