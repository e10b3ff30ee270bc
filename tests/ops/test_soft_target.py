"""soft_cross_entropy, soft_kl, soft_target_kl, soft_bce and SoftTarget against the float64 equations."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as tf
from helpers.support import DTYPES, NAN_ROWS, check_functorch, compiled, dtype_id, embedded, same_bits, within_budget
from hypothesis import given
from hypothesis import strategies as st

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget

pytestmark = pytest.mark.operator("soft_target")
LOSSES = ("soft_cross_entropy", "soft_kl", "soft_bce")
SIZES = [(0, 5), (1, 1), (3, 2), (7, 17), (5, 1000), (2, 21841), (33, 100), (2, 40001), (700, 3)]


def make_target(n, j, k=3, base=True):
    index = torch.randint(0, max(j, 1), (n, k))
    if n:
        index[0] = index[0, 0]  # the same class k times
    return SoftTarget(index, torch.rand(n, k), torch.rand(n) / max(j, 1) if base else None)


def dense64(target, j):
    """The (N, J) matrix by the definition, in a loop."""
    t = torch.zeros(target.index.shape[0], j, dtype=torch.float64)
    if target.base is not None:
        t += target.base.double().unsqueeze(1)
    for n, row in enumerate(target.index.tolist()):
        for k, c in enumerate(row):
            t[n, c] += target.weight[n, k].double()
    return t


def oracle(name, logits, t, sample_weight=None, smoothing=0.0, reduction="mean"):
    """Written from the definition with dense t, in float64."""
    z, j = logits.double(), logits.shape[1]
    if name == "soft_bce":
        rows = tf.binary_cross_entropy_with_logits(z, t, reduction="none").sum(1)
        divisor = max(z.numel(), 1)
    else:
        t = t * (1 - smoothing) + smoothing / j
        rows = -(t * torch.log_softmax(z, 1)).sum(1)
        if name == "soft_kl":
            rows = rows + torch.xlogy(t, t).sum(1)
        divisor = max(z.shape[0], 1)
    if sample_weight is not None:
        rows = rows * sample_weight.double()
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / divisor}[reduction]


def value_and_grad(fn, logits, g=None):
    logits = logits.detach().requires_grad_()
    loss = fn(logits)
    grad, = torch.autograd.grad(loss, logits, torch.ones_like(loss) if g is None else g.to(loss.dtype))
    return loss.detach(), grad


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("n,j", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(variant, name, n, j, dtype):
    logits = embedded(torch.randn(n, j, dtype=torch.float64).mul(4).to(dtype), 7)
    target = make_target(n, j)
    options = {} if name == "soft_bce" else {"sample_weight": torch.rand(n), "label_smoothing": 0.1}
    t = dense64(target, j)
    weight, smoothing = options.get("sample_weight"), options.get("label_smoothing", 0.0)
    loss, grad = value_and_grad(lambda z: getattr(F, name)(z, target, **options), logits)
    true_loss, true_grad = value_and_grad(lambda z: oracle(name, z, t, weight, smoothing), logits.double())
    with fastmix.backend("reference"):
        stock_loss, stock_grad = value_and_grad(lambda z: getattr(F, name)(z, target, **options), logits)
    within_budget(loss, true_loss, stock_loss, f"{name} loss")
    within_budget(grad, true_grad, stock_grad, f"{name} gradient")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n,j", [(9, 37), (3, 1301), (2, 21841)])
@pytest.mark.parametrize("smooth", [False, True])
def test_dense_target(variant, smooth, n, j, name, dtype):
    logits = torch.randn(n, j, dtype=torch.float64).mul(4).to(dtype)
    t = torch.rand(n, j).softmax(1) * torch.rand(n, 1)
    t[0, 4] = 0
    t[n - 1, 0] = t[n - 1, j - 1] = 0.5  # not only in the middle of a row
    if n > 2:
        t[1] = 0
    options = {"label_smoothing": 0.1} if smooth and name != "soft_bce" else {}
    loss, grad = value_and_grad(lambda z: getattr(F, name)(z, t, **options), logits)
    true_loss, true_grad = value_and_grad(
        lambda z: oracle(name, z, t.double(), None, options.get("label_smoothing", 0.0)), logits.double())
    with fastmix.backend("reference"):
        stock_loss, stock_grad = value_and_grad(lambda z: getattr(F, name)(z, t, **options), logits)
    units = 2 if j == 37 else 8  # sums over a long row, four lanes at a time in the portable build
    within_budget(loss, true_loss, stock_loss, units=units)
    within_budget(grad, true_grad, stock_grad, units=units)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_reductions_and_incoming_gradient(variant, name, reduction):
    logits = torch.randn(6, 11, dtype=torch.float64)
    target = make_target(6, 11)
    shape = (6,) if reduction == "none" else ()
    g = torch.rand(shape, dtype=torch.float64) + 0.5
    loss, grad = value_and_grad(lambda z: getattr(F, name)(z, target, reduction=reduction), logits, g)
    true_loss, true_grad = value_and_grad(
        lambda z: oracle(name, z, dense64(target, 11), reduction=reduction), logits, g)
    torch.testing.assert_close(loss, true_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, true_grad, rtol=1e-12, atol=1e-12)


def test_labels_equal_torch_cross_entropy(variant):
    logits = torch.randn(8, 10, dtype=torch.float64)
    y = torch.randint(0, 10, (8,))
    y[3] = y[5] = -100
    ours = value_and_grad(lambda z: F.soft_cross_entropy(z, y, label_smoothing=0.2), logits)
    stock = value_and_grad(lambda z: tf.cross_entropy(z, y, label_smoothing=0.2), logits)
    torch.testing.assert_close(ours, stock)
    assert (ours[1][3] == 0).all() and (ours[1][5] == 0).all()


def test_ignored_rows_alone(variant):
    y = torch.full((4,), -100)
    loss, grad = value_and_grad(lambda z: F.soft_cross_entropy(z, y), torch.randn(4, 6))
    assert loss == 0 and same_bits(grad, torch.zeros(4, 6))
    target = SoftTarget(torch.tensor([[7, 7], [2, 3]]), torch.rand(2, 2))
    loss, grad = value_and_grad(lambda z: F.soft_cross_entropy(z, target, ignore_index=7), torch.randn(2, 6))
    assert (grad[0] == 0).all() and (grad[1] != 0).all()


@pytest.mark.parametrize("weighting", ["sample", "none", "weight", "batch_mean"])
def test_soft_target_kl_weightings(variant, weighting):
    n, j = 7, 10
    logits = torch.randn(n, j, dtype=torch.float64)
    y, p = torch.randint(0, j, (n,)), torch.rand(n)
    p64 = p.double()

    def equation(z):
        t = ((1 - p64) / (j - 1)).unsqueeze(1).expand(n, j).clone()
        t[torch.arange(n), y] = p64
        kl = (torch.xlogy(t, t) - t * torch.log_softmax(z, 1)).sum(1)
        if weighting == "weight":
            return (-p64 * torch.log_softmax(z, 1)[torch.arange(n), y]).mean()
        if weighting == "batch_mean":  # an (N, 1) weight against an (N,) loss
            return (p64.unsqueeze(1) * kl).mean()
        return (kl if weighting == "none" else p64 * kl).mean()

    ours = value_and_grad(lambda z: F.soft_target_kl(z, y, p, weighting=weighting), logits)
    torch.testing.assert_close(ours, value_and_grad(equation, logits), rtol=1e-6, atol=1e-7)


def test_extreme_logits(variant):
    z = torch.tensor([[1e4, 1e4 - 1, -1e4], [-3e38, 0.0, 3e38], [-float("inf"), 0.0, 1.0]])
    target = SoftTarget(torch.tensor([[0, 1], [2, 2], [1, 2]]), torch.full((3, 2), 0.5))
    loss, grad = value_and_grad(lambda v: F.soft_cross_entropy(v, target, reduction="none"), z)
    truth, true_grad = value_and_grad(
        lambda v: F.soft_cross_entropy(v, target, reduction="none"), z.double())
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), true_grad, rtol=1e-6, atol=1e-7)
    assert grad[2, 0] == 0  # a masked class
    for name in LOSSES:
        bad = torch.tensor([[0.0, float("nan"), 1.0]])
        loss, grad = value_and_grad(lambda v, f=name: getattr(F, f)(v, torch.tensor([0])), bad)
        assert loss.isnan() and grad.isnan().any()


def test_second_derivative(variant):
    target = make_target(4, 5)
    sample_weight = torch.rand(4)
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    for fn in (lambda v: F.soft_cross_entropy(v, target, sample_weight=sample_weight, label_smoothing=0.1),
               lambda v: F.soft_kl(v, target, reduction="none"),
               lambda v: F.soft_bce(v, target, reduction="sum")):
        emulated = variant in ("triton", "simt")  # slow, and one formula serves all
        torch.autograd.gradcheck(fn, z, fast_mode=emulated)
        torch.autograd.gradgradcheck(fn, z, fast_mode=emulated)


def test_backward_twice_through_one_graph(variant):
    z = torch.randn(4, 5, requires_grad=True)
    loss = F.soft_cross_entropy(z, make_target(4, 5)) * 3
    first, = torch.autograd.grad(loss, z, retain_graph=True)
    kept = first.clone()
    second, = torch.autograd.grad(loss, z, retain_graph=True)
    third, = torch.autograd.grad(loss, z)
    assert same_bits(first, kept)
    torch.testing.assert_close(second, kept)
    torch.testing.assert_close(third, kept)


def test_handed_out_gradient_is_not_shared(variant):
    z = torch.randn(4, 5, requires_grad=True)
    loss = F.soft_cross_entropy(z, make_target(4, 5))
    loss.backward(retain_graph=True)
    first = z.grad.clone()
    z.grad.zero_()
    loss.backward()
    torch.testing.assert_close(z.grad, first)


@pytest.mark.parametrize("layout", ["rows_apart", "transposed", "every_other_class", "expanded"])
def test_strides(variant, layout):
    z = torch.randn(6, 12)
    strided = {"rows_apart": lambda: torch.nn.functional.pad(z, (3, 5))[:, 3:15],
               "transposed": lambda: z.t().contiguous().t(),
               "every_other_class": lambda: torch.stack([z, z], 2).flatten(1)[:, ::2],
               "expanded": lambda: z[:1].expand(6, 12)}[layout]()
    target = make_target(6, 12)
    weight = torch.rand(6, 2)[:, 0]
    ours = value_and_grad(lambda v: F.soft_kl(v, target, sample_weight=weight), strided)
    dense = value_and_grad(lambda v: F.soft_kl(v, target, sample_weight=weight.contiguous()), strided.contiguous())
    torch.testing.assert_close(ours, dense)
    turned = SoftTarget(target.index.t().contiguous().t(), target.weight.t().contiguous().t(), target.base)
    torch.testing.assert_close(F.soft_kl(z, turned), F.soft_kl(z, target))


def test_repeatable_and_independent_of_threads(variant, threads):
    n = 20 if variant == "triton" else 300  # the interpreter has no threads and is slow
    z, target = torch.randn(n, 500), make_target(n, 500)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(value_and_grad(lambda v: F.soft_kl(v, target), z))
    for loss, grad in results[1:]:
        assert same_bits(loss, results[0][0]) and same_bits(grad, results[0][1])


@given(n=st.integers(0, 6), j=st.integers(1, 40), k=st.integers(1, 5), base=st.booleans(), scale=st.floats(0.1, 50))
def test_any_shape(n, j, k, base, scale):
    z = (torch.randn(n, j, dtype=torch.float64) * scale)
    target = make_target(n, j, k, base)
    for name in LOSSES:
        ours = value_and_grad(lambda v, f=name: getattr(F, f)(v, target), z)
        truth = value_and_grad(lambda v, f=name: oracle(f, v, dense64(target, j)), z)
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


def test_opcheck():
    z = torch.randn(4, 7)
    for grad in (False, True):
        logits = z.clone().requires_grad_(grad)
        target = make_target(4, 7)
        torch.library.opcheck(torch.ops.fastmix.soft_target.default,
                              (logits, *target, None, torch.rand(4), torch.rand(7), None, 0.1, -100, 1, 0, 1, grad))
        torch.library.opcheck(torch.ops.fastmix.soft_target_dense.default,
                              (logits, target.dense(7), None, None, None, 0.0, 0, 0, grad))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["sparse", "labels", "dense"])
def test_compiled_equals_eager(variant, name, kind):
    z = torch.randn(5, 9, requires_grad=True)
    target = {"sparse": make_target(5, 9), "labels": torch.randint(0, 9, (5,)), "dense": torch.rand(5, 9)}[kind]

    def step(v, t):
        return getattr(F, name)(v * 2, t) * 3

    eager, = torch.autograd.grad(step(z, target), z)
    fast = compiled(step)
    got, = torch.autograd.grad(fast(z, target), z)
    torch.testing.assert_close(got, eager)
    with torch.no_grad():
        torch.testing.assert_close(compiled(step)(z, target), step(z, target))


def test_inductor_compiles_a_loss_step():
    z = torch.randn(5, 9, requires_grad=True)
    target = make_target(5, 9)
    torch._dynamo.reset()
    fast = torch.compile(lambda v, t: F.soft_cross_entropy(v * 2, t) * 3, fullgraph=True)
    got, = torch.autograd.grad(fast(z, target), z)
    want, = torch.autograd.grad(F.soft_cross_entropy(z * 2, target) * 3, z)
    torch.testing.assert_close(got, want)


def test_registered_operator_equals_the_eager_way():
    z = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    target = make_target(6, 8)
    args = (*target, None, None, None, None, 0.1, -100, 1, 0, 1)
    op = torch.ops.fastmix.soft_target.default
    ours, = torch.autograd.grad(F.soft_kl(z, target, label_smoothing=0.1) * 2, z)
    theirs, = torch.autograd.grad(op(z, *args, True)[0] * 2, z)
    assert same_bits(ours, theirs)
    without, = torch.autograd.grad(op(z, *args, False)[0] * 2, z)
    assert same_bits(ours, without)
    torch.autograd.gradgradcheck(lambda v: op(v, *args, True)[0], z)


def test_functorch_grad():
    target = make_target(6, 8)
    check_functorch(lambda z: F.soft_cross_entropy(z, target), torch.randn(6, 8))


def test_modules():
    z, y, p, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0]), torch.rand(5), make_target(5, 4)
    assert fastmix.SoftCrossEntropy(label_smoothing=0.1)(z, target) == F.soft_cross_entropy(z, target,
                                                                                            label_smoothing=0.1)
    assert fastmix.SoftTargetKL(weighting="none")(z, y, p) == F.soft_target_kl(z, y, p, weighting="none")
    assert fastmix.SoftBCE(reduction="sum")(z, target) == F.soft_bce(z, target, reduction="sum")


# ---------------------------------------------------------------- SoftTarget

def test_soft_target_dense_hard_smooth():
    for n, j, k, base in ((5, 7, 3, True), (4, 1, 2, False), (0, 3, 2, True), (6, 4, 4, True)):
        t = make_target(n, j, k, base)
        want = dense64(t, j)
        torch.testing.assert_close(t.dense(j).double(), want)
        assert torch.equal(t.hard(), t.dense(j).argmax(1)) or n == 0
        torch.testing.assert_close(t.smooth(0.2, j).dense(j).double(), want * 0.8 + 0.2 / j)
    assert SoftTarget(torch.tensor([[3, 1]]), torch.tensor([[0.5, 0.5]])).hard().item() == 1
    below = SoftTarget.from_confidence(torch.tensor([0, 2]), torch.tensor([0.1, 0.1]), 4)
    assert torch.equal(below.hard(), below.dense(4).argmax(1))
    assert torch.equal(SoftTarget(torch.tensor([[-100, 1]]), torch.ones(1, 2)).dense(2), torch.tensor([[0.0, 1.0]]))


def test_soft_target_from_confidence_is_eq_4():
    y, p = torch.tensor([0, 3, 2]), torch.tensor([1.0, 0.25, 0.0])
    t = SoftTarget.from_confidence(y, p, 5).dense(5)
    for n in range(3):
        for j in range(5):
            want = p[n] if j == y[n] else (1 - p[n]) / 4
            assert abs(t[n, j] - want) < 1e-7
    assert SoftTarget.from_confidence(y[:1], p[1:2], 1).dense(1).item() == 0.25


def test_soft_target_is_a_pytree_and_pickles():
    t = make_target(3, 4)
    leaves, spec = torch.utils._pytree.tree_flatten(t)
    assert len(leaves) == 3 and isinstance(torch.utils._pytree.tree_unflatten(leaves, spec), SoftTarget)
    for other in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t), t.to("cpu")):
        assert isinstance(other, SoftTarget) and torch.equal(other.index, t.index)
    assert SoftTarget.from_labels(torch.tensor([1])).to("cpu").base is None


# ---------------------------------------------------------------- errors

def test_class_out_of_range(variant, index_errors):
    z = torch.randn(3, 4)
    if variant in NAN_ROWS:
        target = SoftTarget(torch.tensor([[0, 1], [3, 4], [-1, 2]]), torch.rand(3, 2))
        for name in LOSSES:
            loss, grad = value_and_grad(lambda v, f=name: getattr(F, f)(v, target, reduction="none"), z)
            assert loss.isnan().tolist() == [False, True, True]
            assert grad.isnan().all(1).tolist() == [False, True, True] and not grad[0].isnan().any()
        return
    for bad in (4, -1, 2**40):
        with pytest.raises(IndexError, match=rf"soft_cross_entropy: target index of row 2 is {bad}.*\[0, 4\)"):
            F.soft_cross_entropy(z, torch.tensor([0, 1, bad]))
    with pytest.raises(IndexError, match="soft_kl: target index of row 1 is 9"):
        F.soft_kl(z, SoftTarget(torch.tensor([[0, 1], [3, 9], [0, 0]]), torch.rand(3, 2)))
    for weighting in ("sample", "none", "weight", "batch_mean"):
        with pytest.raises(IndexError, match=r"^soft_target_kl: target index of row 1 is 9"):
            F.soft_target_kl(torch.randn(2, 4), torch.tensor([0, 9]), torch.rand(2), weighting=weighting)
    with pytest.raises(IndexError, match="soft_bce: target index of row 0 is -1,"):
        F.soft_bce(z, torch.tensor([-1, 0, 0]))


@pytest.mark.parametrize("call,error,text", [
    (lambda z, y: F.soft_cross_entropy(z[0], y), ValueError,
     r"soft_cross_entropy: logits has shape \(4,\), want \(N, J\)"),
    (lambda z, y: F.soft_cross_entropy(z.long(), y), TypeError, "logits has dtype int64, want float32 or"),
    (lambda z, y: F.soft_cross_entropy(z, y[:2]), ValueError, r"target has shape \(2,\), want \(3,\)"),
    (lambda z, y: F.soft_cross_entropy(z, y.int()), TypeError, "target has dtype int32, want int64"),
    (lambda z, y: F.soft_cross_entropy(z, [1, 2, 3]), TypeError, "target is list, want a SoftTarget"),
    (lambda z, y: F.soft_cross_entropy(z, torch.rand(3, 5)), ValueError, r"target has shape \(3, 5\), want \(3, 4\)"),
    (lambda z, y: F.soft_cross_entropy(z, torch.rand(3, 4, 1)), ValueError, r"target has shape \(3, 4, 1\)"),
    (lambda z, y: F.soft_cross_entropy(z, SoftTarget(y[:, None], torch.rand(3, 2))), ValueError,
     r"target.weight has shape \(3, 2\), want \(3, 1\)"),
    (lambda z, y: F.soft_cross_entropy(z, SoftTarget(y[:, None], torch.rand(3, 1).bfloat16())), TypeError,
     "target.weight has dtype bfloat16, want float32"),
    (lambda z, y: F.soft_cross_entropy(z, SoftTarget(y[:, None], torch.rand(3, 1, requires_grad=True))), ValueError,
     "target.weight requires grad"),
    (lambda z, y: F.soft_cross_entropy(z, SoftTarget(y[:, None][:, :0], torch.rand(3, 0))), ValueError, "K >= 1"),
    (lambda z, y: F.soft_cross_entropy(z, SoftTarget(y[:, None], torch.rand(3, 1), torch.rand(2))), ValueError,
     r"target.base has shape \(2,\), want \(3,\)"),
    (lambda z, y: F.soft_cross_entropy(z, y, reduction="avg"), ValueError, "reduction is 'avg', want one of"),
    (lambda z, y: F.soft_cross_entropy(z, y, label_smoothing=1.5), ValueError, "label_smoothing is 1.5"),
    (lambda z, y: F.soft_cross_entropy(z, y, sample_weight=torch.rand(4)), ValueError, "sample_weight has shape"),
    (lambda z, y: F.soft_cross_entropy(z, y.to("meta")), ValueError, "target is on meta, want c(pu|uda:0)"),
    (lambda z, y: F.soft_target_kl(z, y, torch.rand(3), weighting="mean"), ValueError, "weighting is 'mean'"),
    (lambda z, y: F.soft_target_kl(z, y, torch.rand(2)), ValueError, r"confidence has shape \(2,\)"),
    (lambda z, y: SoftTarget.from_labels(y.float()), TypeError, "y has dtype float32, want int64"),
    (lambda z, y: SoftTarget.from_confidence(y, torch.rand(3), 0), ValueError, "num_classes is 0"),
])
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call(torch.randn(3, 4), torch.tensor([0, 1, 2]))
