"""What must hold on a GPU beyond single calls: `python -m bench.device_graphs` checks it and exits 1 if it does not.

CUDA graph capture and replay with other inputs, whole training steps in one graph, a side stream, the last device,
torch.compile with reduce-overhead, offsets beyond 2^31 elements, and no synchronisation.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable

import torch

import fastmix
import fastmix.functional as F

from . import step_graph

backend = importlib.import_module("fastmix.backend")


def inputs(device: str = "cuda") -> dict[str, torch.Tensor]:
    n = 8
    return {"x": torch.randn(n, 3, 32, 32, device=device), "index": torch.randint(0, n, (n, 3), device=device),
            "boxes": torch.randint(0, 16, (n, 2, 4), dtype=torch.int32, device=device),
            "lam": torch.rand(n, device=device), "z": torch.randn(n, 100, device=device),
            "y": torch.randint(0, 100, (n,), device=device)}


def step(x, index, boxes, lam, z, y):
    mask = F.saliency_mask(x, (4, 4), lam)
    mixed, weight = F.patch_mix(F.paste(x, index, boxes), index[:, 0], mask, lam)
    target = fastmix.SoftTarget(torch.stack([y, y[index[:, 0].clamp(0)]], 1), weight)
    return mixed, F.soft_cross_entropy(z, target), F.saliency_peak(x)


def expected(values: dict[str, torch.Tensor]):
    with fastmix.backend("reference"):
        return step(**values)


def check_equal(got, want) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def isda_step(state, features, logits, weight, labels, kind, update):
    if update:
        F.covariance_update_(*state, features, labels, kind=kind)
    out = F.isda_logits(logits, weight, state[2], labels, 0.5, kind=kind)
    return out, *torch.autograd.grad(out, (logits, weight), logits.detach())


def isda_replay() -> None:
    """A graph serves other batches with other classes: nothing of a batch is read on the host."""
    kind = "diag"
    update = backend.why_not("covariance", backend._State.forced, "cuda") is None
    j, a, n = 40, 33, 16
    state = [torch.ones(j, dtype=torch.int64, device="cuda"), torch.zeros(j, a, device="cuda"),
             torch.rand(j, a, device="cuda")]
    fresh = {"features": lambda: torch.randn(n, a, device="cuda"), "logits": lambda: torch.randn(n, j, device="cuda"),
             "weight": lambda: torch.randn(j, a, device="cuda"),
             "labels": lambda: torch.randint(0, j, (n,), device="cuda")}
    values = {name: make() for name, make in fresh.items()}
    values["logits"].requires_grad_()
    values["weight"].requires_grad_()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            isda_step(state, **values, kind=kind, update=update)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = isda_step(state, **values, kind=kind, update=update)
    for _ in range(3):
        with torch.no_grad():
            for name, make in fresh.items():
                values[name].copy_(make())
        before = [t.clone() for t in state]
        graph.replay()
        torch.cuda.synchronize()
        with fastmix.backend("reference"):
            want = isda_step(before, **values, kind=kind, update=update)
        for got, wanted in zip((*out, *state), (*want, *before), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def graph_replay() -> None:
    values = inputs()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            step(**values)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(**values)
    for _ in range(3):
        for name, fresh in inputs().items():
            values[name].copy_(fresh)
        graph.replay()
        torch.cuda.synchronize()
        check_equal(out, expected(values))


def side_stream() -> None:
    values = inputs()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # work on the wrong stream would run before this
        values["x"].mul_(2)
        out = step(**values)
    torch.cuda.current_stream().wait_stream(stream)
    check_equal(out, expected(values))


def last_device() -> None:
    """The second of two devices, with the first one current."""
    device = f"cuda:{torch.cuda.device_count() - 1}"
    values = inputs(device)
    out = step(**values)
    assert all(t.device == torch.device(device) for t in out)
    check_equal(out, expected(values))


def no_synchronisation() -> None:
    values = inputs()
    step(**values)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(**values)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def compiled_with_graphs() -> None:
    values = inputs()
    fast = torch.compile(step, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        out = [t.clone() for t in fast(**values)]
    check_equal(out, expected(values))


def large_batch() -> None:
    """More than 2^31 elements: the last images of a batch of 4.6 GB."""
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        print("large_batch: less than 16 GB free, skipped")
        return
    n, side = 1024, 896
    x = torch.empty(n, 3, side, side, dtype=torch.bfloat16, device="cuda")
    x[:2].normal_(), x[-2:].normal_()
    index = torch.arange(n, device="cuda").flip(0).unsqueeze(1).repeat(1, 2)
    boxes = torch.tensor([[[8, 16, 400, 300]]], dtype=torch.int32, device="cuda").repeat(n, 1, 1)
    out = F.paste(x, index, boxes)
    assert torch.equal(out[-2:], x[:2].flip(0)) and torch.equal(out[:2], x[-2:].flip(0))


def whole_steps() -> None:
    """A training step of every method, from bytes to the optimizer. Not every operator has a CUDA kernel."""
    forced = backend._State.forced
    with fastmix.backend("auto" if forced in (None, "cuda") else forced):
        step_graph.all_methods()


CHECKS: tuple[Callable[[], None], ...] = (graph_replay, isda_replay, side_stream, last_device, no_synchronisation,
                                          compiled_with_graphs, large_batch, whole_steps)


def main() -> int:
    failed = 0
    for name in ("cuda", "triton"):
        missing = {op: reason for op in ("soft_target", "paste", "patch_mix", "saliency")
                   if (reason := backend.why_not(op, name, "cuda")) is not None}
        if missing:
            print(f"{name}: {missing}")
            continue
        for check in CHECKS:
            torch.manual_seed(0)
            torch._dynamo.reset()
            try:
                with fastmix.backend(name):
                    check()
                print(f"{name} {check.__name__}: ok")
            except Exception:
                failed += 1
                traceback.print_exc()
                print(f"{name} {check.__name__}: FAILED")
            torch.cuda.synchronize()
    print(f"{failed} checks failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
