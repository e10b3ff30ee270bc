"""Which outputs carry a gradient: those of the reference, on every backend, in eager mode and compiled."""

import pytest
import torch

import fastmix
import fastmix.functional as F
from fastmix import RMix, SoftTarget
from fastmix.ops import library

N, C, H, W, J, A = 4, 3, 8, 8, 5, 6
INDEX = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])


def images():
    return torch.randn(N, C, H, W, requires_grad=True)


def logits():
    return torch.randn(N, J, requires_grad=True)


def isda_arguments():
    return logits(), torch.randn(J, A, requires_grad=True), torch.rand(J, A)


# Operator -> a call whose inputs require a gradient wherever they may.
CALLS = {
    "blend": lambda: F.blend(images(), INDEX, torch.full((N, 2), 0.5)),
    "paste": lambda: F.paste(images(), INDEX, torch.tensor([[[1, 1, 3, 4]]] * N, dtype=torch.int32)),
    "patch_mix": lambda: F.patch_mix(images(), INDEX[:, 1], torch.rand(N, 2, 2) > 0.5, torch.tensor(0.3)),
    "crop": lambda: (F.crop(images(), torch.ones(N, 2, dtype=torch.int64)),
                     F.resized_crop(images(), torch.tensor([[1.0, 1.0, 5.0, 5.0]] * N), (4, 4))),
    "saliency": lambda: (F.saliency_map(images(), (2, 2)), F.saliency_mask(images(), (2, 2), torch.tensor(0.5)),
                         F.saliency_peak(images()),
                         F.percentile_mask(torch.rand(N, 2, 2, requires_grad=True), torch.tensor(0.5))),
    "soft_target": lambda: (F.soft_cross_entropy(logits(), torch.arange(N)), F.soft_kl(logits(), torch.rand(N, J)),
                            F.soft_bce(logits(), SoftTarget.from_labels(torch.arange(N)), reduction="none"),
                            F.soft_target_kl(logits(), torch.arange(N), torch.rand(N))),
    "isda": lambda: (F.isda_logits(*isda_arguments(), torch.arange(N), 0.5, kind="diag"),
                     F.isda_consistency(*isda_arguments(), 0.5, kind="diag")),
}


def required(value):
    return [t.requires_grad for t in torch.utils._pytree.tree_leaves(value)]


def check(name):
    with fastmix.backend("reference"):
        want = required(CALLS[name]())
    assert required(CALLS[name]()) == want


@pytest.mark.operator("blend", "paste", "patch_mix", "saliency", "soft_target", "isda")
@pytest.mark.parametrize("name", [name for name in CALLS if name != "crop"])
def test_as_the_reference(variant, name):
    check(name)


@pytest.mark.operator("crop")
def test_crops_as_the_reference(variant):
    check("crop")


@pytest.mark.operator("patch_mix", "saliency")
def test_as_in_eager_mode_under_compile(variant):
    torch._dynamo.reset()

    def mix(x):
        return F.patch_mix(x, INDEX[:, 1], torch.ones(N, 2, 2, dtype=torch.bool), torch.tensor(0.3))
    for step, want in ((mix, [True, False]), (lambda x: F.saliency_map(x, (2, 2)), [False])):
        assert required(torch.compile(step, backend="aot_eager", fullgraph=True)(images())) == want


@pytest.mark.operator("patch_mix", "saliency", "plan")
def test_the_label_of_r_mix_is_data(variant):
    x = images()
    mixed, target = RMix(1.0, patches=(2,))(x, torch.arange(N), torch.randn(N, C, H, W))
    assert mixed.requires_grad and not target.weight.requires_grad
    z = mixed.mean((2, 3))
    F.soft_cross_entropy(z.repeat(1, 2), target).backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.skipif(library.missing is not None, reason="the C++ library is missing")
def test_every_operator_with_a_gradient_is_here():
    """A new operator has to say which of its outputs carry one."""
    differentiable = {"blend", "paste", "patch_mix", "crop", "resized_crop", "soft_target", "isda_logits",
                      "isda_consistency", "saliency_map"}
    assert differentiable <= set(library.schemas())
    assert {"blend", "paste", "patch_mix", "crop", "soft_target", "isda", "saliency"} == set(CALLS)
