"""The device check's parts that run without a GPU: the worker that outlives its cases, goals, choice of backends."""

import json
import signal

import pytest
import torch
from helpers import ROOT
from test_bench import tiny_case

from fastmix.bench.device import backends, sequences
from fastmix.bench.device import goals as device_goals
from fastmix.bench.device.subjects import Goal, Subject, subjects
from fastmix.bench.harness import worker
from fastmix.bench.harness.predicted import GPUS, predictions
from fastmix.ops import choice

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


def test_the_parent_as_a_program_loads_no_torch_and_tells_failures(tmp_path):
    script, path = tmp_path / "script.py", tmp_path / "cases.json"
    script.write_text("import json, sys; assert 'torch' not in sys.modules; "
                      "json.dump({'cases': {'a': {'errors': {'cuda': 'no'}}}}, open(sys.argv[1], 'w'))")
    assert worker.main(10, path, [str(script), str(path)]) == 1
    script.write_text("import json, sys; json.dump({'cases': {'a': {}}}, open(sys.argv[1], 'w'))")
    assert worker.main(10, path, [str(script), str(path)]) == 0
    assert worker.main(10, path, ["-c", "raise SystemExit(7)"]) == 1


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
    assert device_goals.lines_of("a", {"rows": [], "errors": {}}) == [("a", "", "-", "", "not measured")]


def row(name, backend, value, met, predicted=None):
    return {"name": name, "shape": "2x3", "dtype": "fp32", "backend": backend, "measured_us": 10.0,
            "spread_us": [9.0, 11.0], "floor_us": 8.0, "predicted_us": predicted, "goal": "share of copy >= 0.88",
            "value": value, "met": met}


def test_the_table_judges_by_the_backend_that_serves_by_default():
    entries = {"a": {"rows": [row("a", "cuda", 0.7, False, 7.5), row("a", "triton", 0.9, True)],
                     "errors": {"triton": "bad"}},
               "b": {"error": worker.STARTED}, "c": {"rows": [], "errors": {}, "skipped": "no library"}}
    lines = device_goals.table(entries)
    assert "cuda 10 us, 0.7" in lines[1] and "7.5 us" in lines[1] and lines[1].endswith("MISSED")
    assert lines[2].endswith("met") and lines[3].endswith("FAILED") and lines[4].endswith("FAILED")
    assert lines[5].endswith("skipped") and lines[-1] == "goals: 0 met, 1 MISSED, 2 FAILED"


CPU = torch.device("cpu")


def test_a_case_is_measured_and_judged():
    subject = Subject("tiny", "images", "4x3", "fp32", (Goal("x eager", 1e-9), Goal("us in a graph", 0)),
                      lambda device: tiny_case())
    found = device_goals.measure(subject, CPU, 0.01, {"cpu": 5.0})
    assert [row["met"] for row in found["rows"]] == [True, False] and found["errors"] == {}
    first = found["rows"][0]
    assert set(first) == {"name", "shape", "dtype", "backend", "measured_us", "spread_us", "floor_us", "predicted_us",
                          "goal", "value", "met"}
    assert first["spread_us"][0] <= first["measured_us"] <= first["spread_us"][1] and first["predicted_us"] == 5.0


def test_a_sequence_is_measured_and_judged():
    subject = Subject("calls", "calls", "2", "fp32", (Goal("us in a graph", 1e9), Goal("us a call", 0)),
                      lambda device: sequences.dcutmix(4, 8, 10, "cpu"))
    rows = device_goals.measure(subject, CPU, 0.01, {})["rows"]
    assert [row["met"] for row in rows] == [True, False] and rows[0]["measured_us"] > 0


# What issue 13 asks of an H100 and an H200, word for word, with the shapes that it names.
ASKED = [
    *((f"{op} {how}", "256x3x224x224", "share of copy >= 0.88") for op in ("paste K=5", "blend K=2", "patch_mix 4x4")
      for how in ("fp32", "bf16", "fp32 channels_last")),
    ("mask + patch_mix 4x4 fp32", "256x3x224x224", "x floor <= 1.15"),
    ("DCutMix K=5 fp32", "256x3x224x224", "x copy <= 1.15"),
    *((f"{op} bf16 channels_last", "256x3x224x224", "share of copy >= 0.8")
      for op in ("view", "view_blend K=2", "view_paste K=2", "view_patch_mix 4x4")),
    ("soft_target 4096x21841 bf16", "4096x21841", "share of copy >= 0.85"),
    ("soft_target 1024x1000 fp32", "1024x1000", "us in a graph <= 6"),
    ("rmix fp32", "100x3x32x32", "us in a graph <= 10"), ("rmix fp32", "100x3x32x32", "us a call <= 30"),
    ("DCutMix K=5: plan, paste, targets, loss", "100x3x32x32", "us in a graph <= 25"),
    ("isda diag N=256 J=1000 A=2048 fp32", "N=256 J=1000 A=2048", "us in a graph <= 60"),
    ("isda full N=128 J=100 A=640 TF32", "N=128 J=100 A=640", "us in a graph <= 120"),
    ("isda full N=256 J=1000 A=2048 TF32", "N=256 J=1000 A=2048", "us in a graph <= 10000"),
    ("isda full N=256 J=1000 A=2048 fp32", "N=256 J=1000 A=2048", "us in a graph <= 40000")]


