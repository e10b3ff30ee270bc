"""soft_target with all that a target may have: ignored slots, class weights, weightings, pixels, scaled losses."""

import pytest
import torch
import torch.nn.functional as tf
from helpers.support import same_bits
from test_soft_target import value_and_grad
from torch.utils._python_dispatch import TorchDispatchMode

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget
from fastmix.ops import library, soft_target

pytestmark = pytest.mark.operator("soft_target")

CALLS = {
    "soft_cross_entropy": lambda z, t, p, **o: F.soft_cross_entropy(z, t, label_smoothing=0.1, **o),
    "soft_kl": lambda z, t, p, **o: F.soft_kl(z, t, label_smoothing=0.1, **o),
    "soft_bce": lambda z, t, p, **o: F.soft_bce(z, t, **o),
    **{f"soft_target_kl_{weighting}": lambda z, t, p, weighting=weighting, sample_weight=None, **o: F.soft_target_kl(
        z, t, p if isinstance(t, torch.Tensor) else None, weighting=weighting, **o)
       for weighting in ("sample", "none", "weight", "batch_mean")},
}
SHAPES = {"rows": (5, 301), "long_rows": (3, 1301), "pixels": (3, 7, 5, 2), "channels_last": (3, 7, 5, 2)}


def problem(shape):
    """logits, and targets of every kind for them, with ignored slots and an ignored row; confidences."""
    n, j, *inner = SHAPES[shape]
    z = torch.randn(n, j, *inner, dtype=torch.float64)
    if shape == "channels_last":
        z = z.contiguous(memory_format=torch.channels_last)
    rows = (n, *inner)
    index = torch.randint(0, j, (*rows, 3))
    index[0, ..., 0] = -100
    index[1] = -100
    index[2, ..., 1] = index[2, ..., 0]
    weight = torch.rand(*rows, 3)
    weight[2] = 0
    labels = torch.randint(0, j, rows)
    labels[1] = -100
    targets = {"named": SoftTarget(index, weight), "base": SoftTarget(index, weight, torch.rand(rows) / j),
               "labels": labels, "dense": torch.rand(z.shape)}
    return z, targets, torch.rand(rows)


def truth(fn, z, reduction):
    """Value and gradient of the reference in float64, under an incoming gradient that is not one."""
    with fastmix.backend("reference"):
        return with_gradient(fn, z, reduction)


def with_gradient(fn, z, reduction):
    rows = z.numel() // z.shape[1]
    g = torch.linspace(0.5, 1.5, rows).view(z.shape[0], *z.shape[2:]) if reduction == "none" else torch.tensor(0.7)
    return value_and_grad(fn, z, g)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CALLS)
def test_equals_the_reference(variant, name, shape):
    if shape == "channels_last" and variant != "reference":
        pytest.skip("rows in another order: the tests below have them")
    z, targets, p = problem(shape)
    class_weight, sample_weight = torch.rand(z.shape[1]), torch.rand(p.shape)
    for kind, target in targets.items():
        if kind == "dense" and "soft_target_kl" in name:
            continue
        weights = {"class_weight": class_weight, "sample_weight": sample_weight}
        for reduction, options in (("mean", {"class_weight": class_weight}), ("none", weights), ("sum", {})):
            def call(v, target=target, reduction=reduction, options=options):
                return CALLS[name](v, target, p, reduction=reduction, **options)
            torch.testing.assert_close(with_gradient(call, z, reduction), truth(call, z, reduction), rtol=1e-6,
                                       atol=1e-7, msg=lambda text, kind=kind: f"{kind}: {text}")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", ["rows", "pixels", "channels_last"])
def test_class_weights_and_pixels_as_in_torch(variant, shape, reduction, smoothing):
    z, targets, _ = problem(shape)
    weight = torch.rand(z.shape[1])
    for kind in ("labels", "dense"):
        target = targets[kind]
        theirs = target.double() if kind == "dense" else target
        options = {"label_smoothing": smoothing, "reduction": reduction}
        got = value_and_grad(lambda v, t=target, o=options: F.soft_cross_entropy(v, t, class_weight=weight, **o), z)
        want = value_and_grad(lambda v, t=theirs, o=options: tf.cross_entropy(v, t, weight=weight.double(), **o), z)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------- ignored slots

