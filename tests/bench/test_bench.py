"""How the bench measures: clocks, statistics, the floor, memory, providers that fail; and the command itself."""

import functools
import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch.utils._pytree import tree_leaves

import fastmix
from fastmix.app import console
from fastmix.bench import operators
from fastmix.bench.cases.base import Case, Peer, case_modules, select_cases
from fastmix.bench.harness import memory, report, runner, timing
from fastmix.bench.harness.runner import OURS, WrongResult, compare_with, interleave, providers, run_case, step
from fastmix.bench.harness.timing import (
    HostTimer,
    Stats,
    argument_sets,
    floor_seconds,
    inner_calls,
    peak_above_end,
    peak_extra_bytes,
)
from fastmix.ops.dispatch import OPERATORS

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def scaled(x, factor):
    return x * factor


def tiny_case(**changes):
    def make(device, seed):
        return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)).to(device), torch.tensor(2.0)

    fields = {"op": "scale", "name": "4x8", "make": make, "ours": scaled, "reference": scaled, "moved": 256,
              "formula": "2 N D s", "operators": ("blend",), "goals": {"cpu": {"eager": 1.0}, "cuda": {"eager": 9.0}}}
    return Case(**(fields | changes))


@pytest.fixture
def compile_fast(monkeypatch):
    """torch.compile without code generation: what is tested is the bench around it."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.fixture
def cpu_backend(monkeypatch):
    """The backend "cpu" served by the reference, whether or not the C++ library is built."""
    monkeypatch.setattr(runner, "why_not", lambda op, name, device: None if name == "cpu" else "not here")
    monkeypatch.setattr(fastmix, "backend", lambda name: runner.contextlib.nullcontext())


# ---------------------------------------------------------------- clocks, statistics, memory

def test_stats_are_median_and_quartiles():
    stats = Stats.of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (stats.q1, stats.median, stats.q3, stats.repeats) == (2.0, 3.0, 4.0, 5)
    assert Stats.of([7.0]) == Stats(7.0, 7.0, 7.0, 1)


def test_floor_is_the_bytes_at_the_rate_of_the_clone():
    # A clone of 100 bytes moves 200 in 4 s: 50 bytes a second, so 300 bytes take 6 s.
    assert floor_seconds(300, 200, 4.0) == 6.0


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 1), (0.5e-3, 1), (1e-4, 5), (1e-6, 500), (0.0, 1000)])
def test_inner_loop_lasts_half_a_millisecond(seconds, calls):
    assert inner_calls(seconds) == pytest.approx(calls, abs=1)


def test_host_timer_divides_by_its_inner_loop(monkeypatch):
    calls = []
    # A clock on which a call takes 20 us and everything else nothing.
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 20e-6 * len(calls))
    clock = HostTimer(lambda *args: calls.append(args), [(1,), (2,)])
    before = len(calls)
    assert clock() == pytest.approx(20e-6)
    assert clock.inner == 26
    assert len(calls) - before == clock.inner + 1  # one call first, untimed
    assert set(calls[before + 1:]) == {(1,), (2,)}


def test_peak_above_end():
    assert peak_above_end([]) == 0
    assert peak_above_end([100]) == 0
    assert peak_above_end([100, 50, -100]) == 100
    assert peak_above_end([100, -100, 80, 30, -30]) == 30


def test_peak_extra_bytes_counts_temporaries_and_not_outputs():
    x = torch.randn(1000, 100)
    assert peak_extra_bytes(CPU, torch.clone, (x,)) == 0
    assert peak_extra_bytes(CPU, lambda x: x.exp().add(x), (x,)) == x.nbytes
    # exp's result is kept for backward: a temporary; the gradient is an output.
    leaf = x.clone().requires_grad_()
    call = step(lambda z: z.exp().sum(), True, None)
    assert peak_extra_bytes(CPU, call, (leaf,)) == pytest.approx(x.nbytes, rel=0.02)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_keep_freed_memory():
    """64 MB are mapped anew in every call by default, and the same memory under the bench's settings."""
    code = """
import resource, torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(1 << 26, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    def second(**env):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              env={**os.environ, **env})
        return int(done.stdout)

    assert second(**{memory.VARIABLE: memory.TUNABLES}) * 10 < second(**{memory.VARIABLE: ""})


def test_restart_happens_once_and_not_over_settings_of_the_user(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execv", lambda path, argv: calls.append(argv))
    monkeypatch.setattr(sys, "argv", ["fastmix", "bench", "--quick"])
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv(memory.VARIABLE, "glibc.malloc.arena_max=1")
    memory.restart_to_keep_memory("fastmix")
    assert not calls and not memory.keeps_memory()
    monkeypatch.delenv(memory.VARIABLE)
    memory.restart_to_keep_memory("fastmix")
    assert calls == [[sys.executable, "-m", "fastmix", "bench", "--quick"]] and memory.keeps_memory()
    memory.restart_to_keep_memory("fastmix")
    assert len(calls) == 1


def test_one_argument_set_on_the_cpu():
    assert argument_sets(CPU, 1) == 1


def test_a_step_leaves_a_fresh_gradient():
    leaf = torch.ones(3, requires_grad=True)
    train = step(lambda x: x * 2, True, torch.ones(3))
    train(leaf)
    train(leaf)
    assert leaf.grad.tolist() == [2, 2, 2]


def test_a_gradient_that_is_the_incoming_one_is_not_copied():
    leaf, grad = torch.ones(3, requires_grad=True), torch.ones(3)
    step(lambda x: x + 1, True, grad)(leaf)
    assert leaf.grad.data_ptr() == grad.data_ptr()


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_the_incoming_gradient_has_the_batchs_format(format):
    """Whatever the reference's strides are: here those of the other format."""
    other = torch.channels_last if format == torch.contiguous_format else torch.contiguous_format

    def twice(x):
        return (2 * x).contiguous(memory_format=other)

    batch = torch.ones(2, 3, 4, 5).contiguous(memory_format=format)
    case = Case(op="blend", name="", make=lambda device, seed: (batch.clone(),), ours=twice, reference=twice, moved=1,
                formula="", operators=("blend",), backward=True)
    _, grad = runner.arguments(case, CPU)
    assert grad.is_contiguous(memory_format=format)


