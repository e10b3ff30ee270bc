"""bench/device/check.sh: what hangs, crashes or fails takes nothing along, what is done is not done again."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from fastmix.bench.device import check, counters, prepared, sanitizer, steps, versus
from fastmix.bench.device.check import CRASHED, DONE, FAILED, LATE, Step


def python(code):
    """A step that runs code, in which `detail` is where it says how far it is."""
    def command(found):
        name = next(step for step, text in STEPS.items() if text is code)
        return [sys.executable, "-c", f"detail = {str(found.detail(name))!r}\n{code}"]
    return command


STEPS = {
    "load": "print('loaded')",
    "fails": "import sys; print('no'); sys.exit(3)",
    "hangs": "import json, time; json.dump({'summary': ['half']}, open(detail, 'w')); time.sleep(600)",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "last": "import json; json.dump({'summary': ['all of it']}, open(detail, 'w')); print('well')",
}


def calls(limit=60.0, hang=0.6):
    every = tuple(Step(name, hang if name == "hangs" else 30, python(code)) for name, code in STEPS.items())
    return {1: (limit, every), 2: (limit, (every[0], Step("nothing", 30, lambda found: "OLD is not set")))}


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    return tmp_path / "out"


def read(path):
    return json.loads(path.read_text())


def test_every_step_says_how_it_ended_and_stops_no_other(out, capsys):
    assert check.main(["1"], calls()) == 1
    states = {name: read(out / f"{name}.json")["state"] for name in STEPS}
    assert states == {"load": DONE, "fails": FAILED, "hangs": LATE, "crashes": CRASHED, "last": DONE}
    assert read(out / "fails.json")["code"] == 3
    assert read(out / "hangs.json")["result"] == {"summary": ["half"]}  # what it had at its limit
    said = capsys.readouterr().out
    assert "half" in said and "all of it" in said and "well" in said
    assert "=== fails: failed" in (out / "call1.log").read_text()
    assert len(list(out.iterdir())) == len(STEPS) + 1


def test_what_is_done_is_not_done_again(out, capsys):
    check.main(["1", "last"], calls())
    assert sorted(path.name for path in out.iterdir()) == ["call1.log", "last.json", "load.json"]
    capsys.readouterr()
    assert check.main(["1"], calls()) == 1
    assert "last         done before" in capsys.readouterr().out
    assert read(out / "crashes.json")["state"] == CRASHED


def test_no_step_starts_behind_the_deadline(out, capsys):
    assert check.main(["1", "last"], calls(limit=3.0)) == 1
    assert "not started" in capsys.readouterr().out and not (out / "last.json").exists()


def test_a_step_ends_at_the_deadline_of_its_call(out):
    assert check.main(["1", "hangs"], calls(limit=4.5, hang=500)) == 1
    assert read(out / "hangs.json")["state"] == LATE and read(out / "hangs.json")["seconds"] < 30


def test_without_the_package_nothing_else_runs(out, monkeypatch, capsys):
    steps_of = {1: (60.0, (Step("load", 30, python(STEPS["fails"])), *calls()[1][1][1:]))}
    assert check.main(["1"], steps_of) == 1
    assert "nothing else can run" in capsys.readouterr().out and not (out / "last.json").exists()


def test_a_step_with_nothing_to_do_says_why(out, capsys):
    assert check.main(["2"], calls()) == 0
    assert read(out / "nothing.json")["why"] == "OLD is not set"


@pytest.mark.parametrize("argv", [[], ["4"], ["1", "lst"]])
def test_a_call_that_cannot_be_made(argv, capsys):
    with pytest.raises(SystemExit) as error:
        check.main(argv, calls())
    assert error.value.code == 2


def test_the_calls_are_those_of_the_issue():
    assert {call: limit for call, (limit, _) in steps.CALLS.items()} == {1: 240, 2: 230, 3: 150}
    names = {call: [step.name for step in found] for call, (_, found) in steps.CALLS.items()}
    assert names == {1: ["load", "sanitizer", "tests", "goals", "graphs", "ncu"],
                     2: ["load", "versus", "backends", "triton", "train", "compile"], 3: ["load", "goals"]}
    assert all(len(found) + 1 <= 8 for found in names.values())  # files that come back, the log among them


def test_nothing_but_python_is_needed_by_the_parent():
    code = ("import sys, bench.device.check, bench.device.steps\n"
            "sys.exit(any(m in sys.modules for m in ('torch', 'fastmix')))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_all_of_it_runs_dry(tmp_path):
    """The three calls on the CPU, through the code that a card will run."""
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work"), "PYTHON": sys.executable}
    done = subprocess.run(["bash", str(ROOT / "bench" / "device" / "check.sh"), "--dry"], env=environment,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for call, (_, found) in steps.CALLS.items():
        for step in found:
            if step.name == "load" and call > 1:
                continue  # the package of the first call serves all
            result = read(tmp_path / "out" / f"call{call}" / f"{step.name}.json")
            assert result["state"] == DONE and result["note"] == check.MEANINGLESS, (call, step.name)
    goals = read(tmp_path / "out" / "call1" / "goals.json")["result"]
    assert goals["format"] == "goals-1" and goals["machine"]["device"] == "cpu"
    assert all(entry["rows"] and not entry["errors"] for entry in goals["cases"].values())
    backends = read(tmp_path / "out" / "call2" / "backends.json")["result"]["cases"]
    assert all(set(entry["times"]) == {"cpu", "eager"} for entry in backends.values())
    assert read(tmp_path / "out" / "call1" / "sanitizer.json")["result"]["summary"][0].startswith("no GPU check")
    assert read(tmp_path / "out" / "call1" / "tests.json")["result"]["counts"]["passed"] > 0
    assert len(done.stdout) < 12_000


# ---------------------------------------------------------------- the steps' own programs

TOOL = """#!/bin/sh
case "$2" in racecheck) echo "========= Error: Potential WAW hazard"; exit 9;; synccheck) exec sleep 60;; esac
shift 6; exec "$@"
"""


def test_the_sanitizers_tools_run_side_by_side(tmp_path, monkeypatch, capsys):
    for name, text in (("compute-sanitizer", TOOL), ("cases", "#!/bin/sh\necho paste ok\necho view ok\n"),
                       ("far", "#!/bin/sh\necho view ok\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "argv", ["sanitizer", str(tmp_path), "--json", str(tmp_path / "out.json"), "--limit", "3"])
    assert sanitizer.main() == 1
    found = read(tmp_path / "out.json")
    states = {name: run["state"] for name, run in found["runs"].items()}
    assert states == {"cases": "ok", "far": "ok", "memcheck": "ok", "racecheck": "found", "initcheck": "ok",
                      "synccheck": "time limit"}
    assert found["runs"]["memcheck"]["cases"] == 2 and "WAW hazard" in found["runs"]["racecheck"]["said"][0]
    assert any("racecheck: found" in line for line in found["summary"])


def test_ncu_is_read():
    text = ('==PROF== Profiling\n"ID","Kernel Name","dram__bytes_read.sum","launch__registers_per_thread"\n'
            '"","","Mbyte","register/thread"\n"0","paste_kernel<float>","154.1","40"\n')
    assert counters.parsed(text) == [{"kernel": "paste_kernel<float>", "read": "154.1 Mbyte",
                                      "registers": "40 register/thread"}]
    assert counters.parsed("no kernels were profiled") == []


def test_every_kernel_is_launched_for_ncu():
    counters.launch(small=True)


def test_two_packages_are_compared_turn_about(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(versus, "CASES", ("dcutmix",))
    monkeypatch.setattr(versus, "ROUNDS", 1)
    (tmp_path / "empty").mkdir()
    argv = ["versus", "--old", str(ROOT), "--new", str(ROOT), "--json", str(tmp_path / "out.json"), "--device", "cpu",
            "--small"]
    monkeypatch.setattr(sys, "argv", argv)
    versus.main()
    found = read(tmp_path / "out.json")
    assert found["packages"]["old"]["package"] == str(ROOT / "fastmix")
    assert found["cases"]["dcutmix"]["speedup"] > 0 and "us," in found["summary"][0]


def test_a_package_that_does_not_load_costs_no_more(tmp_path):
    """Its process ends; what is asked of it says so."""
    (tmp_path / "fastmix.py").write_text("raise ImportError('built for another torch')")
    package = versus.Package(tmp_path, "cpu", True)
    assert "ended with 1" in package.about["error"] and "has ended" in package.ask("paste")["error"]


def test_prepared_files_of_other_sources_are_refused(tmp_path):
    for folder in ("csrc", "tests/backends/simt", "fastmix/ops"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("csrc/a.cu", "fastmix/ops/schemas.def", "setup.py"):
        (tmp_path / file).write_text("1")
    folder = tmp_path / "build" / "device"
    (folder / "package" / "fastmix").mkdir(parents=True)
    assert "there is no build/device/stamp.json" in prepared.why_not(tmp_path)
    (folder / "stamp.json").write_text(json.dumps({"sources": prepared.sources(tmp_path)}))
    assert prepared.why_not(tmp_path) == "not there: _C.abi3.so, _C_cuda.abi3.so, cases, far"
    for path in (*(folder / "package" / "fastmix" / name for name in prepared.LIBRARIES),
                 *(folder / name for name in prepared.PROGRAMS)):
        path.write_text("")
    assert prepared.why_not(tmp_path) is None
    (tmp_path / "csrc" / "a.cu").write_text("2")
    assert "of other sources" in prepared.why_not(tmp_path)
