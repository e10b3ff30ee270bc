"""blend and its gradients against the float64 equation."""

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

pytestmark = pytest.mark.operator("blend")
OP = torch.ops.fastmix.blend.default
BACKWARD = torch.ops.fastmix.blend_backward.default


def mixing(n, k):
    """(index, weight): any rows, some of them several times, and weights of either sign."""
    return torch.randint(0, max(n, 1), (n, k)), torch.randn(n, k)


def oracle(x, index, weight):
    """One row at a time, in float64."""
    x = x.double()
    rows = [sum(weight[n, k].double() * x[index[n, k]] for k in range(index.shape[1])) for n in range(x.shape[0])]
    return torch.stack(rows) if rows else x * 0


def value_and_grad(fn, x, g):
    x = x.detach().requires_grad_()
    y = fn(x)
    return y.detach(), torch.autograd.grad(y, x, g.to(y.dtype))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape,k", [
    ((0, 3), 2), ((1, 1), 1), ((1, 1), 3), ((5,), 2), ((7, 33), 1), ((7, 33), 2), ((7, 33), 3), ((7, 33), 4),
    ((7, 33), 5), ((3, 513), 9), ((5, 3, 7, 11), 2), ((2, 8193), 5), ((1, 3, 73, 90), 3), ((4, 0, 3), 2),
    ((2, 2, 2, 2, 2, 2), 2)])
def test_value_and_gradient(variant, shape, k, dtype):
    x, g = torch.randn(shape, dtype=torch.float64).to(dtype), torch.randn(shape, dtype=torch.float64).to(dtype)
    index, weight = mixing(shape[0], k)
    ours = value_and_grad(lambda v: F.blend(v, index, weight), x, g)
    truth = value_and_grad(lambda v: oracle(v, index, weight), x.double(), g)
    with fastmix.backend("reference"):
        stock = value_and_grad(lambda v: F.blend(v, index, weight), x, g)
    within_budget(ours[0], truth[0], stock[0], "value")
    within_budget(ours[1], truth[1], stock[1], "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded", "batch_inside", "columns_apart"])
def test_layouts(variant, layout, dtype, operators):
    backward = operators.blend_backward.default
    x = torch.randn(5, 3, 6, 10).to(dtype)
    make = {**LAYOUTS, "expanded": expanded, "batch_inside": lambda v: v.transpose(0, 1).contiguous().transpose(0, 1),
            "columns_apart": lambda v: LAYOUTS["channels_last"](v.repeat_interleave(2, 3))[..., ::2]}[layout]
    strided = make(x)
    index, weight = mixing(5, 3)
    got = F.blend(strided, index, weight)
    assert same_bits(got, F.blend(strided.contiguous(), index, weight))
    if not variant.startswith("reference"):
        assert got.stride() == torch.empty_like(strided).stride()
        grad = make(torch.randn(5, 3, 6, 10).to(dtype))
        assert same_bits(backward(grad, index, weight), backward(grad.contiguous(), index, weight))
    turned = F.blend(x, index.t().contiguous().t(), weight.t().contiguous().t())
    assert same_bits(turned, F.blend(x, index, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("offset", OFFSETS)
def test_nothing_outside_is_read(variant, offset, dtype):
    x = torch.randn(3, 2, 5, 7).to(dtype)
    index, weight = mixing(3, 2)
    assert same_bits(F.blend(embedded(x, offset), index, weight), F.blend(x, index, weight))


def test_zero_weight_is_the_plain_equation(variant):
    x = torch.tensor([[1.0, 2.0], [float("inf"), float("nan")]])
    y = F.blend(x, torch.tensor([[0, 1], [0, 0]]), torch.tensor([[1.0, 0.0], [2.0, -1.0]]))
    assert y[0].isnan().all() and torch.equal(y[1], x[0])
    negative_zero = F.blend(torch.tensor([[-0.0]]), torch.tensor([[0]]), torch.ones(1, 1))
    assert same_bits(negative_zero, torch.zeros(1, 1))  # sums start from +0


def test_source_without_use_gets_zero_gradient(variant):
    x = torch.randn(3, 4, requires_grad=True)
    y = F.blend(x, torch.tensor([[0, 0], [2, 0], [2, 2]]), torch.rand(3, 2))
    grad, = torch.autograd.grad(y, x, torch.full_like(y, 3.0))
    assert same_bits(grad[1], torch.zeros(4)) and (grad[0] != 0).all() and (grad[2] != 0).all()


def test_gradcheck(variant):
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    index, weight = mixing(4, 3)
    torch.autograd.gradcheck(lambda v: F.blend(v, index, weight), x, fast_mode=variant == "triton")
    torch.autograd.gradgradcheck(lambda v: F.blend(v, index, weight) ** 2, x, fast_mode=variant == "triton")


def test_sum_backward_expands_its_gradient(variant):
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    index, weight = mixing(3, 2)
    F.blend(x, index, weight).sum().backward()
    totals = torch.zeros(3, dtype=torch.float64).index_add_(0, index.flatten(), weight.flatten().double())
    torch.testing.assert_close(x.grad, totals.float().view(3, 1, 1, 1).expand(3, 2, 4, 4))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_repeatable_and_independent_of_threads(variant, threads, dtype, operators):
    backward = operators.blend_backward.default
    n = 2 if variant == "triton" else 9  # the interpreter has no threads and is slow
    x, g = torch.randn(n, 3, 64, 65).to(dtype), torch.randn(n, 3, 64, 65).to(dtype)
    index, weight = mixing(n, 6)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append((F.blend(x, index, weight), backward(g, index, weight)))
    for y, grad in results[1:]:
        assert same_bits(y, results[0][0]) and same_bits(grad, results[0][1])


@pytest.mark.parametrize("rows,elements", [(3, 1_500_001), (7, 1_500_001), (300, 30_001)])
def test_large_output(rows, elements):
    """Past the size from which huge pages are requested, and pieces of a row; a batch beyond the caches."""
    x = torch.randn(rows, elements)
    index, weight = mixing(rows, 2)
    want = weight[:, 0, None] * x[index[:, 0]] + weight[:, 1, None] * x[index[:, 1]]
    torch.testing.assert_close(F.blend(x, index, weight), want)


@given(n=st.integers(0, 5), d=st.integers(0, 40), k=st.integers(1, 11))
def test_any_shape(n, d, k):
    x, (index, weight) = torch.randn(n, d, dtype=torch.float64), mixing(n, k)
    g = torch.randn(n, d, dtype=torch.float64)
    ours = value_and_grad(lambda v: F.blend(v, index, weight), x, g)
    truth = value_and_grad(lambda v: oracle(v, index, weight), x, g)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
def test_every_half_is_read_and_rounded_as_torch_does(variant, dtype):
    """Denormals, ties, overflow, infinities, NaN."""
    x = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype).view(1, -1)
    for weight in (1.0, 1 / 3, 2.0**-9, 300.0):
        y = F.blend(x, torch.tensor([[0]]), torch.tensor([[weight]]))
        want = (x.float() * weight).to(dtype)
        number = ~want.isnan()
        assert y[~number].isnan().all() and torch.equal(y[number], want[number])


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad, layout):
    x = {**LAYOUTS, "expanded": expanded}[layout](torch.randn(4, 3, 2, 5)).detach().requires_grad_(grad)
    torch.library.opcheck(OP, (x, *mixing(4, 3)))
    torch.library.opcheck(BACKWARD, (x, *mixing(4, 3)))


