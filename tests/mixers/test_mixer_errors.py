"""What the mixers say about wrong arguments and calls."""

import pytest
import torch
from helpers.mixing import batch

from fastmix import Compose, CutMix, Cutout, DCutMix, DMixup, Mixup, RandomChoice, RMix

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Mixup(0.0), "Mixup: alpha is 0.0"),
    (lambda: CutMix(float("nan")), "CutMix: alpha is nan"),
    (lambda: DMixup(0, 1.0), "DMixup: k is 0"),
    (lambda: DCutMix(3, -1.0), "DCutMix: alpha is -1.0"),
    (lambda: Mixup(1.0, prob=1.5), "Mixup: prob is 1.5"),
    (lambda: CutMix(1.0, mode="pair"), "CutMix: mode is 'pair'"),
    (lambda: RMix(patches=()), r"RMix: patches is \(\)"),
    (lambda: RMix(levels=0), "RMix: levels is 0"),
    (lambda: RMix(pairing="none"), "RMix: pairing is 'none'"),
    (lambda: Cutout(-1), "Cutout: length is -1"),
    (lambda: Compose(), "Compose: mixers is empty"),
    (lambda: Compose(Mixup(1.0), RMix()), r"Compose: mixers\[1\], RMix, needs the saliency"),
    (lambda: RandomChoice([Mixup(1.0)], [1, 2]), "RandomChoice: weights has 2 entries, want 1"),
    (lambda: RandomChoice([Mixup(1.0)], [0]), "RandomChoice: weights is"),
])
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_bad_calls():
    x, y, saliency = batch(6, 3, (8, 12))
    with pytest.raises(TypeError, match=r"Compose: mixers\[0\] is int"):
        Compose(3)
    with pytest.raises(ValueError, match=r"RMix: saliency is None, want the gradient.*input_saliency"):
        RMix()(x, y)
    with pytest.raises(ValueError, match="Compose: saliency is None"):
        Compose(RMix())(x, y)
    with pytest.raises(ValueError, match="RMix: saliency has shape"):
        RMix()(x, y, saliency[:, :1])
    with pytest.raises(ValueError, match=r"RMix: x has images of 8 x 12, want sides divisible by 8, .*\(2, 8\)"):
        RMix(patches=(2, 8))(x, y, saliency)
    with pytest.raises(ValueError, match="CutMix: x has shape"):
        CutMix(1.0)(x[0], y)
    with pytest.raises(ValueError, match="Mixup: x has shape"):
        Mixup(1.0)(x.new_zeros(()), y)
    with pytest.raises(TypeError, match="Mixup: x is list"):
        Mixup(1.0)([1], y)
    plan = CutMix(1.0).plan(x)
    with pytest.raises(ValueError, match=r"PastePlan.target: y has 5 rows, want 6"):
        plan.target(y[:5])
    with pytest.raises(TypeError, match=r"PastePlan.target: y has dtype int32"):
        plan.target(y.int())
    with pytest.raises(ValueError, match=r"PastePlan.target: y has shape \(6, 6\) of dtype .*y.float"):
        plan.target(torch.eye(6).long())
    with pytest.raises(ValueError, match="Cutout"):
        Cutout(2).plan(x).apply(x[:5])
    with pytest.raises(TypeError, match="paste: x has dtype int16"):
        plan.apply(x.short())
