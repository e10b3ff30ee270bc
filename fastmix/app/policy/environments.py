"""An `Episode` as a Gymnasium environment (one image) and as a Stable-Baselines3 one (every image of the batch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from ...mixers.patches import RLMix
from .episode import Episode


def mix_spaces(mixer: RLMix, classes: int) -> tuple[spaces.Box, spaces.Discrete]:
    """Observations (p * p + classes,) float32, unbounded since logits are; actions: the mixer's levels."""
    length = mixer.patches[0] ** 2 + classes
    return spaces.Box(-np.inf, np.inf, (length,), np.float32), spaces.Discrete(mixer.levels)


class MixEnv(gymnasium.Env):
    """One image of every batch: its observation, its percentile, its reward. The other images draw at random.

    Args:
        start: called by `reset` with a seed, gives an episode that has not begun. Two episodes of one seed must be
            equal: start from the same weights, give the mixer a generator of that seed.
        mixer: of the episodes; gives the spaces.
        classes: number of logits.
    Source: R-Mix Sec. 5.2.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - gymnasium's own attribute

    def __init__(self, start: Callable[[int], Episode], mixer: RLMix, classes: int) -> None:
        self._start = start
        self._episode: Episode | None = None
        self.observation_space, self.action_space = mix_spaces(mixer, classes)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode = self._start(int(self.np_random.integers(2**31)))
        return self._episode.observation[0].numpy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._episode is None:
            raise gymnasium.error.ResetNeeded("MixEnv.step: call reset first")
        reward = self._episode.act(torch.tensor([int(action)]))
        return self._episode.observation[0].numpy(), float(reward[0]), self._episode.finished, False, {}


class MixVecEnv(VecEnv):
    """The first ``rows`` images of every batch as sub-environments that begin and end together.

    Args:
        mixer, classes: as for `MixEnv`.
        rows: sub-environments, at most the size of the smallest batch.
        episodes: those to run, one after the other. With none left the last observation stays after an episode, and
            ``reset`` raises RuntimeError.
    Source: R-Mix Sec. 5.2.
    """

    def __init__(self, mixer: RLMix, classes: int, rows: int, episodes: Iterable[Episode] = ()) -> None:
        self._episodes: Iterator[Episode] = iter(episodes)
        self._episode: Episode | None = None
        self._actions = np.zeros(rows, dtype=np.int64)
        super().__init__(rows, *mix_spaces(mixer, classes))

    def set_episodes(self, episodes: Iterable[Episode]) -> None:
        """The episodes that the next resets begin."""
        self._episodes = iter(episodes)

    def _observation(self) -> np.ndarray:
        assert self._episode is not None
        return self._episode.observation[:self.num_envs].numpy().copy()

    def reset(self) -> np.ndarray:
        self._episode = next(self._episodes, None)
        if self._episode is None:
            raise RuntimeError("MixVecEnv.reset: no episode is left")
        self._reset_seeds()
        self._reset_options()
        return self._observation()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        if self._episode is None:
            raise RuntimeError("MixVecEnv.step: call reset first")
        rewards = self._episode.act(torch.from_numpy(np.asarray(self._actions)).flatten())
        observation, finished = self._observation(), self._episode.finished
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if finished:
            for info, last in zip(infos, observation, strict=True):
                info["terminal_observation"] = last
            following = next(self._episodes, None)
            if following is not None:
                self._episode = following
                observation = self._observation()
        return observation, rewards.numpy(), np.full(self.num_envs, finished), infos

    def close(self) -> None:
        self._episode = None

    def _indices(self, indices: Any) -> list[int]:
        return list(self._get_indices(indices))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [None for _ in self._indices(indices)]
        return [getattr(self._episode, attr_name) for _ in self._indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("MixVecEnv: its images share one episode")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise NotImplementedError("MixVecEnv: its images share one episode")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._indices(indices)]
