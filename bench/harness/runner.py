"""Times every provider of a case side by side in one process.

Providers: eager (the reference through the public function), compile (torch.compile of the reference, or of a form of
it without loops), every fastmix backend, the peers, and a clone of the batch, whose rate gives the floor. Each is
called once, compared with the reference, then timed in interleaved repeats whose order rotates, so that a slow minute
of the machine hits all alike.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.utils
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fastmix
from fastmix.ops.dispatch import BACKENDS, why_not
from fastmix.reference._common import is_channels_last

from ..cases.base import Case
from .entries import Entry, failure
from .machine import other_cpu_seconds
from .timing import Stats, argument_sets, floor_seconds, peak_extra_bytes, timer

OURS = tuple(name for name in BACKENDS if name != "reference")
# A provider that has used up its share of a case's time needs no more than SLOW_REPEATS.
SLOW_REPEATS, MIN_REPEATS, MAX_REPEATS = 3, 5, 200
PHASES = ("prepare", "compile", "check", "time", "memory")
# ||provider - reference|| / ||reference||: wide enough for another order of summation and for peers that round
# intermediate results to the case's dtype, narrow enough to find another function.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class WrongResult(Exception):
    """A provider that does not compute what the reference computes."""


@dataclass(frozen=True)
class Provider:
    """build: ``build(*args)`` returns the function of the case's arguments. skip: the reason not to run it."""

    name: str
    build: Callable[..., Callable[..., Any]]
    context: Callable[[], Any] = contextlib.nullcontext
    skip: str | None = None
    checked: bool = True
    compiled: bool = False
    clone: bool = False


def providers(case: Case, device: torch.device, wanted: list[str] | None = None,
              compiler: str = "inductor") -> list[Provider]:
    """Every provider of the case. wanted: names to keep; the clone always stays. compiler: torch.compile's backend."""

    def compiled(*args: Any) -> Callable[..., Any]:
        return torch.compile(case.compiled or case.reference, fullgraph=True, dynamic=False, backend=compiler)

    found = [
        Provider("clone", lambda *args: lambda x, *rest: x.clone(), checked=False, clone=True),
        Provider("eager", lambda *args: case.ours, lambda: fastmix.backend("reference")),
        Provider("compile", compiled, lambda: fastmix.backend("reference"), compiled=True),
    ]
    for name in OURS:
        reasons = [why_not(op, name, device.type) for op in case.operators]
        found.append(Provider(name, lambda *args: case.ours, lambda name=name: fastmix.backend(name),
                              skip=next(filter(None, reasons), None)))
    found += [Provider(p.name, p.build, skip=p.why_not(), checked=p.same) for p in case.peers]
    return [p for p in found if wanted is None or p.clone or p.name in wanted]


def step(fn: Callable[..., Any], backward: bool, grad_out: Tensor | None) -> Callable[..., Any]:
    """What is timed: the function, or with ``backward`` the function and all gradients that its arguments want.

    The leaf's becomes its ``.grad``. Not ``backward()``, which copies a gradient that is the incoming one itself: in a
    network nothing does.
    """
    if not backward:
        return fn

    def train(leaf: Tensor, *rest: Any) -> Any:
        leaf.grad = None
        out = fn(leaf, *rest)
        wanted = [t for t in (leaf, *rest) if isinstance(t, Tensor) and t.requires_grad]
        leaf.grad, *_ = torch.autograd.grad(out[0] if isinstance(out, tuple) else out, wanted, grad_out,
                                            allow_unused=True)
        return out
    return train


def tensors_of(result: Any, leaf: Tensor) -> list[Tensor]:
    grad = [] if leaf.grad is None else [leaf.grad]
    return [t.detach().clone() for t in [*tree_leaves(result), *grad] if isinstance(t, Tensor)]


def compare_with(expected: list[Tensor], got: list[Tensor], dtype: torch.dtype, random: bool = False) -> None:
    """WrongResult unless every tensor is the reference's, within TOLERANCE in norm; random: has its shape."""
    if [t.shape for t in expected] != [t.shape for t in got]:
        raise WrongResult(f"shapes are {[tuple(t.shape) for t in got]}, want {[tuple(t.shape) for t in expected]}")
    for e, g in () if random else zip(expected, got, strict=True):
        allowed = TOLERANCE.get(dtype) or TOLERANCE[e.dtype]  # bytes have no rounding: that of what is made of them
        e, g = e.to(torch.float64), g.to(torch.float64)
        error = float((e - g).norm() / e.norm().clamp(min=1e-30))
        if not error <= allowed:
            raise WrongResult(f"differs from the reference by {error:.1e} in norm, allowed {allowed:.0e}")


