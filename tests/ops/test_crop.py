"""crop and resized_crop, and their gradients, against slices, matrices and torch's own interpolation."""

import math

import pytest
import torch
from helpers.support import (
    DTYPES,
    LAYOUTS,
    OFFSETS,
    check_compiled,
    check_functorch,
    check_registered,
    dtype_id,
    embedded,
    expanded,
    same_bits,
    within_budget,
)
from hypothesis import given
from hypothesis import strategies as st

import fastmix
import fastmix.functional as F

pytestmark = pytest.mark.operator("crop")
OP = torch.ops.fastmix.crop.default
RESIZED = torch.ops.fastmix.resized_crop.default
RESIZED_BACKWARD = torch.ops.fastmix.resized_crop_backward.default
BIG = 2**63 - 1

SHAPES = [(0, 3, 4, 4), (1, 1, 1, 1), (3, 0, 4, 4), (5, 3, 32, 32), (3, 2, 7, 1), (4, 17, 9, 6), (2, 600, 5, 7),
          (3, 2, 5, 300)]


def shifts(n, h, w):
    """Shifts of any size, some out of the image."""
    return torch.stack([torch.randint(-h - 2, h + 3, (n,)), torch.randint(-w - 2, w + 3, (n,))], 1)


def windows(n, h, w):
    """Boxes inside the image, across its edges and beyond, larger and smaller than it."""
    side = torch.tensor([h, w]) * (0.05 + 1.6 * torch.rand(n, 2))
    return torch.cat([torch.tensor([h, w]) * (1.6 * torch.rand(n, 2) - 0.6) - 0.3 * side, side], 1)


def moved(x, shift, fill):
    """By slices of Python integers; fill (N, C). Differentiable in x."""
    n, c, h, w = x.shape
    out = fill.to(x.dtype).view(n, c, 1, 1).repeat(1, 1, h, w)
    for m, (down, right) in enumerate(shift.tolist()):
        top, bottom = max(0, -down), min(h, h - down)
        left, end = max(0, -right), min(w, w - right)
        if top < bottom and left < end:
            out[m, :, top:bottom, left:end] = x[m, :, top + down:bottom + down, left + right:end + right]
    return out


def hats(start, length, out, size):
    """(out, size + 2): the weights of the pixels -1 .. size in every output pixel, a hat around its position.

    A matrix, from another formula than the positions of the reference; what lies farther outside joins the ends.
    """
    rows = []
    for i in range(out):
        at = start + min(max((i + 0.5) * length / out - 0.5, 0.0), max(length - 1, 0.0))
        at = min(max(at, -1.0), float(size))
        rows.append([max(0.0, 1 - abs(at - p)) for p in range(-1, size + 1)])
    return torch.tensor(rows, dtype=torch.float64).view(out, size + 2)


def resized(x, box, size, fill):
    """By matrices over the image with a border of background. x float64, fill (N, C)."""
    n, c, h, w = x.shape
    images = []
    for m, (top, left, tall, wide) in enumerate(box.double().tolist()):
        framed = fill[m].double().view(c, 1, 1).repeat(1, h + 2, w + 2)
        framed[:, 1:-1, 1:-1] = x[m]
        images.append(hats(top, tall, size[0], h) @ framed @ hats(left, wide, size[1], w).T)
    return torch.stack(images) if n else x.new_empty((0, c, *size))


def value_and_grad(fn, x, g):
    x = x.detach().requires_grad_()
    y = fn(x)
    if not y.requires_grad:  # an oracle, where nothing of x is shown
        return y, torch.zeros_like(x)
    return y.detach(), torch.autograd.grad(y, x, g.to(y.dtype))[0]


def format_of(channels_last):
    return LAYOUTS["channels_last" if channels_last else "contiguous"]


# ---------------------------------------------------------------- crop