# ---------------------------------------------------------------- interleaving

def test_interleave_rotates_and_gives_every_timer_the_same_repeats():
    order = []
    timers = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    found, failed = interleave(timers, seconds=0.0)
    assert not failed
    assert {len(t) for t in found.values()} == {runner.SLOW_REPEATS}
    rounds = ["".join(order[i:i + 3]) for i in range(0, len(order), 3)]
    assert rounds == ["abc", "cba", "bca"]


def test_interleave_keeps_to_its_time():
    clock = iter(range(1000))
    found, _ = interleave({"a": lambda: float(next(clock))}, seconds=0.05)
    assert runner.SLOW_REPEATS <= len(found["a"]) <= runner.MAX_REPEATS


def test_interleave_shares_the_time_out(monkeypatch):
    """A slow timer keeps to its share of the time, spread over the whole; very slow ones come to three repeats."""
    now, order = [0.0], []
    monkeypatch.setattr(runner.time, "perf_counter", lambda: now[0])

    def timer(name, seconds):
        def run():
            now[0] += seconds
            order.append(name)
            return seconds
        return run
    timers = {"slow": timer("slow", 0.1), "fast": timer("fast", 0.01), "faster": timer("faster", 0.005)}
    found, _ = interleave(timers, seconds=3.0)
    assert len(found["fast"]) > 60 and len(found["faster"]) > 60
    assert 8 <= len(found["slow"]) <= 20 and now[0] < 3.5
    half = len(order) // 2
    assert 3 <= order[half:].count("slow") <= order[:half].count("slow") + 3
    found, _ = interleave({"slow": timer("slow", 60.0), "fast": timer("fast", 0.001)}, seconds=3.0)
    assert len(found["slow"]) == runner.SLOW_REPEATS and len(found["fast"]) >= runner.MIN_REPEATS


def test_interleave_drops_a_timer_that_fails():
    def bad():
        raise RuntimeError("gone")
    found, failed = interleave({"good": lambda: 1.0, "bad": bad}, seconds=0.0)
    assert len(found["good"]) == runner.SLOW_REPEATS
    assert str(failed["bad"]) == "gone"


