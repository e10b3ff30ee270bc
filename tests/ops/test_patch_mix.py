"""patch_mix and its gradient against the float64 equations, a pixel loop, and the bit-for-bit rule."""

import pytest
import torch
from helpers.support import (
    DTYPES,
    LAYOUTS,
    NAN_ROWS,
    check_functorch,
    compiled,
    dtype_id,
    embedded,
    expanded,
    same_bits,
    within_budget,
)
from hypothesis import given
from hypothesis import strategies as st

import fastmix.functional as F
from fastmix.reference import functional as reference

pytestmark = pytest.mark.operator("patch_mix")
NAN, INF = float("nan"), float("inf")
SHAPES = [((0, 3, 8, 8), (2, 2)), ((1, 3, 6, 10), (3, 5)), ((7, 3, 32, 32), (4, 4)), ((5, 1, 8, 12), (2, 4)),
          ((4, 4, 10, 6), (10, 6)), ((3, 7, 9, 15), (3, 5)), ((3, 3, 4, 2080), (2, 4)), ((3, 2, 5, 7), (1, 1)),
          ((2, 3, 6, 1030), (1, 2))]


def make(shape, grid, dtype=torch.float32, permutation=True):
    """x, partner, mask, lam."""
    n = shape[0]
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    partner = torch.randperm(n) if permutation else torch.randint(0, max(n, 1), (n,))
    return x, partner, torch.rand(n, *grid) < 0.5, torch.rand(n)


def shares(partner, mask, lam, size):
    """Eq. 5-6 as written, cell by cell: (N, 1, H, W) float64."""
    n, h, w = mask.shape
    lam = lam.double().expand(n)
    out = torch.zeros(n, 1, *size, dtype=torch.float64)
    for b in range(n):
        for i in range(size[0]):
            for j in range(size[1]):
                cell = (i * h // size[0], j * w // size[1])
                own, other = bool(mask[b][cell]), bool(mask[partner[b]][cell])
                out[b, 0, i, j] = lam[b] if own == other else 1.0 if own else 0.0
    return out


def value_and_grad(fn, x, g):
    x = x.detach().requires_grad_()
    mixed, weight = fn(x)
    grad, = torch.autograd.grad(mixed, x, g.to(x.dtype))
    return mixed.detach(), weight, grad


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("permutation", [True, False], ids=["permutation", "any_map"])
@pytest.mark.parametrize("shape,grid", SHAPES)
def test_value_and_gradient(variant, shape, grid, permutation, dtype):
    x, *args = make(shape, grid, dtype, permutation)
    g = torch.randn(shape).to(dtype)
    mixed, weight, grad = value_and_grad(lambda v: F.patch_mix(v, *args), embedded(x, 7), g)
    truth, true_weight, true_grad = value_and_grad(lambda v: reference.patch_mix(v, *args), x.double(), g)
    stock, stock_weight, stock_grad = value_and_grad(lambda v: reference.patch_mix(v, *args), x, g)
    within_budget(mixed, truth, stock, "mixed")
    within_budget(weight, true_weight.double(), stock_weight, "weight")
    within_budget(grad, true_grad, stock_grad, "gradient")
    assert (weight.sum(1) == 1).all()


@pytest.mark.parametrize("shape", [(5, 0, 4, 4), (5, 3, 0, 4), (5, 3, 4, 0)])
def test_images_without_pixels_have_weights(variant, shape):
    x, *args = make(shape, (2, 2), torch.float32, permutation=True)
    mixed, weight, grad = value_and_grad(lambda v: F.patch_mix(v, *args), x, torch.zeros(shape))
    assert mixed.shape == grad.shape == shape
    torch.testing.assert_close(weight, reference.patch_mix(x, *args)[1])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(37, 3, 280, 300), (3, 3, 2000, 600), (300, 5, 96, 64)])
def test_batch_beyond_the_caches(shape, channels_last):
    x, *args = make(shape, (4, 4), torch.float32, permutation=False)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for ours, want in zip(F.patch_mix(x, *args), reference.patch_mix(x, *args), strict=True):
        torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("permutation", [True, False], ids=["permutation", "any_map"])