@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_and_its_gradient(variant, shape, channels_last, dtype):
    layout = format_of(channels_last)
    x, g = (layout(torch.randn(shape, dtype=torch.float64).to(dtype)) for _ in range(2))
    shift, fill = shifts(shape[0], *shape[2:]), torch.randn(shape[:2]).to(dtype)
    y, grad = value_and_grad(lambda v: F.crop(v, shift, fill=fill), x, g)
    want = value_and_grad(lambda v: moved(v, shift, fill), x, g)
    assert same_bits(y, want[0]) and torch.equal(grad, want[1])
    if not variant.startswith("reference"):
        assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("shift,shown", [
    ((0, 0), "all"), ((4, 0), "none"), ((-4, 0), "none"), ((0, 6), "none"), ((0, -6), "none"), ((BIG, 0), "none"),
    ((-BIG - 1, 0), "none"), ((0, BIG), "none"), ((0, -BIG - 1), "none"), ((-BIG - 1, -BIG - 1), "none"),
    ((BIG, BIG), "none")])
def test_edges_of_a_shift(variant, shift, shown):
    x = torch.randn(2, 1, 4, 6)
    y, grad = value_and_grad(lambda v: F.crop(v, torch.tensor([shift] * 2), fill=7), x, x + 1)
    assert same_bits(y, x if shown == "all" else torch.full_like(x, 7))
    assert torch.equal(grad, x + 1 if shown == "all" else torch.zeros_like(x))


def test_one_step_down_and_right(variant):
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert F.crop(x, torch.tensor([[1, 0]]))[0, 0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [0, 0, 0, 0]]
    assert F.crop(x, torch.tensor([[0, -1]], dtype=torch.int32), fill=-1.0)[0, 0].tolist() == [
        [-1, 0, 1, 2], [-1, 4, 5, 6], [-1, 8, 9, 10]]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_a_number_fills_like_a_colour(variant, dtype):
    x, shift = torch.randn(5, 3, 6, 9).to(dtype), shifts(5, 6, 9)
    assert same_bits(F.crop(x, shift, fill=0.1), F.crop(x, shift, fill=torch.full((5, 3), 0.1, dtype=torch.float64)))
    box = windows(5, 6, 9)
    assert same_bits(F.resized_crop(x, box, (4, 5), fill=0.1),
                     F.resized_crop(x, box, (4, 5), fill=torch.full((5, 3), 0.1, dtype=torch.float64)))


def test_special_values_stay_where_they_are(variant):
    x = torch.randn(1, 1, 4, 4)
    x[0, 0, 3, 3], x[0, 0, 0, 0], x[0, 0, 1, 1] = float("nan"), float("inf"), -0.0
    bits = torch.tensor(0x7F812345).int().view(torch.float32)  # a signalling NaN with a payload
    x[0, 0, 2, 2] = bits
    y = F.crop(x, torch.tensor([[1, 1]]))
    assert same_bits(y[0, 0, :3, :3], x[0, 0, 1:, 1:]) and (y[0, 0, 3] == 0).all()


# ---------------------------------------------------------------- resized_crop

@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape,size", [((0, 3, 4, 4), (5, 8)), ((1, 1, 1, 1), (5, 8)), ((3, 0, 4, 4), (5, 8)),
                                        ((4, 17, 9, 6), (5, 8)), ((2, 600, 3, 4), (4, 3)), ((3, 3, 16, 16), (16, 16)),
                                        ((2, 2, 9, 40), (3, 90)), ((2, 1, 12, 9), (1, 1))])