# ---------------------------------------------------------------- providers of a case

@pytest.mark.parametrize("wrong", [lambda t: t * 1.01, lambda t: t[:2], lambda t: torch.full_like(t, float("nan"))])
def test_a_wrong_result_is_found(wrong):
    expected = torch.randn(4, 4)
    compare_with([expected], [expected + 1e-7], torch.float32)
    with pytest.raises(WrongResult):
        compare_with([expected], [wrong(expected)], torch.float32)


@pytest.mark.parametrize("backward", [False, True])
def test_run_case_times_every_provider(compile_fast, cpu_backend, backward):
    entry = run_case(tiny_case(backward=backward), CPU, seconds=0.0)
    assert [n for n, p in entry["providers"].items() if "median_us" in p] == ["clone", "eager", "compile", "cpu"]
    assert entry["providers"]["triton"] == {"skipped": "not here"}
    for p in entry["providers"].values():
        if "median_us" in p:
            assert 0 < p["q1_us"] <= p["median_us"] <= p["q3_us"]
            assert p["extra_bytes"] >= 0
    assert entry["clone_bytes"] == 2 * 4 * 8 * 4
    assert entry["floor_us"] == pytest.approx(entry["providers"]["clone"]["median_us"])
    assert entry["goals"] == {"eager": 1.0}
    assert entry["mode"] == ("forward+backward" if backward else "forward")
    assert list(entry["phase_seconds"]) == list(runner.PHASES) and sum(entry["phase_seconds"].values()) > 0
    json.dumps(entry)


def test_failing_wrong_and_missing_providers_are_entries(compile_fast, cpu_backend):
    def broken(x, factor):
        raise RuntimeError("no kernel\nsecond line")

    peers = (Peer("wrong", lambda *args: lambda x, f: x), Peer("other", lambda *args: lambda x, f: x, same=False),
             Peer("absent", lambda *args: scaled, requires="no_such_module_here"))
    found = run_case(tiny_case(ours=broken, peers=peers), CPU, seconds=0.0)["providers"]
    assert found["cpu"] == {"error": "RuntimeError: no kernel"}
    assert found["wrong"]["error"].startswith("WrongResult: differs from the reference by 5.0e-01")
    assert found["absent"] == {"skipped": "no_such_module_here is not installed"}
    assert "median_us" in found["other"]
    assert "median_us" in found["compile"]


def test_a_wrong_gradient_is_found(compile_fast, cpu_backend):
    def no_gradient(x, factor):
        return x * factor.item() + (x - x.detach())  # right value, gradient too large by one

    found = run_case(tiny_case(ours=no_gradient, backward=True), CPU, seconds=0.0)["providers"]
    assert found["cpu"]["error"].startswith("WrongResult")


def test_compiling_while_timed_is_an_error(monkeypatch, compile_fast):
    graphs = iter(range(100))
    monkeypatch.setattr(runner, "_graphs_compiled", lambda: next(graphs))
    found = run_case(tiny_case(), CPU, seconds=0.0, wanted=["compile"])["providers"]
    assert found["compile"] == {"error": "it was compiled again while being timed"}


def test_a_second_compilation_is_counted():
    compiled = torch.compile(scaled, backend="eager", fullgraph=True, dynamic=False)
    counts = []
    for size in (3, 3, 4):
        compiled(torch.ones(size), 2.0)
        counts.append(runner._graphs_compiled())
    assert counts[0] == counts[1] < counts[2]


def test_every_fastmix_backend_is_a_provider_with_its_reason():
    found = {p.name: p for p in providers(tiny_case(), CPU)}
    assert set(OURS) <= set(found)
    assert "CPU tensors" not in (found["cpu"].skip or "")
    on_gpu = {p.name: p for p in providers(tiny_case(), torch.device("cuda"))}
    assert "serves CPU tensors" in on_gpu["cpu"].skip


def test_every_operator_has_a_bench_file_and_quick_cases():
    assert set(OPERATORS) <= set(case_modules())
    assert {case.op for case in select_cases(None, quick=True)} == set(case_modules())
    cases = select_cases(None, quick=False)
    assert len({(c.op, c.name, c.mode) for c in cases}) == len(cases)
    assert not [peer.name for case in cases for peer in case.peers if "," in peer.name]


