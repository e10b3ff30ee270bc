"""Every operator with each of its sizes 0 in turn, and with every argument strided, expanded and offset.

What the reference gives, or its error: the kernels neither crash on what has no elements nor read what lies beside it.
"""

import pytest
import torch
from helpers import simt_backend
from torch import Tensor
from torch.utils import _pytree as pytree

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget, View

# Each test skips what the variant does not serve of its own operator.
pytestmark = pytest.mark.operator("soft_target")

SIZES = {"N": 3, "C": 2, "H": 4, "W": 6, "K": 2, "J": 5, "A": 4, "P": 3}


def whole(high, *shape):
    return torch.randint(max(high, 1), shape)


def boxes(n, k):
    return torch.tensor([1, 0, 2, 3], dtype=torch.int32).expand(n, max(k - 1, 0), 4).contiguous()


def symmetric(*shape):
    half = torch.randn(shape)
    return half @ half.transpose(-1, -2)


def soft(s, *pixels):
    return {"index": whole(s["J"], s["N"], *pixels, s["K"]), "weight": torch.rand(s["N"], *pixels, s["K"]),
            "base": torch.rand(s["N"], *pixels)}


def images(s):
    return torch.randn(s["N"], s["C"], s["H"], s["W"])


def isda(s, *pixels, **more):
    return {"logits": torch.randn(s["N"], s["J"], *pixels), "weight": torch.randn(s["J"], s["A"])} | more


def labels(s, *pixels):
    return {"labels": whole(s["J"], s["N"], *pixels)}


def covariances(s, kind):
    shape = {"full": (s["J"], s["A"], s["A"]), "diag": (s["J"], s["A"]), "shared": (s["A"], s["A"]), "identity": (0,)}
    return {"cov": symmetric(*shape[kind]) if kind in ("full", "shared") else torch.rand(shape[kind])}


def update(kind):
    def call(features, labels, **kept):
        F.covariance_update_(*kept.values(), features, labels, kind=kind)
        return tuple(kept.values())
    return call


def on(name):
    return lambda index, weight, base, logits, **more: getattr(F, name)(logits, SoftTarget(index, weight, base), **more)


