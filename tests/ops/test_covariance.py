"""covariance_update_ and ISDACovariance against the definition, numpy's covariance of all rows seen so far."""

import copy
import io

import numpy as np
import pytest
import torch
from helpers.support import DTYPES, compiled, dtype_id, embedded, same_bits, within_budget
from hypothesis import given
from hypothesis import strategies as st

import fastmix
import fastmix.functional as F
from fastmix import ISDACovariance
from fastmix.ops import library
from fastmix.ops.covariance import KINDS, cov_shape

pytestmark = pytest.mark.operator("covariance")
STATE = torch.float32


def fresh(kind, j, a, dtype=STATE):
    return (torch.zeros(j, dtype=torch.int64), torch.zeros(j, a, dtype=dtype),
            torch.zeros(cov_shape(kind, j, a), dtype=dtype))


def update(state, x, y, kind, **options):
    return F.covariance_update_(*state, x, y, kind=kind, **options)


def truth(kind, j, a, batches):
    """Count, mean and population covariance of all rows, in numpy."""
    x = np.concatenate([b[0].double().cpu().numpy() for b in batches])
    y = np.concatenate([b[1].cpu().numpy() for b in batches])
    count, mean = np.bincount(y, minlength=j), np.zeros((j, a))
    cov = np.zeros(cov_shape(kind, j, a))
    for c in range(j):
        mine = x[y == c]
        if len(mine):
            mean[c] = mine.mean(0)
            if kind == "full":
                cov[c] = np.cov(mine.T, bias=True).reshape(a, a)
            elif kind == "diag":
                cov[c] = mine.var(0)
    if kind == "shared" and len(x):
        cov = np.cov(x.T, bias=True).reshape(a, a)
    return tuple(torch.from_numpy(t).to(batches[0][0].device) for t in (count, mean, cov))


def batches_of(sizes, j, a, dtype=torch.float32, offset=2.0):
    return [((torch.randn(n, a) * torch.rand(a) + offset).to(dtype), torch.randint(0, j, (n,))) for n in sizes]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_covariance_of_all_rows(variant, kind, dtype):
    for j, a in ((1, 1), (5, 7), (3, 49), (9, 130)):
        check_against_all_rows(kind, j, a, dtype)


def check_against_all_rows(kind, j, a, dtype):
    batches = batches_of((1, 6, 0, 33, 2), j, a, dtype)
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    ours, stock = fresh(kind, j, a, state_dtype), fresh(kind, j, a, state_dtype)
    for x, y in batches:
        assert update(ours, embedded(x, 7), y, kind).item() == 0
        with fastmix.backend("reference"):
            update(stock, x, y, kind)
    count, mean, cov = truth(kind, j, a, batches)
    assert torch.equal(ours[0], count)
    for name, got, want, torchs in (("mean", ours[1], mean, stock[1]), ("cov", ours[2], cov, stock[2])):
        within_budget(got, want, torchs, f"{name} {j}x{a}", units=8)


def test_many_rows_of_a_class_and_symmetry(variant):
    x, y = torch.randn(1500, 50) @ torch.randn(50, 50) + 5, torch.zeros(1500, dtype=torch.int64)
    y[::7] = 2
    state = fresh("full", 3, 50)
    update(state, x, y, "full")
    _, mean, cov = truth("full", 3, 50, [(x, y)])
    torch.testing.assert_close(state[1].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state[2].double(), cov, rtol=1e-4, atol=1e-4)
    if variant != "reference":
        assert same_bits(state[2], state[2].mT.contiguous())


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_many_rows(variant, kind, monkeypatch):
    """Segmentation's background: Triton divides its rows among programs, those of the other classes not."""
    if variant == "triton":
        kernels = library.kernels("covariance")
        monkeypatch.setattr(kernels, "CONFIG", kernels.Config(share=16))
    y = torch.tensor([2] * 53 + [0] * 16 + [3] * 17 + [4])[torch.randperm(87)]
    x = torch.randn(87, 20) @ torch.randn(20, 20) + 100
    states = []
    for _ in range(2):
        state = fresh(kind, 6, 20)
        assert update(state, x[:80], y[:80], kind, ignore_index=4).item() == 0
        update(state, x[80:], y[80:], kind, ignore_index=4)
        states.append(state)
    assert all(same_bits(a, b) for a, b in zip(*states, strict=True))
    count, mean, cov = truth(kind, 6, 20, [(x[y != 4], y[y != 4])])
    assert torch.equal(states[0][0], count)
    torch.testing.assert_close(states[0][1].double(), mean, rtol=3e-7, atol=0)
    torch.testing.assert_close(states[0][2].double(), cov, rtol=1e-5, atol=1e-3)  # of variances of 20
    nothing = fresh(kind, 6, 20)
    update(nothing, x, torch.full_like(y, 4), kind, ignore_index=4)
    assert all(not t.any() for t in nothing)


