"""RL-Mix: the mixer that takes percentiles, the environments, the reward, a policy that learns."""

import math

import numpy as np
import pytest
import torch
from helpers.support import seeded
from torch import nn

pytest.importorskip("gymnasium")
pytest.importorskip("stable_baselines3")

import gymnasium
from gymnasium.utils.env_checker import check_env as check_gymnasium
from helpers import ROOT, training
from stable_baselines3.common.env_checker import check_env as check_sb3

import fastmix
import fastmix.functional as F
from fastmix.app import policy as rl

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.filterwarnings("ignore:.*Box observation space.*infinity")]
CLASSES, ROWS = 3, 12


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 64, CLASSES))


def images(count, seed):
    generator = seeded(seed)
    while True:
        yield (torch.randn(count, 1, 8, 8, generator=generator),
               torch.randint(CLASSES, (count,), generator=generator))


def episode(seed, steps=3, rows=ROWS, lr=0.1, levels=10, pairing="random", record=None):
    """An epoch from the same first weights."""
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def update(y, mixed, target):
        optimizer.zero_grad()
        F.soft_cross_entropy(model(mixed), target).backward()
        if record is not None:
            record.append((mixed.detach().clone(), target, mixed.grad.clone()))
        optimizer.step()

    mixer = fastmix.RLMix(levels=levels, pairing=pairing, generator=seeded(seed))
    return rl.Episode(model, mixer, images(rows, seed), steps, update)


def mixed_env():
    return rl.MixEnv(episode, fastmix.RLMix(), CLASSES)


def test_the_environment_passes_both_checkers():
    check_gymnasium(mixed_env(), skip_render_check=True)
    check_sb3(mixed_env(), warn=True)
    assert mixed_env().observation_space.shape == (64 + CLASSES,) and mixed_env().action_space.n == 10


def test_an_episode_is_an_epoch():
    env = mixed_env()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=4)
    assert [env.step(5)[2:4] for _ in range(3)] == [(False, False), (False, False), (True, False)]
    with pytest.raises(RuntimeError, match="all 3 steps are done"):
        env.step(5)


def test_an_observation_is_the_map_and_the_logits():
    game = episode(7)
    x, y = next(images(ROWS, 7))
    model = classifier()
    grad = fastmix.input_saliency(model, x, y)
    want = torch.cat([64 * F.saliency_map(grad, (8, 8)).flatten(1), model(x).detach()], 1)
    torch.testing.assert_close(game.observation, want)
    torch.testing.assert_close(game.observation[:, :64].mean(1), torch.ones(ROWS))


def test_the_reward_is_the_cosine_of_the_two_maps():
    record = []
    game = episode(3, record=record, pairing="flip")
    x, y = next(images(ROWS, 3))
    model = classifier()
    grad = fastmix.input_saliency(model, x, y).double().numpy()
    rewards = game.act(torch.arange(ROWS) % 10)
    mixed, target, _ = record[0]
    again = mixed.clone().requires_grad_()  # the weights before the update
    F.soft_cross_entropy(model(again), target).backward()
    after = again.grad.double().numpy()
    maps = [np.sqrt((g ** 2).mean(1)).reshape(ROWS, -1) for g in (grad, after)]
    own = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(*maps, strict=True)]
    for n in range(ROWS):  # the pair shares what its two mixed images earn
        assert rewards[n].item() == pytest.approx((own[n] + own[ROWS - 1 - n]) / 2, abs=1e-5)
    assert rewards.std() > 0.01 and not torch.equal(x, mixed)
    assert game.summary()["reward"] == pytest.approx(rewards.mean().item(), abs=1e-6)


def test_rewards_of_special_gradients():
    g = torch.randn(4, 3, 8, 8, generator=seeded())
    assert rl.saliency_reward(g, -2 * g).tolist() == pytest.approx([1] * 4, abs=1e-6)
    left, right = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    left[..., 0], right[..., 1] = 1, 1
    assert rl.saliency_reward(left, right).item() == 0
    bad = g.clone()
    bad[1, 0, 0, 0] = math.nan
    assert rl.saliency_reward(g, bad)[1].item() == 0


