"""paste, its gradients and paste_areas against a loop over pixels."""

import pytest
import torch
from helpers.support import (
    DTYPES,
    LAYOUTS,
    NAN_ROWS,
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

pytestmark = pytest.mark.operator("paste")
OP = torch.ops.fastmix.paste.default
BACKWARD = torch.ops.fastmix.paste_backward.default
BIG = 2**31 - 1


def cuts(n, k, h, w):
    """(index, boxes): boxes of any kind, empty ones, ones that leave the image and ones that miss it."""
    top, left = torch.randint(-3, h + 3, (n, k - 1)), torch.randint(-3, w + 3, (n, k - 1))
    tall, wide = torch.randint(-1, h + 4, (n, k - 1)), torch.randint(-1, w + 4, (n, k - 1))
    return torch.randint(0, max(n, 1), (n, k)), torch.stack([top, left, tall, wide], 2).int()


def owners(boxes, h, w):
    """(N, H, W): which k shows at every pixel, in Python integers."""
    table = torch.zeros(boxes.shape[0], h, w, dtype=torch.long)
    for n, image in enumerate(boxes.tolist()):
        for i in range(h):
            for j in range(w):
                for k, (top, left, tall, wide) in enumerate(image, 1):
                    if top <= i < top + tall and left <= j < left + wide:
                        table[n, i, j] = k
    return table


def oracle(x, index, boxes):
    """By pixel, through owners: differentiable in x."""
    n, _, h, w = x.shape
    source = index.gather(1, owners(boxes, h, w).view(n, h * w)).view(n, h, w)
    rows, columns = torch.arange(h).view(1, h, 1), torch.arange(w).view(1, 1, w)
    return x[source, :, rows, columns].permute(0, 3, 1, 2)


def value_and_grad(fn, x, g):
    x = x.detach().requires_grad_()
    y = fn(x)
    return y.detach(), torch.autograd.grad(y, x, g.to(y.dtype))[0]


SHAPES_AND_K = [((0, 3, 4, 4), 2), ((1, 1, 1, 1), 3), ((3, 0, 4, 4), 2), ((5, 3, 32, 32), 1), ((5, 3, 32, 32), 3),
                ((3, 2, 7, 1), 2), ((2, 1, 1, 37), 5), ((4, 17, 9, 6), 4),
                ((1, 3, 40, 70), 5), ((2, 600, 5, 7), 2), ((3, 2, 5, 300), 3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape,k", SHAPES_AND_K)
def test_value_and_gradient(variant, shape, k, channels_last, dtype):
    layout = LAYOUTS["channels_last" if channels_last else "contiguous"]
    x, g = (layout(torch.randn(shape, dtype=torch.float64).to(dtype)) for _ in range(2))
    index, boxes = cuts(shape[0], k, *shape[2:])
    y, grad = value_and_grad(lambda v: F.paste(v, index, boxes), x, g)
    truth = value_and_grad(lambda v: oracle(v, index, boxes), x.double(), g)
    assert same_bits(y, truth[0].to(dtype))
    with fastmix.backend("reference"):
        stock = value_and_grad(lambda v: F.paste(v, index, boxes), x, g)
    within_budget(grad, truth[1], stock[1], "gradient")


@pytest.mark.parametrize("width", [19, 24])  # odd, and of whole vectors
def test_many_images_in_one(variant, width):
    x, (index, boxes) = torch.randn(3, 2, 12, width), cuts(3, 12, 12, width)
    assert same_bits(F.paste(x, index, boxes), oracle(x, index, boxes))


@pytest.mark.parametrize("box,visible", [
    ((0, 0, 4, 6), "all"), ((0, 0, 0, 6), "none"), ((1, 2, 3, 0), "none"), ((1, 1, -2, 3), "none"),
    ((-5, -5, 5, 5), "none"), ((4, 0, 2, 2), "none"), ((0, 6, 2, 2), "none"), ((-2, -1, BIG, BIG), "all"),
    ((BIG, BIG, BIG, BIG), "none"), ((-BIG - 1, 0, BIG, 6), "none"), ((0, 0, BIG, BIG), "all"),
    ((0, 0, -BIG - 1, -BIG - 1), "none"), ((-BIG - 1, 0, -1, 6), "none"),
    ((0, -1 - BIG, 4, -1), "none"), ((-BIG - 1, -BIG - 1, -BIG - 1, -BIG - 1), "none"), ((0, BIG, 4, 6), "none"),
    ((0, -BIG - 1, 4, BIG), "none")])
@pytest.mark.parametrize("channels_last", [False, True])
def test_edges_of_a_box(variant, channels_last, box, visible):
    x = LAYOUTS["channels_last" if channels_last else "contiguous"](torch.randn(2, 2, 4, 6))
    boxes = torch.tensor([[box]] * 2, dtype=torch.int32)
    y, grad = value_and_grad(lambda v: F.paste(v, torch.tensor([[0, 1], [1, 0]]), boxes), x, x + 1)
    assert same_bits(y, x.flip(0) if visible == "all" else x)
    assert same_bits(grad, (x + 1).flip(0) if visible == "all" else x + 1)


def test_height_and_width_beyond_int32_when_added(variant):
    x = torch.randn(2, 1, 4, 6)
    boxes = torch.tensor([[[1, 2, BIG, BIG]]] * 2, dtype=torch.int32)
    y = F.paste(x, torch.tensor([[0, 1], [1, 1]]), boxes)
    want = x[0].clone()
    want[:, 1:, 2:] = x[1, :, 1:, 2:]
    assert same_bits(y[0], want)


def test_empty_box_hides_nothing(variant):
    x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 3, 8).contiguous()
    boxes = torch.tensor([[[0, 1, 3, 6], [1, 3, 2, 0]]] * 3, dtype=torch.int32)
    y = F.paste(x, torch.tensor([[0, 1, 2]] * 3), boxes)
    assert torch.equal(y[1, 0, 1], torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 0]))


