"""Plans of one seed: Philox and gamma variates by their place, the same on every backend."""

import math

import pytest
import torch

import fastmix
from fastmix.ops import library, plan_stream
from fastmix.ops.plan import plan_blend, plan_paste, plan_patch
from fastmix.reference import counter

ON, ROWS, SIZE = torch.tensor(True), 20, (31, 18)
pytestmark = [pytest.mark.usefixtures("one_thread")]


def seed(value=None):
    return torch.randint(2**63 - 1, (1,)) if value is None else torch.tensor([value])


# operator -> (the stream of k images and R draws, the plan of (shares, bits))
PLANS = {
    "blend": (lambda k, r, alpha, prob, each: plan_stream.blend(ROWS, k, r, alpha, prob, each),
              lambda shares, bits, **how: plan_blend(shares, ON, ROWS, bits=bits, **how)),
    "nested": (lambda k, r, alpha, prob, each: plan_stream.paste(ROWS, k, r, alpha, prob, each, False, False),
               lambda shares, bits, **how: plan_paste(shares, ON, ROWS, SIZE, bits=bits, **how)),
    "centred": (lambda k, r, alpha, prob, each: plan_stream.paste(ROWS, k, r, alpha, prob, each, False, True),
                lambda shares, bits, **how: plan_paste(shares, ON, ROWS, SIZE, bits=bits, centred=True, **how)),
    "peaks": (lambda k, r, alpha, prob, each: plan_stream.paste(ROWS, k, r, alpha, prob, each, True, False),
              lambda shares, bits, **how: plan_paste(shares, ON, ROWS, SIZE, bits=bits,
                                                     peaks=torch.arange(2 * ROWS).view(ROWS, 2) % 18, **how)),
    "patch": (lambda k, r, alpha, prob, each: plan_stream.patch(ROWS, alpha, prob, each),
              lambda shares, bits, each, **how: plan_patch(None if isinstance(shares, tuple) else shares, ON, ROWS,
                                                           levels=7, grids=2, flip=each, bits=bits, **how))}
SHAPES = {"blend": ((3, 20), (1, 1), (2, 1)), "nested": ((5, 20),), "centred": ((2, 20), (2, 1)), "peaks": ((3, 20),),
          "patch": ((2, 1),)}


@pytest.mark.operator("plan")
@pytest.mark.parametrize("prob,each", [(1.0, False), (0.6, False), (0.5, True)])
@pytest.mark.parametrize("name", PLANS)
def test_a_seed_stands_for_its_numbers(variant, name, prob, each):
    """The plan of a seed is the plan of the numbers and gamma variates that the reference makes of it."""
    stream_of, plan = PLANS[name]
    for k, draws in SHAPES[name]:
        for alpha in (0.2, 1.0, 30.0):
            key, how = seed(), {"alpha": alpha, "prob": prob, "each": each}
            found = plan((draws, k), key, **how)
            with fastmix.backend("reference"):
                wanted = plan((draws, k), key, **how)
                stream = stream_of(k, draws, alpha, prob, each)
                written = plan(counter.gamma(key, draws, k, alpha).float(), counter.bits(key, stream.size), **how)
            for a, b, c in zip(found, wanted, written, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
                torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)


@pytest.mark.operator("plan")
def test_ranks_of_more_keys_than_are_counted(variant, monkeypatch):
    if variant != "triton":
        pytest.skip("Triton alone counts")
    kernels, key = library.kernels("plan"), seed()
    counted = plan_paste((ROWS, 3), ON, ROWS, SIZE, alpha=0.4, bits=key)
    monkeypatch.setattr(kernels, "CONFIG", kernels.Config(counted=8))
    assert all(map(torch.equal, counted, plan_paste((ROWS, 3), ON, ROWS, SIZE, alpha=0.4, bits=key)))


@pytest.mark.operator("plan")
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1, 2**63 - 1])
def test_seeds_at_the_edges(variant, value):
    found = plan_blend((ROWS, 3), ON, ROWS, alpha=0.4, bits=seed(value))
    with fastmix.backend("reference"):
        wanted = plan_blend((ROWS, 3), ON, ROWS, alpha=0.4, bits=seed(value))
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-6, atol=1e-7)