def test_the_mixer_uses_the_percentiles_it_is_given():
    x, grad = torch.randn(6, 3, 16, 16, generator=seeded()), torch.randn(6, 3, 16, 16, generator=seeded(1))
    mixer = fastmix.RLMix(generator=seeded(2))
    q = torch.linspace(0, 0.9, 6, dtype=torch.float64)
    plan = mixer.plan(x, grad, q)
    assert plan.mask.shape == (6, 8, 8)
    assert torch.equal(plan.mask, F.saliency_mask(grad, (8, 8), q))
    assert plan.mask.sum((1, 2)).tolist() == [64 - math.ceil(q * 63) for q in q.tolist()]
    mixed, target = mixer(x, torch.arange(6), grad, q=torch.tensor(0.5))
    assert mixed.shape == x.shape and target.weight.shape == (6, 2)
    # Without q, as R-Mix with p = 8 from the same generator.
    ours, theirs = (mixer.plan(x, grad) for mixer in (fastmix.RLMix(generator=seeded(5)),
                                                      fastmix.RMix(patches=(8,), generator=seeded(5))))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    compiled = torch.compile(lambda x, grad, q: mixer.plan(x, grad, q).mask, fullgraph=True, backend="aot_eager")
    mixer.generator = None
    assert torch.equal(compiled(x, grad, q), plan.mask)
    with pytest.raises(ValueError, match="sides divisible by 8"):
        mixer.plan(torch.zeros(2, 1, 28, 28), torch.zeros(2, 1, 28, 28))


def test_images_without_an_action_draw_theirs():
    record = []
    game = episode(9, record=record, rows=200, pairing="flip")
    x, _ = next(images(200, 9))
    game.act(torch.zeros(100, dtype=torch.int64))  # q = 0: all salient
    mixed = record[0][0]
    # Where both masks are full the image is blended everywhere; one with other levels has cells of its own.
    own = (mixed == x).flatten(1).any(1)
    both = rl.saliency_reward(fastmix.input_saliency(classifier(), x, next(images(200, 9))[1]), record[0][2])
    both = (both + both.flip(0)) / 2
    assert game.summary()["reward"] == pytest.approx(both[:100].mean().item(), abs=1e-6)
    assert game.summary()["random_reward"] == pytest.approx(both[100:].mean().item(), abs=1e-6)
    assert own[100:].float().mean() < own[:100].float().mean() and game.summary()["q"] == 0
    with pytest.raises(RuntimeError, match="no episode is left"):
        rl.MixVecEnv(fastmix.RLMix(), CLASSES, 2).reset()


def test_the_vector_environment_resets_itself():
    env = rl.MixVecEnv(fastmix.RLMix(), CLASSES, ROWS, [episode(1, steps=2), episode(2, steps=2)])
    first = env.reset()
    assert first.shape == (ROWS, 64 + CLASSES) and first.dtype == np.float32
    actions = np.zeros(ROWS, dtype=np.int64)
    second, rewards, dones, _ = env.step(actions)
    assert not dones.any() and rewards.shape == (ROWS,) and not np.array_equal(first, second)
    seen, _, dones, infos = env.step(actions)
    assert dones.all() and np.array_equal(infos[0]["terminal_observation"], second[0])
    assert np.array_equal(seen, episode(2).observation.numpy())
    env.step(actions)
    last, _, dones, _ = env.step(actions)
    assert dones.all() and np.isfinite(last).all()


def test_the_reward_is_shared_by_those_who_are_mixed():
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert rl.shared_reward(rewards, torch.tensor([1, 2, 0, 3])).tolist() == [2.5, 1.5, 3.0, 8.0]
    assert rl.shared_reward(rewards, torch.tensor([1, 1, 1, 1])).tolist() == [1.0, 3.75, 4.0, 8.0]


def test_a_tenth_of_the_images_is_left_to_chance():
    assert [rl.acting(rows) for rows in (1, 2, 10, 95, 100)] == [1, 1, 9, 85, 90]
    game = episode(3)
    game.act(torch.zeros(ROWS, dtype=torch.int64))
    assert "random_reward" not in game.summary() and game.summary()["levels"] == [ROWS, *[0] * 9]