def test_resized_crop_and_its_gradient(variant, shape, size, channels_last, dtype):
    layout = format_of(channels_last)
    x, box = layout(torch.randn(shape, dtype=torch.float64).to(dtype)), windows(shape[0], *shape[2:])
    fill = torch.randn(shape[:2]).to(dtype)
    g = torch.randn(*shape[:2], *size, dtype=torch.float64).to(dtype)
    y, grad = value_and_grad(lambda v: F.resized_crop(v, box, size, fill=fill), x, layout(g))
    truth = value_and_grad(lambda v: resized(v, box, size, fill), x.double(), g.double())
    with fastmix.backend("reference"):
        stock = value_and_grad(lambda v: F.resized_crop(v, box, size, fill=fill), x, g)
    within_budget(y, truth[0], stock[0], "value")
    within_budget(grad, truth[1], stock[1], "gradient")
    if not variant.startswith("reference") and x.numel():
        assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("box,size", [((10.5, 30.25, 2.5, 3), (48, 64)), ((0, 0, 20, 40), (300, 40))],
                         ids=["window", "height"])
def test_a_few_pixels_enlarged(variant, box, size, dtype):
    """Every pixel of the image has many of the gradient."""
    x, g = (torch.randn(2, 2, *side, dtype=torch.float64).to(dtype) for side in ((20, 40), size))
    box, fill = torch.tensor([[3.0, 5, 2, 3], box]), torch.zeros(2, 2)
    y, grad = value_and_grad(lambda v: F.resized_crop(v, box, size), x, g)
    truth = value_and_grad(lambda v: resized(v, box, size, fill), x.double(), g.double())
    with fastmix.backend("reference"):
        stock = value_and_grad(lambda v: F.resized_crop(v, box, size), x, g)
    within_budget(y, truth[0], stock[0], "value")
    within_budget(grad, truth[1], stock[1], "gradient")


@pytest.mark.parametrize("size", [(7, 9), (16, 16), (3, 40), (1, 1)])
def test_whole_pixels_are_torch_s_interpolation(variant, size):
    """Inside the image a box is a window that torch resizes; outside, one of the image padded."""
    x = torch.randn(4, 3, 12, 14)
    for box in ((2, 3, 8, 6), (0, 0, 12, 14), (5, 5, 1, 1), (-4, -5, 20, 21), (9, 10, 8, 8)):
        top, left, tall, wide = box
        window = torch.nn.functional.pad(x, (30, 30, 30, 30))[..., 30 + top:30 + top + tall, 30 + left:30 + left + wide]
        want = torch.nn.functional.interpolate(window, size, mode="bilinear", align_corners=False, antialias=False)
        got = F.resized_crop(x, torch.tensor([box] * 4, dtype=torch.float32), size)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_the_whole_image_is_the_image(variant, dtype):
    """Bit for bit but for the payload of a NaN, which reaches no neighbour, nor does an infinity."""
    x = torch.randn(3, 2, 6, 21).to(dtype)
    x[0, 0, 2, 3], x[1, 1, 5, 20], x[2, 0, 0, 0], x[2, 1, 1, 1] = float("nan"), float("inf"), -float("inf"), -0.0
    for layout in ("contiguous", "channels_last"):
        same = LAYOUTS[layout](x)
        got = F.resized_crop(same, torch.tensor([[0.0, 0, 6, 21]] * 3), (6, 21))
        assert torch.equal(got.isnan(), same.isnan())
        assert same_bits(got.where(~got.isnan(), 7.0), same.where(~same.isnan(), 7.0))
        _, grad = value_and_grad(lambda v: F.resized_crop(v, torch.tensor([[0.0, 0, 6, 21]] * 3), (6, 21)),
                                 torch.zeros_like(same), same)
        assert torch.equal(grad.where(~grad.isnan(), 7.0), same.where(~same.isnan(), 7.0))


@pytest.mark.parametrize("box", [
    (0, 0, -3, 4), (2, 2, 0, 0), (2, 2, 0.5, 0.25), (1e30, 0, 4, 4), (-1e30, -1e30, 4, 4), (0, 0, 1e30, 1e30),
    (-1e18, 0, 2e18, 4), (3.999, 5.999, 1, 1), (-1, -1, 1, 1), (-0.5, -0.5, 1, 1), (4, 6, 3, 3)])
