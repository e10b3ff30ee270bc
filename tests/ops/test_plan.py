"""plan_blend, plan_paste, plan_cutout, plan_patch and plan_crop against a loop over images in Python numbers."""

import itertools
import math

import pytest
import torch
from helpers.support import compiled, seeded

import fastmix
from fastmix.ops import library, plan_stream
from fastmix.ops.plan import plan_blend, plan_crop, plan_cutout, plan_paste, plan_patch
from fastmix.reference.plan import permutations

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.operator("plan")]
ALPHA, TOP = 0.4, 2**63 - 2
CPU = torch.device("cpu")


def draw(stream):
    return torch.randint(2**63 - 1, (stream.size,))


def gammas(draws, k):
    return torch._standard_gamma(torch.full((draws, k), ALPHA + 1))


def on(value=True):
    return torch.tensor(value)


# ---------------------------------------------------------------- the loop

class Loop:
    """Reads the bits one after the other, as Python integers."""

    def __init__(self, bits, shares, active, rows, alpha, prob, each, keys=True):
        self.bits, self.at = bits.tolist(), 0
        self.shares = shares.tolist()
        self.draws, self.k, self.rows = shares.shape[0], shares.shape[1], rows
        self.keys = [self.take(rows) for _ in range(self.k - 1)] if keys else []
        chance = [0.0] * rows
        if prob < 1:
            chance = [u / 2**63 for u in self.take(rows)] if each else [self.take(1)[0] / 2**63] * rows
        self.active = [bool(active) and c < prob for c in chance]
        self.exponents = [self.take(self.draws) for _ in range(self.k)] if alpha else None
        self.alpha = alpha

    def take(self, number):
        self.at += number
        assert self.at <= len(self.bits)
        return self.bits[self.at - number:self.at]

    def index(self, n):
        if not self.active[n]:
            return [n] * self.k
        return [n, *(sorted(range(self.rows), key=lambda m: (keys[m], m)).index(n) for keys in self.keys)]

    def phi(self, n):
        row = min(n, self.draws - 1)
        share = self.shares[row]
        if self.alpha:
            power = [math.log1p(-column[row] / 2**63) / self.alpha for column in self.exponents]
            share = [g * math.exp(p - max(power)) for g, p in zip(share, power, strict=True)]
        return [s / sum(share) for s in share]


def one_of(bits, number):
    return bits * number // 2**63


def centred(side, length, bits):
    start = one_of(bits, length) - side // 2
    low = min(max(start, 0), length)
    return low, min(max(start + side, 0), length) - low