@pytest.mark.operator("plan")
@pytest.mark.parametrize("alpha", [1e-6, 0.3, 1.0, 8.0, 1e6])
def test_shares_are_dirichlet(variant, alpha):
    """The mean and the variance of a share, by their errors; four standard errors."""
    k, rows = 3, 64 if variant == "triton" else 4000
    share = plan_blend((rows, k), ON, rows, alpha=alpha, bits=seed(5))[1][:, 0].double()
    assert share.isfinite().all()
    variance = (k - 1) / (k * k * (k * alpha + 1))
    assert (share.mean() - 1 / k).abs() < 4 * math.sqrt(variance / rows) + 1e-7
    spread = (share - 1 / k) ** 2
    assert (spread.mean() - variance).abs() < 4 * spread.std() / math.sqrt(rows) + 1e-9


# ---------------------------------------------------------------- the numbers themselves

@pytest.mark.parametrize("counted,key,words", [
    ((0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), -1, None)])
def test_philox_is_the_published_one(counted, key, words):
    """The known answer of Random123 with a counter and a key of zeros; wrapping words against Python's integers."""
    place = torch.tensor([counted[0] | (counted[1] << 32) - (1 << 64 if counted[1] >> 31 else 0)])
    found = [word.item() for word in counter.philox(torch.tensor([key]), place, counted[2])]
    assert found == list(words or in_python([*counted, 0], key & 2**64 - 1))


def in_python(state, key):
    low, high = key & 2**32 - 1, key >> 32
    for _ in range(10):
        left, right = state[0] * 0xD2511F53, state[2] * 0xCD9E8D57
        state = [(right >> 32) ^ state[1] ^ low, right & 2**32 - 1, (left >> 32) ^ state[3] ^ high, left & 2**32 - 1]
        low, high = low + 0x9E3779B9 & 2**32 - 1, high + 0xBB67AE85 & 2**32 - 1
    return state


def test_pythons_integers_know_the_other_published_answers():
    ones, pi = [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert in_python(ones, 2**64 - 1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert in_python(pi, 0x299F31D0A4093822) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("alpha", [0.001, 0.3, 1.0, 5.0, 1000.0])
def test_gamma_variates_follow_their_law(alpha):
    scipy = pytest.importorskip("scipy.stats")
    drawn = counter.gamma(seed(11), 100, 200, alpha).flatten()
    assert scipy.kstest(drawn.numpy(), "gamma", args=(alpha + 1,)).pvalue > 1e-3


def test_numbers_are_uniform_and_all_differ():
    scipy = pytest.importorskip("scipy.stats")
    drawn = counter.bits(seed(3), 20001)
    assert drawn.min() >= 0 and len(drawn.unique()) == 20001
    assert scipy.kstest(drawn.double().numpy() * 2.0**-63, "uniform").pvalue > 1e-3
    assert torch.equal(counter.bits(seed(3), 7), drawn[:7])


# ---------------------------------------------------------------- arguments

def test_a_seed_is_one_number():
    with pytest.raises(ValueError, match=r"plan_blend: bits has shape \(3,\), want \(1,\), the seed"):
        plan_blend((4, 2), ON, 4, alpha=0.5, bits=torch.zeros(3, dtype=torch.int64))


@pytest.mark.skipif(library.missing is not None, reason="needs the C++ library")
def test_the_operator_wants_a_seed_and_an_alpha_too():
    with pytest.raises(RuntimeError, match="plan_blend: bits is not one number, want the seed"):
        torch.ops.fastmix.plan_blend(torch.zeros(3, dtype=torch.int64), None, ON, 4, 4, 2, 0.5, 1.0, False)
    with pytest.raises(RuntimeError, match="plan_paste: alpha is not above 0, where shares are drawn"):
        torch.ops.fastmix.plan_paste(seed(), None, ON, None, 4, 4, 2, 8, 8, 0.0, 1.0, False, False)


def test_one_draw_of_torch_makes_a_plan(monkeypatch):
    drawn = []
    monkeypatch.setattr(fastmix.ops.plan, "random_bits", lambda number, *_: drawn.append(number) or seed())
    x = torch.zeros(6, 3, 8, 8)
    for mixer in (fastmix.Mixup(), fastmix.CutMix(mode="elem"), fastmix.DMixup(3), fastmix.DCutMix(5)):
        mixer.plan(x)
    fastmix.RMix().plan(x, saliency=x)
    assert drawn == [1] * 5