def interleave(timers: dict[str, Callable[[], float]],
               seconds: float) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Repeats over all timers within about ``seconds``; the order rotates, and turns round every other repeat.

    Every timer has the same share of the time: one that is ahead of its share sits out until the others have caught up,
    so a peer of 800 ms does not leave 5 repeats to a kernel of 1 ms, and slow repeats are spread over the whole time.

    Returns the times, and the error of every timer that failed: it is not called again.
    """
    names = list(timers)
    times: dict[str, list[float]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    failed: dict[str, Exception] = {}
    begin = now = time.perf_counter()

    def enough(name: str) -> bool:
        least = SLOW_REPEATS if spent[name] > seconds / len(names) else MIN_REPEATS
        return name in failed or len(times[name]) >= least

    for repeat in range(MAX_REPEATS):
        if now - begin >= seconds and all(map(enough, names)):
            break
        start = repeat // 2 % len(names)
        order = names[start:] + names[:start]
        share = (now - begin) / len(names)
        for name in order if repeat % 2 == 0 else reversed(order):
            if name in failed or (spent[name] > share and enough(name)):
                continue
            before = time.perf_counter()
            try:
                times[name].append(timers[name]())
            except Exception as error:
                failed[name] = error
            now = time.perf_counter()
            spent[name] += now - before
    return times, failed


@contextlib.contextmanager
def _quiet_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _graphs_compiled() -> int:
    # Not counters["frames"]: those leave out what is compiled with fullgraph=True (torch 2.13).
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def arguments(case: Case, device: torch.device) -> tuple[tuple[Any, ...], Tensor | None]:
    """The case's first arguments, and the gradient that arrives at its output (None: 1 at a scalar, or no backward)."""
    args = case.make(device, 0)
    args[0].requires_grad_(case.backward)
    if not case.backward:
        return args, None
    out = case.reference(*args)
    out = out[0] if isinstance(out, tuple) else out
    if not out.ndim:
        return args, None
    # A network hands gradients back in the format of its batch, whatever strides the reference's output has.
    last = out.ndim == 4 and is_channels_last(args[0])
    return args, torch.randn_like(out, memory_format=torch.channels_last if last else torch.contiguous_format)


def compile_reference(case: Case, device: torch.device) -> None:
    """Compiles what `run_case` compiles, as it does, and calls it once."""
    torch._dynamo.reset()
    args, grad_out = arguments(case, device)
    (compiled,) = (p for p in providers(case, device, ["compile"]) if p.compiled)
    with compiled.context():
        step(compiled.build(*args), case.backward, grad_out)(*args)


class Phases:
    """Seconds by phase; ``end(phase)`` adds what has passed since the last end."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def end(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


def run_case(case: Case, device: torch.device, seconds: float, wanted: list[str] | None = None,
             compiler: str = "inductor") -> Entry:
    """One entry of the results: the case, and per provider its times (us) or why there are none."""
    phases = Phases()
    torch._dynamo.reset()
    first, grad_out = arguments(case, device)
    set_bytes = sum(t.nbytes for t in tree_leaves(first) if isinstance(t, Tensor))
    sets = [first, *(case.make(device, seed) for seed in range(1, argument_sets(device, set_bytes)))]
    for args in sets:
        args[0].requires_grad_(case.backward)
    x = first[0]
    expected = tensors_of(step(case.reference, case.backward, grad_out)(*first), x)
    phases.end("prepare")

    entries: dict[str, Entry] = {}
    calls: dict[str, Callable[..., Any]] = {}
    contexts: dict[str, Callable[[], Any]] = {}
    timers: dict[str, Any] = {}
    chosen = providers(case, device, wanted, compiler)
    for p in chosen:
        if p.skip is not None:
            entries[p.name] = {"skipped": p.skip}
            continue
        x.grad = None
        try:
            with p.context():
                fn = p.build(*first)
                call = step(fn, case.backward and not p.clone, grad_out)
                own_sets = [(args[0].detach(),) for args in sets] if p.clone else sets
                result = call(*own_sets[0])
                phases.end("compile" if p.compiled else "check")
                if p.checked:
                    compare_with(expected, tensors_of(result, x), x.dtype, case.random)
                del result
                timers[p.name] = timer(device, call, own_sets)
        except Exception as error:  # a provider's failure is a line of the table, never the end of the run
            entries[p.name] = failure(error)
            continue
        finally:
            phases.end("compile" if p.compiled and p.name in entries else "check")
        calls[p.name], contexts[p.name] = call, p.context

    graphs = _graphs_compiled()
    with _quiet_gc():
        phases.end("check")
        others, start = other_cpu_seconds(), time.perf_counter()
        times, failed = interleave({name: _within(contexts[name], timers[name]) for name in timers}, seconds)
        others, timed = other_cpu_seconds() - others, time.perf_counter() - start
    phases.end("time")
    recompiled = _graphs_compiled() != graphs
    for name, call in calls.items():
        if name in failed:
            entries[name] = failure(failed[name])
            continue
        x.grad = None
        stats = Stats.of(times[name])
        with contexts[name]():
            extra = peak_extra_bytes(device, call, first)
        entries[name] = {"median_us": stats.median * 1e6, "q1_us": stats.q1 * 1e6, "q3_us": stats.q3 * 1e6,
                         "repeats": stats.repeats, "inner": timers[name].inner, "extra_bytes": extra}
        if device.type == "cuda":
            entries[name] |= {"host_us": timers[name].host * 1e6, "graph": timers[name].graph}
    if recompiled and "median_us" in entries.get("compile", {}):
        entries["compile"] = {"error": "it was compiled again while being timed"}
    phases.end("memory")
    return {
        "op": case.op, "case": case.name, "mode": case.mode, "quick": case.quick, "formula": case.formula,
        "moved_bytes": case.moved, "clone_bytes": 2 * x.numel() * x.element_size(), "argument_sets": len(sets),
        "scratch_bytes": case.scratch, "compiled_without_loops": case.compiled is not None,
        "timed_seconds": round(timed, 3), "cores_used_by_others": round(max(0.0, others) / timed, 2),
        "phase_seconds": {name: round(value, 3) for name, value in phases.seconds.items()},
        "goals": dict(case.goals.get(device.type, {})),
        "floor_us": floor_seconds(case.moved, 2 * x.numel() * x.element_size(), entries["clone"]["median_us"]),
        "providers": {p.name: entries[p.name] for p in chosen},
    }


def _within(context: Callable[[], Any], measure: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        with context():
            return measure()
    return run
