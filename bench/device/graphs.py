"""python -m fastmix.bench.device.graphs: what must hold on a GPU beyond single calls; exits 1 if it does not.

CUDA graph capture and replay with other inputs and new plans, whole training steps in one graph, a side stream, the
last device, torch.compile with reduce-overhead, offsets beyond 2^31 elements, and no synchronisation. A check that
crashes, hangs or breaks the device does not stop the others (`harness.worker`). `--device cpu` runs what it can without
graphs, to see that the checks themselves are right.
"""

from __future__ import annotations

import functools
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

import fastmix
import fastmix.functional as F
from fastmix.app.console import Parser, run
from fastmix.ops import dispatch

from ..harness import worker
from ..harness.cuda_graph import captured
from ..harness.entries import Entry
from . import step_graph

MODULE = "fastmix.bench.device.graphs"
BACKENDS = ("cuda", "triton")


class _Device:
    """type: where the checks run, by --device."""

    type = "cuda"


class NoGpu(Exception):
    """A check that nothing on the CPU can stand for; the message says what it needs."""


def wait() -> None:
    if _Device.type == "cuda":
        wait()


def needs_gpu(what: str) -> None:
    if _Device.type != "cuda":
        raise NoGpu(f"no GPU: {what}")


def free_memory(gigabytes: int) -> bool:
    needs_gpu("its memory")
    return torch.cuda.mem_get_info()[0] >= gigabytes * 2**30


def inputs(device: str | None = None) -> dict[str, Tensor]:
    device = device or _Device.type
    n = 8
    return {"x": torch.randn(n, 3, 32, 32, device=device), "index": torch.randint(0, n, (n, 3), device=device),
            "boxes": torch.randint(0, 16, (n, 2, 4), dtype=torch.int32, device=device),
            "lam": torch.rand(n, device=device), "z": torch.randn(n, 100, device=device),
            "y": torch.randint(0, 100, (n,), device=device)}


