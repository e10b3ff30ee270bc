"""RL-Mix: a policy that chooses every image's percentile, learnt while the classifier trains (R-Mix, Sec. 5.2).

Needs the extra ``rl`` (gymnasium, stable-baselines3). An `Episode` is an epoch of a classifier's training, `MixEnv` and
`MixVecEnv` show it as an environment, `Policy` learns in it.
"""

from .envs import MixEnv, MixVecEnv
from .episode import Episode, saliency_reward
from .policy import Policy

__all__ = ["Episode", "MixEnv", "MixVecEnv", "Policy", "saliency_reward"]