# Name -> (operator, sizes, its tensors made of sizes, the call, which of them may require a gradient).
CASES = {
    "blend": ("blend", "NCHWK", lambda s: {"x": images(s), "index": whole(s["N"], s["N"], s["K"]),
                                           "weight": torch.rand(s["N"], s["K"])}, F.blend, ["x"]),
    "paste": ("paste", "NCHWK", lambda s: {"x": images(s), "index": whole(s["N"], s["N"], s["K"]),
                                           "boxes": boxes(s["N"], s["K"])}, F.paste, ["x"]),
    "patch_mix": ("patch_mix", "NCHW", lambda s: {
        "x": images(s), "partner": whole(s["N"], s["N"]), "mask": torch.rand(s["N"], 2, 3) > 0.5,
        "lam": torch.rand(s["N"])}, F.patch_mix, ["x"]),
    "crop": ("crop", "NCHW", lambda s: {"x": images(s), "shift": whole(3, s["N"], 2),
                                        "fill": torch.rand(s["N"], s["C"])}, F.crop, ["x"]),
    "resized_crop": ("crop", "NCHW", lambda s: {
        "x": images(s), "box": torch.tensor([-0.5, 0.0, 4.0, 4.0]).expand(s["N"], 4).contiguous(),
        "fill": torch.rand(s["N"], s["C"])}, lambda x, box, fill: F.resized_crop(x, box, (4, 5), fill=fill), ["x"]),
    "view": ("view", "NCHW", lambda s: {
        "x": whole(256, s["N"], s["C"], s["H"], s["W"]).to(torch.uint8), "mean": torch.rand(s["C"]),
        "std": torch.rand(s["C"]) + 1, "flip": torch.rand(s["N"]) > 0.5, "shift": whole(3, s["N"], 2)},
             lambda x, **view: View(**view).apply(x), []),
    "saliency_map": ("saliency", "NCHW", lambda s: {"grad": images(s)}, lambda grad: F.saliency_map(grad, (2, 3)), []),
    "saliency_mask": ("saliency", "NCHW", lambda s: {"grad": images(s), "q": torch.rand(s["N"]).double()},
                      lambda grad, q: F.saliency_mask(grad, (2, 3), q), []),
    "saliency_peak": ("saliency", "NCHW", lambda s: {"grad": images(s)}, F.saliency_peak, []),
    "percentile_mask": ("saliency", "NHW", lambda s: {
        "map": torch.rand(s["N"], s["H"], s["W"]), "q": torch.rand(s["N"]).double()}, F.percentile_mask, []),
    **{f"covariance_update_ {kind}": ("covariance", "NJA", lambda s, kind=kind: {
        "features": torch.randn(s["N"], s["A"]), **labels(s), "count": torch.zeros(s["J"], dtype=torch.int64),
        "mean": torch.zeros(s["J"], s["A"]), "cov": torch.zeros_like(covariances(s, kind)["cov"])}, update(kind), [])
       for kind in ("full", "diag", "shared", "identity")},
    **{f"isda_logits {kind}": (f"isda {kind}", "NJA", lambda s, kind=kind: isda(s, **covariances(s, kind), **labels(s)),
                               lambda kind=kind, **t: F.isda_logits(**t, strength=0.5, kind=kind), ["logits", "weight"])
       for kind in ("full", "diag", "shared", "identity")},
    "isda_logits pixels": ("isda diag", "NJAP",
                           lambda s: isda(s, s["P"], **covariances(s, "diag"), **labels(s, s["P"])),
                           lambda **t: F.isda_logits(**t, strength=0.5, kind="diag"), ["logits", "weight"]),
    **{f"isda_consistency {kind}": ("isda consistency", "NJA", lambda s, kind=kind: isda(s, **covariances(s, kind)),
                                    lambda kind=kind, **t: F.isda_consistency(**t, strength=0.5, kind=kind),
                                    ["logits", "weight"]) for kind in ("full", "diag", "shared", "identity")},
    **{name: ("soft_target", "NJK", lambda s: {"logits": torch.randn(s["N"], s["J"]), **soft(s),
                                               "sample_weight": torch.rand(s["N"])}, on(name), ["logits"])
       for name in ("soft_cross_entropy", "soft_kl", "soft_bce")},
    "class weights": ("soft_target", "NJK", lambda s: {"logits": torch.randn(s["N"], s["J"]), **soft(s),
                                                       "class_weight": torch.rand(s["J"])}, on("soft_kl"), ["logits"]),
    "soft_cross_entropy pixels": ("soft_target", "NJKP", lambda s: {
        "logits": torch.randn(s["N"], s["J"], s["P"]), **soft(s, s["P"])}, on("soft_cross_entropy"), ["logits"]),
    "soft_cross_entropy dense": ("soft_target", "NJ", lambda s: {
        "logits": torch.randn(s["N"], s["J"]), "target": torch.rand(s["N"], s["J"])}, F.soft_cross_entropy, ["logits"]),
    "soft_target_kl": ("soft_target", "NJ", lambda s: {
        "logits": torch.randn(s["N"], s["J"]), "target": whole(s["J"], s["N"]), "confidence": torch.rand(s["N"])},
                       F.soft_target_kl, ["logits"]),
}


def result(name, tensors, gradients):
    """Outputs and gradients, or the type of the error."""
    *_, call, leaves = CASES[name]
    inputs = {key: t.clone(memory_format=torch.preserve_format) if key in ("count", "mean", "cov") else t
              for key, t in tensors.items()}
    if gradients:
        inputs |= {key: inputs[key].detach().requires_grad_() for key in leaves}
    try:
        out = [t for t in pytree.tree_leaves(call(**inputs)) if isinstance(t, Tensor)]
        if not gradients or not out[0].requires_grad:
            return out
        return out + list(torch.autograd.grad(out[0].sum(), [inputs[key] for key in leaves]))
    except (ValueError, TypeError, IndexError) as error:
        return type(error)


