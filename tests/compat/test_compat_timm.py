"""fastmix.compat.timm against timm itself: the same seed gives the same images, targets and losses."""

import copy

import numpy as np
import pytest
import torch

timm_data = pytest.importorskip("timm.data", exc_type=ImportError)
timm_loss = pytest.importorskip("timm.loss", exc_type=ImportError)

from helpers.support import loss_and_gradient  # noqa: E402

from fastmix import SoftTarget  # noqa: E402
from fastmix.compat import timm as ours  # noqa: E402

CLASSES = 7
SETTINGS = {
    "mixup": {"mixup_alpha": 0.8}, "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
    "both": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.7},
    "minmax": {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.8)},
    "uncorrected": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "correct_lam": False},
    "never": {"prob": 0.0}}


def batch(rows=6, dtype=torch.float32, size=(9, 12)):
    g = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 3, *size, generator=g).to(dtype), torch.randint(CLASSES, (rows,), generator=g)


def both(make, seed, x, y):
    """What timm and ours make of one seed."""
    found = []
    for module in (timm_data, ours):
        np.random.seed(seed)
        torch.manual_seed(seed)
        found.append(make(module)(x.clone(), y.clone()))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
@pytest.mark.parametrize("name", SETTINGS)
def test_mixup(name, mode, smoothing):
    for dtype in (torch.float32, torch.float64):
        for layout in (torch.contiguous_format, torch.channels_last):
            x, y = batch(dtype=dtype)
            x = x.contiguous(memory_format=layout)
            for seed in range(4):
                (x1, t1), (x2, t2) = both(
                    lambda m: m.Mixup(**SETTINGS[name], mode=mode, label_smoothing=smoothing, num_classes=CLASSES),
                    seed, x, y)
                torch.testing.assert_close(x2, x1, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(t2, t1.to(t2.dtype), rtol=1e-5, atol=1e-6)
                assert x2.is_contiguous(memory_format=layout) and t2.is_contiguous()


@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
def test_boxes_without_a_pixel(mode):
    """With lambda as it was drawn the label says more than the images show."""
    x, y = batch(size=(2, 2))
    for seed in range(20):
        for how in ({"mixup_alpha": 0.0}, {"mixup_alpha": 0.8}):
            (x1, t1), (x2, t2) = both(lambda m, how=how: m.Mixup(**how, cutmix_alpha=1.0, correct_lam=False, mode=mode,
                                                                 num_classes=CLASSES), seed, x, y)
            torch.testing.assert_close(x2, x1, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(t2, t1.to(t2.dtype), rtol=1e-5, atol=1e-6)


def test_a_sparse_target_says_the_same():
    x, y = batch()
    for mode in ("batch", "elem", "pair"):
        how = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "mode": mode, "num_classes": CLASSES}
        np.random.seed(3)
        dense = ours.Mixup(**how)(x, y)[1]
        np.random.seed(3)
        sparse = ours.Mixup(**how, sparse=True)(x, y)[1]
        assert isinstance(sparse, SoftTarget)
        torch.testing.assert_close(sparse.dense(CLASSES), dense)


@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
def test_odd_batches(mode):
    """timm refuses them. The image in the middle is its own partner."""
    x, y = batch(rows=5)
    np.random.seed(1)
    mixed, target = ours.Mixup(1.0, 1.0, mode=mode, label_smoothing=0.0, num_classes=CLASSES)(x, y)
    torch.testing.assert_close(mixed[2], x[2])
    assert torch.equal(target.argmax(1)[2], y[2]) and torch.allclose(target.sum(1), torch.ones(5))


def test_what_the_loop_and_the_loader_ask_for():
    mixup = ours.Mixup(num_classes=CLASSES)
    assert isinstance(mixup, timm_data.Mixup)
    mixup.mixup_enabled = False
    x, y = batch()
    mixed, target = mixup(x, y)
    assert torch.equal(mixed, x) and torch.equal(target.argmax(1), y)
    assert copy.deepcopy(mixup).sparse is False
    before = x.clone()
    mixup.mixup_enabled = True
    mixup(x, y)
    ours.Mixup(1.0, 1.0, mode="elem", num_classes=CLASSES)(x, y)
    assert torch.equal(x, before)


def test_multi_label():
    x, _ = batch()
    y = torch.randint(2, (6, CLASSES))
    for mode in ("batch", "elem"):
        (x1, t1), (x2, t2) = both(lambda m, mode=mode: m.Mixup(mode=mode, num_classes=CLASSES, multi_label=True), 5, x,
                                  y)
        torch.testing.assert_close(x2, x1)
        torch.testing.assert_close(t2, t1.to(t2.dtype))


def test_bytes_are_left_to_timm():
    x, y = batch()
    x = (x * 50).to(torch.uint8)
    (x1, _), (x2, _) = both(lambda m: m.Mixup(0.0, 1.0, num_classes=CLASSES), 2, x, y)
    assert torch.equal(x1, x2)


# ---------------------------------------------------------------- losses

@pytest.mark.parametrize("name,options,kind", [
    ("SoftTargetCrossEntropy", {}, "dense"), ("SoftTargetCrossEntropy", {}, "sparse"),
    ("LabelSmoothingCrossEntropy", {"smoothing": 0.1}, "labels"),
    ("LabelSmoothingCrossEntropy", {"smoothing": 0.0}, "labels"),
    *(("BinaryCrossEntropy", options, kind)
      for options in ({}, {"smoothing": 0.0}, {"target_threshold": 0.2}, {"sum_classes": True}, {"reduction": "sum"},
                      {"reduction": "none"}, {"pos_weight": 2.0}, {"weight": torch.rand(CLASSES) + 0.5},
                      {"smooth_dense": True}, {"sum_classes": True, "weight": torch.rand(CLASSES) + 0.5})
      for kind in ("labels", "dense", "sparse"))])
def test_losses(name, options, kind):
    logits, (_, y) = torch.randn(6, CLASSES), batch()
    sparse = SoftTarget(torch.stack([y, y.flip(0)], 1), torch.tensor([[0.7, 0.3]]).expand(6, 2).contiguous())
    target = {"labels": y, "dense": sparse.dense(CLASSES), "sparse": sparse}[kind]
    if kind == "sparse" and options.get("smooth_dense"):
        pytest.skip("timm has no sparse targets, whose smoothing could be compared")
    dense = sparse.dense(CLASSES) if kind == "sparse" else target
    wanted = loss_and_gradient(getattr(timm_loss, name)(**options), logits, dense)
    found = loss_and_gradient(getattr(ours, name)(**options), logits, target)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