def test_compiled_equals_eager(variant):
    x = torch.randn(4, 3, 5, requires_grad=True)
    index, weight = mixing(4, 2)

    def step(v, i, w):
        return F.blend(v * 2, i, w) * 3

    check_compiled(step, x, index, weight)


def test_inductor_keeps_channels_last():
    x = torch.randn(4, 3, 6, 8).contiguous(memory_format=torch.channels_last)
    index, weight = mixing(4, 2)
    torch._dynamo.reset()
    got = torch.compile(lambda v: F.blend(v, index, weight) + 1, fullgraph=True)(x)
    torch.testing.assert_close(got, F.blend(x, index, weight) + 1)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_registered_operator_equals_the_eager_way():
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    index, weight = mixing(4, 3)
    check_registered(lambda v: F.blend(v, index, weight), lambda v: OP(v, index, weight), x)


def test_functorch_grad():
    index, weight = mixing(4, 2)
    check_functorch(lambda v: F.blend(v, index, weight).square().sum(), torch.randn(4, 6))


@pytest.mark.parametrize("bad", [3, -1, 2**40])
def test_index_out_of_range(variant, bad, index_errors):
    index = torch.tensor([[0, 1], [2, bad], [0, 0]])
    with pytest.raises(IndexError, match=rf"blend: index of row 1 is {bad}, want a value in \[0, 3\)"):
        F.blend(torch.randn(3, 4), index, torch.rand(3, 2))
    if variant != "triton":
        with pytest.raises(IndexError, match=rf"blend_backward: index of row 1 is {bad}, want"):
            BACKWARD(torch.randn(3, 4), index, torch.rand(3, 2))


@pytest.mark.parametrize("call,error,text", [
    (lambda x, i, w: F.blend([1.0], i, w), TypeError, "blend: x is list, want a tensor"),
    (lambda x, i, w: F.blend(x.long(), i, w), TypeError, "blend: x has dtype int64, want float32 or"),
    (lambda x, i, w: F.blend(x[0, 0], i, w), ValueError, r"blend: x has shape \(\), want \(N, ...\)"),
    (lambda x, i, w: F.blend(x, i[:, 0], w), ValueError, r"blend: index has shape \(3,\), want \(3, K\)"),
    (lambda x, i, w: F.blend(x, i[:2], w), ValueError, r"blend: index has shape \(2, 2\), want \(3, K\)"),
    (lambda x, i, w: F.blend(x, i[:, :0], w), ValueError, "want .* K >= 1"),
    (lambda x, i, w: F.blend(x, i.int(), w), TypeError, "blend: index has dtype int32, want int64"),
    (lambda x, i, w: F.blend(x, i, w[:, :1]), ValueError, r"blend: weight has shape \(3, 1\), want \(3, 2\)"),
    (lambda x, i, w: F.blend(x, i, w.double()), TypeError, "blend: weight has dtype float64, want float32"),
    (lambda x, i, w: F.blend(x, i, w.requires_grad_()), ValueError, "blend: weight requires grad"),
    (lambda x, i, w: F.blend(x, i.to("meta"), w), ValueError, "blend: index is on meta, want c(pu|uda:0) like x"),
])
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2], [2, 2]]), torch.rand(3, 2))
