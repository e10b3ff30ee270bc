"""Covariances over ranks: after every update each rank holds what one process would, to 1e-5 and with the same bits."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers.support import compiled, same_bits
from torch.nn.parallel import DistributedDataParallel

import fastmix.functional as F
from fastmix import ISDACovariance, ISDALoss
from fastmix.ops.covariance import KINDS

J, A = 7, 20


def split(total, world, step):
    """Uneven parts, one of them empty where there are three ranks."""
    bounds = {2: [0, total - 3, total], 3: [0, total // 2, total // 2, total]}[world]
    return bounds if step % 2 == 0 else [total - b for b in reversed(bounds)]


def same_on_all_ranks(tensor):
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return all(same_bits(part, tensor) for part in parts)


def batches():
    """Class 5 never comes; class 6 only in the last batch, on one rank; a NaN row; the first batch is of one class."""
    torch.manual_seed(0)
    for step, n in enumerate((4, 17, 40, 5)):
        x = torch.randn(n, A) * 2 + 50
        y = torch.full((n,), 3) if step == 0 else torch.randint(0, 5, (n,))
        if step == 1:
            x[8, 4] = float("nan")
        if step == 3:
            y[-1] = 6
        yield step, x, y


def check_updates(rank, world, kind):
    ranks, alone = ISDACovariance(J, A, kind), ISDACovariance(J, A, kind)
    for module in (ranks, alone):
        module.count[5] = 2 ** 24 + 1  # exact beyond float32, and no row comes to it
    for step, x, y in batches():
        bounds = split(len(x), world, step)
        before = copy.deepcopy(ranks.state_dict())
        ranks.update(x[bounds[rank]:bounds[rank + 1]], y[bounds[rank]:bounds[rank + 1]])
        alone.skipped += F.covariance_update_(alone.count, alone.mean, alone.cov, x, y, kind=kind)
        assert torch.equal(ranks.count, alone.count) and torch.equal(ranks.skipped, alone.skipped), (kind, step)
        torch.testing.assert_close(ranks.mean, alone.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ranks.cov, alone.cov, rtol=1e-5, atol=1e-5)
        absent = [c for c in range(J) if c not in y.tolist()]
        assert same_bits(ranks.mean[absent], before["mean"][absent])
        if kind in ("full", "diag"):
            assert same_bits(ranks.cov[absent], before["cov"][absent])
        assert all(same_on_all_ranks(t) for t in ranks.state_dict().values())
    empty = copy.deepcopy(ranks.state_dict())
    ranks.update(torch.randn(0, A), torch.zeros(0, dtype=torch.int64))
    assert all(same_bits(ranks.state_dict()[name], empty[name]) for name in ("count", "mean", "cov")
               if not (kind == "shared" and name == "cov"))


def check_statistics_of_one_rank(rank):
    """synchronise off: a rank may step alone, without waiting for the others."""
    alone, want = ISDACovariance(J, A), ISDACovariance(J, A)
    alone.synchronise = False
    if rank == 0:
        x, y = torch.randn(9, A), torch.arange(9) % J
        alone.update(x, y)
        F.covariance_update_(want.count, want.mean, want.cov, x, y)
        assert all(same_bits(alone.state_dict()[name], want.state_dict()[name]) for name in ("count", "mean", "cov"))


def check_far_from_the_origin(rank, world):
    """Mean 1000, deviation 1: the first update is around a mean of 0."""
    torch.manual_seed(3)
    x, y = (torch.randn(300, A, dtype=torch.float64) + 1000).float(), torch.randint(0, J - 1, (300,))
    for kind in KINDS:
        ranks, truth = ISDACovariance(J, A, kind), ISDACovariance(J, A, kind, dtype=torch.float64)
        for step, part in enumerate((slice(0, 150), slice(150, 300))):
            xs, ys = x[part], y[part]
            bounds = split(len(xs), world, step)
            ranks.update(xs[bounds[rank]:bounds[rank + 1]], ys[bounds[rank]:bounds[rank + 1]])
            F.covariance_update_(truth.count, truth.mean, truth.cov, xs, ys, kind=kind)
            torch.testing.assert_close(ranks.mean.double(), truth.mean, rtol=1e-7, atol=0)
            torch.testing.assert_close(ranks.cov.double(), truth.cov, rtol=1e-5, atol=1e-5)


def check_collectives(rank, world):
    """How often the ranks talk: once, and for full a second time, about the classes that the batch holds."""
    sent = []
    plain = dist.all_reduce

    def counted(tensor, **options):
        sent.append(tensor.numel() * tensor.element_size())
        return plain(tensor, **options)

    dist.all_reduce = counted
    try:
        for kind, want in (("identity", [8 * (J * (A + 1) + 1)]), ("diag", [8 * (J * (2 * A + 1) + 1)]),
                           ("shared", [8 * (J * (A + 1) + 1 + A * A)]),
                           ("full", [8 * (J * (A + 1) + 1), 4 * 2 * A * A])):
            sent.clear()
            ISDACovariance(J, A, kind).update(torch.randn(4, A), torch.tensor([2, 2, 4, 2]))
            assert sent == want, (kind, sent)
    finally:
        dist.all_reduce = plain


def check_pixels(rank, world):
    torch.manual_seed(1)
    x, y = torch.randn(4, A, 3, 5), torch.randint(0, 5, (4, 3, 5))
    y[:, 0] = 255
    for kind in KINDS:
        ranks, alone = ISDACovariance(J, A, kind), ISDACovariance(J, A, kind)
        bounds = split(4, world, 0)
        ranks.update(x[bounds[rank]:bounds[rank + 1]], y[bounds[rank]:bounds[rank + 1]], ignore_index=255)
        F.covariance_update_(alone.count, alone.mean, alone.cov, x, y, 255, kind=kind)
        torch.testing.assert_close(ranks.state_dict(), alone.state_dict(), rtol=1e-5, atol=1e-5)


def check_ddp(rank, world):
    """A step inside DistributedDataParallel is the step of one process on the whole batch."""
    torch.manual_seed(2)
    x, y = torch.randn(6 * world, 8), torch.randint(0, J, (6 * world,))
    body, head = torch.nn.Linear(8, A), torch.nn.Linear(A, J)
    alone_body, alone_head = copy.deepcopy(body), copy.deepcopy(head)

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.criterion = body, head, ISDALoss(A, J)

        def forward(self, x, y, strength):
            return self.criterion(self.body(x), self.head, y, strength)[0]

    ddp = DistributedDataParallel(Step(), broadcast_buffers=False)
    alone = ISDACovariance(J, A)
    mine = slice(6 * rank, 6 * rank + 6)
    for strength in (0.2, 0.5):
        ddp.zero_grad()
        alone_body.zero_grad()
        alone_head.zero_grad()
        ddp(x[mine], y[mine], strength).backward()
        features = alone_body(x)
        F.covariance_update_(alone.count, alone.mean, alone.cov, features.detach(), y)
        augmented = F.isda_logits(alone_head(features), alone_head.weight, alone.cov, y, strength)
        torch.nn.functional.cross_entropy(augmented, y).backward()
        for ours, want in zip((*body.parameters(), *head.parameters()),
                              (*alone_body.parameters(), *alone_head.parameters()), strict=True):
            torch.testing.assert_close(ours.grad, want.grad, rtol=1e-4, atol=1e-5)


def check_group_of_one(rank):
    group = [dist.new_group([r]) for r in range(dist.get_world_size())][rank]
    module = ISDACovariance(J, A, process_group=group)
    module.update(torch.randn(5, A), torch.full((5,), rank))
    assert module.count.sum() == 5 and module.count[rank] == 5


def check_compiled(rank, world):
    for kind in ("full", "diag"):
        eager, traced = ISDACovariance(J, A, kind), ISDACovariance(J, A, kind)
        fast = compiled(traced.update)
        for _, x, y in batches():
            x, y = x[rank::world].nan_to_num(), y[rank::world]
            eager.update(x, y)
            fast(x, y)
        torch.testing.assert_close(traced.state_dict(), eager.state_dict(), rtol=1e-5, atol=1e-4)


def worker(rank, world, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for kind in KINDS:
        check_updates(rank, world, kind)
    check_far_from_the_origin(rank, world)
    check_statistics_of_one_rank(rank)
    check_collectives(rank, world)
    check_pixels(rank, world)
    check_ddp(rank, world)
    check_group_of_one(rank)
    if world == 2:
        check_compiled(rank, world)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(world, tmp_path):
    mp.spawn(worker, (world, tmp_path / "store"), nprocs=world)
