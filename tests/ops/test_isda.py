"""isda_logits against the equations in float64: values, gradients, layouts, compilation, errors."""

import pytest
import torch
from helpers.isda_cases import INTERPRETED_PIXELS, INTERPRETED_SIZES, SIZES, make, oracle_logits, with_grads
from helpers.support import DTYPES, NAN_ROWS, check_functorch, compiled, dtype_id, embedded, same_bits, within_budget
from hypothesis import given
from hypothesis import strategies as st

import fastmix
import fastmix.functional as F
from fastmix import ISDALoss
from fastmix.ops.covariance import KINDS

pytestmark = pytest.mark.operator("isda", form_from="kind")
SLOW = ("triton", "simt")  # milliseconds a program or block


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixels", [(), (3, 5)], ids=["rows", "pixels"])
def test_logits_and_gradients(variant, kind, pixels, dtype):
    for n, j, a in SIZES if variant not in SLOW else INTERPRETED_PIXELS if pixels else INTERPRETED_SIZES:
        z, w, cov, y = make(kind, n, j, a, dtype, pixels)
        z, g = embedded(z, 7), torch.randn_like(z)
        def call(z, w, cov=cov, y=y):
            return F.isda_logits(z, w, cov, y, 0.7, kind=kind)

        ours = with_grads(call, z, w, g)
        with fastmix.backend("reference"):
            stock = with_grads(call, z, w, g)
        truth = with_grads(lambda z, w, cov=cov, y=y: oracle_logits(z, w, cov.double(), y, 0.7, kind), z.double(),
                           w.double(), g.double())
        for name, got, want, torchs in zip(("logits", "d logits", "d weight"), ours, truth, stock, strict=True):
            # The weight's gradient is a sum over classes and samples in another order than stock's.
            within_budget(got, want, torchs, f"{name} {n}x{j}x{a}", units=8)
        assert same_bits(ours[1], g)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n,j,a,pixels", [(20, 300, 34, ()), (3, 2100, 2, ()), (1, 3, 5, (42, 50)), (3, 4, 1060, ()),
                                          (1, 36, 5, (20, 30))],
                         ids=["classes", "many_classes", "pixels", "features", "slots"])