def check(name, tensors, gradients, apart=None):
    got = result(name, apart or tensors, gradients)
    with fastmix.backend("reference"):
        want = result(name, tensors, gradients)
    if isinstance(want, type):
        # Labels of no class: an IndexError on the CPU, rows that count nothing on a device.
        assert got is want or (name.startswith("covariance") and want is IndexError)
        return
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def served(variant, name):
    op, *form = CASES[name][0].split()
    reason = simt_backend.why_not(op, variant.partition("-")[0], torch.get_default_device().type, *(form or [None]))
    if reason is not None:
        pytest.skip(reason)


EMPTY = [(name, size) for name, (_, sizes, *_) in CASES.items() for size in sizes]


# What has no gradient, or another kernel with one, is called without; forward passes are alike otherwise.
@pytest.mark.parametrize("name,size,gradients", [
    (name, size, wanted) for name, size in EMPTY for wanted in (False, True)
    if (not wanted and CASES[name][0] in ("soft_target", "isda consistency")) or wanted == bool(CASES[name][-1])])
def test_a_size_of_zero(variant, name, size, gradients):
    served(variant, name)
    check(name, CASES[name][2](SIZES | {size: 0}), gradients)


def strided(t):
    """Every second element along the last dimension of a tensor of other values."""
    wide = (~t if t.dtype == torch.bool else t + 1).repeat_interleave(2, -1)
    wide[..., ::2] = t
    return wide[..., ::2]


def offset(t):
    """Behind other values, against no alignment, and in front of others."""
    room = torch.full((t.numel() + 4,), 1, dtype=t.dtype)
    room[3:-1] = t.flatten()
    return room[3:-1].view(t.shape)


def transposed(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def expanded(t):
    """The first entry of dimension 0 for all."""
    return t[:1].expand(t.shape)


@pytest.mark.parametrize("layout", [strided, offset, transposed, expanded])
@pytest.mark.parametrize("name", CASES)
def test_a_layout(variant, name, layout):
    served(variant, name)
    tensors = CASES[name][2](SIZES)
    for key, t in tensors.items():
        if t.ndim == 0 or t.numel() == 0 or key in ("count", "mean") or (key == "cov" and "update" in name):
            continue  # what is updated in place is contiguous
        if layout is expanded and key == "cov" and t.ndim == 2 and t.shape[0] == t.shape[1]:
            continue  # it would not be symmetric
        apart = layout(t)
        check(name, tensors | {key: apart.clone(memory_format=torch.contiguous_format)}, True,
              tensors | {key: apart})


# ---------------------------------------------------------------- numbers at the edge of what a dtype holds

def test_numbers_beyond_a_dtype(variant):
    served(variant, "crop")
    x, away = torch.zeros(1, 1, 2, 2), torch.tensor([[5, 5]])
    for fill in (1e300, -1e300):
        infinite = torch.full((1, 1, 2, 2), fill, dtype=torch.float64).to(x.dtype)
        assert torch.equal(F.crop(x, away, fill=fill), infinite)
        assert torch.equal(F.resized_crop(x, torch.tensor([[5.0, 5.0, 2.0, 2.0]]), (2, 2), fill=fill), infinite)


def test_features_beyond_the_dtype_of_the_mean_are_left_out(variant):
    served(variant, "covariance_update_ diag")
    count, mean, cov = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2), torch.zeros(3, 2)
    features = torch.tensor([[1e300, 0.0], [1.0, 2.0]], dtype=torch.float64)
    assert F.covariance_update_(count, mean, cov, features, torch.tensor([0, 1]), kind="diag") == 1
    assert count.tolist() == [0, 1, 0] and mean.tolist() == [[0, 0], [1, 2], [0, 0]]


def test_a_bad_partner_of_images_without_pixels(variant):
    served(variant, "patch_mix")
    args = (torch.zeros(2, 3, 0, 4), torch.tensor([0, 5]), torch.ones(2, 1, 1, dtype=torch.bool), torch.tensor(0.5))
    if args[0].device.type != "cpu":  # no check of a value waits for the device
        assert F.patch_mix(*args)[1][1].isnan().all()
        return
    with pytest.raises(IndexError, match="partner of row 1 is 5"):
        F.patch_mix(*args)
