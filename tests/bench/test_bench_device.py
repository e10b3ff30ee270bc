"""The device check's parts that run without a GPU: the worker that outlives its cases, the goals and their table."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from test_bench import tiny_case

from fastmix.bench.device import goals as device_goals
from fastmix.bench.device import times
from fastmix.bench.device.goals import Goal
from fastmix.bench.harness import worker

WORKER = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from fastmix.bench.harness import worker

def crash(): os.kill(os.getpid(), signal.SIGSEGV)
def fail(): raise ValueError("no")
def hang(): time.sleep(60)
lost = []
def lose(): lost.append(1); return {{}}
def check():
    if lost: raise RuntimeError("an illegal memory access")
cases = [("first", lambda: {{"value": 1}}), *((f.__name__, f) for f in (crash, fail, hang, lose)),
         ("last", lambda: {{"value": 2}})]
sys.exit(worker.run_cases(Path(sys.argv[1]), cases, {{"about": 1}}, lambda n, e: n, check, limit=1.0))
"""


def test_a_crash_a_hang_and_a_lost_device_lose_one_case_each(tmp_path):
    script, path = tmp_path / "script.py", tmp_path / "cases.json"
    script.write_text(WORKER.format(root=str(ROOT)))
    found = worker.supervise([str(script), str(path)], path)
    assert list(found) == ["first", "crash", "fail", "hang", "lose", "last"]
    assert found["first"] == {"value": 1} and found["last"] == {"value": 2}
    assert found["crash"] == found["hang"] == {"error": worker.STARTED}
    assert found["fail"] == {"error": "ValueError: no"} and "an illegal memory access" in found["lose"]["error"]
    assert json.loads(path.read_text())["about"] == 1


def test_a_worker_that_cannot_start_is_tried_once(tmp_path):
    assert worker.supervise(["-c", "raise SystemExit(7)"], tmp_path / "cases.json") == {}


@pytest.mark.parametrize("what,value,met", [("share of copy", 0.86, True), ("share of copy", 0.84, False),
                                            ("x floor", 0.85, True), ("x floor", 0.9, False),
                                            ("x eager", 1.0, True), ("us a call", 1.0, False)])
def test_goals(what, value, met):
    assert Goal(what, 0.85).met(value) is met


def entry():
    providers = {"clone": {"median_us": 10.0}, "eager": {"median_us": 80.0}, "compile": {"error": "no compiler"},
                 "cuda": {"median_us": 16.0, "host_us": 5.0}, "triton": {"median_us": 12.5, "host_us": 9.0}}
    return {"providers": providers, "floor_us": 10.0}


@pytest.mark.parametrize("what,cuda,triton", [("share of copy", 0.625, 0.8), ("x floor", 1.6, 1.25),
                                              ("x copy", 1.6, 1.25), ("x eager", 5.0, 6.4),
                                              ("us in a graph", 16.0, 12.5), ("us a call", 5.0, 9.0)])
def test_measures(what, cuda, triton):
    measure = device_goals.MEASURES[what]
    assert measure(entry(), "cuda") == pytest.approx(cuda) and measure(entry(), "triton") == pytest.approx(triton)


def test_what_was_not_measured_is_no_goal_that_was_met():
    with pytest.raises(KeyError):
        device_goals.MEASURES["x compile"](entry(), "cuda")
    row = device_goals.verdict(Goal("x compile", 2), {})
    assert row["met"] is None


def test_the_table_judges_by_the_backend_that_serves_by_default():
    goal = Goal("share of copy", 0.75)
    entries = {"a": {"goals": [device_goals.verdict(goal, {"cuda": 0.7, "triton": 0.8})], "errors": {"triton": "bad"}},
               "b": {"error": worker.STARTED}, "c": {"goals": [], "errors": {}, "skipped": "no library"}}
    lines = device_goals.table(entries)
    assert "MISSED" in lines[1] and "cuda 0.7, triton 0.8" in lines[1]
    assert lines[2].endswith("FAILED") and lines[3].endswith("FAILED") and lines[4].endswith("skipped")
    assert lines[-1] == "goals: 0 met, 1 MISSED, 0 not measured, 2 FAILED"


def test_a_case_is_measured_and_judged():
    goals = (Goal("x eager", 1e-9), Goal("us in a graph", 0))
    found = device_goals.measure_case(tiny_case(), goals, torch.device("cpu"), 0.01)
    assert [row["met"] for row in found["goals"]] == [True, False] and found["errors"] == {}


# Issue by issue, what a GPU was asked to show.
ASKED = {"share of copy >= 0.85": 9, "x floor <= 1.25": 1, "x eager >= 8": 1, "x compile >= 2": 1,
         "us in a graph <= 12": 1, "us a call <= 40": 1, "x eager >= 6": 1, "share of copy >= 0.8": 6,
         "x compile >= 1.3": 2, "x copy <= 1.3": 1}


def test_every_goal_has_its_case():
    goals = [str(goal) for _, case_goals in device_goals.cases(cpu=False) for goal in case_goals]
    assert {goal: goals.count(goal) for goal in goals} == ASKED
    names = [f"{case.op} {case.name}" for case, _ in device_goals.cases(cpu=False)]
    assert "soft_target 4096x21841 bf16" in names and "mixers DCutMix 256x3x224x224" in names
    steps = {(name.split(" N=")[0], goal) for name, _, goal, _ in times.steps("cuda")
             if name.startswith("isda")}
    assert steps == {("isda CIFAR-100 WRN-28-10 full", 150.0), ("isda ImageNet diag", 60.0),
                     ("isda ImageNet full", 12000.0)}


@pytest.mark.slow
def test_the_command_on_the_cpu(tmp_path):
    """Small shapes, without the cases that Inductor would compile for a minute."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from fastmix.bench.device import goals as device_goals
from fastmix.bench.harness import worker
import torch
chosen = [(name, run) for name, run in device_goals.all_cases(torch.device("cpu"), 0.01)
          if "+saliency_mask" not in name and "+grad" not in name]
sys.exit(worker.run_cases(Path(sys.argv[1]), chosen, {{}}, lambda name, entry: name, lambda: None))
"""
    path = tmp_path / "goals.json"
    done = subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0
    found = worker.load(path)
    assert len(found) == 22 and not [name for name, e in found.items() if "error" in e or e["errors"]]
    lines = device_goals.table(found)
    assert lines[-1].endswith("0 not measured, 0 FAILED")
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