def test_an_ignored_slot_counts_nothing(variant):
    z = torch.tensor([[1.0, 2.0, 0.0]])
    loss = F.soft_cross_entropy(z, SoftTarget(torch.tensor([[1, -100]]), torch.tensor([[0.6, 0.4]])))
    torch.testing.assert_close(loss, torch.tensor(0.2446), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["soft_cross_entropy", "soft_bce"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_mixture_with_an_ignored_label_is_the_mixture_of_the_losses(variant, name, smoothing):
    """lam l(a) + (1 - lam) l(b), where the loss of an ignored label is 0, smoothing included."""
    if name == "soft_bce" and smoothing:
        pytest.skip("BCE has no label smoothing")
    options = {"label_smoothing": smoothing} if smoothing else {}
    z = torch.randn(6, 5, dtype=torch.float64)
    a, b, lam = torch.tensor([0, 1, 2, -100, 4, -100]), torch.tensor([3, -100, 2, 1, -100, -100]), torch.rand(6)
    loss = getattr(F, name)
    target = SoftTarget(torch.stack([a, b], 1), torch.stack([lam, 1 - lam], 1))
    got = value_and_grad(lambda v: loss(v, target, reduction="none", **options), z)
    want = value_and_grad(lambda v: lam * loss(v, a, reduction="none", **options)
                          + (1 - lam) * loss(v, b, reduction="none", **options), z)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    mean = loss(z, target, **options)
    torch.testing.assert_close(mean, want[0].sum() / (5 * (5 if name == "soft_bce" else 1)), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loss(z[:, :], torch.full((6,), -100)), torch.zeros((), dtype=torch.float64))


def test_soft_targets_own_methods_leave_ignored_slots_out():
    t = SoftTarget(torch.tensor([[1, -100], [-100, -100], [2, 0]]), torch.tensor([[0.4, 0.6], [0.5, 0.5], [0.3, 0.7]]))
    assert t.hard().tolist() == [1, -100, 0]
    torch.testing.assert_close(t.counted_share(), torch.tensor([0.4, 0.0, 1.0]))
    smooth = t.smooth(0.2, 4)
    torch.testing.assert_close(smooth.dense(4)[1], torch.zeros(4))
    z = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(F.soft_cross_entropy(z, smooth), F.soft_cross_entropy(z, t, label_smoothing=0.2),
                               rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------- a scaled loss in half precision

def half_logits(rows, classes):
    z = torch.zeros(rows, classes)
    z[:, 0] = 18
    return z.half()


@pytest.mark.parametrize("name", ["soft_cross_entropy", "soft_kl", "soft_bce", "dense", "pixels"])
def test_a_loss_scale_keeps_small_gradients(variant, name):
    """As a GradScaler multiplies it: float16 gradients are those of float32, rounded once."""
    rows, classes = (8, 20) if variant == "triton" else (256, 100)
    z, y = half_logits(rows, classes), torch.zeros(rows, dtype=torch.int64)
    target, loss = y, getattr(F, "soft_cross_entropy" if name in ("dense", "pixels") else name)
    if name == "dense":
        target = tf.one_hot(y, classes).float()
    if name == "pixels":
        z, target = z.view(2, -1, classes).transpose(1, 2).contiguous(), y.view(2, -1)
    for scale in (65536.0, 2.0**20):
        _, grad = value_and_grad(lambda v, s=scale: loss(v, target) * s, z)
        _, want = value_and_grad(lambda v, s=scale: loss(v, target) * s, z.double())
        assert grad.dtype == torch.float16 and (want[:, 1:] != 0).all()
        # Of the label's class it is the difference of 1 and a number close to it, whose sum is in float32.
        torch.testing.assert_close(grad[:, :1].double(), want[:, :1], rtol=0, atol=8 * 2**-24 * scale / len(y))
        torch.testing.assert_close(grad[:, 1:].double(), want[:, 1:], rtol=2**-10, atol=2**-24)


def test_the_example_of_a_scaled_loss(variant):
    if variant == "triton":
        pytest.skip("the rows are many for the interpreter; the test above has fewer")
    z = half_logits(256, 100).requires_grad_()
    (F.soft_cross_entropy(z, torch.zeros(256, dtype=torch.int64)) * 65536).backward()
    torch.testing.assert_close(z.grad[0, 0].float(), torch.tensor(-3.66e-4), rtol=0.3, atol=0)
    torch.testing.assert_close(z.grad[0, 1].float(), torch.tensor(3.87e-6), rtol=0.01, atol=0)


def test_a_loss_scale_under_compile(variant):
    torch._dynamo.reset()
    z, y = half_logits(4, 10), torch.zeros(4, dtype=torch.int64)
    step = torch.compile(lambda v: F.soft_cross_entropy(v, y) * 2.0**17, fullgraph=True, backend="aot_eager")
    _, grad = value_and_grad(step, z)
    _, want = value_and_grad(lambda v: F.soft_cross_entropy(v, y) * 2.0**17, z.double())
    assert grad.isfinite().all()
    torch.testing.assert_close(grad[:, 1:].double(), want[:, 1:], rtol=2**-10, atol=2**-24)


def test_scaled_gradients_twice_through_one_graph(variant):
    z = half_logits(4, 10).requires_grad_()
    loss = F.soft_cross_entropy(z, torch.zeros(4, dtype=torch.int64)) * 1024
    first, = torch.autograd.grad(loss, z, retain_graph=True)
    second, = torch.autograd.grad(loss, z)
    assert same_bits(first, second)


@pytest.mark.parametrize("which", ["index", "weight", "base", "sample_weight", "labels", "dense"])
def test_a_second_backward_notices_what_was_changed(variant, which):
    z = torch.randn(3, 4, requires_grad=True)
    named = {"index": torch.tensor([[0, 1], [2, 3], [1, 1]]), "weight": torch.rand(3, 2), "base": torch.rand(3)}
    others = {"labels": torch.tensor([0, 1, 2]), "dense": torch.rand(3, 4)}
    sample_weight = torch.rand(3)
    loss = F.soft_cross_entropy(z, others.get(which, SoftTarget(**named)), sample_weight=sample_weight) * 2
    loss.backward(retain_graph=True)
    {"sample_weight": sample_weight, **named, **others}[which].mul_(0)
    if variant == "reference" and which != "sample_weight":  # it works with a copy of its own
        first = z.grad.clone()
        loss.backward()
        assert torch.equal(z.grad, 2 * first)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---------------------------------------------------------------- SoftTarget by rows

def test_soft_target_by_rows():
    t = SoftTarget(torch.arange(10).view(5, 2), torch.rand(5, 2), torch.rand(5))
    assert len(t) == 5 and len(t[:4]) == 4
    assert torch.equal(t[1:3].index, t.index[1:3]) and torch.equal(t[1:3].base, t.base[1:3])
    mask = torch.tensor([True, False, True, False, True])
    assert torch.equal(t[mask].weight, t.weight[mask]) and torch.equal(t[[4, 0]].index, t.index[[4, 0]])
    both = torch.cat([t, t[:2]])
    assert isinstance(both, SoftTarget) and torch.equal(both, SoftTarget.cat([t, t[:2]])) and len(both) == 7
    index, weight, base = t
    assert index is t.index and weight is t.weight and base is t.base
    with pytest.raises(TypeError, match="single number"):
        t[0]
    with pytest.raises(TypeError, match="want one or more SoftTargets"):
        SoftTarget.cat([t, t.index])


@pytest.mark.parametrize("base", [False, True])
def test_samples_with_targets_of_their_own_are_collated(base):
    t = SoftTarget(torch.arange(6).view(3, 2), torch.rand(3, 2), torch.rand(3) if base else None)
    samples = [(torch.zeros(2), SoftTarget(t.index[i], t.weight[i], t.base[i] if base else None)) for i in range(3)]
    _, batch = torch.utils.data.default_collate(samples)
    assert batch == t and batch != t[:2]


def test_cat_of_unequal_targets():
    wide = SoftTarget(torch.tensor([[0, 2, 1]]), torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([0.1]))
    narrow = SoftTarget.from_labels(torch.tensor([3, -100]))
    both = torch.cat([narrow, wide])
    torch.testing.assert_close(both.dense(4), torch.cat([narrow.dense(4), wide.dense(4)]))
    z = torch.randn(3, 4)
    torch.testing.assert_close(F.soft_cross_entropy(z, both, reduction="sum"),
                               F.soft_cross_entropy(z[:2], narrow, reduction="sum")
                               + F.soft_cross_entropy(z[2:], wide, reduction="sum"))


def test_soft_targets_of_pixels():
    y = torch.randint(0, 4, (2, 3, 5))
    t = SoftTarget.from_labels(y)
    assert torch.equal(t.dense(4), tf.one_hot(y, 4).movedim(-1, 1).float()) and torch.equal(t.hard(), y)
    assert torch.equal(t[:1].index, t.index[:1])
    z = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(F.soft_cross_entropy(z, t), tf.cross_entropy(z, y))


@pytest.mark.parametrize("shape,by_rows", [("pixels", False), ("channels_last", True)])
def test_the_logits_of_pixels_are_not_copied(shape, by_rows):
    z, _, _ = problem(shape)
    seen, rows = soft_target._as_rows(z)
    assert rows == by_rows and seen.data_ptr() == z.data_ptr()


class Calls(TorchDispatchMode):
    """Names of the operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(library.missing is not None, reason="the C++ library is missing")
@pytest.mark.parametrize("weighting", ["sample", "none", "weight", "batch_mean"])
def test_the_loss_of_soft_augmentation_is_one_operator(weighting):
    """On a GPU, one launch and that of the sum: targets and weights are made in the kernel."""
    z, y, p = torch.randn(6, 5), torch.arange(6) % 5, torch.rand(6)
    for target, confidence in ((y, p), (SoftTarget.from_confidence(y, p, 5), None)):
        with Calls() as calls, fastmix.backend("cpu"):
            F.soft_target_kl(z, target, confidence, weighting=weighting)
        assert [name for name in calls.names if "view" not in name and "unsqueeze" not in name] == [
            "fastmix.soft_target.default"]
