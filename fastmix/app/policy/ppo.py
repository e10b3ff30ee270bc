"""PPO of Stable-Baselines3, learning over the images of a classifier's batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3 import PPO
from torch import Tensor, nn

from ...mixers.patches import RLMix
from ...states import misfit, optimizer_misfit
from .environments import MixVecEnv
from .episode import Episode, observe

# PPO's own default of 2048 transitions between updates; its minibatches of 64 would cost more time than the training of
# a small classifier, so a rollout has 4 minibatches or a few more, as is usual for many environments side by side.
ROLLOUT, MINIBATCHES = 2048, 4


def acting(rows: int) -> int:
    """Images of a batch that the policy chooses for. The others, a tenth, keep drawing at random, as R-Mix does: their
    reward, of the same model in the same steps, is what the policy's is to be compared with."""
    return max(1, rows - -(-rows // 10))


def _minibatches(steps: int) -> int:
    """The smallest number from MINIBATCHES up that divides the steps of a rollout."""
    return next((m for m in range(MINIBATCHES, steps) if steps % m == 0), steps)


class Policy:
    """Chooses percentiles from observations, and learns to.

    Hyper-parameters are SB3's defaults (learning rate 3e-4, lambda 0.95, clip 0.2, 10 passes, two layers of 64 for
    policy and value) except the sizes above. It computes on the CPU, where SB3 is at its best with such a network; with
    a classifier on a GPU every step waits for the device.

    Draws, first weights included, come from torch's and NumPy's global generators: seed both before.

    Args:
        mixer: gives grid and levels.
        classes: number of logits.
        rows: images that it chooses for and learns from in every step, at most the smallest batch; see `acting`. The
            others draw their percentiles at random.
        steps: of an epoch.
        average: makes a tensor the mean over all processes, in place; None alone. Every update's gradient goes through
            it, so all processes hold the same policy if they began with the same and have equal rows and steps.
        gamma: discount of later rewards. The command's is 0, unlike SB3's of 0.99: the next image of a row is another
            one, whose reward does not follow from this action. With 0.99 the return is a sum over the remaining epoch,
            which the value network cannot predict, as observations do not contain how much remains, and that sum hides
            the 0.02 that an action decides.
    Source: R-Mix Sec. 5.2, which takes its hyper-parameters from Andrychowicz et al. 2021 and lists none.
    """

    def __init__(self, mixer: RLMix, classes: int, rows: int, steps: int,
                 average: Callable[[Tensor], object] | None = None, *, gamma: float) -> None:
        rollouts = max(1, round(steps * rows / ROLLOUT))
        self.mixer, self.rows, self.rollout = mixer, rows, max(1, steps // rollouts)
        self.env = MixVecEnv(mixer, classes, rows)
        self.ppo = PPO("MlpPolicy", self.env, n_steps=self.rollout, gamma=gamma, device="cpu",
                       batch_size=max(2, rows * self.rollout // _minibatches(self.rollout)))
        self._average = average
        self.ppo.policy.optimizer.register_step_pre_hook(lambda *_: self._average_gradients())

    def _average_gradients(self) -> None:
        if self._average is None:
            return
        grads = [p.grad for p in self.ppo.policy.parameters() if p.grad is not None]
        flat = nn.utils.parameters_to_vector(grads)
        self._average(flat)
        nn.utils.vector_to_parameters(flat, grads)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For a trial by one process; the policy is afterwards what it was before."""
        average, self._average = self._average, None
        state = self.state_dict()
        try:
            yield
        finally:
            self._average = average
            self.load_state_dict(state)

    def learn(self, episode: Episode) -> dict[str, Any]:
        """Runs an episode to its end and learns from it.

        An episode's first steps that fill no whole rollout are run without learning, so that the last rollout ends
        with the episode.

        Returns: `Episode.summary`, and ms (of a step, spent on choosing and learning).
        """
        started = time.perf_counter()
        for _ in range(episode.steps % self.rollout):
            episode.act(torch.from_numpy(self._sample(episode.observation)))
        learnt = episode.steps - episode.done
        if learnt:
            self.env.set_episodes([episode])
            self.ppo.learn(learnt * self.rows, log_interval=None)  # type: ignore[arg-type]
        own = time.perf_counter() - started - episode.seconds
        return episode.summary() | {"ms": 1e3 * own / episode.steps}

    def _sample(self, observation: Tensor) -> Any:
        return self.ppo.predict(observation[:self.rows].numpy())[0]

    def choose(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The input gradient of a batch, and a percentile (N,) for every image, drawn from the policy."""
        grad, observation = observe(model, self.mixer, x, y)
        action = torch.from_numpy(self.ppo.predict(observation.numpy())[0])
        return grad, self.mixer.percentiles(x.device)[action.to(x.device)]

    def state_dict(self) -> dict[str, Any]:
        """Weights of the policy and the moments of its optimiser, copied."""
        return _copied(self.ppo.get_parameters())

    def misfit(self, state: Any) -> str | None:
        """In words, where a state is that of another policy; None: it is not."""
        like = self.state_dict()
        return (misfit({"policy": state["policy"]}, {"policy": like["policy"]}) or optimizer_misfit(
            state["policy.optimizer"], self.ppo.policy.optimizer)
            if isinstance(state, dict) and state.keys() == like.keys() else "policy has other entries")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ppo.set_parameters(state, exact_match=True, device="cpu")


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(inner) for inner in value]
    return value