SMALL = [c for c in select_cases(None, quick=False) if c.name.startswith(("100x3x32x32", "128x100"))]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c.op}-{c.mode}")
def test_bytes_and_peers_of_the_small_cases(case):
    """moved is what the formula says, counted on real tensors; every peer computes the reference's function."""
    args = case.make(CPU, 0)
    args[0].requires_grad_(case.backward)
    out = tree_leaves(step(case.reference, case.backward, None)(*args))
    large = [t for t in [*tree_leaves(args), *out, args[0].grad] if t is not None and t.numel() >= args[0].numel()]
    assert case.moved == sum(t.nbytes for t in large)
    found = run_case(case, CPU, 0.0, wanted=["eager", *(p.name for p in case.peers)])["providers"]
    assert [n for n, p in found.items() if "median_us" not in p] == []


# ---------------------------------------------------------------- the command

def test_quick_run_writes_its_result(tmp_path, monkeypatch, capsys):
    path = tmp_path / "deep" / "r.json"
    monkeypatch.setattr(runner, "SLOW_REPEATS", 2)
    arguments = ["--quick", "--op", "blend", "--seconds", "0", "--providers", "torch.lerp", "--json", str(path)]
    assert operators.main(arguments) == 0
    results = report.load(path)
    assert results["settings"] == {"quick": True, "ops": ["blend"], "providers": ["torch.lerp"], "seconds": 0.0,
                                   "keeps_memory": False}
    phases = results["phase_seconds"]
    assert list(phases) == ["ahead", *runner.PHASES, "total"]
    assert phases["ahead"] == phases["compile"] == 0 < phases["total"]
    assert sum(phases.values()) - phases["total"] < phases["total"] + 0.5  # rounded, and the parts leave some out
    assert [(c["case"], list(c["providers"])) for c in results["cases"]] == \
        [("64x3x224x224 K=2", ["clone", "torch.lerp"])]
    assert results["cases"][0]["providers"]["torch.lerp"]["repeats"] == 2
    printed = capsys.readouterr().out
    assert "torch.lerp" in printed and f"wrote {path}" in printed and "no plots" in printed


def test_a_run_compares_itself_with_an_older_one(tmp_path, monkeypatch, capsys, cpu_backend):
    monkeypatch.setattr(operators, "select_cases", lambda ops, quick: [tiny_case()])
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    arguments = ["--seconds", "0", "--providers", "cpu", "--no-plots", "--json"]
    assert operators.main([*arguments, str(old)]) == 0
    results = report.load(old)
    results["cases"][0]["providers"]["cpu"] |= {"median_us": 1e-3, "q1_us": 1e-3, "q3_us": 1e-3}
    report.save(results, old)
    assert operators.main([*arguments, str(new), "--compare", str(old)]) == 1
    assert "REGRESSION" in capsys.readouterr().out


def test_a_failing_backend_fails_the_run(tmp_path, monkeypatch, capsys, cpu_backend):
    def broken(*args):
        raise NotImplementedError("no kernel")

    case = tiny_case(ours=broken)
    monkeypatch.setattr(operators, "select_cases", lambda ops, quick: [case])
    code = operators.main(["--providers", "cpu", "--seconds", "0", "--json", str(tmp_path / "r.json")])
    assert code == 1
    assert "FAILED scale 4x8, forward: cpu: NotImplementedError: no kernel" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--op", "nonsense"], ["--device", "tpu"], ["--compare", "/nonexistent.json"]])
def test_bad_arguments_end_with_code_two(arguments, capsys):
    assert console.run(operators.main, arguments) == 2
    assert arguments[1] in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_timer_replays_a_graph_over_rotating_buffers(compile_fast):
    def make(device, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(256, 256, generator=generator).to(device), torch.tensor(2.0, device=device)

    device = torch.device("cuda")
    entry = run_case(tiny_case(make=make), device, seconds=0.05, wanted=["eager"])
    assert entry["argument_sets"] > 1
    assert entry["providers"]["eager"]["graph"]
    assert 0 < entry["providers"]["eager"]["median_us"] < 100
    assert entry["providers"]["eager"]["host_us"] > 0
