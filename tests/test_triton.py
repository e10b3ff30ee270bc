"""What only the Triton kernels do: rows of NaN, launches beside the first, roundings, the operators' registration.

Every other property is tested by the operators' own files, which the interpreter runs with the variant "triton".
"""

import pytest
import torch
from support import same_bits

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget, _library
from fastmix.backend import why_not

pytestmark = [pytest.mark.interpreted,
              pytest.mark.skipif(why_not("blend", "triton", "cpu") is not None,
                                 reason="runs in Triton's interpreter: TRITON_INTERPRET=1")]
OPS = getattr(torch.ops, _library.TRITON_NAMESPACE)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def _triton():
    with fastmix.backend("triton"):
        yield


def grad_of(fn, x):
    x = x.detach().requires_grad_()
    y = fn(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def test_bfloat16_is_rounded_to_nearest_even():
    common = _library.kernels("_common")
    import triton
    import triton.language as tl

    @triton.jit
    def cast(out_ptr, x_ptr, n: tl.constexpr):
        i = tl.arange(0, n)
        tl.store(out_ptr + i, common.to_storage(tl.load(x_ptr + i), out_ptr.dtype.element_ty))

    bits = torch.randint(-2**31, 2**31 - 1, (4096,), dtype=torch.int64).to(torch.int32)
    bits[:512] &= ~0xFFFF  # exact
    bits[512:1024] = bits[512:1024] & ~0xFFFF | 0x8000  # ties
    bits[:6] = torch.tensor([0, -2**31, 0x7F800000, 0x7F7FFFFF, 0x7FFFFFFF, 1])
    x = bits.view(torch.float32)
    out = torch.empty(4096, dtype=torch.bfloat16)
    cast.fn.__globals__["common"] = common
    cast[(1,)](out, x, n=4096)
    number = ~x.isnan()
    assert same_bits(out[number], x.to(torch.bfloat16)[number]) and out[~number].isnan().all()


# ---------------------------------------------------------------- soft_target

@pytest.mark.parametrize("name", ["soft_cross_entropy", "soft_kl", "soft_bce"])
@pytest.mark.parametrize("classes", [5, 300])
def test_a_class_out_of_range_makes_its_row_nan(name, classes):
    z = torch.randn(6, classes)
    index = torch.tensor([[0, 1], [2, classes], [-1, 0], [3, 3], [2**40, 1], [0, -2**62]])
    target = SoftTarget(index, torch.rand(6, 2))
    loss, grad = grad_of(lambda v: getattr(F, name)(v, target, reduction="none"), z)
    good = torch.tensor([True, False, False, True, False, False])
    kept = SoftTarget(index[good], target.weight[good])
    want_loss, want_grad = grad_of(lambda v: getattr(F, name)(v, kept, reduction="none"), z[good])
    assert same_bits(loss[good], want_loss) and same_bits(grad[good], want_grad)
    assert loss[~good].isnan().all() and grad[~good].isnan().all()
    assert getattr(F, name)(z, target).isnan()


@pytest.mark.parametrize("rows", [511, 512, 513, 1025])
def test_rows_that_are_not_ignored_are_counted_by_either_launch(rows):
    y = torch.randint(0, 3, (rows,))
    y[::3] = -100
    z = torch.randn(rows, 3)
    ours = grad_of(lambda v: F.soft_cross_entropy(v, y), z)
    torch.testing.assert_close(ours, grad_of(lambda v: torch.nn.functional.cross_entropy(v, y), z))
    assert same_bits(ours[1][::3], torch.zeros(len(y[::3]), 3))


def test_a_long_row_that_starts_masked():
    """The running maximum of a row longer than one pass is -inf for a while."""
    z = torch.randn(2, 33333, dtype=torch.float64)
    z[0, :30000] = -float("inf")
    target = SoftTarget(torch.tensor([[33000, 31000], [5, 6]]), torch.tensor([[0.25, 0.5], [0.5, 0.5]]))
    ours = grad_of(lambda v: F.soft_cross_entropy(v, target, reduction="none"), z)
    with fastmix.backend("reference"):
        torch.testing.assert_close(ours, grad_of(lambda v: F.soft_cross_entropy(v, target, reduction="none"), z))
    assert (ours[1][0, :30000] == 0).all()
    dense = target.dense(33333)
    torch.testing.assert_close(grad_of(lambda v: F.soft_cross_entropy(v, dense, reduction="none"), z), ours)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_by_one_touches_nothing(dtype):
    scale = _library.kernels("soft_target").scale_gradient_
    grad = torch.randn(3, 5000).to(dtype)
    g = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    before = grad.clone()
    scale(grad, g)
    assert same_bits(grad, before)
    scale(grad, g * -2.5)
    torch.testing.assert_close(grad, before * -2.5, rtol=0, atol=0)


def test_soft_target_opcheck():
    for grad in (False, True):
        z = torch.randn(4, 7, requires_grad=grad)
        target = SoftTarget(torch.randint(0, 7, (4, 3)), torch.rand(4, 3), torch.rand(4))
        torch.library.opcheck(OPS.soft_target.default, (z, *target, torch.rand(4), 0.1, -100, 1, 1, grad))
        torch.library.opcheck(OPS.soft_target_dense.default, (z, target.dense(7), None, 0.0, 0, 0, grad))
