"""RL-Mix: a policy that chooses every image's percentile, learnt while the classifier trains (R-Mix, Sec. 5.2).

Needs the extra ``rl`` (gymnasium, stable-baselines3). An `Episode` is an epoch of a classifier's training, `MixEnv` and
`MixVecEnv` show it as an environment, `Policy` learns in it.
"""

from .episode import Episode, observe, saliency_reward, shared_reward

try:
    from .environments import MixEnv, MixVecEnv
    from .ppo import Policy, acting
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"fastmix.app.policy needs {error.name}: pip install 'fastmix[rl]'",
                              name=error.name) from None

__all__ = ["Episode", "MixEnv", "MixVecEnv", "Policy", "acting", "observe", "saliency_reward", "shared_reward"]
