"""The same bits for any number of threads and under torch.use_deterministic_algorithms: every operator, its gradient
and the gradient of that, on sizes that a loop splits among eight threads.

Of losses and ISDA, which are not linear, the second derivative is a formula in torch's operators, whose last bits do
depend on the number of threads (softmax, sums, products of matrices): there the same bits for the same number.
"""

import pytest
import torch
from helpers.support import same_bits
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fastmix.functional as F
from fastmix import SoftTarget, View
from fastmix.ops import library, plan
from fastmix.ops.saliency import saliency_mask_of_grid

# Each test skips what the variant does not serve.
pytestmark = pytest.mark.operator("soft_target")

# 16,384 elements are a thread's least share: each of these is of more than eight.
N, C, H, W, K, J, A = 64, 3, 64, 64, 3, 1100, 64
CLASSES = 40  # of ISDA's tables


def images():
    return torch.randn(N, C, H, W)


def pixels():
    return torch.randint(0, 256, (N, C, H, W), dtype=torch.uint8)


def index():
    return torch.randint(N, (N, K))


def boxes():
    corner, size = torch.randint(-9, 50, (N, K - 1, 2)), torch.randint(0, 60, (N, K - 1, 2))
    return torch.cat([corner, size], -1).to(torch.int32)


def cells():
    return torch.randint(N, (N,)), torch.rand(N, 8, 8) > 0.5, torch.rand(N)


def view(*, blend=False, paste=False):
    more = (index(), torch.rand(N, K)) if blend else (index(), boxes()) if paste else ()
    return pixels(), *more, View(torch.rand(C), torch.rand(C) + 1, torch.rand(N) > 0.5, torch.randint(-4, 5, (N, 2)))


def soft():
    return torch.randint(J, (N * 4, K)), torch.rand(N * 4, K), torch.rand(N * 4) / J


def isda(rows, kind, *pixel, classes=CLASSES):
    root = torch.randn(classes, A, A) / A
    cov = {"full": root @ root.transpose(1, 2), "diag": torch.rand(classes, A), "shared": root[0] @ root[0].T,
           "identity": torch.zeros(0)}[kind]
    return torch.randn(rows, classes, *pixel), torch.randn(classes, A), cov, torch.randint(classes, (rows, *pixel))


def update(kind):
    def call(features, labels):
        shape = {"full": (CLASSES, A, A), "diag": (CLASSES, A), "shared": (A, A), "identity": (0,)}[kind]
        state = torch.zeros(CLASSES, dtype=torch.int64), torch.zeros(CLASSES, A), torch.zeros(shape)
        for half in (0, 1):
            F.covariance_update_(*state, features[half::2], labels[half::2], kind=kind)
        return state
    return call


def gammas(rows, k):
    return torch._standard_gamma(torch.full((rows, k), 1.2))


def planned(make):
    """A plan of the random numbers that the seed gives."""
    def call(*tensors):
        torch.manual_seed(1)
        return make(*tensors)
    return call