def test_more_than_a_block_holds(variant, n, j, a, pixels, kind):
    """Blocks of present classes, of classes, of a line of logits, of features beyond the first; more present classes
    than two registers hold."""
    if variant == "triton":  # smaller blocks, and slow ones
        n, j, a = min(n, 5), 70 if j == 300 else min(j, 1030), min(a, 530)
    z, w, cov, y = make(kind, n, j, a, pixels=pixels)
    if j > 1024:
        y[:] = torch.tensor([1023, j - 1, 1024])
    g = torch.randn_like(z)
    ours = with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.7, kind=kind), z, w, g)
    truth = with_grads(lambda z, w: oracle_logits(z, w, cov.double(), y, 0.7, kind), z.double(), w.double(), g.double())
    for name, got, want in zip(("logits", "d logits", "d weight"), ours, truth, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * want.abs().max().item(), msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_all_weights_have_in_common_cancels(variant, kind):
    """A vector fifty times as long as the differences, and one class far from the others."""
    z, w, cov, y = make(kind, 9, 40, 37)
    w = w + 50 * torch.randn(37)
    w[3] += 10
    g = torch.randn_like(z)
    ours = with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.7, kind=kind), z, w, g)
    truth = with_grads(lambda z, w: oracle_logits(z, w, cov.double(), y, 0.7, kind), z.double(), w.double(), g.double())
    for name, got, want in zip(("logits", "d logits", "d weight"), ours, truth, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=3e-6 * want.abs().max().item(), msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.operator("isda", form="diag")
def test_pixels_in_runs(variant, dtype):
    """Regions of one class, as segmentations have them: runs of 1 to 70 pixels, some of them of an ignored class."""
    few = variant in SLOW
    for n, j, shape in ((2, 7, (5, 37)), (1, 4, (1, 3)), *(() if few else ((3, 60, (20, 71)),))):
        z, w, cov, _ = make("diag", n, j, 5, dtype, shape)
        lengths = torch.randint(1, 71, (n * shape[0] * shape[1],))
        y = torch.randint(0, j, (len(lengths),)).repeat_interleave(lengths)[:len(lengths)].view(n, *shape)
        y[0, :, 1] = -7
        y[-1, 0, :2] = torch.tensor([2, 1])
        g = torch.randn_like(z)
        for ignored in (2, -7):
            labels = y.where(y != -7, ignored)

            def call(z, w, cov=cov, y=labels, ignored=ignored):
                return F.isda_logits(z, w, cov, y, 0.7, ignore_index=ignored)

            ours = with_grads(call, z, w, g)
            with fastmix.backend("reference"):
                stock, truth = with_grads(call, z, w, g), with_grads(call, z.double(), w.double(), g.double())
            for name, got, want, torchs in zip(("logits", "d logits", "d weight"), ours, truth, stock, strict=True):
                within_budget(got, want, torchs, f"{name} {n}x{j}x{shape}", units=8)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kind", KINDS)
def test_own_column_and_ignored_rows_are_the_logits(variant, kind, dtype):
    z, w, cov, y = make(kind, 9, 7, 37, dtype)
    z[3] = -0.0
    out = F.isda_logits(z, w, cov, y, 2.5, kind=kind)
    own = y.clamp(min=0).unsqueeze(1)
    assert same_bits(out.gather(1, own), z.gather(1, own))
    assert same_bits(out[1], z[1])
    zp, w, cov, yp = make(kind, 4, 7, 37, dtype, (2, 3))
    zp[:2] = -0.0
    out = F.isda_logits(zp, w, cov, yp, 2.5, kind=kind)
    own = yp.clamp(min=0).unsqueeze(1)
    assert same_bits(out.gather(1, own), zp.gather(1, own)) and same_bits(out[1], zp[1])
    broken = torch.full_like(cov, float("inf"))
    if kind != "identity":
        out = F.isda_logits(z, w, broken, y, 1.0, kind=kind)
        assert same_bits(out.gather(1, y.clamp(min=0).unsqueeze(1)), z.gather(1, y.clamp(min=0).unsqueeze(1)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(variant, kind):
    z, w, cov, y = make(kind, 5, 3, 4, torch.float64)
    z.requires_grad_()
    w.requires_grad_()
    fast = {"fast_mode": variant == "triton"}
    assert torch.autograd.gradcheck(lambda z, w: F.isda_logits(z, w, cov, y, 0.7, kind=kind), (z, w), **fast)
    assert torch.autograd.gradgradcheck(lambda z, w: F.isda_logits(z, w, cov, y, 0.7, kind=kind), (z, w), **fast)


@pytest.mark.parametrize("kind", ["full", "diag", "shared"])
def test_covariance_that_requires_grad(variant, kind):
    """Meta-learning the covariance: first and second derivatives."""
    z, w, cov, y = make(kind, 5, 3, 4, torch.float64)
    for t in (z, w, cov):
        t.requires_grad_()

    def symmetric(cov):
        return cov if kind == "diag" else (cov + cov.mT) / 2

    def call(z, w, cov):
        return F.isda_logits(z, w, symmetric(cov), y, 0.7, kind=kind)

    fast = {"fast_mode": variant == "triton"}
    assert torch.autograd.gradcheck(call, (z, w, cov), **fast)
    assert torch.autograd.gradgradcheck(call, (z, w, cov), **fast)
    pixel_z, _, _, pixel_y = make(kind, 2, 3, 4, torch.float64, (2, 2))
    assert torch.autograd.gradcheck(lambda cov: F.isda_logits(pixel_z, w, symmetric(cov), pixel_y, 0.7, kind=kind), cov,
                                    **fast)
    # One step on the covariance through a step on the weight, as meta-learning does.
    inner, = torch.autograd.grad(F.soft_cross_entropy(call(z, w, cov), y), w, create_graph=True)
    outer, = torch.autograd.grad((w - 0.1 * inner).square().sum(), cov)
    assert outer.abs().sum() > 0


@pytest.mark.operator("isda", form="diag")
def test_no_gradient_to_a_covariance_that_wants_none(variant):
    z, w, cov, y = make("diag", 5, 3, 4)
    out = F.isda_logits(z.requires_grad_(), w, cov, y, 0.7)
    out.sum().backward()
    assert z.grad is not None and w.grad is None and cov.grad is None
    w.requires_grad_()
    F.isda_logits(z.detach(), w, cov, y, 0.7).sum().backward()
    assert w.grad is not None


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded", "transposed"])
@pytest.mark.operator("isda", form="diag")
def test_strides(variant, layout):
    z, w, cov, y = make("diag", 6, 5, 9, pixels=(4, 3))
    other = {"channels_last": lambda: z.contiguous(memory_format=torch.channels_last),
             "sliced": lambda: torch.nn.functional.pad(z, (1, 2, 2, 1))[:, :, 2:6, 1:4],
             "expanded": lambda: z[:1].expand_as(z),
             "transposed": lambda: z.transpose(2, 3).contiguous().transpose(2, 3)}[layout]()
    g = torch.randn_like(z)
    ours = with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.5), other, w, g)
    dense = with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.5), other.contiguous(), w, g)
    torch.testing.assert_close(ours, dense)
    if layout == "channels_last":
        assert F.isda_logits(other, w, cov, y, 0.5).is_contiguous(memory_format=torch.channels_last)
    rows = torch.randn(6, 10)[:, ::2]
    turned_w = w.t().contiguous().t()
    torch.testing.assert_close(F.isda_logits(rows, turned_w, cov, y[:, 0, 0], 0.5),
                               F.isda_logits(rows.contiguous(), w, cov, y[:, 0, 0], 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_repeatable_and_independent_of_threads(variant, kind, threads):
    if variant == "reference":
        pytest.skip("torch's own products split by threads")
    few = variant in SLOW
    n, j, a, side = (20, 9, 33, 3) if few else (200, 40, 70, 20)
    z, w, cov, y = make(kind, n, j, a)
    zp, _, _, yp = make(kind, 3, j, a, pixels=(side, side))
    results = []
    for count in (1, 1) if few else (1, 2, 2):  # the interpreter's products are torch's own
        threads(count)
        results.append([*with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.5, kind=kind), z, w, z),
                        *with_grads(lambda z, w: F.isda_logits(z, w, cov, yp, 0.5, kind=kind), zp, w, zp)])
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(other, results[0], strict=True))


