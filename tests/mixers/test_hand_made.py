"""Targets, views and plans that a person made by hand, with a field that does not fit: the error names it."""

import numpy as np
import pytest
import torch

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget, View
from fastmix.mixers import plans

pytestmark = pytest.mark.usefixtures("one_thread")
N, X, Y = 2, torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
INDEX, WEIGHT, ONES = torch.tensor([[0, 1], [1, 0]]), torch.rand(2, 2), torch.ones(2)
BOXES, MASK, LAM = torch.ones(2, 1, 4, dtype=torch.int32), torch.ones(2, 2, 2, dtype=torch.bool), torch.tensor(0.5)


@pytest.mark.parametrize("method", [
    lambda t: t.dense(3), lambda t: t.hard(), lambda t: t.smooth(0.1, 3), lambda t: t.confidence(),
    lambda t: t.counted_share(), lambda t: SoftTarget.cat([t, t]), lambda t: t.to("cpu"), lambda t: t == t,
    lambda t: fastmix.Mixup()(X, t)])
@pytest.mark.parametrize("fields,words", [
    ((INDEX.to_sparse(), WEIGHT), r"index is a sparse_coo tensor, want a plain one"),
    ((INDEX.float(), WEIGHT), "index has dtype float32, want int64"),
    ((INDEX[0], WEIGHT), r"index has shape \(2,\), want \(N, K\)"),
    ((INDEX.cpu().numpy(), WEIGHT), "index is ndarray, want a tensor"),
    ((INDEX, WEIGHT[:, :1]), r"weight has shape \(2, 1\), want"),
    ((INDEX, WEIGHT.to(torch.complex64)), "weight has dtype complex64"),
    ((INDEX, WEIGHT, ONES[:1]), r"base has shape \(1,\)"),
])
def test_a_target(method, fields, words):
    with pytest.raises((TypeError, ValueError), match=words):
        method(SoftTarget(*fields))


def test_rows_of_a_target():
    target = SoftTarget(INDEX, WEIGHT)
    assert torch.equal(target[(1, 0)].index, INDEX.flip(0))  # numbers of rows, not one of each dimension
    assert len(target[np.array([True, False])]) == len(target[[0]]) == 1
    for rows in (None, "index", 1.5, slice("a"), torch.rand(2), torch.ones(3, dtype=torch.bool), [5]):
        with pytest.raises((TypeError, IndexError), match=r"SoftTarget: rows is .*, want a slice, a mask"):
            target[rows]


def test_targets_of_other_pixels_are_not_joined():
    with pytest.raises(ValueError, match=r"SoftTarget.cat: targets\[1\].index has shape"):
        SoftTarget.cat([SoftTarget(INDEX, WEIGHT), SoftTarget.from_labels(torch.zeros(2, 3, dtype=torch.int64))])


@pytest.mark.parametrize("plan,words", [
    (plans.BlendPlan(INDEX.float(), WEIGHT), "plan.index has dtype float32"),
    (plans.BlendPlan(INDEX.tolist(), WEIGHT), "plan.index is list, want a tensor"),
    (plans.BlendPlan(INDEX, WEIGHT[:0]), r"plan.weight has shape \(0, 2\), want \(2, 2\)"),
    (plans.PastePlan(INDEX, BOXES, WEIGHT.to_sparse()), "plan.weight is a sparse_coo tensor"),
    (plans.PatchPlan(INDEX[:, :1], MASK, LAM), r"plan.index has shape \(2, 1\), want \(2, 2\)"),
    (plans.PatchPlan(INDEX, MASK[0], LAM), r"plan.mask has shape \(2, 2\), want 3 dimensions"),
    (plans.CutoutPlan(BOXES[0]), r"plan.boxes has shape \(1, 4\), want 3 dimensions"),
    (plans.CropPlan(INDEX, ONES.to_sparse(), ONES, 0.0), "plan.confidence is a sparse_coo tensor"),
    (plans.NoisePlan(X, ONES, ONES, ONES.bool()), "plan.base has dtype bool"),
    (plans.ResizedCropPlan(torch.rand(2, 4), ONES, ONES[:1], 0.0, (2, 2)), r"plan.base has shape \(1,\)"),
])
def test_a_plan(plan, words):
    with pytest.raises((TypeError, ValueError), match=words):
        plan.target(Y)