def test_special_values_stay_where_they_are(variant):
    x = torch.randn(2, 1, 4, 4)
    x[1, 0] = float("nan")
    x[1, 0, 3, 3] = float("inf")
    boxes = torch.tensor([[[1, 1, 2, 2]]] * 2, dtype=torch.int32)
    y, grad = value_and_grad(lambda v: F.paste(v, torch.tensor([[0, 1], [0, 0]]), boxes), torch.randn(2, 1, 4, 4), x)
    assert grad[1].isnan().sum() == 0 and (grad[1] != 0).sum() == 4  # what it shows of the first image's gradient
    y = F.paste(x, torch.tensor([[0, 1], [0, 0]]), boxes)
    assert y[0].isnan().sum() == 4 and not y[1].isnan().any()
    beside = torch.ones(2, 1, 4, 4)
    beside[0, 0, 1, 0], beside[0, 0, 1, 3] = float("nan"), float("inf")  # left and right of the box: the canvas shows
    _, grad = value_and_grad(lambda v: F.paste(v, torch.tensor([[0, 1], [1, 1]]), boxes), x, beside)
    assert torch.equal(grad[1, 0], 1 + (grad[0, 0] == 0)) and grad[0, 0, 1].isfinite().tolist() == [False, True, True,
                                                                                                   False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded", "batch_inside", "columns_apart"])
def test_layouts(variant, layout, dtype, operators):
    backward = operators.paste_backward.default
    x = torch.randn(5, 3, 6, 10).to(dtype)
    make = {**LAYOUTS, "expanded": expanded, "batch_inside": lambda v: v.transpose(0, 1).contiguous().transpose(0, 1),
            "columns_apart": lambda v: LAYOUTS["channels_last"](v.repeat_interleave(2, 3))[..., ::2]}[layout]
    strided = make(x)
    index, boxes = cuts(5, 3, 6, 10)
    got = F.paste(strided, index, boxes)
    assert same_bits(got, F.paste(strided.contiguous(), index, boxes))
    if not variant.startswith("reference"):
        assert got.stride() == torch.empty_like(strided).stride()
        grad = make(torch.randn(5, 3, 6, 10).to(dtype))
        assert same_bits(backward(grad, index, boxes), backward(grad.contiguous(), index, boxes))
    turned = F.paste(x, index.t().contiguous().t(), boxes.transpose(0, 2).contiguous().transpose(0, 2))
    assert same_bits(turned, F.paste(x, index, boxes))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("offset", OFFSETS)
def test_nothing_outside_is_read(variant, offset, dtype, operators):
    backward = operators.paste_backward.default
    x, (index, boxes) = torch.randn(3, 2, 5, 7).to(dtype), cuts(3, 3, 5, 7)
    assert same_bits(F.paste(embedded(x, offset), index, boxes), F.paste(x, index, boxes))
    if not variant.startswith("reference"):
        assert same_bits(backward(embedded(x, offset), index, boxes), backward(x, index, boxes))


def test_gradcheck(variant):
    x = torch.randn(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    index, boxes = cuts(3, 3, 3, 4)
    torch.autograd.gradcheck(lambda v: F.paste(v, index, boxes), x, fast_mode=variant == "triton")
    torch.autograd.gradgradcheck(lambda v: F.paste(v, index, boxes) ** 2, x, fast_mode=variant == "triton")


def test_sum_backward_expands_its_gradient(variant):
    x = torch.randn(3, 2, 4, 5, requires_grad=True)
    index, boxes = cuts(3, 2, 4, 5)
    F.paste(x, index, boxes).sum().backward()
    source = index.gather(1, owners(boxes, 4, 5).view(3, 20))
    counted = torch.zeros(3, 20).scatter_add_(0, source, torch.ones(3, 20))
    assert torch.equal(x.grad, counted.view(3, 1, 4, 5).expand(3, 2, 4, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("channels_last", [False, True])
def test_repeatable_and_independent_of_threads(variant, threads, channels_last, dtype, operators):
    backward = operators.paste_backward.default
    layout = LAYOUTS["channels_last" if channels_last else "contiguous"]
    n = 2 if variant == "triton" else 7  # the interpreter has no threads and is slow
    x, g = layout(torch.randn(n, 3, 65, 64).to(dtype)), layout(torch.randn(n, 3, 65, 64).to(dtype))
    index, boxes = cuts(n, 5, 65, 64)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append((F.paste(x, index, boxes), backward(g, index, boxes)))
    for y, grad in results[1:]:
        assert same_bits(y, results[0][0]) and same_bits(grad, results[0][1])


@given(n=st.integers(0, 4), c=st.integers(1, 3), h=st.integers(1, 9), w=st.integers(1, 20), k=st.integers(1, 5),
       channels_last=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_equals_a_loop_over_pixels(n, c, h, w, k, channels_last, dtype):
    x = torch.randn(n, c, h, w).to(dtype)
    x = LAYOUTS["channels_last"](x) if channels_last else x
    index, boxes = cuts(n, k, h, w)
    want = torch.empty_like(x)
    for m, table in enumerate(owners(boxes, h, w).tolist()):
        for i in range(h):
            for j in range(w):
                want[m, :, i, j] = x[index[m, table[i][j]], :, i, j]
    assert same_bits(F.paste(x, index, boxes), want)


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad, layout):
    x = {**LAYOUTS, "expanded": expanded}[layout](torch.randn(4, 3, 2, 5)).detach().requires_grad_(grad)
    torch.library.opcheck(OP, (x, *cuts(4, 3, 2, 5)))
    torch.library.opcheck(BACKWARD, (x, *cuts(4, 3, 2, 5)))


def test_compiled_equals_eager(variant):
    x = torch.randn(4, 3, 5, 6, requires_grad=True)
    index, boxes = cuts(4, 3, 5, 6)

    def step(v, i, b):
        return F.paste(v * 2, i, b) * 3

    check_compiled(step, x, index, boxes)


def test_inductor_keeps_channels_last():
    x = torch.randn(4, 3, 6, 8).contiguous(memory_format=torch.channels_last)
    index, boxes = cuts(4, 2, 6, 8)
    torch._dynamo.reset()
    got = torch.compile(lambda v: F.paste(v, index, boxes) + 1, fullgraph=True)(x)
    torch.testing.assert_close(got, F.paste(x, index, boxes) + 1)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_registered_operator_equals_the_eager_way():
    x = torch.randn(4, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    index, boxes = cuts(4, 3, 3, 6)
    check_registered(lambda v: F.paste(v, index, boxes), lambda v: OP(v, index, boxes), x)


def test_functorch_grad():
    index, boxes = cuts(4, 2, 3, 6)
    check_functorch(lambda v: F.paste(v, index, boxes).square().sum(), torch.randn(4, 2, 3, 6))


# ---------------------------------------------------------------- paste_areas

def nested(draw, h, w, k):
    boxes, top, left = [], 0, 0
    for _ in range(k - 1):
        tall, wide = draw(st.integers(0, h)), draw(st.integers(0, w))
        top, left = top + draw(st.integers(0, h - tall)), left + draw(st.integers(0, w - wide))
        h, w = tall, wide
        boxes.append((top, left, h, w))
    return boxes


@given(data=st.data(), h=st.integers(1, 12), w=st.integers(1, 12), k=st.integers(1, 5))
def test_areas_equal_counted_pixels(data, h, w, k):
    boxes = torch.tensor([nested(data.draw, h, w, k) for _ in range(3)], dtype=torch.int32).view(3, k - 1, 4)
    areas = F.paste_areas(boxes, (h, w))
    assert areas.shape == (3, k) and areas.dtype == torch.float32
    table = owners(boxes, h, w)
    counted = torch.stack([(table == i).sum((1, 2)) for i in range(k)], 1).double() / (h * w)
    assert (areas - counted).abs().max() <= 2**-24 and (areas >= 0).all()
    assert (areas.sum(1) == 1).all() and (areas.flip(1).cumsum(1)[:, -1] == 1).all()


def test_areas_sum_to_one():
    for size in (7, 32, 224):
        tall = torch.randint(0, size + 1, (500,))
        inner = (tall * torch.rand(500)).long()
        zero = torch.zeros_like(tall)
        boxes = torch.stack([torch.stack([zero, zero, tall, tall], 1), torch.stack([zero, zero, inner, inner], 1)], 1)
        assert (F.paste_areas(boxes.int(), (size, size)).sum(1) == 1).all()


def test_areas_clip_the_outer_box():
    areas = F.paste_areas(torch.tensor([[[-2, -1, 4, 3], [0, 0, 1, 1]], [[9, 9, 2, 2], [9, 9, 1, 1]]]).int(), (4, 8))
    assert torch.equal(areas, torch.tensor([[28, 3, 1], [32, 0, 0]]) / 32)


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize("bad", [3, -1, 2**40])
@pytest.mark.parametrize("column", [0, 1])
def test_index_out_of_range(variant, bad, column, index_errors):
    x, boxes = torch.randn(3, 1, 4, 4), torch.zeros(3, 1, 4, dtype=torch.int32)
    index = torch.tensor([[0, 1], [2, 0], [0, 0]])
    index[2, column] = bad
    if variant in NAN_ROWS:
        out = F.paste(x.requires_grad_(), index, boxes)
        assert out[2].isnan().all() and same_bits(out[:2].detach(), x[[0, 2]].detach())
        grad, = torch.autograd.grad(out, x, torch.ones_like(out))  # row 2 hands nothing on
        assert grad.flatten(1).sum(1).tolist() == [16, 0, 16]
        return
    with pytest.raises(IndexError, match=rf"paste: index of row 2 is {bad}, want a value in \[0, 3\)"):
        F.paste(x, index, boxes)
    if variant != "triton":
        with pytest.raises(IndexError, match=rf"paste_backward: index of row 2 is {bad}, want"):
            BACKWARD(x, index, boxes)



@pytest.mark.parametrize("call,error,text", [
    (lambda x, i, b: F.paste(None, i, b), TypeError, "paste: x is NoneType, want a tensor"),
    (lambda x, i, b: F.paste(x[0], i, b), ValueError, r"paste: x has shape \(1, 4, 4\), want 4 dimensions"),
    (lambda x, i, b: F.paste(x.short(), i, b), TypeError, "paste: x has dtype int16, want float32 or"),
    (lambda x, i, b: F.paste(x, i[0], b), ValueError, r"paste: index has shape \(2,\), want \(3, K\)"),
    (lambda x, i, b: F.paste(x, i.int(), b), TypeError, "paste: index has dtype int32, want int64"),
    (lambda x, i, b: F.paste(x, i, b[:, 0]), ValueError, r"paste: boxes has shape \(3, 4\), want \(3, 1, 4\)"),
    (lambda x, i, b: F.paste(x, i[:, :1], b), ValueError, r"paste: boxes has shape \(3, 1, 4\), want \(3, 0, 4\)"),
    (lambda x, i, b: F.paste(x, i, b.long()), TypeError, "paste: boxes has dtype int64, want int32"),
    (lambda x, i, b: F.paste(x, i, b.to("meta")), ValueError, "paste: boxes is on meta, want c(pu|uda:0) like x"),
    (lambda x, i, b: F.paste_areas(b[0], (4, 4)), ValueError, r"paste_areas: boxes has shape \(1, 4\), want 3"),
    (lambda x, i, b: F.paste_areas(b[..., :2], (4, 4)), ValueError, r"paste_areas: boxes has shape \(3, 1, 2\)"),
    (lambda x, i, b: F.paste_areas(b.float(), (4, 4)), TypeError, "paste_areas: boxes has dtype float32, want int32"),
])
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call(torch.randn(3, 1, 4, 4), torch.tensor([[0, 1], [1, 2], [2, 2]]), torch.zeros(3, 1, 4, dtype=torch.int32))