@given(n=st.integers(0, 9), j=st.integers(1, 30), a=st.integers(1, 60), kind=st.sampled_from(tuple(KINDS)),
       strength=st.floats(0, 3))
def test_any_shape(n, j, a, kind, strength):
    z, w, cov, y = make(kind, n, j, a, torch.float64)
    g = torch.randn_like(z)
    ours = with_grads(lambda z, w: F.isda_logits(z, w, cov, y, strength, kind=kind), z, w, g)
    truth = with_grads(lambda z, w: oracle_logits(z, w, cov, y, strength, kind), z, w, g)
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.operator("isda", form="diag")
def test_strength_as_a_tensor(variant):
    z, w, cov, y = make("diag", 5, 3, 4)
    for dtype in (torch.float32, torch.float64):
        strength = torch.tensor(0.25, dtype=dtype)
        torch.testing.assert_close(F.isda_logits(z, w, cov, y, strength), F.isda_logits(z, w, cov, y, 0.25))
    assert torch.equal(F.isda_logits(z, w, cov, y, 0.0), z)


# ---------------------------------------------------------------- compile, opcheck

@pytest.mark.parametrize("kind", ["full", "diag", "shared", "identity"])
def test_compiled_equals_eager(variant, kind):
    z, w, cov, y = make(kind, 4, 3, 5)
    zp, _, _, yp = make(kind, 2, 3, 5, pixels=(2, 2))

    def step(z, w, zp):
        return (F.isda_logits(z * 2, w, cov, y, 0.5, kind=kind).square().sum()
                + F.isda_logits(zp, w, cov, yp, 0.5, kind=kind).square().sum())

    leaves = [t.requires_grad_() for t in (z, w, zp)]
    want = torch.autograd.grad(step(*leaves), leaves)
    got = torch.autograd.grad(compiled(step)(*leaves), leaves)
    torch.testing.assert_close(got, want)


def test_opcheck():
    ops = torch.ops.fastmix
    for kind, code in KINDS.items():
        for grad in (False, True):
            z, w, cov, y = make(kind, 4, 3, 5)
            zp, _, _, yp = make(kind, 4, 3, 5, pixels=(6,))
            for logits, labels in ((z, y), (zp, yp)):
                torch.library.opcheck(ops.isda_logits.default,
                                      (logits.requires_grad_(grad), w.requires_grad_(grad), cov, labels,
                                       torch.tensor(0.5), 1.0, -100, code))
                torch.library.opcheck(ops.isda_logits_backward.default,
                                      (logits.detach(), w.detach(), cov, labels, None, 0.5, -100, code))
            for reduction in (0, 1):
                torch.library.opcheck(ops.isda_consistency.default,
                                      (z.detach().requires_grad_(grad), w, cov, None, None, 0.5, reduction, code,
                                       grad and reduction > 0))


def test_registered_operator_equals_the_eager_way():
    z, w, cov, y = make("full", 6, 5, 8)
    z.requires_grad_()
    w.requires_grad_()
    out = torch.ops.fastmix.isda_logits.default(z, w, cov, y, None, 0.5, -100, 0)
    ours = torch.autograd.grad(F.isda_logits(z, w, cov, y, 0.5).square().sum(), (z, w))
    theirs = torch.autograd.grad(out.square().sum(), (z, w))
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))


def test_functorch_grad():
    z, w, cov, y = make("diag", 6, 5, 8)
    check_functorch(lambda w: F.isda_logits(z, w, cov, y, 0.5).square().sum(), w)


# ---------------------------------------------------------------- memory, errors

def peak_bytes(fn):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        fn()
    level = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            most = max(most, level)
    return most