ROWS, ON = 20_000, torch.tensor(True)
# Name -> operators that it calls, its tensors, the call, and how many of the first tensors have gradients.
CASES = {
    "blend": ({"blend", "blend_backward"}, lambda: (images(), index(), torch.rand(N, K)), F.blend, 1),
    "paste": ({"paste", "paste_backward"}, lambda: (images(), index(), boxes()), F.paste, 1),
    "patch_mix": ({"patch_mix", "patch_mix_backward"}, lambda: (images(), *cells()), F.patch_mix, 1),
    "crop": ({"crop"}, lambda: (images(), torch.randint(-70, 70, (N, 2))), F.crop, 1),
    "resized_crop": ({"resized_crop", "resized_crop_backward"},
                     lambda: (images(), torch.rand(N, 4, dtype=torch.float64) * 60),
                     lambda x, box: F.resized_crop(x, box, (64, 60)), 1),
    "view": ({"view"}, view, lambda x, view: view.apply(x), 0),
    "view_blend": ({"view_blend"}, lambda: view(blend=True), lambda *t: F.blend(*t[:3], view=t[3]), 0),
    "view_paste": ({"view_paste"}, lambda: view(paste=True), lambda *t: F.paste(*t[:3], view=t[3]), 0),
    "view_patch_mix": ({"view_patch_mix"}, lambda: (*cells(), *view()),
                       lambda partner, mask, lam, x, view: F.patch_mix(x, partner, mask, lam, view=view), 0),
    "saliency": ({"saliency_map", "saliency_mask", "saliency_mask_of_grid", "saliency_peak"},
                 lambda: (images(), torch.rand(N)),
                 lambda x, q: (F.saliency_map(x, (8, 8)), F.saliency_mask(x, (16, 16), q), F.saliency_peak(x),
                               saliency_mask_of_grid(x, (8, 16), torch.tensor(1), q)), 0),
    "percentile_mask": ({"percentile_mask"}, lambda: (torch.rand(N, H, W), torch.rand(N)), F.percentile_mask, 0),
    **{f"covariance {kind}": ({"covariance_update_"}, lambda: (torch.randn(4000, A), torch.randint(CLASSES, (4000,))),
                              update(kind), 0) for kind in ("full", "diag", "shared", "identity")},
    **{f"isda_logits {kind}": ({"isda_logits", "isda_logits_backward"}, lambda kind=kind: isda(3500, kind),
                               lambda z, w, cov, y, kind=kind: F.isda_logits(z, w, cov, y, 0.5, kind=kind), 2)
       for kind in ("full", "diag", "shared", "identity")},
    "isda_logits pixels": ({"isda_logits", "isda_logits_backward"}, lambda: isda(4, "diag", 1300),
                           lambda z, w, cov, y: F.isda_logits(z, w, cov, y, 0.5, kind="diag"), 2),
    **{f"isda_consistency {kind}": ({"isda_consistency"}, lambda kind=kind: isda(128, kind, classes=20)[:3],
                                    lambda z, w, cov, kind=kind: F.isda_consistency(z, w, cov, 0.5, kind=kind), 2)
       for kind in ("full", "diag", "shared", "identity")},
    **{name: ({"soft_target"}, lambda: (torch.randn(N * 4, J), *soft()),
              lambda z, *t, name=name: getattr(F, name)(z, SoftTarget(*t)), 1)
       for name in ("soft_cross_entropy", "soft_kl", "soft_target_kl", "soft_bce")},
    "soft_target pixels": ({"soft_target"}, lambda: (torch.randn(8, 40, 700), torch.randint(40, (8, 700))),
                           F.soft_cross_entropy, 1),
    "soft_target_dense": ({"soft_target_dense"}, lambda: (torch.randn(N * 4, J), torch.rand(N * 4, J)), F.soft_kl, 1),
    "plan_blend": ({"plan_blend"}, lambda: (gammas(ROWS, K),),
                   planned(lambda g: plan.plan_blend(g, ON, ROWS, alpha=0.2)), 0),
    "plan_paste": ({"plan_paste"}, lambda: (gammas(ROWS, K),),
                   planned(lambda g: plan.plan_paste(g, ON, ROWS, (H, W), alpha=0.2)), 0),
    "a plan of a seed": ({"plan_paste"}, tuple,
                         planned(lambda: plan.plan_paste((ROWS, K), ON, ROWS, (H, W), alpha=0.2)), 0),
    "plan_cutout": ({"plan_cutout"}, tuple, planned(lambda: plan.plan_cutout(ON, ROWS, ROWS, (H, W), 16)), 0),
    "plan_patch": ({"plan_patch"}, lambda: (gammas(1, 2),),
                   planned(lambda g: plan.plan_patch(g, ON, ROWS, levels=20, grids=2, alpha=0.2)), 0),
    "plan_crop": ({"plan_crop"}, lambda: (torch.tensor(0.3),),
                  planned(lambda s: plan.plan_crop(s, ON, ROWS, (H, W), classes=10, power=2.0, chance=0.1)), 0),
}
# No kernel of the CPU: full covariances on Triton keep their products, gradients on GPUs are scaled where they lie.
ELSEWHERE = {"isda_logits_kept", "isda_logits_kept_backward", "scale_gradient_"}


class Called(TorchDispatchMode):
    """The names of fastmix's operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastmix":
            self.names.add(func._schema.name.split("::")[1])
        return func(*args, **kwargs or {})


def results(name, graph=True):
    """Outputs, gradients, and (graph) gradients of these, by what they are."""
    _, tensors, call, differentiable = CASES[name]
    torch.manual_seed(0)
    inputs = tensors()
    leaves = [t.requires_grad_() for t in inputs[:differentiable]]
    out = [t for t in pytree.tree_leaves(call(*inputs)) if isinstance(t, Tensor)]
    found = {"output": out}
    if not leaves:
        return found
    g = torch.randn(out[0].shape).requires_grad_()
    found["gradient"] = torch.autograd.grad(out[0], leaves, g.detach(), retain_graph=True)
    if not graph:
        return found
    first = torch.autograd.grad(out[0], leaves, g, create_graph=True)
    found["gradient with a graph"] = first
    second = torch.autograd.grad(sum(d.square().sum() for d in first), [*leaves, g], allow_unused=True)
    found["second derivative"] = [t for t in second if t is not None]
    return found


def test_every_operator_has_a_case():
    assert set().union(*(case[0] for case in CASES.values())) | ELSEWHERE == set(library.schemas())


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_for_any_number_of_threads(variant, threads, name):
    if not variant.startswith("cpu"):
        pytest.skip("the C++ kernels split their work among threads")
    threads(1)
    with Called() as called:
        want = results(name)
    assert CASES[name][0] <= called.names
    formula = name.startswith(("isda", "soft"))
    for count in (1, 2, 3, 8):
        threads(count)
        torch.use_deterministic_algorithms(True)  # an operator of torch's that is not would raise
        got = results(name, not formula or count == 3)
        if formula and count == 3:
            want |= {what: tensors for what, tensors in results(name).items() if what not in ("output", "gradient")}
        torch.use_deterministic_algorithms(False)
        differing = [what for what in got if not all(map(same_bits, got[what], want[what]))]
        assert not differing, f"{' and '.join(differing)} with {count} threads"
