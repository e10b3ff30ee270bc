"""torch.func.vmap: per-sample gradients of every loss, and every function that mixes, against a loop."""

import pytest
import torch
from torch.func import grad, vmap

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget, View

N, J, A, B = 4, 5, 3, 2
COVARIANCES = {"diag": torch.rand(J, A), "full": torch.eye(A).expand(J, A, A) * 2, "shared": torch.eye(A),
               "identity": None}
WEIGHT = torch.randn(J, A)


def labels():
    return (torch.randint(J, (N,)),)


def soft():
    return torch.randint(J, (N, 2)), torch.rand(N, 2), torch.rand(N)


def on_soft(loss):
    return lambda z, index, weight, base: loss(z, SoftTarget(index, weight, base))


# Loss -> (loss of a batch, what is mapped beside the logits).
LOSSES = {
    "labels": (F.soft_cross_entropy, labels),
    "dense": (F.soft_cross_entropy, lambda: (torch.rand(N, J),)),
    **{name: (on_soft(getattr(F, name)), soft) for name in ("soft_cross_entropy", "soft_kl", "soft_bce")},
    "class_weight": (lambda z, y: F.soft_cross_entropy(z, y, class_weight=torch.arange(1.0, J + 1)), labels),
    "soft_target_kl": (F.soft_target_kl, lambda: (*labels(), torch.rand(N))),
    "focal": (lambda z, y: fastmix.FocalLoss()(z, y), labels),
    **{f"isda {kind}": (lambda z, y, kind=kind, cov=cov: F.soft_cross_entropy(
        F.isda_logits(z, WEIGHT, cov, y, 0.5, kind=kind), y), labels) for kind, cov in COVARIANCES.items()},
    **{f"consistency {kind}": (lambda z, kind=kind, cov=cov: F.isda_consistency(z, WEIGHT, cov, 0.5, kind=kind), tuple)
       for kind, cov in COVARIANCES.items()},
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_samples(name):
    loss, make = LOSSES[name]
    z, others = torch.randn(N, J), make()

    def of_one(z, *others):
        return loss(z.unsqueeze(0), *(t.unsqueeze(0) for t in others))

    got = vmap(grad(of_one))(z, *others)
    want = []
    for row in range(N):
        leaf = z[row:row + 1].clone().requires_grad_()
        want.append(torch.autograd.grad(loss(leaf, *(t[row:row + 1] for t in others)), leaf)[0])
    torch.testing.assert_close(got, torch.cat(want), rtol=1e-4, atol=1e-6)


def images():
    return torch.randn(B, N, 3, 8, 8)


def indices():
    return torch.randint(N, (B, N, 2))


# What mixes or cuts -> (call, its mapped arguments).
MIXING = {
    "blend": (F.blend, lambda: (images(), indices(), torch.rand(B, N, 2))),
    "paste": (F.paste, lambda: (images(), indices(), torch.randint(5, (B, N, 1, 4), dtype=torch.int32))),
    "patch_mix": (F.patch_mix, lambda: (images(), indices()[..., 0], torch.rand(B, N, 2, 2) > 0.5, torch.rand(B))),
    "crop": (F.crop, lambda: (images(), torch.randint(-3, 4, (B, N, 2)))),
    "resized_crop": (lambda x, box: F.resized_crop(x, box, (4, 6)), lambda: (images(), torch.rand(B, N, 4) * 4 + 1)),
    "channels_last": (F.crop, lambda: (torch.randn(B, N, 8, 8, 3).permute(0, 1, 4, 2, 3),
                                       torch.randint(-3, 4, (B, N, 2)))),
    "saliency_map": (lambda g: F.saliency_map(g, (2, 4)), lambda: (images(),)),
    "saliency_mask": (lambda g, q: F.saliency_mask(g, (2, 4), q), lambda: (images(), torch.rand(B))),
    "saliency_peak": (F.saliency_peak, lambda: (images(),)),
    "percentile_mask": (F.percentile_mask, lambda: (torch.rand(B, N, 4, 4), torch.rand(B, N))),
    "rmix": (lambda x, g, q, p, lam: F.rmix(x, g, (2, 2), q, p, lam),
             lambda: (images(), images(), torch.rand(B), indices()[..., 0], torch.rand(B))),
    "view": (lambda x: View(torch.zeros(3), torch.ones(3)).apply(x), lambda: (images().mul(20).to(torch.uint8),)),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing(name):
    call, make = MIXING[name]
    args = make()
    got = vmap(call)(*args)
    each = [call(*(t[i] for t in args)) for i in range(B)]
    if isinstance(got, torch.Tensor):
        torch.testing.assert_close(got, torch.stack(each))
    else:
        for i, batch in enumerate(got):
            torch.testing.assert_close(batch, torch.stack([one[i] for one in each]))


def test_plans_differ_by_batch():
    same = torch.randn(1, N, 3, 8, 8).expand(8, N, 3, 8, 8)
    mixed = vmap(lambda x: fastmix.DCutMix().plan(x).apply(x), randomness="different")(same)
    assert not all(torch.equal(mixed[0], other) for other in mixed[1:])


def test_dense_targets():
    """Batched or not, each field; contiguous, as what torch would scatter into."""
    index, weight, base = torch.randint(5, (3, 4, 2)), torch.rand(3, 4, 2), torch.rand(3, 4)
    for where in ((0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)):
        fields = [field if at == 0 else field[0] for field, at in zip((index, weight, base), where, strict=True)]
        found = vmap(lambda *t: SoftTarget(*t).dense(5), in_dims=where)(*fields)
        each = [SoftTarget(*(f[n] if at == 0 else f for f, at in zip(fields, where, strict=True))).dense(5)
                for n in range(3)]
        assert torch.equal(found, torch.stack(each)) and each[0].is_contiguous()