def test_pixels_need_little_memory():
    """4 x 19 x 97 x 97 with A = 512: the augmented logits and nothing else of their size."""
    z, w, cov, y = make("diag", 4, 19, 512, pixels=(97, 97))
    z.requires_grad_()
    w.requires_grad_()
    g = torch.ones_like(z)

    def step():
        torch.autograd.grad(F.isda_logits(z, w, cov, y, 0.5), (z, w), g)

    step()
    assert peak_bytes(step) < 2 * z.nbytes


@pytest.mark.operator("isda", form="diag")
def test_labels_out_of_range(variant, index_errors):
    z, w, cov, y = make("diag", 4, 3, 5)
    want = with_grads(lambda z, w: F.isda_logits(z, w, cov, y.where(torch.arange(4) != 2, -100), 0.5), z, w, z)
    for bad in (3, -1, 2 ** 40):
        y[2] = bad
        if variant in (*NAN_ROWS, "triton"):
            fastmix.set_debug(False)
            out, _, grad = with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.5), z, w, z)
            others = [0, 1, 3]
            assert out[2].isnan().all() and same_bits(out[others], want[0][others])
            torch.testing.assert_close(grad, want[2])
            if variant in NAN_ROWS:
                continue
            fastmix.set_debug(True)
        with pytest.raises(IndexError, match=rf"isda_logits: labels of row 2 is {bad}.*\[0, 3\)"):
            F.isda_logits(z, w, cov, y, 0.5)
    with pytest.raises(IndexError, match="explicit_sda: labels"):
        F.explicit_sda(torch.randn(4, 5), w, None, cov, y, 0.5, 2)


@pytest.mark.parametrize("call,error,text", [
    (lambda z, w, c, y: F.isda_logits(z[:, :2], w, c, y, 1), ValueError, r"logits has shape \(4, 2\), want \(N, 3\)"),
    (lambda z, w, c, y: F.isda_logits(z.long(), w, c, y, 1), TypeError, "logits has dtype int64"),
    (lambda z, w, c, y: F.isda_logits(z, w[0], c, y, 1), ValueError, "weight has shape"),
    (lambda z, w, c, y: F.isda_logits(z, w[:, :4], c, y, 1), ValueError, r"cov has shape \(3, 5\), want one of"),
    (lambda z, w, c, y: F.isda_logits(z, w, c.bfloat16(), y, 1), TypeError, "cov has dtype bfloat16"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y[:2], 1), ValueError, r"labels has shape \(2,\), want \(4,\)"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y.int(), 1), TypeError, "labels has dtype int32"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y.to("meta"), 1), ValueError, "labels is on meta, want c(pu|uda:0)"),
    (lambda z, w, c, y: F.isda_logits(z, w, c.to("meta"), y, 1), ValueError, "cov is on meta, want c(pu|uda:0)"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y, torch.ones(1)), ValueError, r"strength has shape \(1,\)"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y, torch.ones((), requires_grad=True)), ValueError, "strength requires"),
    (lambda z, w, c, y: F.isda_logits(z, w, None, y, 1, kind="full"), ValueError, "cov is None"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y, 1, kind="full"), ValueError, r"want \(3, 5, 5\) for kind 'full'"),
    (lambda z, w, c, y: F.isda_consistency(z.unsqueeze(2), w, c, 1), ValueError, "logits has shape"),
    (lambda z, w, c, y: F.isda_consistency(z, w, c, 1, reduction="avg"), ValueError, "reduction is 'avg'"),
    (lambda z, w, c, y: F.explicit_sda(z, w, None, c, y, 1, 0), ValueError, r"weight has shape|samples is 0"),
    (lambda z, w, c, y: F.explicit_sda(w, w, None, c, y[:3], -1, 2), ValueError, "strength is -1, want at least 0"),
    (lambda z, w, c, y: F.explicit_sda(w, w.long(), None, c, y[:3], 1, 2), TypeError, "weight has dtype int64"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y, None), TypeError, "strength is None, want a float or a 0-d"),
    (lambda z, w, c, y: F.isda_consistency(z, w, c, "1"), TypeError, "strength is '1', want a float or a 0-d"),
    (lambda z, w, c, y: ISDALoss(5, 4)(torch.randn(4, 5), torch.nn.Linear(5, 3), y, 1), ValueError, "fc.weight has"),
    (lambda z, w, c, y: ISDALoss(5, 3)(torch.randn(4, 6), torch.nn.Linear(5, 3), y, 1), ValueError,
     r"features has shape \(4, 6\), want \(N, 5\) or"),
    (lambda z, w, c, y: ISDALoss(5, 3)(torch.randn(4, 5), torch.nn.Identity(), y, 1), TypeError, "fc is Identity"),
])
def test_errors(call, error, text):
    z, w, cov, y = make("diag", 4, 3, 5)
    y[1] = 0
    with pytest.raises(error, match=text):
        call(z, w, cov, y)