class Toy:
    """Bandit whose best level is written in the observation: 9 where the first cell is bright, else 0."""

    def __init__(self, seed, steps):
        self._generator, self.steps, self.done, self.seconds = seeded(seed), steps, 0, 0.0
        self.rewards = []
        self._show()

    finished = property(lambda self: self.done == self.steps)

    def _show(self):
        self.bright = torch.rand(64, generator=self._generator) < 0.5
        self.observation = torch.randn(64, 64 + CLASSES, generator=self._generator)
        self.observation[:, 0] = torch.where(self.bright, 2.0, -2.0)

    def act(self, action):
        best = torch.where(self.bright, 9, 0)[:len(action)]
        reward = 1 - (action - best).abs() / 9
        self.rewards.append(reward.mean().item())
        self.done += 1
        if not self.finished:
            self._show()
        return reward

    def summary(self):
        return {"reward": sum(self.rewards) / len(self.rewards), "q": 0.0, "levels": [1]}


def policy(rows=64, steps=32, seed=0, **kwargs):
    torch.manual_seed(seed)
    np.random.seed(seed)
    return rl.Policy(fastmix.RLMix(), CLASSES, rows, steps, **({"gamma": 0.0} | kwargs))


@pytest.mark.parametrize(("gamma", "epochs", "want"), [(0.0, 12, 0.9), (0.99, 12, 0.65)])
def test_a_policy_finds_the_best_percentile(gamma, epochs, want):
    """Uniform actions earn 1/2. The discount of SB3 learns too, more slowly."""
    learner = policy(gamma=gamma)
    rewards = [learner.learn(Toy(seed, 32))["reward"] for seed in range(epochs)]
    assert rewards[0] == pytest.approx(0.5, abs=0.05)
    assert rewards[-1] > want


def test_a_policy_learns_in_the_real_game():
    """Half of the images act, the others of the same batches draw at random. An episode's gap has a deviation of 0.003;
    four policies ended between 0.0066 and 0.0085."""
    learner = policy(rows=64, steps=16)
    played = [learner.learn(episode(seed, steps=16, rows=128, lr=0.0)) for seed in range(24)]
    gaps = [p["reward"] - p["random_reward"] for p in played]
    assert abs(sum(gaps[:4])) < 4 * 0.004 and sum(gaps[-8:]) > 8 * 0.004
    assert played[0]["reward"] == pytest.approx(played[0]["random_reward"], abs=0.01)
    ends = [(p["levels"][0] + p["levels"][9]) / sum(p["levels"]) for p in played]
    assert played[-1]["ms"] > 0 and ends[-1] > ends[0] + 0.1  # one mask full, its partner's all but empty


def test_learning_repeats_by_seed_and_continues_from_its_state():
    def weights(learner):
        return [p.detach().clone() for p in learner.ppo.policy.parameters()]

    straight, again, other = policy(), policy(), policy()
    for learner, seed in ((straight, 0), (again, 0), (other, 1)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        learner.learn(Toy(0, 32))
    assert all(map(torch.equal, weights(straight), weights(again)))
    assert not all(map(torch.equal, weights(straight), weights(other)))
    continued = policy(seed=5)
    continued.load_state_dict(again.state_dict())
    for learner in (straight, continued):
        torch.manual_seed(3)
        np.random.seed(3)
        learner.learn(Toy(1, 32))
    assert all(map(torch.equal, weights(straight), weights(continued)))
    with straight.alone():
        straight.learn(Toy(2, 32))
    assert all(map(torch.equal, weights(straight), weights(continued)))


@pytest.mark.parametrize("steps", [1, 5, 33, 70])
def test_every_step_is_played_once(steps):
    game = Toy(0, steps)
    policy(steps=steps).learn(game)
    assert game.finished and len(game.rewards) == steps


def test_ranks_average_gradients_and_stay_equal(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text("""
import torch, torch.distributed as dist, numpy as np
from test_rl import Toy, policy
from fastmix.app.training.distributed import processes

with processes("cpu") as here:
    learner = policy(average=here.mean)
    torch.manual_seed(here.rank), np.random.seed(here.rank)
    games = [Toy(10 * here.rank + i, 32) for i in range(2)]
    for game in games:
        learner.learn(game)
    for value in (torch.nn.utils.parameters_to_vector(learner.ppo.policy.parameters()).detach(),
                  torch.tensor(games[0].rewards)):
        both = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(both, value)
        if here.first:
            print("equal" if torch.equal(*both) else "differ")
""")
    environment = training.environment()
    environment["PYTHONPATH"] += f":{ROOT / 'tests'}:{ROOT / 'tests' / 'app'}"
    result = training.torchrun(script, env=environment)
    assert result.stdout.split() == ["equal", "differ"], result.stderr