def test_every_goal_has_its_subject():
    found = [(subject.name, subject.shape, str(goal)) for subject in subjects() for goal in subject.goals
             if subject.group != "compile"]
    assert found == ASKED
    assert {subject.precision for subject in subjects() if "TF32" in subject.name} == {"high"}


def test_what_is_predicted_stands_beside_what_is_measured():
    expected = device_goals.expectations(ROOT, "NVIDIA H100 80GB HBM3")
    by_hand = next(p for p in predictions(ROOT) if (p.name, p.backend) == ("paste K=5 fp32", "cuda"))
    assert expected["paste K=5 fp32"]["cuda"] == pytest.approx(by_hand.seconds(GPUS[0]) * 1e6)
    named = {subject.predicted or subject.name for subject in subjects()}
    assert len(named & set(expected)) >= 13  # images, views and losses
    assert device_goals.expectations(ROOT, "NVIDIA A100") == {} == device_goals.expectations(ROOT / "docs", "H100")


# ---------------------------------------------------------------- cuda against triton

def measured(operator, where, cuda, triton):
    times = {name: {"us": us} for name, us in (("cuda", cuda), ("triton", triton)) if us is not None}
    return {"operator": operator, "where": where, "case": "4x3", "times": times, "errors": {}}


@pytest.mark.parametrize("cuda,triton,better", [(10.0, 12.0, "cuda"), (12.0, 10.0, "triton"), (10.2, 10.0, "cuda"),
                                                (10.0, None, None)])
def test_the_faster_backend_gets_a_class(cuda, triton, better):
    assert backends.better(measured("paste", {}, cuda, triton)["times"]) == better


def test_what_was_measured_is_written_into_the_table(tmp_path):
    table, result = tmp_path / "table.json", tmp_path / "backends.json"
    table.write_text(choice.FILE.read_text())
    cases = {"a": measured("paste", {"element": 2, "size": "small"}, 9.0, 8.0),
             "b": measured("isda", {"form": "diag"}, 5.0, 50.0), "c": measured("view", {"size": "large"}, None, 3.0)}
    about = {"format": backends.FORMAT, "date": "2026-11-27T10:00",
             "machine": {"name": "NVIDIA H100", "device": "cuda"}}
    result.write_text(json.dumps({"state": "done", "result": {**about, "cases": cases}}))  # as the device check has it
    assert backends.write(result, table) == 2
    found = choice.load(table)
    assert set(found) == set(choice.load())
    first, last = found["paste"]
    assert (first["backend"], first["source"]) == ("triton", "NVIDIA H100, 2026-11-27")
    assert first["reason"] == "measured: 8 us against cuda's 9, 4x3" and last["reason"].startswith("predicted")
    assert [e["backend"] for e in found["isda"] if e.get("form") == "diag"] == ["cuda"]
    small = choice.decide(found["paste"], lambda name, form: True)
    assert small(torch.empty(4, dtype=torch.bfloat16), None) == "triton" and small(torch.empty(4), None) == "cuda"


def test_a_cpus_figures_are_not_written(tmp_path):
    path = tmp_path / "backends.json"
    path.write_text(json.dumps({"format": backends.FORMAT, "machine": {"name": "a CPU", "device": "cpu"}, "cases": {}}))
    with pytest.raises(ValueError, match="measured on a CPU"):
        backends.write(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a result"):
        backends.write(path)


def test_every_class_is_one_of_the_table_and_every_operator_has_some(tmp_path):
    every = list(backends.classes(small=False))
    assert {each.operator for each in every} == {"paste", "patch_mix", "saliency", "view", "soft_target", "isda"}
    assert len({each.name for each in every}) == len(every)
    made = [{"operator": each.operator, **each.where, "backend": "cuda", "reason": "measured: 1", "source": "a card"}
            for each in every]
    path = tmp_path / "table.json"
    rest = [entry for entries in choice.load().values() for entry in entries]
    path.write_text(json.dumps({"entries": [*made, *rest]}))
    choice.load(path)


def test_a_class_is_measured():
    first = next(backends.classes(small=True))
    found = backends.measure(first, CPU, 0.003, ("cpu", "eager"))
    assert set(found["times"]) == {"cpu", "eager"} and backends.better(found["times"]) in found["times"]
    assert "so cpu" in backends.shown(first.name, found) or "so eager" in backends.shown(first.name, found)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