def slow_paste(loop, peaks, size, is_centred):
    positions = None
    if is_centred:
        positions = [loop.take(loop.draws) for _ in size]
    elif peaks is None:
        positions = [[loop.take(loop.rows) for _ in size] for _ in range(loop.k - 1)]
    for n in range(loop.rows):
        index, phi = loop.index(n), loop.phi(n)
        box, boxes = [0, 0, *size], []
        for k in range(1, loop.k):
            before, after = sum(reversed(phi[k - 1:])), sum(reversed(phi[k:]))
            scale = math.sqrt(after / before) if before > 0 else 0.0
            inner = [0] * 4
            for axis in (0, 1):
                start, extent = box[axis], box[2 + axis]
                if is_centred:
                    bits = positions[axis][min(n, loop.draws - 1)]
                    inner[axis], inner[2 + axis] = centred(int(extent * scale), extent, bits)
                    continue
                side = round(extent * scale)
                if peaks is None:
                    start += one_of(positions[k - 1][axis][n], extent - side + 1)
                else:
                    start = min(max(peaks[index[k]][axis] - side // 2, start), start + extent - side)
                inner[axis], inner[2 + axis] = start, side
            box = inner
            boxes.append(box)
        if not loop.active[n]:
            boxes = [[0] * 4] * (loop.k - 1)
        areas = [size[0] * size[1], *(b[2] * b[3] for b in boxes), 0]
        yield index, boxes, [(a - b) / areas[0] for a, b in itertools.pairwise(areas)]


SETTINGS = [(1.0, False), (0.6, False), (0.5, True)]


@pytest.mark.parametrize("prob,each", SETTINGS)
@pytest.mark.parametrize("rows,k,draws", [(0, 2, 1), (1, 1, 1), (7, 2, 1), (7, 2, 7), (33, 3, 33), (20, 5, 1)])
def test_blend(variant, rows, k, draws, prob, each):
    for active in (True, False):
        bits, shares = draw(plan_stream.blend(rows, k, draws, ALPHA, prob, each)), gammas(draws, k)
        index, weight = plan_blend(shares, on(active), rows, alpha=ALPHA, prob=prob, each=each, bits=bits)
        assert index.dtype == torch.int64 and weight.dtype == torch.float32
        assert index.shape == weight.shape == (rows, k)
        loop = Loop(bits, shares, active, rows, ALPHA, prob, each)
        for n in range(rows):
            assert index[n].tolist() == loop.index(n)
            want = loop.phi(n) if loop.active[n] else [1.0, *[0.0] * (k - 1)]
            assert weight[n].tolist() == pytest.approx(want, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("kind", ["nested", "peaks", "centred", "centred of the batch"])
@pytest.mark.parametrize("prob,each", SETTINGS)
@pytest.mark.parametrize("rows,k", [(0, 2), (1, 3), (9, 1), (33, 2), (20, 5)])
def test_paste(variant, rows, k, prob, each, kind):
    size, is_centred = (31, 18), kind.startswith("centred")
    k = 2 if is_centred else k
    draws = 1 if kind.endswith("batch") else rows
    peaks = torch.stack([torch.randint(31, (rows,)), torch.randint(18, (rows,))], 1) if kind == "peaks" else None
    stream = plan_stream.paste(rows, k, draws, ALPHA, prob, each, peaks is not None, is_centred)
    for active in (True, False):
        bits, shares = draw(stream), gammas(draws, k)
        index, boxes, weight = plan_paste(shares, on(active), rows, size, alpha=ALPHA, prob=prob, each=each,
                                          peaks=peaks, centred=is_centred, bits=bits)
        assert index.dtype == torch.int64 and boxes.dtype == torch.int32 and weight.dtype == torch.float32
        assert index.shape == weight.shape == (rows, k) and boxes.shape == (rows, k - 1, 4)
        assert (weight.sum(1) == 1).all() and (weight.flip(1).cumsum(1)[:, -1] == 1).all()
        loop = Loop(bits, shares, active, rows, ALPHA, prob, each)
        wanted = list(slow_paste(loop, None if peaks is None else peaks.tolist(), size, is_centred))
        assert loop.at == len(bits)
        assert index.tolist() == [w[0] for w in wanted]
        assert boxes.tolist() == [w[1] for w in wanted]
        torch.testing.assert_close(weight.double(), torch.tensor([w[2] for w in wanted]).double().view(rows, k), rtol=0,
                                   atol=1.2e-7)


@pytest.mark.parametrize("prob,each", SETTINGS)
@pytest.mark.parametrize("rows,draws", [(0, 1), (5, 1), (40, 40)])
def test_cutout(variant, rows, draws, prob, each):
    bits = draw(plan_stream.cutout(rows, draws, prob, each))
    boxes = plan_cutout(on(), rows, draws, (9, 7), 4, prob=prob, each=each, bits=bits)
    assert boxes.dtype == torch.int32 and boxes.shape == (rows, 1, 4)
    loop = Loop(bits, torch.ones(draws, 1), True, rows, 0.0, prob, each)
    positions = [loop.take(draws) for _ in range(2)]
    for n in range(rows):
        (top, tall), (left, wide) = (centred(4, side, p[min(n, draws - 1)])
                                     for side, p in zip((9, 7), positions, strict=True))
        assert boxes[n, 0].tolist() == ([top, left, tall, wide] if loop.active[n] else [0] * 4)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("prob", [1.0, 0.6])
@pytest.mark.parametrize("rows,levels,grids", [(0, 3, 1), (1, 1, 2), (33, 10, 2), (20, 7, 3)])
def test_patch(variant, rows, levels, grids, prob, flip):
    table = torch.linspace(0, 0.99, levels, dtype=torch.float64).tolist()
    for active in (True, False):
        bits, shares = draw(plan_stream.patch(rows, ALPHA, prob, flip)), gammas(1, 2)
        index, q, lam, grid = plan_patch(shares, on(active), rows, levels=levels, grids=grids, alpha=ALPHA, prob=prob,
                                         flip=flip, bits=bits)
        assert [t.dtype for t in (index, q, lam, grid)] == [torch.int64, torch.float64, torch.float32, torch.int64]
        assert index.shape == (rows, 2) and q.shape == (rows,) and lam.shape == grid.shape == ()
        loop = Loop(bits, shares, active, max(rows, 1) if flip else rows, ALPHA, prob, False, keys=not flip)
        mixes = bool(active) and (prob == 1 or bits[0 if flip else rows].item() / 2**63 < prob)
        for n in range(rows):
            assert index[n].tolist() == ([n, rows - 1 - n] if flip and mixes else loop.index(n)[:1] * 2 if flip
                                         else loop.index(n))
        levels_drawn = [one_of(b, levels) for b in loop.take(rows)]
        assert q.tolist() == pytest.approx([table[level] for level in levels_drawn], abs=1e-15)
        assert lam.item() == pytest.approx(loop.phi(0)[0] if mixes else 1.0, abs=1e-7)
        assert grid.item() == one_of(loop.take(1)[0], grids)


@pytest.mark.parametrize("sigma", [0.0, 1e-4, 0.3, 5.0])
@pytest.mark.parametrize("prob", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("size,classes", [((32, 32), 10), ((1, 9), 1), ((70, 17), 2)])
def test_crop(variant, size, classes, prob, sigma):
    rows = 40
    bits = draw(plan_stream.crop(rows, prob))
    strength = torch.tensor(sigma)
    curve = {"classes": classes, "power": 1.5}
    shift, p, base = plan_crop(strength, on(), rows, size, **curve, chance=1 / classes, prob=prob, bits=bits)
    assert shift.dtype == torch.int64 and p.dtype == base.dtype == torch.float32
    loop = Loop(bits, torch.ones(rows, 1), True, rows, 0.0, prob, True)
    axes = [loop.take(rows) for _ in size]
    for n in range(rows):
        visible = 1.0
        for axis, side in enumerate(size):
            # Found from below, by the distribution function of |t|, a normal number cut at the side.
            spread, moved = strength.item() * max(size) * math.sqrt(2), 0
            while spread > 0 and moved + 1 < side and (
                    math.erf((moved + 1) / spread) <= axes[axis][n] / 2**63 * math.erf(side / spread)):
                moved += 1
            moved = moved if loop.active[n] else 0
            assert shift[n, axis].item() == (-moved if axes[axis][n] % 2 else moved)
            visible *= (side - moved) / side
        want = 1 - (1 - 1 / classes) * (1 - visible) ** 1.5
        assert p[n].item() == pytest.approx(want, abs=1e-7)
        assert base[n].item() == pytest.approx((1 - want) / max(classes - 1, 1), abs=1e-7)
    assert (plan_crop(strength, on(False), rows, size, **curve, chance=0.5, prob=prob, bits=bits)[0] == 0).all()
    assert plan_crop(strength, on(), 0, size, **curve, chance=0.5, bits=bits[:0])[0].shape == (0, 2)


# ---------------------------------------------------------------- edges

@pytest.mark.parametrize("keys", [[5] * 40, [TOP, 0] * 20, list(range(40)), list(range(40, 0, -1)),
                                  [2**62 + n % 3 for n in range(40)]], ids=["equal", "two", "up", "down", "near"])
def test_partners_are_a_permutation_whatever_the_keys(variant, keys):
    index, _ = plan_blend(torch.ones(1, 2), on(), 40, alpha=0.0, bits=torch.tensor(keys))
    place = sorted(range(40), key=lambda m: (keys[m], m))
    assert [place[r] for r in index[:, 1].tolist()] == list(range(40))


def test_many_images(variant):
    rows = 300 if variant == "triton" else 5000
    bits = torch.randint(2**63 - 1, (2 * rows,))
    index, _ = plan_blend(torch.ones(rows, 3), on(), rows, alpha=0.0, bits=bits)
    assert torch.equal(index[:, 1:], bits.view(2, rows).argsort(1).argsort(1).T)


def test_ranks_of_more_keys_than_are_counted(variant, monkeypatch):
    if variant != "triton":
        pytest.skip("Triton alone counts")
    kernels = library.kernels("plan")
    bits, shares = draw(plan_stream.paste(40, 3, 40, ALPHA, 1.0, False, False, False)), gammas(40, 3)
    counted = plan_paste(shares, on(), 40, (16, 16), alpha=ALPHA, bits=bits)
    monkeypatch.setattr(kernels, "CONFIG", kernels.Config(counted=8))
    for a, b in zip(counted, plan_paste(shares, on(), 40, (16, 16), alpha=ALPHA, bits=bits), strict=True):
        assert torch.equal(a, b)


def test_sides_round_half_to_even(variant):
    """2.5 and 3.5; all positions at 0."""
    bits = torch.zeros(3, dtype=torch.int64)
    boxes = plan_paste(torch.tensor([[0.75, 0.25]]), on(), 1, (5, 7), alpha=0.0, bits=bits)[1]
    assert boxes.tolist() == [[[0, 0, 2, 4]]]


def test_the_largest_bits_stay_inside(variant):
    shares = torch.tensor([[0.75, 0.25]] * 3)
    for size in ((8, 12), (1, 1), (2**15, 2**15)):
        boxes = plan_paste(shares, on(), 3, size, alpha=0.0, bits=torch.full((9,), TOP))[1][:, 0]
        assert (boxes[:, :2] + boxes[:, 2:] == torch.tensor(size)).all()
        boxes = plan_cutout(on(), 3, 3, size, 1, bits=torch.full((6,), TOP))[:, 0]
        assert (boxes == torch.tensor([size[0] - 1, size[1] - 1, 1, 1])).all()


def test_prob_is_compared_with_53_bits(variant):
    """0 is below any probability, the largest below none under 1; prob 0 never mixes."""
    keys = torch.tensor([1, 0])
    for chance, prob, mixes in ((0, 2.0**-53, True), (0, 0.0, False), (TOP, 1 - 2.0**-53, False),
                                (2**62, 0.5, False), (2**62 - 2**10, 0.5, True)):
        bits = torch.cat([keys, torch.tensor([chance])])
        index, weight = plan_blend(torch.ones(2, 2), on(), 2, alpha=0.0, prob=prob, bits=bits)
        assert index.tolist() == ([[0, 1], [1, 0]] if mixes else [[0, 0], [1, 1]])
        assert weight.tolist() == ([[0.5, 0.5]] * 2 if mixes else [[1, 0]] * 2)


def test_nothing_left_of_the_stick(variant):
    shares = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]])
    bits = torch.randint(2**63 - 1, (2 * 4 + 4 * 4,))
    _, boxes, weight = plan_paste(shares, on(), 4, (8, 6), alpha=0.0, bits=bits)
    assert weight[:3].tolist() == shares[:3].tolist() and (boxes[3, 1, 2:] == 0).all()
    with fastmix.backend("reference"):
        assert torch.equal(boxes, plan_paste(shares, on(), 4, (8, 6), alpha=0.0, bits=bits)[1])


def test_images_without_pixels(variant):
    bits = torch.randint(2**63 - 1, (3 * 2,))
    _, boxes, weight = plan_paste(torch.ones(2, 2), on(), 2, (0, 5), alpha=0.0, bits=bits)
    assert weight.tolist() == [[1, 0]] * 2 and (boxes[..., 2] == 0).all()
    assert (plan_cutout(on(), 2, 2, (0, 5), 3, bits=bits[:4])[..., 2] == 0).all()


@pytest.mark.parametrize("alpha", [1e-6, 1e6])
def test_extreme_alpha(variant, alpha):
    shares = torch._standard_gamma(torch.full((50, 4), alpha + 1))
    _, weight = plan_blend(shares, on(), 50, alpha=alpha)
    assert weight.isfinite().all() and (weight.sum(1) - 1).abs().max() < 5e-7
    assert weight.amax(1).mean() > 0.99 if alpha < 1 else weight.amax() < 0.28


def test_bits_and_shares_of_any_strides(variant):
    bits, shares = draw(plan_stream.paste(9, 3, 9, ALPHA, 1.0, False, False, False)), gammas(9, 3)
    want = plan_paste(shares, on(), 9, (16, 16), alpha=ALPHA, bits=bits)
    got = plan_paste(shares.t().contiguous().t(), on(), 9, (16, 16), alpha=ALPHA,
                     bits=torch.stack([bits, bits], 1)[:, 0])
    assert all(map(torch.equal, got, want))


@pytest.mark.skipif(library.missing is not None, reason="needs the C++ library")
def test_too_few_bits_are_an_error():
    few = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="plan_blend: too few bits"):
        torch.ops.fastmix.plan_blend(few, torch.ones(4, 2), on(), 4, 4, 2, 0.0, 1.0, False)
    with fastmix.backend("cpu"), pytest.raises(RuntimeError, match="plan_paste: shares does not fit, want"):
        plan_paste(torch.ones(1, 3), on(), 4, (4, 4), alpha=0.0)
    with pytest.raises(ValueError, match=r"plan_blend: bits has shape \(3,\), want \(4,\), the sizes of keys, chance"):
        plan_blend(torch.ones(4, 2), on(), 4, alpha=0.0, bits=few)
    with pytest.raises(TypeError, match="plan_blend: bits has dtype float32, want int64"):
        plan_blend(torch.ones(4, 2), on(), 4, alpha=0.0, bits=torch.zeros(4))