def test_images_of_a_plan():
    for plan, words in ((plans.NoisePlan(X, ONES[:1], ONES, ONES), r"plan.amount has shape \(1,\)"),
                        (plans.CutoutPlan(BOXES.float()), "plan.boxes has dtype float32, want int32"),
                        (plans.ResizedCropPlan([], ONES, ONES, 0.0, (2, 2)), "plan.boxes is list")):
        with pytest.raises((TypeError, ValueError), match=words):
            plan.apply(X)
    for plan in (plans.CropPlan(INDEX, ONES, ONES, 0.0), plans.CutoutPlan(BOXES), plans.NoisePlan(X, ONES, ONES, ONES)):
        with pytest.raises(TypeError, match=rf"{type(plan).__name__}.apply: view is 3, want a fastmix.View"):
            plan.apply(X, 3)


@pytest.mark.parametrize("y", [Y.cpu().numpy(), object(), torch.zeros(2, 4, 4, dtype=torch.int64).to_sparse()], ids=str)
@pytest.mark.parametrize("make", [fastmix.CutMix, fastmix.Cutout, fastmix.RMix, lambda: fastmix.SoftCrop(3)])
def test_labels_that_are_none(make, y):
    with pytest.raises(TypeError, match=r"\w+Plan.(target|mix): y is "):
        make()(X, y, X)


def test_a_partner_outside_of_the_batch():
    for y in (Y, SoftTarget.from_labels(Y)):
        with pytest.raises(IndexError, match=r"BlendPlan.target: plan.index of row 0 is 7, want a value in \[0, 2\)"):
            plans.BlendPlan(INDEX + 7, WEIGHT).target(y)


@pytest.mark.parametrize("name,value,words", [
    ("mean", torch.rand(3).to_sparse(), "view.mean is a sparse_coo tensor"),
    ("out_dtype", np.array([1, 2]), "view.out_dtype is array"),
    ("memory_format", object(), "view.memory_format is object"),
    ("flip", torch.rand(2), "view.flip has dtype float32, want bool"), ("shift", ONES, r"view.shift has shape \(2,\)")])
def test_a_view(name, value, words):
    view = View(torch.rand(3), torch.rand(3))._replace(**{name: value})
    for shape in ((2, 3, 4, 4), (2, 3, 2, 4, 4)):  # images and clips
        x = torch.zeros(shape, dtype=torch.uint8)
        for op, call in (("View.apply", lambda x: view.apply(x)),
                         ("blend", lambda x: F.blend(x, INDEX, WEIGHT, view=view)),
                         ("paste", lambda x: F.paste(x, INDEX, BOXES, view=view)),
                         ("patch_mix", lambda x: F.patch_mix(x, Y, MASK, LAM, view=view))):
            with pytest.raises((TypeError, ValueError), match=f"{op}: {words}"):
                call(x)


def test_saliency_that_no_mixer_takes():
    for mixer in (fastmix.RMix(), fastmix.SaliencyDCutMix()):
        with pytest.raises(TypeError, match=r"(RMix|SaliencyDCutMix): saliency has dtype int64"):
            mixer(X, Y, X.long())
        with pytest.raises(ValueError, match=r"(RMix|SaliencyDCutMix): x has shape .*, want at least one pixel"):
            mixer(X[..., :0], Y, X[..., :0])