def test_odd_boxes(variant, box):
    x, fill = torch.randn(2, 1, 4, 6), torch.tensor([[0.5], [2.0]])
    boxes = torch.tensor([box] * 2, dtype=torch.float64)
    y, grad = value_and_grad(lambda v: F.resized_crop(v, boxes, (5, 7), fill=fill), x, torch.ones(2, 1, 5, 7))
    want = value_and_grad(lambda v: resized(v, boxes, (5, 7), fill), x.double(), torch.ones(2, 1, 5, 7))
    torch.testing.assert_close(y, want[0].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, want[1].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_a_box_that_is_not_finite_makes_its_image_nan(variant, bad, place):
    x = torch.randn(3, 2, 4, 6, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 4, 6]] * 3)
    boxes[1, place] = bad
    y = F.resized_crop(x, boxes, (4, 6))
    assert y[1].isnan().all() and same_bits(y[[0, 2]].detach(), x[[0, 2]].detach())
    grad, = torch.autograd.grad(y[[0, 2]].sum(), x)
    assert torch.equal(grad, torch.tensor([1.0, 0, 1]).view(3, 1, 1, 1).expand_as(grad))


# ---------------------------------------------------------------- both

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded", "batch_inside", "columns_apart"])
def test_layouts(variant, layout, dtype, operators):
    x = torch.randn(5, 3, 6, 10).to(dtype)
    make = {**LAYOUTS, "expanded": expanded, "batch_inside": lambda v: v.transpose(0, 1).contiguous().transpose(0, 1),
            "columns_apart": lambda v: LAYOUTS["channels_last"](v.repeat_interleave(2, 3))[..., ::2]}[layout]
    strided, shift, box = make(x), shifts(5, 6, 10), windows(5, 6, 10)
    fill = torch.randn(3, 5).T
    got = F.crop(strided, shift, fill=fill)
    assert same_bits(got, F.crop(strided.contiguous(), shift, fill=fill.contiguous()))
    resized_got = F.resized_crop(strided, box, (7, 4), fill=fill)
    assert same_bits(resized_got, F.resized_crop(strided.contiguous(), box, (7, 4), fill=fill))
    if not variant.startswith("reference"):
        assert got.stride() == torch.empty_like(strided).stride()
        grad = make(torch.randn(5, 3, 6, 10).to(dtype))
        backward = operators.resized_crop_backward.default
        assert same_bits(backward(grad, box.double(), 9, 8), backward(grad.contiguous(), box.double(), 9, 8))
    assert same_bits(F.crop(x, shift.T.contiguous().T), F.crop(x, shift))
    assert same_bits(F.resized_crop(x, box.T.contiguous().T, (7, 4)), F.resized_crop(x, box, (7, 4)))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("offset", OFFSETS)
def test_nothing_outside_is_read(variant, offset, dtype, operators):
    x, shift, box = torch.randn(3, 2, 5, 7).to(dtype), shifts(3, 5, 7), windows(3, 5, 7)
    fill = torch.randn(3, 2).to(dtype)
    framed = embedded(x, offset)
    assert same_bits(F.crop(framed, shift, fill=embedded(fill, offset)), F.crop(x, shift, fill=fill))
    assert same_bits(F.resized_crop(framed, box, (6, 9), fill=embedded(fill, offset)),
                     F.resized_crop(x, box, (6, 9), fill=fill))
    if not variant.startswith("reference"):
        backward = operators.resized_crop_backward.default
        assert same_bits(backward(framed, box.double(), 8, 6), backward(x, box.double(), 8, 6))


