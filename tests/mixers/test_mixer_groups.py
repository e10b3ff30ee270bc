"""Compose and RandomChoice."""

import math

import pytest
import torch
from helpers.mixing import batch, same
from helpers.support import seeded

from fastmix import Compose, CutMix, Cutout, DMixup, Mixup, RandomChoice, RMix

pytestmark = pytest.mark.usefixtures("one_thread")


def test_compose_applies_in_order():
    torch.manual_seed(0)
    x, y, saliency = batch()
    mixer = Compose(RMix(), Cutout(4), CutMix(1.0))
    assert mixer.needs_saliency
    plan = mixer.plan(x, saliency)
    by_hand, target = x, y
    for member in plan.plans:
        by_hand, target = member.apply(by_hand), member.target(target)
    assert same(plan.mix(x, y), (by_hand, target))
    assert same((plan.apply(x), plan.target(y)), (by_hand, target))


def test_disabled_member_stays_disabled_in_a_group():
    torch.manual_seed(0)
    x, y, _ = batch()
    member = Mixup(1.0)
    for group in (Compose(member), RandomChoice([member])):
        member.enabled = False
        assert torch.equal(group(x, y)[0], x)
        member.enabled = True
        assert not torch.equal(group(x, y)[0], x)
        group.enabled = False
        assert torch.equal(group(x, y)[0], x)


@pytest.mark.parametrize("weights", [None, [3, 0, 1]])
def test_random_choice_frequencies(weights):
    members = [Mixup(1.0), CutMix(1.0), DMixup(3, 1.0)]
    choice = RandomChoice(members, weights, generator=seeded())
    drawn = [members.index(choice.choose()) for _ in range(3000)]
    share = torch.bincount(torch.tensor(drawn), minlength=3) / 3000
    expected = torch.tensor(weights or [1, 1, 1], dtype=torch.float32)
    torch.testing.assert_close(share, expected / expected.sum(), rtol=0, atol=4 * 0.5 / math.sqrt(3000))
    assert (share[expected == 0] == 0).all()


def test_random_choice_plans_a_member():
    torch.manual_seed(0)
    x, y, saliency = batch()
    choice = RandomChoice([Mixup(1.0), CutMix(1.0), RMix()])
    assert choice.needs_saliency and not RandomChoice([Mixup(1.0)]).needs_saliency
    kinds = {type(choice.plan(x, saliency)).__name__ for _ in range(30)}
    assert kinds == {"BlendPlan", "PastePlan", "PatchPlan"}
    mixed, target = choice(x, y, saliency)
    assert mixed.shape == x.shape and target.index.shape == (6, 2)


def test_random_choice_repeats_under_manual_seed():
    choice = RandomChoice([Mixup(1.0), CutMix(1.0)])
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append([type(choice.choose()).__name__ for _ in range(20)])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 2