def test_far_from_the_origin(variant):
    """Two passes: the mean's square must not drown the variance."""
    x, y = torch.randn(200, 6) + 3000, torch.randint(0, 2, (200,))
    for kind in ("full", "diag", "shared"):
        state = fresh(kind, 2, 6)
        for part in (slice(0, 100), slice(100, 200)):
            update(state, x[part], y[part], kind)
        torch.testing.assert_close(state[2].double(), truth(kind, 2, 6, [(x, y)])[2], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_absent_classes_stay_bit_for_bit(variant, kind):
    state = fresh(kind, 6, 5)
    update(state, torch.randn(40, 5), torch.randint(0, 6, (40,)), kind)
    before = copy.deepcopy(state)
    update(state, torch.randn(9, 5), torch.tensor([1, 1, 4, 4, 4, 1, 4, 1, 1]), kind)
    absent = [0, 2, 3, 5]
    for new, old in zip(state[:2 if kind in ("shared", "identity") else 3], before, strict=False):
        assert same_bits(new[absent], old[absent])
        assert not same_bits(new[1], old[1])
    empty = copy.deepcopy(state)
    update(state, torch.randn(0, 5), torch.randint(0, 6, (0,)), kind)
    assert all(same_bits(a, b) for a, b in zip(state, empty, strict=True))


def test_counts_are_exact_beyond_float(variant):
    for kind in KINDS:
        state = fresh(kind, 2, 3)
        state[0][1] = 2 ** 24 + 1
        update(state, torch.randn(2, 3), torch.tensor([1, 1]), kind)
        assert state[0].tolist() == [0, 2 ** 24 + 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_pixels(variant, kind, layout):
    x = torch.randn(3, 20, 5, 7)
    y = torch.randint(0, 4, (3, 5, 7))
    y[0, :2] = 255
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.nn.functional.pad(x, (2, 3, 1, 1), value=float("nan"))[:, :, 1:6, 2:9]
    state = fresh(kind, 4, 20)
    assert update(state, x, y, kind, ignore_index=255).item() == 0
    rows, labels = x.permute(0, 2, 3, 1).reshape(-1, 20), y.reshape(-1)
    want = truth(kind, 4, 20, [(rows[labels != 255], labels[labels != 255])])
    for got, wanted in zip(state, want, strict=True):
        torch.testing.assert_close(got.to(wanted.dtype), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_left_out(variant, kind, bad):
    x, y = torch.randn(600, 5), torch.randint(0, 2, (600,))
    x[[3, 500]] = bad
    x[20, 4] = bad
    keep = torch.ones(600, dtype=torch.bool)
    keep[[3, 20, 500]] = False
    state, clean = fresh(kind, 2, 5), fresh(kind, 2, 5)
    assert update(state, x, y, kind).item() == 3
    assert update(clean, x[keep], y[keep], kind).item() == 0
    for a, b in zip(state, clean, strict=True):
        torch.testing.assert_close(a, b)
    everything = fresh(kind, 2, 5)
    assert update(everything, torch.full((4, 5), bad), torch.tensor([0, 1, 1, 1]), kind).item() == 4
    assert all(not t.any() for t in everything)


def test_repeatable_and_independent_of_threads(variant, threads):
    rows, a, counts = (60, 70, (1, 2)) if variant == "triton" else (700, 100, (1, 2, 2))
    x, y = torch.randn(rows, a), torch.randint(0, 20, (rows,))
    for kind in KINDS:
        results = []
        for count in counts:
            threads(count)
            state = fresh(kind, 20, a)
            update(state, x[:rows // 2], y[:rows // 2], kind)
            update(state, x[rows // 2:], y[rows // 2:], kind)
            results.append(state)
        for other in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(other, results[0], strict=True))


@given(j=st.integers(1, 8), a=st.integers(1, 70), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
       kind=st.sampled_from(tuple(KINDS)))
def test_any_shape(j, a, sizes, kind):
    batches = batches_of(sizes, j, a, torch.float64)
    state = fresh(kind, j, a, torch.float64)
    for x, y in batches:
        update(state, x, y, kind)
    for got, want in zip(state, truth(kind, j, a, batches), strict=True):
        torch.testing.assert_close(got.to(want.dtype), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_equals_eager(variant, kind):
    x, y = torch.randn(9, 5), torch.randint(0, 3, (9,))
    eager, traced = fresh(kind, 3, 5), fresh(kind, 3, 5)

    def step(count, mean, cov, x, y):
        F.covariance_update_(count, mean, cov, x * 2, y, kind=kind)
        return cov.sum() + mean.sum()

    fast = compiled(step)
    for part in (slice(0, 5), slice(5, 9)):
        want = step(*eager, x[part], y[part])
        torch.testing.assert_close(fast(*traced, x[part], y[part]), want)
    for a, b in zip(traced, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_opcheck():
    for kind, code in KINDS.items():
        for features in (torch.randn(4, 5, 1), torch.randn(2, 5, 3)):
            labels = torch.randint(0, 3, (features.shape[0], features.shape[2]))
            torch.library.opcheck(torch.ops.fastmix.covariance_update_.default,
                                  (*fresh(kind, 3, 5), features, labels, None, code))


def test_a_changed_operand_is_noticed(variant):
    if variant == "reference":
        pytest.skip("it differentiates copies, and needs no operand again")
    state = ISDACovariance(3, 4)
    x, y = torch.randn(5, 4), torch.randint(0, 3, (5,))
    state.update(x, y)
    w = torch.randn(3, 4, requires_grad=True)
    out = F.isda_logits(x @ w.T, w, state.cov, y, 1.0)
    state.update(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# ---------------------------------------------------------------- the module

def test_module_checkpoints_moves_and_counts():
    module = ISDACovariance(3, 4, "diag")
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    x[2, 1] = float("nan")
    module.update(x, y)
    assert module.skipped.item() == 1 and module.count.sum().item() == 5
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = ISDACovariance(3, 4, "diag")
    other.load_state_dict(torch.load(file))
    module.update(x, y)
    other.update(x, y)
    for name, value in module.state_dict().items():
        assert same_bits(value, other.state_dict()[name])
    assert module.skipped.item() == 2
    assert set(module.state_dict()) == {"count", "mean", "cov", "skipped"}
    assert copy.deepcopy(module).to("meta").cov.device.type == "meta"
    assert not list(module.parameters())


def test_module_stays_float32_in_a_half_model():
    module = ISDACovariance(3, 4)
    module.update(torch.randn(9, 4), torch.randint(0, 3, (9,)))
    before = module.cov.clone()
    half = torch.nn.Sequential(module).to(torch.bfloat16)[0]
    assert half.mean.dtype == half.cov.dtype == torch.float32 and same_bits(half.cov, before)
    half.update(torch.randn(9, 4).bfloat16(), torch.randint(0, 3, (9,)))
    assert module.double().cov.dtype == torch.float64


def test_module_accepts_every_kind_and_names_itself():
    for kind in KINDS:
        module = ISDACovariance(4, 4, kind)  # J = A: diag and shared look alike
        module.update(torch.randn(5, 4), torch.randint(0, 4, (5,)))
        assert tuple(module.cov.shape) == cov_shape(kind, 4, 4) and kind in repr(module)


# ---------------------------------------------------------------- errors

def test_labels_out_of_range_change_nothing(variant, index_errors):
    state = fresh("full", 3, 4)
    if variant == "triton":  # on a device the row is left out
        fastmix.set_debug(False)
        seen, clean, x = fresh("full", 3, 4), fresh("full", 3, 4), torch.randn(4, 4)
        assert update(seen, x, torch.tensor([0, 3, -1, 2 ** 40]), "full").item() == 0
        update(clean, x[:1], torch.tensor([0]), "full")
        assert all(same_bits(a, b) for a, b in zip(seen, clean, strict=True))
        fastmix.set_debug(True)
    for bad in (3, -1, 2 ** 40):
        with pytest.raises(IndexError, match=rf"covariance_update_: labels of row 1 is {bad}.*\[0, 3\)"):
            update(state, torch.randn(3, 4), torch.tensor([0, bad, 1]), "full")
    assert all(not t.any() for t in state)
    update(state, torch.randn(3, 4), torch.tensor([0, -1, 1]), "full", ignore_index=-1)
    assert state[0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("call,error,text", [
    (lambda s, x, y: update(s, x[:, :3], y, "full"), ValueError, r"features has shape \(5, 3\), want \(N, 4\)"),
    (lambda s, x, y: update(s, x[0], y, "full"), ValueError, "features has shape"),
    (lambda s, x, y: update(s, x.long(), y, "full"), TypeError, "features has dtype int64"),
    (lambda s, x, y: update(s, x, y[:2], "full"), ValueError, r"labels has shape \(2,\), want \(5,\)"),
    (lambda s, x, y: update(s, x, y.int(), "full"), TypeError, "labels has dtype int32"),
    (lambda s, x, y: update(s, x, y, "diag"), ValueError, r"cov has shape \(3, 4, 4\), want \(3, 4\) for kind 'diag'"),
    (lambda s, x, y: update(s, x, y, "none"), ValueError, "kind is 'none', want one of"),
    (lambda s, x, y: update((s[0], s[1], s[2][:2]), x, y, None), ValueError, r"cov has shape \(2, 4, 4\), want one of"),
    (lambda s, x, y: update((s[0][:2], s[1], s[2]), x, y, "full"), ValueError, "count has shape"),
    (lambda s, x, y: update((s[0].float(), s[1], s[2]), x, y, "full"), TypeError, "count has dtype float32"),
    (lambda s, x, y: update((s[0], s[1].bfloat16(), s[2]), x, y, "full"), TypeError, "mean has dtype bfloat16"),
    (lambda s, x, y: update((s[0], s[1], s[2].double()), x, y, "full"), TypeError, "cov has dtype float64"),
    (lambda s, x, y: update(s, x, y.to("meta"), "full"), ValueError, "labels is on meta, want c(pu|uda:0)"),
    (lambda s, x, y: update((s[0], s[1], s[2].requires_grad_()), x, y, "full"), ValueError, "cov requires grad"),
    (lambda s, x, y: update((s[0], s[1][:3], torch.zeros(3, 3)), torch.randn(5, 3), y, None), ValueError, "want"),
    (lambda s, x, y: F.covariance_update_(torch.zeros(4).long(), torch.zeros(4, 4), torch.zeros(4, 4), x, y),
     ValueError, "name the kind"),
    (lambda s, x, y: update((s[0], s[1], s[2].permute(1, 2, 0).contiguous().permute(2, 0, 1)), x, y, "full"),
     ValueError, r"cov has strides \(1, 12, 3\), want a contiguous tensor of shape \(3, 4, 4\)"),
    (lambda s, x, y: ISDACovariance(3, 4).update(x.tolist(), y), TypeError, "features is list, want a tensor"),
    (lambda s, x, y: ISDACovariance(3, "4"), TypeError, "num_features is '4', want a whole number"),
    (lambda s, x, y: ISDACovariance(3.0, 4), TypeError, "num_classes is 3.0, want a whole number"),
    (lambda s, x, y: ISDACovariance(3, 4, "half"), ValueError, "kind is 'half'"),
    (lambda s, x, y: ISDACovariance(0, 4), ValueError, "num_classes is 0"),
    (lambda s, x, y: ISDACovariance(3, 4, dtype=torch.float16), TypeError, "dtype is torch.float16"),
])
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call(fresh("full", 3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
