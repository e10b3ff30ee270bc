"""soft_target at its edges: classes that count nothing, many or repeated names, values at every place of a row."""

import pytest
import torch
import torch.nn.functional as tf
from test_soft_target import LOSSES, dense64, make_target, value_and_grad

import fastmix.functional as F
from fastmix import SoftTarget

pytestmark = pytest.mark.operator("soft_target")


def test_ignore_index_may_be_a_class(variant):
    y, z = torch.tensor([0, 1, 2, 1, 0]), torch.randn(5, 3)
    for reduction in ("mean", "sum", "none"):
        loss, grad = value_and_grad(lambda v, r=reduction: F.soft_cross_entropy(v, y, ignore_index=1, reduction=r), z)
        want = value_and_grad(lambda v, r=reduction: tf.cross_entropy(v, y, ignore_index=1, reduction=r), z)
        torch.testing.assert_close((loss, grad), want)
        assert (grad[y == 1] == 0).all()
    named = SoftTarget(torch.tensor([[0, 1], [1, 0]]), torch.full((2, 2), 0.5))
    loss, grad = value_and_grad(lambda v: F.soft_cross_entropy(v, named, ignore_index=1, reduction="none"), z[:2])
    torch.testing.assert_close(loss, -0.5 * z[:2].log_softmax(1)[:, 0])
    assert (grad != 0).all()


def test_many_named_classes(variant):
    """More than a warp has lanes."""
    target, z = make_target(3, 50, k=70), torch.randn(3, 50)
    for name in LOSSES:
        ours = value_and_grad(lambda v, f=name: getattr(F, f)(v, target, reduction="none"), z)
        want = value_and_grad(lambda v, f=name: getattr(F, f)(v, dense64(target, 50), reduction="none"), z.double())
        torch.testing.assert_close(ours[0].double(), want[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(ours[1].double(), want[1], rtol=1e-5, atol=1e-5)


def test_a_base_may_be_negative(variant):
    target = make_target(4, 37)
    target.base = -torch.rand(4) / 37
    z = torch.randn(4, 37)
    for name in ("soft_cross_entropy", "soft_bce"):
        ours = value_and_grad(lambda v, f=name: getattr(F, f)(v, target, reduction="none"), z)
        want = value_and_grad(lambda v, f=name: getattr(F, f)(v, dense64(target, 37), reduction="none"), z.double())
        torch.testing.assert_close(ours[0].double(), want[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours[1].double(), want[1], rtol=1e-5, atol=1e-6)


def test_a_weight_of_zero_counts_nothing(variant):
    """Not even times infinity: a masked class that a target names."""
    z = torch.tensor([[-float("inf"), 0.5, 1.0]])
    index, weight = torch.tensor([[0, 2]]), torch.tensor([[0.0, 1.0]])
    for name in LOSSES:
        def call(v, target, name=name):
            return getattr(F, name)(v, target, reduction="sum")

        want, want_grad = value_and_grad(lambda v, f=call: f(v, torch.tensor([1])), z[:, 1:])
        for target in (SoftTarget(index, weight), SoftTarget(index, weight, torch.zeros(1)), weight[:, [0, 0, 1]]):
            loss, grad = value_and_grad(lambda v, f=call, t=target: f(v, t), z)
            torch.testing.assert_close(loss, want)
            torch.testing.assert_close(grad[:, 1:], want_grad)
            assert grad[0, 0] == 0


@pytest.mark.parametrize("classes", [5, 130, 301])
def test_the_largest_logit_and_nan_are_found_wherever_they_lie(variant, classes):
    """exp of a logit above what was taken for the maximum would overflow."""
    places = torch.arange(0, classes, 7 if variant == "triton" else 1)  # milliseconds a row in the interpreter
    z = 200 * torch.eye(classes)[places]
    for target in (places, z / 200):
        loss, grad = value_and_grad(lambda v, t=target: F.soft_cross_entropy(v, t, reduction="none"), z)
        assert (loss == 0).all() and (grad == 0).all()
        broken = torch.where(z > 0, float("nan"), z)
        loss, grad = value_and_grad(lambda v, t=target: F.soft_cross_entropy(v, t, reduction="none"), broken)
        assert loss.isnan().all() and grad.isnan().any(1).all()


def test_second_derivative_where_the_incoming_gradient_is_one(variant):
    """As loss.backward(create_graph=True) gives it: the stored gradient has no graph."""
    target = make_target(4, 5)
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def penalty(loss):
        grad, = torch.autograd.grad(loss, z, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), z)[0]

    dense = target.dense(5).double()
    want = penalty(-(dense * z.log_softmax(1)).sum() / 4)
    torch.testing.assert_close(penalty(F.soft_cross_entropy(z, target)), want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [1024, 1025, 2048, 2056, 4097])
def test_rows_where_the_kernels_change_their_way(variant, classes, dtype):
    """Labels, whose gradient is an exponential alone, times factors of either sign and of none."""
    z, y = (4 * torch.randn(5, classes)).to(dtype), torch.randint(0, classes, (5,))
    for g in (torch.full((5,), 3e-3), torch.tensor([1.0, -1.0, 0.0, -2e-4, 5e4])):
        loss, grad = value_and_grad(lambda v: F.soft_cross_entropy(v, y, reduction="none"), z, g)
        want, want_grad = value_and_grad(lambda v: tf.cross_entropy(v, y, reduction="none"), z.double(), g.double())
        torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=2e-6)
        rtol = 4e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        # Where a half is denormal, a unit of it.
        torch.testing.assert_close(grad.double(), want_grad, rtol=rtol, atol=6e-8 if dtype == torch.float16 else 1e-12)


@pytest.mark.parametrize("offset", [300.0, -3e4, 1e6, 2.0**30, 2.0**31, -3e9, 3e38])
def test_a_row_far_from_zero(variant, offset):
    """The distances to the largest logit decide, however coarse float32 is there."""
    step = max(1.0, 2.0 ** -20 * abs(offset))
    z = offset - step * torch.arange(40.0).repeat(3, 1) * torch.tensor([[0.0], [0.25], [1.0]])
    y = torch.tensor([0, 1, 39])
    ours = value_and_grad(lambda v: F.soft_cross_entropy(v, y), z)
    want = value_and_grad(lambda v: tf.cross_entropy(v, y), z.double())
    torch.testing.assert_close(ours[0].double(), want[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1].double(), want[1], rtol=1e-5, atol=1e-9)