def test_gradcheck(variant):
    x = torch.randn(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    shift, box, fast = shifts(3, 3, 4), windows(3, 3, 4), variant == "triton"
    for fn in (lambda v: F.crop(v, shift, fill=0.3), lambda v: F.resized_crop(v, box, (4, 3), fill=0.3)):
        torch.autograd.gradcheck(fn, x, fast_mode=fast)
        torch.autograd.gradgradcheck(lambda v, fn=fn: fn(v) ** 2, x, fast_mode=fast)


def test_sum_backward_expands_its_gradient(variant):
    x = torch.randn(3, 2, 4, 5, requires_grad=True)
    shift, box = shifts(3, 4, 5), windows(3, 4, 5)
    got, = torch.autograd.grad(F.crop(x, shift).sum() + F.resized_crop(x, box, (3, 6)).sum(), x)
    truth, = torch.autograd.grad(moved(x, shift, torch.zeros(3, 2)).sum()
                                 + resized(x.double(), box, (3, 6), torch.zeros(3, 2)).sum(), x)
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("channels_last", [False, True])
def test_repeatable_and_independent_of_threads(variant, threads, channels_last, dtype, operators):
    layout = format_of(channels_last)
    n, h = (2, 9) if variant == "triton" else (7, 65)  # the interpreter has no threads and is slow
    x, shift, box = layout(torch.randn(n, 3, h, 64).to(dtype)), shifts(n, h, 64), windows(n, h, 64)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append((F.crop(x, shift), F.resized_crop(x, box, (48, 80)),
                        operators.resized_crop_backward.default(x, box.double(), 40, 50)))
    for again in results[1:]:
        assert all(map(same_bits, again, results[0]))


@given(n=st.integers(0, 4), c=st.integers(1, 3), h=st.integers(1, 9), w=st.integers(1, 20),
       size=st.tuples(st.integers(1, 9), st.integers(1, 40)), channels_last=st.booleans(),
       dtype=st.sampled_from(DTYPES))
def test_equal_the_oracles(n, c, h, w, size, channels_last, dtype):
    x = format_of(channels_last)(torch.randn(n, c, h, w).to(dtype))
    fill, shift, box = torch.randn(n, c).to(dtype), shifts(n, h, w), windows(n, h, w)
    assert same_bits(F.crop(x, shift, fill=fill), moved(x, shift, fill))
    truth = resized(x.double(), box, size, fill)
    bound = 4 * torch.finfo(dtype).eps * max(1.0, truth.abs().max().item() if truth.numel() else 0.0)
    assert ((F.resized_crop(x, box, size, fill=fill).double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad, layout):
    x = {**LAYOUTS, "expanded": expanded}[layout](torch.randn(4, 3, 2, 5)).detach().requires_grad_(grad)
    torch.library.opcheck(OP, (x, shifts(4, 2, 5), None, 0.5))
    torch.library.opcheck(OP, (x, shifts(4, 2, 5), torch.randn(4, 3), 0.0))
    torch.library.opcheck(RESIZED, (x, windows(4, 2, 5).double(), 3, 4, torch.randn(4, 3), 0.0))
    torch.library.opcheck(RESIZED_BACKWARD, (x, windows(4, 3, 4).double(), 3, 4))


def test_compiled_equals_eager(variant):
    x = torch.randn(4, 3, 5, 6, requires_grad=True)
    shift, box, fill = shifts(4, 5, 6), windows(4, 5, 6), torch.randn(4, 3)

    def step(v, s, b, f):
        return F.resized_crop(F.crop(v * 2, s, fill=f) * 3, b, (4, 8), fill=0.5)

    check_compiled(step, x, shift, box, fill)


def test_inductor_keeps_channels_last():
    x = torch.randn(4, 3, 6, 8).contiguous(memory_format=torch.channels_last)
    shift, box = shifts(4, 6, 8), windows(4, 6, 8)
    torch._dynamo.reset()
    got = torch.compile(lambda v: (F.crop(v, shift) + 1, F.resized_crop(v, box, (5, 5)) + 1), fullgraph=True)(x)
    want = F.crop(x, shift) + 1, F.resized_crop(x, box, (5, 5)) + 1
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
        assert a.is_contiguous(memory_format=torch.channels_last)


def test_registered_operators_equal_the_eager_way():
    x = torch.randn(4, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    shift, box = shifts(4, 3, 6), windows(4, 3, 6).double()
    check_registered(lambda v: F.crop(v, shift), lambda v: OP(v, shift, None, 0.0), x)
    check_registered(lambda v: F.resized_crop(v, box, (3, 6)), lambda v: RESIZED(v, box, 3, 6, None, 0.0), x)


def test_functorch_grad():
    shift, box = shifts(4, 3, 6), windows(4, 3, 6)

    def loss(v):
        return (F.crop(v, shift).square() + F.resized_crop(v, box, (3, 6)).square()).sum()

    check_functorch(loss, torch.randn(4, 2, 3, 6))


X, S, B = torch.randn(3, 1, 4, 4), torch.zeros(3, 2, dtype=torch.long), torch.rand(3, 4)


@pytest.mark.parametrize("call,error,text", [
    (lambda: F.crop(None, S), TypeError, "crop: x is NoneType, want a tensor"),
    (lambda: F.crop(X[0], S), ValueError, r"crop: x has shape \(1, 4, 4\), want 4 dimensions"),
    (lambda: F.crop(X.short(), S), TypeError, "crop: x has dtype int16, want float32 or"),
    (lambda: F.crop(X, S[:2]), ValueError, r"crop: shift has shape \(2, 2\), want \(3, 2\)"),
    (lambda: F.crop(X, S.float()), TypeError, "crop: shift has dtype float32, want int64 or int32"),
    (lambda: F.crop(X, S.to("meta")), ValueError, "crop: shift is on meta, want cpu like x"),
    (lambda: F.crop(X, S, fill="black"), TypeError, r"crop: fill is '.*', want a number or a tensor \(N, C\)"),
    (lambda: F.crop(X, S, fill=torch.zeros(3)), ValueError, r"crop: fill has shape \(3,\), want \(3, 1\)"),
    (lambda: F.crop(X, S, fill=S[:, :1]), TypeError, "crop: fill has dtype int64, want float32 or"),
    (lambda: F.crop(X, S, fill=torch.zeros(3, 1, requires_grad=True)), ValueError, "crop: fill requires grad"),
    (lambda: F.resized_crop(X, B[:, :2], (4, 4)), ValueError, r"resized_crop: box has shape \(3, 2\), want \(3, 4\)"),
    (lambda: F.resized_crop(X, B.int(), (4, 4)), TypeError, "resized_crop: box has dtype int32, want float32 or"),
    (lambda: F.resized_crop(X, B.requires_grad_(), (4, 4)), ValueError, "resized_crop: box requires grad"),
    (lambda: F.resized_crop(X, B.detach(), (4, 0)), ValueError, r"resized_crop: size is \(4, 0\), want \(height,"),
    (lambda: F.resized_crop(X, B.detach(), 4), TypeError, r"resized_crop: size is 4, want \(height, width\)"),
    (lambda: F.resized_crop(X, B.detach(), "ab"), TypeError, "resized_crop: size is 'ab', want"),
    (lambda: F.resized_crop(X, B.detach(), (4.0, 4)), TypeError, "resized_crop: size is 4.0, want"),
    (lambda: F.resized_crop(X, B.detach(), (4,)), ValueError, r"resized_crop: size is \(4,\), want \(height,"),
    (lambda: F.resized_crop(X, B.detach().to("meta"), (4, 4)), ValueError, "resized_crop: box is on meta, want cpu"),
])
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_the_oracle_itself():
    """Rows of hats sum to one; a window of half the size shows every pixel of the image once or between two."""
    assert math.isclose(hats(0.3, 7.2, 5, 9).sum().item(), 5)
    assert torch.equal(hats(0, 4, 4, 4)[:, 1:-1], torch.eye(4, dtype=torch.float64))
