"""An epoch of a classifier's training as an episode of reinforcement learning.

A step: a batch is observed, a percentile is chosen for every image, the images are rewarded. The paper gives the
observation (saliency map on p x p cells and logits), the action (the percentile of every image), the reward (cosine
similarity of the saliency of an image before and after mixing), p = 8 and the episode (an epoch). Where it is silent:

- the actions are the `levels` percentiles of R-Mix, so an untrained policy is close to R-Mix;
- the map is scaled to mean 1, logits enter as they are;
- the reward compares maps of all pixels (R-Mix Eq. 2), not of cells;
- both gradients belong to the same weights, the second being that of the training step itself;
- the reward of an image is the mean over the two mixed images that it is part of, its own and its partner's, both of
  which its mask decides. With the reward of its own alone, each learns to take its partner's cells: on digits
  percentile 0 earned an image 0.04 more than the mean, and 0.99 its partner as much; all learnt 0, and together earned
  what random percentiles do (0.643 and 0.641).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...functional import saliency_map, soft_cross_entropy
from ...mixers.patches import RLMix
from ...saliency import input_saliency
from ...targets import SoftTarget

Update = Callable[[Tensor, Tensor, SoftTarget], object]


def saliency_reward(before: Tensor, after: Tensor) -> Tensor:
    """Cosine similarity of two saliency maps of every image.

    Args: before, after: (N, C, H, W) gradients of the loss with respect to the images and to the mixed images.
    Returns: (N,) float32 in [0, 1] (maps have no negative value); 0 where a gradient is not finite.
    Source: R-Mix Sec. 5.2, with the maps of Eq. 2.
    """
    size = (before.shape[2], before.shape[3])
    a, b = (saliency_map(grad, size).flatten(1).float() for grad in (before, after))
    return torch.nan_to_num(nn.functional.cosine_similarity(a, b, dim=1), nan=0.0)


def shared_reward(rewards: Tensor, partner: Tensor) -> Tensor:
    """The reward of every image: the mean over the mixed images that it is part of.

    Args: rewards: (N,) of the mixed images, see `saliency_reward`. partner: (N,) int64, the image that each is mixed
        with; itself where it is not mixed.
    Returns: (N,); with a permutation of partners of the same mean.
    Source: ours, on the reward of R-Mix Sec. 5.2; see the top of this file.
    """
    mixed = partner != torch.arange(len(partner), device=partner.device)
    total = rewards.index_add(0, partner[mixed], rewards[mixed])
    return total / torch.ones_like(rewards).index_add(0, partner[mixed], torch.ones_like(rewards[mixed]))


class Episode:
    """One pass of a classifier over batches. ``seconds``: the time spent in `act` so far.

    Args:
        model: (N, C, H, W) images to (N, J) logits. Its mode and its statistics are the caller's business.
        mixer: draws partners and lambda, and mixes with the chosen percentiles.
        batches: yields x (N, C, H, W) float and y (N,) int64; as many as steps.
        steps: the length of the episode, >= 1.
        update: ``update(y, mixed, target)`` trains the model on the mixed images. It must run a backward pass through
            mixed, a leaf that requires a gradient: the reward is read from mixed.grad.
        context: entered around the saliency pass (autocast).
        mark: called with the name of every phase that has ended: "saliency", "policy", "mix".
    Source: R-Mix Sec. 5.2, where an episode is an epoch.
    """

    def __init__(self, model: nn.Module, mixer: RLMix, batches: Iterator[tuple[Tensor, Tensor]], steps: int,
                 update: Update, context: Callable[[], AbstractContextManager[object]] = nullcontext,
                 mark: Callable[[str], None] = lambda phase: None) -> None:
        self.model, self.mixer, self.steps = model, mixer, steps
        self.done, self.seconds = 0, 0.0
        self._chosen, self._drawn, self._q = _Mean(), _Mean(), _Mean()
        self._levels = torch.zeros(mixer.levels, dtype=torch.int64)
        self._batches, self._update, self._context, self._mark = batches, update, context, mark
        self._next_batch()

    @property
    def finished(self) -> bool:
        return self.done == self.steps

    def _next_batch(self) -> None:
        self._x, self._y = next(self._batches)
        self._grad, self.observation = observe(self.model, self.mixer, self._x, self._y, self._context)
        self._mark("saliency")

    def act(self, action: Tensor) -> Tensor:
        """Mixes the batch that was observed, trains on it, observes the next.

        Args: action: (M,) int64 below mixer.levels, of the first M images; the others draw theirs at random.
        Returns: (M,) float32 rewards on the CPU. `observation` is then that of the next batch; after the last one it
            stays.
        """
        if self.finished:
            raise RuntimeError(f"Episode.act: all {self.steps} steps are done")
        started = time.perf_counter()
        self._mark("policy")
        device, rows = self._x.device, len(self._y)
        levels = torch.randint(self.mixer.levels, (rows,), device=device, generator=self.mixer.generator)
        levels[:len(action)] = action.to(device)
        q = self.mixer.percentiles(device)[levels]
        plan = self.mixer.plan(self._x, self._grad, q=q)
        mixed, target = plan.mix(self._x, self._y)
        mixed.requires_grad_()
        self._mark("mix")
        self._update(self._y, mixed, target)
        assert mixed.grad is not None
        rewards = shared_reward(saliency_reward(self._grad, mixed.grad).cpu(), plan.index[:, 1].cpu())
        rewards, others = rewards.split([len(action), rows - len(action)])
        self.done += 1
        self._chosen.add(rewards)
        self._drawn.add(others)
        self._q.add(q[:len(action)])
        self._levels += torch.bincount(action.cpu(), minlength=self.mixer.levels)
        if not self.finished:
            self._next_batch()
        self.seconds += time.perf_counter() - started
        return rewards

    def summary(self) -> dict[str, Any]:
        """Means over the steps so far: reward and q (percentile) of the images that a policy chose for, random_reward
        of those that drew theirs. What has no image is left out. levels: how often each was chosen."""
        means = {"reward": self._chosen, "random_reward": self._drawn, "q": self._q}
        found: dict[str, Any] = {name: mean.value() for name, mean in means.items() if mean.count}
        return found | {"levels": self._levels.tolist()}


class _Mean:
    def __init__(self) -> None:
        self._sum, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self._sum += float(values.sum())
        self.count += len(values)

    def value(self) -> float:
        return self._sum / self.count


def observe(model: nn.Module, mixer: RLMix, x: Tensor, y: Tensor,
         context: Callable[[], AbstractContextManager[object]] = nullcontext) -> tuple[Tensor, Tensor]:
    """What the policy observes of a batch.

    Returns: the input gradient, and (N, p * p + J) float32 on the CPU: the saliency map of mean 1, then the logits.
        What is not finite is 0, so that a training that diverges is reported by its loss.
    Source: R-Mix Sec. 5.2, with the map of Eq. 3.
    """
    logits: list[Tensor] = []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        logits.append(outputs.detach())
        return soft_cross_entropy(outputs, labels)

    with context():
        grad = input_saliency(model, x, y, loss)
    p = mixer.patches[0]
    cells = saliency_map(grad, (p, p)).flatten(1) * (x.shape[2] * x.shape[3])
    observation = torch.cat([cells.float(), logits[0].float()], 1)
    return grad, torch.nan_to_num(observation, nan=0.0, posinf=0.0, neginf=0.0).cpu()