@pytest.mark.parametrize("shape", [(0, 4, 4), (0, 2, 4, 4), (2, 0, 4), (2, 4, 0), (2, 0, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_masks_without_an_element(shape, dtype):
    x, n = torch.zeros(shape, dtype=dtype), shape[0]
    shift, index = torch.ones(n, 2, dtype=torch.int64), torch.zeros(n, 2, dtype=torch.int64)
    boxes = torch.ones(n, 1, 4, dtype=torch.int32)
    assert F.crop(x, shift, fill=1).shape == F.paste(x, index, boxes).shape == x.shape
    resized = F.resized_crop(x, torch.ones(n, 4), (3, 5), fill=1)
    assert resized.shape == (*shape[:-2], 3, 5) and bool((resized == 1).all()) and resized.dtype == dtype
    assert View(torch.rand(3), torch.rand(3), torch.ones(n, dtype=torch.bool), shift).apply_mask(x).shape == shape
    assert plans.CutoutPlan(boxes).apply(x).shape == shape
    if dtype == torch.int64 and len(shape) == 3 and n == 0:
        images = torch.rand(0, 3, *shape[1:])
        for mixer in (fastmix.CutMix(), fastmix.DCutMix(), fastmix.Cutout(), fastmix.SoftCrop(3)):
            assert mixer(images, x)[1].index.shape == (*shape, 1)


def test_what_is_no_model():
    mixer = fastmix.ManifoldMixup()
    for call in (mixer.names, mixer.choose, lambda model: mixer.inside(model, mixer.plan(X)).__enter__()):
        with pytest.raises(TypeError, match="ManifoldMixup: model is None, want a module"):
            call(None)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    with pytest.raises(TypeError, match="ManifoldMixup: plan is 3, want the BlendPlan"):
        mixer.inside(net, 3).__enter__()
    for layers in (0, None, [True], [1.0]):
        with pytest.raises(TypeError, match=r"ManifoldMixup: layers (is|holds) .*, want"):
            fastmix.ManifoldMixup(layers=layers)


def test_what_belongs_to_training():
    refinement = fastmix.Refinement(3, 1)
    with pytest.raises(TypeError, match=r"Refinement: mixer is .*, want a fastmix mixer or None"):
        refinement.begin(1, fastmix.Mixup)
    with pytest.raises(TypeError, match="Refinement: optimizer is 0, want a torch optimizer or None"):
        refinement.begin(1, None, 0)
    with pytest.raises(ValueError, match=r"Refinement\.smooth: eps is 2, want"):
        refinement.smooth(Y, 2, 3)
    with pytest.raises(TypeError, match=r"Refinement\.smooth: target\.index is list, want a tensor"):
        refinement.smooth(SoftTarget(INDEX.tolist(), WEIGHT), 0.1, 3)
    with pytest.raises(TypeError, match=r"uncertainty: device is 1\.5, want a torch\.device"):
        fastmix.uncertainty(torch.nn.Flatten(), [(X[0], 0)] * 4, device=1.5)
    for device, kind in ((1.5, TypeError), ("nowhere", ValueError)):
        with pytest.raises(kind, match=r"ISDACovariance: device is .*, want a torch.device"):
            fastmix.ISDACovariance(3, 4, device=device)
    for mixers, weights, words in ((3, None, "mixers is 3"), ([fastmix.Mixup()], 0.5, "weights is 0.5"),
                                   ([fastmix.Mixup()], "1", "weights is '1'")):
        with pytest.raises(TypeError, match=f"RandomChoice: {words}, want"):
            fastmix.RandomChoice(mixers, weights)
    with pytest.raises(ValueError, match=r"FocalLoss: logits has shape .*, want at least one class"):
        fastmix.FocalLoss(ignore_index=0)(torch.rand(2, 0), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="explicit_sda: cov has a matrix without a root"):
        F.explicit_sda(torch.rand(2, 4), torch.rand(3, 4), None, torch.full((3, 4, 4), float("nan")), Y, 0.5, 2)
