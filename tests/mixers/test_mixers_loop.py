"""One loop for every mixer: what they are called with and return, `applied`, defaults that the classes have."""

import inspect

import pytest
import torch
from torch import nn

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget, mixers

# What a mixer cannot know by itself, and members.
ARGUMENTS = {"Compose": ([fastmix.Mixup()], {}), "RandomChoice": ([[fastmix.Mixup(), fastmix.CutMix()]], {}),
             "SoftCrop": ([5], {}), "SoftResizedCrop": ([5], {}), "SoftNoise": ([5], {})}
NAMES = sorted(name for name in mixers.__all__ if inspect.isclass(found := getattr(mixers, name))
               and issubclass(found, mixers.Mixer) and found is not mixers.Mixer)


def make(name):
    arguments, options = ARGUMENTS.get(name, ([], {}))
    return getattr(fastmix, name)(*arguments, **options)


def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 16, 16, generator=g), torch.arange(6) % 5


def small_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 5))


@pytest.mark.parametrize("name", NAMES)
def test_every_mixer_returns_two_things_and_is_called_alike(name):
    x, y = batch()
    result = make(name)(x, y, saliency=x, view=None)
    assert isinstance(result, tuple) and len(result) == 2
    images, target = result
    assert images.shape == x.shape and isinstance(target, SoftTarget) and target.confidence().shape == (6,)
    assert list(inspect.signature(type(make(name)).forward).parameters)[:5] == ["self", "x", "y", "saliency", "view"]


@pytest.mark.parametrize("name", NAMES)
def test_every_mixer_reads_bytes_through_a_view(name):
    x, y = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8), torch.arange(6)
    view = fastmix.View.draw(x, torch.full((3,), 0.4), torch.full((3,), 0.2), pad=2)
    seen = view.apply(x)
    torch.manual_seed(3)
    images, target = make(name)(x, y % 5, saliency=seen, view=view)
    torch.manual_seed(3)
    want, wanted = make(name)(seen, y % 5, saliency=seen)
    torch.testing.assert_close(images, want)
    assert torch.equal(target.index, wanted.index) and torch.equal(target.weight, wanted.weight)


@pytest.mark.parametrize("name", NAMES)
def test_applied_is_the_same_loop_for_all(name):
    """For all but ManifoldMixup it yields what a call returns, with the model's saliency where one is wanted."""
    x, y = batch()
    model, mixer = small_model(), make(name)
    torch.manual_seed(3)
    with mixer.applied(model, x, y) as (images, target):
        logits = model(images)
    torch.manual_seed(3)
    if name == "ManifoldMixup":
        plan = mixer.plan(x)
        with mixer.inside(model, plan):
            want = model(x)
        assert images is x and torch.equal(target.weight, plan.weight)
    else:
        saliency = F.input_saliency(model, x, y) if mixer.needs_saliency else None
        mixed, wanted = mixer(x, y, saliency)
        want = model(mixed)
        assert torch.equal(images, mixed) and torch.equal(target.weight, wanted.weight)
    assert torch.equal(logits, want)


def test_applied_reads_bytes_and_skips_what_is_switched_off():
    x, y = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.arange(4)
    view = fastmix.View(torch.full((3,), 0.4), torch.full((3,), 0.2))
    model, mixer = small_model(), fastmix.RMix()
    with mixer.applied(model, x, y, view=view) as (images, _):
        assert images.dtype == torch.float32 and not torch.equal(images, view.apply(x))
    with fastmix.ManifoldMixup(layers=["0"]).applied(model, x, y, view=view) as (images, _):
        assert torch.equal(images, view.apply(x))
        assert model(images).shape == (4, 5)
    mixer.enabled = False
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    with mixer.applied(model, x, y, view=view) as (images, target):
        assert torch.equal(images, view.apply(x)) and (target.dense(5).argmax(1) == y).all()
    handle.remove()
    assert not calls, "no saliency is computed for a mixer that is switched off"


@pytest.mark.parametrize("made,attributes", [
    (fastmix.Mixup(), {"alpha": 1.0}), (fastmix.CutMix(), {"alpha": 1.0}), (fastmix.ManifoldMixup(), {"alpha": 1.0}),
    (fastmix.DMixup(), {"k": 3, "alpha": 1 / 3}), (fastmix.DCutMix(), {"k": 3, "alpha": 1 / 3}),
    (fastmix.SaliencyDCutMix(), {"k": 3, "alpha": 1 / 3}), (fastmix.DCutMix(5), {"k": 5, "alpha": 0.2}),
    (fastmix.Cutout(), {"length": None}), (fastmix.RMix(), {"alpha": 1.0, "patches": (2, 4), "levels": 10}),
    (fastmix.RLMix(), {"patches": (8,)}), (fastmix.SoftCrop(9), {"sigma": 0.3, "k": 2, "chance": 1 / 9}),
    (fastmix.SoftNoise(9), {"sigma": 0.1, "k": 1})], ids=lambda value: type(value).__name__)
def test_the_classes_have_the_papers_defaults(made, attributes):
    assert {name: getattr(made, name) for name in attributes} == attributes


def test_cutout_takes_half_of_the_image():
    boxes = torch.cat([fastmix.Cutout().plan(torch.zeros(50, 3, 20, 40)).boxes for _ in range(4)])
    assert boxes[..., 2].max() == 10 and boxes[..., 3].max() == 10


def test_percentiles_are_an_argument_of_the_call():
    x, y = batch()
    mixer = fastmix.RLMix(patches=4)
    images, target = mixer(x, y, x, q=torch.tensor(0.0))  # every cell of both is salient: Mixup
    assert torch.equal(target.weight[0], target.weight[-1]) and images.shape == x.shape
    assert not [name for name in vars(mixer) if "_q" in name]


@pytest.mark.parametrize("name", ["confidence", "pair_iou", "pair_weight", "visibility"])
def test_names_that_moved_are_still_found(name):
    with pytest.warns(DeprecationWarning, match=f"fastmix.{name} is fastmix.functional.{name} now"):
        assert getattr(fastmix, name) is getattr(F, name)
    assert name not in fastmix.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fastmix.nothing
