"""python -m fastmix bench rl-reward --checkpoint DIR: how much reward there is for a policy to find in a run of RL-Mix.

On fixed batches of training images, with the weights of the run and without PPO, the mean reward of R-Mix Sec. 5.2

- where all images draw their percentile at random, where the run's policy chooses all of them, and where all have the
  same one ("together"), for every level;
- of an image at every level where most others draw at random ("alone"), for itself and as it is paid, shared with
  its partner; and of the best level of every image by half of the draws, judged on the other half ("oracle"): what
  knowing the image adds to knowing the best level.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastmix.functional as F
from fastmix import __version__
from fastmix.app import data
from fastmix.app import policy as rl
from fastmix.app.console import CommandError, Parser, UsageError
from fastmix.app.results.collect import spread
from fastmix.app.training import checkpoint, run
from fastmix.app.training.distributed import Processes
from fastmix.app.training.options import Options
from fastmix.app.training.places import run_folder
from fastmix.app.training.setup import Setup, load_data, load_weights

from .harness import machine
from .harness.entries import Entry
from .harness.report import aligned
from .harness.result_tables import reward_rows

GROUPS = 4  # of a batch, one after the other "alone", so that three in four of their partners draw at random


def parser() -> Parser:
    p = Parser(prog="python -m fastmix bench rl-reward", description="How much reward there is for a policy to find in "
               "a run of RL-Mix: all images at\nrandom, by the policy, at every level, and each at its best one.")
    p.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a run of rlmix")
    p.add_argument("--draws", type=int, default=24, help="batches, each with its own partners and lambda (24)")
    p.add_argument("--images", type=int, default=100, help="of a batch (100)")
    p.add_argument("--threads", type=int, default=1, help="torch's CPU threads (1)")
    p.add_argument("--machine", metavar="NAME", help="what to call this machine in the result")
    p.add_argument("--json", type=Path, metavar="PATH", help="write the result there")
    return p


def load(folder: Path) -> Setup:
    folder = run_folder(folder)
    options = Options.from_json(folder / run.CONFIG)
    if options.method != "rlmix":
        raise CommandError(f"{folder} is a run of {options.method}, want rlmix")
    here = Processes(0, 1, torch.device("cpu"))
    setup = run.setup(dataclasses.replace(options, device="cpu"), load_data(options), here)
    load_weights(setup.model, folder, setup.policy)
    setup.model.train()  # as in training, where rewards are paid
    return setup


class Table:
    """Rewards of the images of one batch.

    Every call of `rewards` with the same draw has the same partners and lambda, whatever the percentiles.
    """

    def __init__(self, setup: Setup, x: Tensor, y: Tensor) -> None:
        self.setup, self.x, self.y = setup, x, y
        self.grad, _ = rl.observe(setup.model, setup.mixer, x, y)
        self.q = setup.mixer.percentiles(x.device)

    def rewards(self, q: Tensor, draw: int) -> Tensor:
        """(2, N) of images with these percentiles (N,): their own, and as they are paid."""
        torch.manual_seed(data.derived_seed(draw, 1))
        plan = self.setup.mixer.plan(self.x, self.grad, q)
        mixed, target = plan.mix(self.x, self.y)
        mixed = mixed.clone().requires_grad_()
        after, = torch.autograd.grad(F.soft_cross_entropy(self.setup.model(mixed), target), mixed)
        own = rl.saliency_reward(self.grad, after)
        return torch.stack([own, rl.shared_reward(own, plan.index[:, 1])])


def measure(setup: Setup, draws: int, images: int) -> Entry:
    """Means over the batches, with their standard errors where a policy is judged."""
    levels = setup.mixer.levels
    index = torch.randperm(len(setup.dataset.train.labels), generator=torch.Generator().manual_seed(0))[:images]
    pixels, y = next(setup.dataset.train.batches([index]))
    table = Table(setup, setup.inputs(pixels, None), y)
    rows = len(y)
    random, chosen, differences = [], [], []
    together, alone = torch.zeros(levels, draws), torch.zeros(levels, draws, 2, rows)
    for draw in range(draws):
        generator = torch.Generator().manual_seed(draw)
        drawn = torch.randint(levels, (rows,), generator=generator)
        group = torch.randint(GROUPS, (rows,), generator=generator)
        random.append(table.rewards(table.q[drawn], draw).mean().item())
        torch.manual_seed(data.derived_seed(draw, 2))
        np.random.seed(draw)
        _, q = setup.policy.choose(setup.model, table.x, y)
        chosen.append(table.rewards(q, draw).mean().item())
        differences.append(chosen[-1] - random[-1])
        for level in range(levels):
            together[level, draw] = table.rewards(table.q[level].expand(rows), draw).mean()
            for number in range(GROUPS):
                acting = group == number
                found = table.rewards(table.q[torch.where(acting, level, drawn)], draw)
                alone[level, draw][:, acting] = found[:, acting]
    halves = alone[:, ::2, 1].mean(1), alone[:, 1::2, 1].mean(1)
    oracle = [judged.gather(0, known.argmax(0)[None]).mean().item() for known, judged in (halves, halves[::-1])]
    error = (spread(differences)["std"] or 0.0) / draws**0.5
    return {"random": sum(random) / draws, "policy": sum(chosen) / draws,
            "policy_minus_random": {"mean": sum(differences) / draws, "standard_error": error},
            "levels": [round(q, 4) for q in table.q.tolist()], "together": together.mean(1).tolist(),
            "alone_for_itself": alone[:, :, 0].mean((1, 2)).tolist(), "alone": alone[:, :, 1].mean((1, 2)).tolist(),
            "oracle": sum(oracle) / 2, "std_of_a_reward": alone[:, :, 1].std().item()}


def show(found: Entry) -> str:
    gain = found["policy_minus_random"]
    lines = [["percentile", "together", "alone", "alone, for itself"], *reward_rows(found)]
    return "\n".join([*aligned(lines), "",
                      f"all at random {found['random']:.3f}, all by the policy {found['policy']:.3f} "
                      f"({gain['mean']:+.3f} ± {gain['standard_error']:.3f}); best level of every image "
                      f"{found['oracle']:.3f}; standard deviation of a reward {found['std_of_a_reward']:.3f}"])


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.draws < 2 or args.images < 2:
        raise UsageError("--draws and --images want at least 2")
    torch.set_num_threads(args.threads)
    setup = load(args.checkpoint)
    found = measure(setup, args.draws, args.images)
    print(show(found))
    if args.json is not None:
        options = setup.options.to_json()
        checkpoint.write_json(args.json, {"draws": args.draws, "images": args.images, "fastmix": __version__,
                                          "machine": args.machine or machine.describe(setup.device, None)["name"],
                                          "options": options, "reward": found})
        print(f"wrote {args.json}")
    return 0