def perturbed(stream, name, bits):
    """bits with other numbers in one piece alone."""
    other = {piece: torch.randint(2**63 - 1, value.shape) if piece == name else value
             for piece, value in stream.split(bits).items()}
    return torch.cat([value.flatten() for value in other.values()])


# Operator -> (its streams by settings, what makes a plan of bits). 12 images: a piece of another size, or one that is
# read in another order, gives another plan.
SHARES, SIDES = torch.rand(12, 3) + 0.1, (24, 20)
READERS = {
    "blend": lambda prob, each, alpha: (
        plan_stream.blend(12, 3, 12, alpha, prob, each),
        lambda bits: plan_blend(SHARES, on(), 12, alpha=alpha, prob=prob, each=each, bits=bits)),
    "nested": lambda prob, each, alpha: (
        plan_stream.paste(12, 3, 12, alpha, prob, each, False, False),
        lambda bits: plan_paste(SHARES, on(), 12, SIDES, alpha=alpha, prob=prob, each=each, bits=bits)),
    "peaks": lambda prob, each, alpha: (
        plan_stream.paste(12, 3, 12, alpha, prob, each, True, False),
        lambda bits: plan_paste(SHARES, on(), 12, SIDES, alpha=alpha, prob=prob, each=each, bits=bits,
                                peaks=torch.arange(24).view(12, 2) % 20)),
    "centred": lambda prob, each, alpha: (
        plan_stream.paste(12, 2, 1, alpha, prob, each, False, True),
        lambda bits: plan_paste(SHARES[:1, :2], on(), 12, SIDES, alpha=alpha, prob=prob, each=each, centred=True,
                                bits=bits)),
    "cutout": lambda prob, each, alpha: (
        plan_stream.cutout(12, 12, prob, each),
        lambda bits: plan_cutout(on(), 12, 12, SIDES, 5, prob=prob, each=each, bits=bits)),
    "patch": lambda prob, each, alpha: (
        plan_stream.patch(12, alpha, prob, each),
        lambda bits: plan_patch(SHARES[:1, :2], on(), 12, levels=9, grids=3, alpha=alpha, prob=prob, flip=each,
                                bits=bits)),
    "crop": lambda prob, each, alpha: (
        plan_stream.crop(12, prob),
        lambda bits: plan_crop(torch.tensor(0.3), on(), 12, SIDES, classes=10, power=2.0, chance=0.1, prob=prob,
                               bits=bits))}


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
@pytest.mark.parametrize("prob,each", SETTINGS)
@pytest.mark.parametrize("operator", READERS)
def test_every_backend_reads_the_pieces_of_the_description(variant, operator, prob, each, alpha):
    """Piece by piece: other numbers in one of them change the plan, and change it as they change the reference's."""
    stream, make = READERS[operator](prob, each, alpha)
    for name, (rows, columns) in stream.pieces.items():
        differs = []
        for _ in range(8):  # one number of prob, or one level of three, may well decide the same
            bits = draw(stream)
            both = [bits, perturbed(stream, name, bits)]
            got = [make(b) for b in both]
            with fastmix.backend("reference"):
                want = [make(b) for b in both]
            got, want = ([(plan,) if isinstance(plan, torch.Tensor) else plan for plan in plans]
                         for plans in (got, want))
            for ours, theirs in zip(got, want, strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
            differs.append(not all(map(torch.equal, *got)))
        assert any(differs) == (rows * columns > 0), name


# ---------------------------------------------------------------- torch.library, torch.compile

def test_opcheck():
    op, zeros = torch.ops.fastmix, torch.randint(2**63 - 1, (64,))
    torch.library.opcheck(op.plan_blend.default, (zeros, gammas(5, 2), on(), 5, 5, 2, ALPHA, 0.5, True))
    torch.library.opcheck(op.plan_paste.default, (zeros, gammas(5, 2), on(), None, 5, 5, 2, 8, 6, ALPHA, 0.5, True,
                                                     False))
    torch.library.opcheck(op.plan_cutout.default, (zeros, on(), 5, 1, 8, 6, 3, 1.0, False))
    torch.library.opcheck(op.plan_crop.default, (zeros, torch.tensor(0.3), on(), 5, 8, 6, 10, 2.0, 0.1, 0.5))
    torch.library.opcheck(op.plan_patch.default, (zeros, gammas(1, 2), on(), 5, 3, 2, ALPHA, 1.0, False))
    torch.library.opcheck(op.plan_blend.default, (zeros[:1], None, on(), 5, 1, 2, ALPHA, 0.5, True))
    torch.library.opcheck(op.plan_paste.default, (zeros[:1], None, on(), None, 5, 5, 3, 8, 6, ALPHA, 0.5, True, False))
    torch.library.opcheck(op.plan_patch.default, (zeros[:1], None, on(), 5, 3, 2, ALPHA, 1.0, False))


def test_compiled_equals_eager(variant):
    bits, shares, peaks = torch.randint(2**63 - 1, (30,)), gammas(6, 3), torch.randint(8, (6, 2))

    def plans(bits, shares, active, peaks):
        return (*plan_blend(shares, active, 6, alpha=ALPHA, bits=bits),
                *plan_paste(shares, active, 6, (8, 8), alpha=ALPHA, peaks=peaks, bits=bits),
                plan_cutout(active, 6, 6, (8, 8), 3, bits=bits[:12]),
                *plan_patch(shares[:1, :2], active, 6, levels=4, grids=2, alpha=ALPHA, bits=bits[:15]),
                *plan_paste((6, 3), active, 6, (8, 8), alpha=ALPHA, bits=bits[:1]),
                *plan_crop(shares[0, 0], active, 6, (8, 8), classes=10, power=2.0, chance=0.1, bits=bits[:12]))

    args = bits, shares, on(), peaks
    assert all(map(torch.equal, compiled(plans)(*args), plans(*args)))


def test_the_reference_agrees_with_the_order_of_argsort():
    keys = torch.randint(2**63 - 1, (3, 50), generator=seeded())
    ranks = permutations(keys)
    assert torch.equal(keys.gather(1, keys.argsort(1)).gather(1, ranks.T), keys)