def test_equations_pixel_by_pixel(variant, permutation):
    x, partner, mask, lam = make((5, 2, 6, 8), (3, 4), torch.float64, permutation)
    a = shares(partner, mask, lam, (6, 8))
    mixed, weight = F.patch_mix(x, partner, mask, lam)
    torch.testing.assert_close(mixed, a * x + (1 - a) * x[partner])
    torch.testing.assert_close(weight[:, 0].double(), a.mean((1, 2, 3)), rtol=1e-6, atol=0)
    g = torch.randn_like(x)
    want = a * g
    for m in range(5):
        want[partner[m]] += (1 - a[m]) * g[m]
    _, _, grad = value_and_grad(lambda v: F.patch_mix(v, partner, mask, lam), x, g)
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(variant, layout, dtype):
    plain, *args = make((5, 3, 12, 20), (3, 5), dtype, permutation=False)
    g = torch.randn(plain.shape).to(dtype)
    want, weight, want_grad = value_and_grad(lambda v: F.patch_mix(v, *args), plain, g)
    x = LAYOUTS[layout](plain)
    for upstream in (g, LAYOUTS[layout](g)):
        mixed, other_weight, grad = value_and_grad(lambda v: F.patch_mix(v, *args), x, upstream)
        torch.testing.assert_close(mixed, want)
        torch.testing.assert_close(grad, want_grad)
        assert same_bits(other_weight, weight)
    if variant != "reference":
        assert mixed.stride() == torch.empty_like(x).stride()
    same = expanded(x)
    torch.testing.assert_close(F.patch_mix(same, *args)[0], F.patch_mix(same.contiguous(), *args)[0])
    partner, mask, lam = args
    turned = mask.transpose(1, 2).contiguous().transpose(1, 2)
    spread = torch.stack([partner, partner], 1)[:, 0], turned, torch.stack([lam, lam], 1)[:, 0]
    assert same_bits(F.patch_mix(plain, *spread)[0], want)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("lam", [None, 0.0, 1.0], ids=["lam_any", "lam_0", "lam_1"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_source_alone_is_copied_bit_for_bit(variant, layout, lam, dtype):
    x, partner, mask, any_lam = make((7, 3, 8, 40), (4, 10), dtype)
    lam = any_lam if lam is None else torch.tensor(lam)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    # NaN of any payload, infinities, zeros of both signs and denormals among the pixels.
    odd = torch.tensor([NAN, INF, -INF, -0.0, 0.0, torch.finfo(dtype).tiny / 4], dtype=dtype).view(integer)
    odd = torch.cat([odd, odd[:1] + 1, odd[:1] ^ torch.iinfo(integer).min])
    pick = odd[torch.randint(0, len(odd), x.shape)]
    x = LAYOUTS[layout](torch.where(torch.rand(x.shape) < 0.5, x.view(integer), pick).view(dtype))
    a = shares(partner, mask, lam, (8, 40)).expand(x.shape)
    mixed, _ = F.patch_mix(x, partner, mask, lam)
    assert (a == 1).any() and (a == 0).any()
    assert same_bits(mixed[a == 1], x[a == 1])
    assert same_bits(mixed[a == 0], x[partner][a == 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("permutation", [True, False], ids=["permutation", "any_map"])
def test_gradient_of_a_share_of_zero_is_nothing(variant, permutation, dtype):
    x, partner, mask, lam = make((6, 2, 8, 12), (4, 6), dtype, permutation)
    lam[2:4] = torch.tensor([0.0, 1.0])
    a = shares(partner, mask, lam, (8, 12)).expand(x.shape)
    g = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    g[torch.rand(x.shape) < 0.2] = INF
    want = torch.where(a == 0, 0.0, a * g.double())
    for m in range(6):
        want[partner[m]] += torch.where(a[m] == 1, 0.0, (1 - a[m]) * g[m].double())
    grad = value_and_grad(lambda v: F.patch_mix(v, partner, mask, lam), x, g)[2]
    if variant == "reference":  # torch.where's own gradient: inf where an operand was not taken, times 0
        return
    assert not grad.isnan().any()
    torch.testing.assert_close(grad.double(), want, rtol=torch.finfo(dtype).eps * 2, atol=torch.finfo(dtype).eps * 2)


def test_nan_lam_reaches_mixed_cells_only(variant):
    x, partner, mask, lam = make((6, 3, 8, 8), (4, 4))
    lam[1], lam[2] = NAN, NAN
    partner = torch.tensor([1, 2, 0, 4, 5, 3])
    mask[0] = ~mask[2]  # no cell of image 2 is mixed
    mixed, weight = F.patch_mix(x, partner, mask, lam)
    equal = (mask == mask[partner]).repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1).expand(x.shape)
    assert torch.equal(mixed[1].isnan(), equal[1]) and equal[1].any()
    assert not mixed[[0, 2, 3, 4, 5]].isnan().any()
    assert weight[1].isnan().all() and not weight[[0, 2, 3, 4, 5]].isnan().any()


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_shared_lam_and_weight(variant, lam):
    x, partner, mask, _ = make((9, 3, 8, 8), (4, 4), permutation=False)
    one, each = torch.tensor(lam), torch.full((9,), lam)
    mixed, weight = F.patch_mix(x, partner, mask, one)
    assert same_bits(mixed, F.patch_mix(x, partner, mask, each)[0])
    a = shares(partner, mask, one, (4, 4)).mean((1, 2, 3))
    torch.testing.assert_close(weight[:, 0].double(), a, rtol=1e-6, atol=0)
    assert weight.dtype == torch.float32 and (weight.sum(1) == 1).all()
    everything = torch.ones_like(mask)
    mixed, weight = F.patch_mix(x, partner, everything, one)
    torch.testing.assert_close(mixed, lam * x + (1 - lam) * x[partner])
    torch.testing.assert_close(weight[:, 0], one.expand(9), rtol=1e-6, atol=0)


@pytest.mark.parametrize("partner", [[0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [1, 0, 1, 0, 1], [4, 4, 4, 4, 0]])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_partners_that_are_no_permutation(variant, partner, dtype):
    x, _, mask, lam = make((5, 3, 6, 50), (3, 25), dtype)
    partner, g = torch.tensor(partner), torch.randn(x.shape).to(dtype)
    results = []
    for fn, v in ((F.patch_mix, x), (reference.patch_mix, x.double()), (reference.patch_mix, x)):
        results.append(value_and_grad(lambda t, f=fn: f(t, partner, mask, lam), v, g))
    for ours, truth, stock in zip(*results, strict=True):
        within_budget(ours, truth.double(), stock)


def test_derivatives(variant):
    for permutation in (True, False):
        x, *args = make((4, 2, 4, 6), (2, 3), torch.float64, permutation)
        x.requires_grad_()
        emulated = variant in ("triton", "simt")  # slow, and one formula serves all
        torch.autograd.gradcheck(lambda v, rest=args: F.patch_mix(v, *rest)[0], x, fast_mode=emulated)
        torch.autograd.gradgradcheck(lambda v, rest=args: F.patch_mix(v, *rest)[0].square(), x, fast_mode=emulated)


def test_repeatable_and_independent_of_threads(variant, threads):
    n = 3 if variant == "triton" else 33  # the interpreter has no threads and is slow
    x, *args = make((n, 3, 32, 32), (4, 4), permutation=False)
    g = torch.randn(x.shape)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(value_and_grad(lambda v: F.patch_mix(v, *args), x, g))
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert same_bits(a, b)


def test_input_is_untouched_and_output_is_new(variant):
    x, *args = make((4, 3, 8, 8), (2, 2))
    kept = x.clone()
    mixed, _ = F.patch_mix(x, *args)
    mixed.zero_()
    assert same_bits(x, kept)


@given(n=st.integers(0, 6), channels=st.integers(1, 5), h=st.integers(1, 6), w=st.integers(1, 9),
       cell_height=st.integers(1, 5), cell_width=st.integers(1, 40), last=st.booleans(), permutation=st.booleans())
def test_any_shape(n, channels, h, w, cell_height, cell_width, last, permutation):
    shape = (n, channels, h * cell_height, w * cell_width)
    x, *args = make(shape, (h, w), torch.float64, permutation)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    g = torch.randn_like(x)
    ours = value_and_grad(lambda v: F.patch_mix(v, *args), x, g)
    want = value_and_grad(lambda v: reference.patch_mix(v, *args), x, g)
    torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_opcheck(dtype, needs_grad):
    for layout in (torch.contiguous_format, torch.channels_last):
        x, *args = make((4, 3, 8, 8), (2, 4), dtype)
        x = x.contiguous(memory_format=layout).requires_grad_(needs_grad)
        torch.library.opcheck(torch.ops.fastmix.patch_mix.default, (x, *args))
        torch.library.opcheck(torch.ops.fastmix.patch_mix_backward.default, (x, *args))


def test_compiled_equals_eager(variant):
    x, *args = make((4, 3, 8, 8), (2, 4))
    x.requires_grad_()

    def step(v, partner, mask, lam):
        mixed, weight = F.patch_mix(v * 2, partner, mask, lam)
        return (mixed * weight[:, :1, None, None]).square().sum(), weight + 0

    (loss, weight), (got, got_weight) = step(x, *args), compiled(step)(x, *args)
    torch.testing.assert_close(got, loss)
    torch.testing.assert_close(got_weight, weight)
    torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(loss, x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(step)(x, *args)[0], loss)


def test_inductor_compiles_mask_and_mix():
    torch._dynamo.reset()
    x, partner, _, lam = make((4, 3, 8, 8), (2, 4))

    def step(v, q):
        return F.patch_mix(v * 2, partner, F.saliency_mask(v, (2, 4), q), lam)[0] * 3

    torch.testing.assert_close(torch.compile(step, fullgraph=True)(x, torch.rand(4) * 0), step(x, torch.zeros(4)))


def test_registered_operator_equals_the_eager_way():
    x, *args = make((5, 3, 8, 8), (2, 4), permutation=False)
    g = torch.randn_like(x)
    ours = value_and_grad(lambda v: F.patch_mix(v, *args), x, g)
    theirs = value_and_grad(lambda v: torch.ops.fastmix.patch_mix.default(v, *args), x, g)
    for a, b in zip(ours, theirs, strict=True):
        assert same_bits(a, b)
    assert same_bits(torch.ops.fastmix.patch_mix_backward(g, *args), ours[2])


def test_functorch_grad():
    x, *args = make((4, 3, 8, 8), (2, 4))
    check_functorch(lambda v: F.patch_mix(v, *args)[0].square().sum(), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
def test_every_half_is_read_and_rounded_as_torch_does(variant, dtype):
    """Denormals, ties, overflow, infinities, NaN."""
    x = torch.zeros(2, 1, 64, 1024, dtype=dtype)
    x[0] = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype).view(1, 64, 1024)
    for lam in (1 / 3, 2.0**-9, 300.0):
        y, _ = F.patch_mix(x, torch.tensor([1, 1]), torch.ones(2, 1, 1, dtype=torch.bool), torch.tensor(lam))
        want = (x[0].float() * lam).to(dtype)
        number = ~want.isnan()
        assert y[0][~number].isnan().all() and torch.equal(y[0][number], want[number])


def test_partner_out_of_range(variant, index_errors):
    x, partner, mask, lam = make((8, 3, 4, 4), (2, 2))
    for bad in (9, 8, -1, 2**40):
        partner[3] = bad
        if variant in NAN_ROWS:
            leaf = x.clone().requires_grad_()
            mixed, weight = F.patch_mix(leaf, partner, mask, lam)
            rows = [i for i in range(8) if mixed[i].isnan().any()]
            assert rows == [3] and mixed[3].isnan().all() and weight.isnan().any(1).nonzero().tolist() == [[3]]
            grad, = torch.autograd.grad(mixed, leaf, torch.ones_like(mixed))
            quiet, fine = torch.ones_like(mixed), partner.clone()
            quiet[3], fine[3] = 0, 0  # that image hands nothing on
            want, = torch.autograd.grad(F.patch_mix(leaf, fine, mask, lam)[0], leaf, quiet)
            assert torch.equal(grad, want)
            continue
        with pytest.raises(IndexError, match=rf"^patch_mix: partner of row 3 is {bad}, want a value in \[0, 8\)$"):
            F.patch_mix(x, partner, mask, lam)


@pytest.mark.parametrize("call,error,text", [
    (lambda x, p, m, a: F.patch_mix(x[0], p, m, a), ValueError, r"patch_mix: x has shape \(3, 8, 8\), want 4 dimens"),
    (lambda x, p, m, a: F.patch_mix(x.byte(), p, m, a), TypeError, "patch_mix: x has dtype uint8, want float32 or"),
    (lambda x, p, m, a: F.patch_mix(x, p[:2], m, a), ValueError, r"patch_mix: partner has shape \(2,\), want \(4,\)"),
    (lambda x, p, m, a: F.patch_mix(x, p.int(), m, a), TypeError, "partner has dtype int32, want int64"),
    (lambda x, p, m, a: F.patch_mix(x, p, m[0], a), ValueError, r"mask has shape \(2, 2\), want 3 dimensions"),
    (lambda x, p, m, a: F.patch_mix(x, p, m.float(), a), TypeError, "mask has dtype float32, want bool"),
    (lambda x, p, m, a: F.patch_mix(x, p, m[:3], a), ValueError,
     r"mask has shape \(3, 2, 2\), want \(4, h, w\) where h divides 8 and w divides 8"),
    (lambda x, p, m, a: F.patch_mix(x[:, :, :7], p, m, a), ValueError, "mask has shape .* h divides 7 and w div"),
    (lambda x, p, m, a: F.patch_mix(x, p, m[:, :0], a), ValueError, r"mask has shape \(4, 0, 2\)"),
    (lambda x, p, m, a: F.patch_mix(x, p, m, 0.5), TypeError, "lam is float, want a tensor"),
    (lambda x, p, m, a: F.patch_mix(x, p, m, a[:1]), ValueError, r"lam has shape \(1,\), want \(4,\), \(N,\) or 0-d"),
    (lambda x, p, m, a: F.patch_mix(x, p, m, a.double()), TypeError, "lam has dtype float64, want float32"),
    (lambda x, p, m, a: F.patch_mix(x, p, m, a.requires_grad_()), ValueError, "lam requires grad"),
    (lambda x, p, m, a: F.patch_mix(x, p.to("meta"), m, a), ValueError, "partner is on meta, want c(pu|uda:0) like x"),
])
def test_errors(variant, call, error, text):
    x, partner, mask, lam = make((4, 3, 8, 8), (2, 2))
    with pytest.raises(error, match=text):
        call(x, partner, mask, lam)