def step(x: Tensor, index: Tensor, boxes: Tensor, lam: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    mask = F.saliency_mask(x, (4, 4), lam)
    mixed, weight = F.patch_mix(F.paste(x, index, boxes), index[:, 0], mask, lam)
    target = fastmix.SoftTarget(torch.stack([y, y[index[:, 0].clamp(0)]], 1), weight)
    return mixed, F.soft_cross_entropy(z, target), F.saliency_peak(x)


def expected(values: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with fastmix.backend("reference"):
        return step(**values)


def check_equal(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def isda_step(state: list[Tensor], features: Tensor, logits: Tensor, weight: Tensor, labels: Tensor, kind: str,
              update: bool) -> tuple[Tensor, ...]:
    if update:
        F.covariance_update_(*state, features, labels, kind=kind)
    out = F.isda_logits(logits, weight, state[2], labels, 0.5, kind=kind)
    return out, *torch.autograd.grad(out, (logits, weight), logits.detach())


def isda_replay() -> None:
    """A graph serves other batches with other classes: nothing of a batch is read on the host."""
    kind = "diag"
    update = dispatch.why_not("covariance", dispatch._State.forced, _Device.type) is None
    j, a, n = 40, 33, 16
    state = [torch.ones(j, dtype=torch.int64, device=_Device.type), torch.zeros(j, a, device=_Device.type),
             torch.rand(j, a, device=_Device.type)]
    draws = {"features": lambda: torch.randn(n, a, device=_Device.type),
             "logits": lambda: torch.randn(n, j, device=_Device.type),
             "weight": lambda: torch.randn(j, a, device=_Device.type),
             "labels": lambda: torch.randint(0, j, (n,), device=_Device.type)}
    values = {name: make() for name, make in draws.items()}
    values["logits"].requires_grad_()
    values["weight"].requires_grad_()
    graph, out = captured(lambda: isda_step(state, **values, kind=kind, update=update), _Device.type)
    for _ in range(3):
        with torch.no_grad():
            for name, make in draws.items():
                values[name].copy_(make())
        before = [t.clone() for t in state]
        graph.replay()
        wait()
        with fastmix.backend("reference"):
            want = isda_step(before, **values, kind=kind, update=update)
        for got, wanted in zip((*out, *state), (*want, *before), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def graph_replay() -> None:
    values = inputs()
    graph, out = captured(lambda: step(**values), _Device.type)
    for _ in range(3):
        for name, value in inputs().items():
            values[name].copy_(value)
        graph.replay()
        wait()
        check_equal(out, expected(values))


def side_stream() -> None:
    needs_gpu("streams")
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
    needs_gpu("devices")
    device = f"cuda:{torch.cuda.device_count() - 1}"
    values = inputs(device)
    out = step(**values)
    assert all(t.device == torch.device(device) for t in out)
    check_equal(out, expected(values))


def call_without_waiting(call: Callable[[], object]) -> None:
    """RuntimeError if a second call synchronises; the first one compiles kernels."""
    call()
    if _Device.type != "cuda":
        call()
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def no_synchronisation() -> None:
    values = inputs()
    call_without_waiting(lambda: step(**values))


MIXERS: dict[str, Callable[[], fastmix.Mixup]] = {
    "DCutMix": lambda: fastmix.DCutMix(5, 1 / 3), "DMixup": lambda: fastmix.DMixup(3, 1 / 3),
    "CutMix": lambda: fastmix.CutMix(1.0, mode="elem"), "Mixup": lambda: fastmix.Mixup(1.0), "RMix": fastmix.RMix}


def whole() -> AbstractContextManager[None]:
    """The backend of whole mixers and steps: not every operator has a CUDA kernel."""
    forced = dispatch._State.forced
    return fastmix.backend("auto" if forced in (None, "cuda") else forced)


def whole_steps() -> None:
    """A training step of every method, from bytes to the optimizer."""
    with whole():
        step_graph.all_methods(torch.device(_Device.type))


def mixers_replay() -> None:
    with whole():
        _mixers_replay()


def _mixers_replay() -> None:
    """Whole mixers, their draws included: no synchronisation, and every replay of a graph draws another plan."""
    x, y = torch.randn(64, 3, 32, 32, device=_Device.type), torch.arange(64, device=_Device.type)
    for name, make in MIXERS.items():
        mixer = make()
        saliency = (torch.randn_like(x),) if mixer.needs_saliency else ()
        mix = functools.partial(mixer, x, y, *saliency)
        call_without_waiting(mix)
        graph, (mixed, target) = captured(mix, _Device.type)
        seen = []
        for _ in range(3):
            graph.replay()
            wait()
            assert torch.isfinite(mixed).all(), name
            torch.testing.assert_close(target.weight.sum(1), torch.ones(64, device=_Device.type))
            seen.append((mixed.clone(), target.index.clone()))
        assert not torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[1][0], seen[2][0]), name
        assert not torch.equal(seen[0][1], seen[1][1]), f"{name}: the same partners at every replay"


def large_gradient() -> None:
    """Loss and gradient of more than 2^31 logits: the last rows of 4.3 GB."""
    if not free_memory(24):
        print("large_gradient: less than 24 GB free, skipped")
        return
    n, j = 2**16 + 8, 2**15
    z = torch.randn(1, j, device=_Device.type, dtype=torch.bfloat16).expand(n, j).detach().requires_grad_()
    y = torch.arange(n, device=_Device.type) % j
    loss = F.soft_cross_entropy(z, y, reduction="none")
    grad, = torch.autograd.grad(loss.sum(), z)
    for rows in (slice(0, 8), slice(n - 8, n)):
        few = z.detach()[rows].float().requires_grad_()
        want = torch.nn.functional.cross_entropy(few, y[rows], reduction="none")
        torch.testing.assert_close(loss[rows], want, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(grad[rows].float(), torch.autograd.grad(want.sum(), few)[0], rtol=1e-2, atol=1e-4)


def compiled_with_graphs() -> None:
    values = inputs()
    how = {"mode": "reduce-overhead"} if _Device.type == "cuda" else {"backend": "eager"}
    fast = torch.compile(step, fullgraph=True, **how)
    for _ in range(4):
        out = [t.clone() for t in fast(**values)]
    check_equal(out, expected(values))


def large_batch() -> None:
    """More than 2^31 elements: the last images of a batch of 4.6 GB."""
    if not free_memory(16):
        print("large_batch: less than 16 GB free, skipped")
        return
    n, side = 1024, 896
    x = torch.empty(n, 3, side, side, dtype=torch.bfloat16, device=_Device.type)
    x[:2].normal_(), x[-2:].normal_()
    index = torch.arange(n, device=_Device.type).flip(0).unsqueeze(1).repeat(1, 2)
    boxes = torch.tensor([[[8, 16, 400, 300]]], dtype=torch.int32, device=_Device.type).repeat(n, 1, 1)
    out = F.paste(x, index, boxes)
    assert torch.equal(out[-2:], x[:2].flip(0)) and torch.equal(out[:2], x[-2:].flip(0))


# The most valuable first; what compiles for long last.
CHECKS: tuple[Callable[[], None], ...] = (graph_replay, no_synchronisation, side_stream, last_device, isda_replay,
                                          large_batch, large_gradient, mixers_replay, whole_steps, compiled_with_graphs)


def run_check(name: str, check: Callable[[], None]) -> Entry:
    torch.manual_seed(0)
    torch._dynamo.reset()
    try:
        with fastmix.backend(name):
            check()
    except NoGpu as reason:
        return {"skipped": str(reason)}
    wait()
    if _Device.type == "cuda":
        torch.cuda.empty_cache()
    return {}


def all_checks(backends: Sequence[str]) -> Iterator[tuple[str, Callable[[], Entry]]]:
    for name in backends:
        if missing(name):
            continue
        for check in CHECKS:
            yield f"{name} {check.__name__}", lambda name=name, check=check: run_check(name, check)


def missing(name: str) -> dict[str, str]:
    return {op: reason for op in ("soft_target", "paste", "patch_mix", "saliency")
            if (reason := dispatch.why_not(op, name, _Device.type)) is not None}


def shown(name: str, entry: Entry) -> str:
    if "error" in entry:
        return f"{name}: FAILED: {entry['error']}"
    return f"{name}: {entry.get('skipped', 'ok')}"


def summary(found: dict[str, Entry]) -> list[str]:
    failed = [shown(name, entry) for name, entry in found.items() if "error" in entry]
    skipped = sum("skipped" in entry for entry in found.values())
    return [*failed, f"{len(found) - len(failed) - skipped} checks passed, {len(failed)} failed"
            + (f", {skipped} need a GPU" if skipped else "")]


def main(argv: list[str]) -> int:
    p = Parser(prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--json", type=Path, default=Path("graphs.json"), help="default: %(default)s")
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--backends", default=",".join(BACKENDS), metavar="A,B", help="default: %(default)s")
    p.add_argument("--limit", type=float, default=60.0, help="seconds of a check (default %(default)s)")
    p.add_argument("--show", type=Path, metavar="JSON", help="only print the outcome of an earlier run")
    p.add_argument("--worker", action="store_true", help=SUPPRESS)
    options = p.parse_args(argv)
    _Device.type, backends = options.device, options.backends.split(",")
    if options.worker:
        return worker.run_cases(options.json, all_checks(backends), {}, shown, wait, options.limit, summary)
    if options.show:
        found = worker.load(options.show)
    else:
        for name in backends:
            if reasons := missing(name):
                print(f"{name}: {reasons}")
        found = worker.supervise(["-m", MODULE, "--worker", *argv], options.json)
    print("\n".join(summary(found)))
    return any("error" in entry for entry in found.values()) or not found


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
