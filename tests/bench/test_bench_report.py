"""What the bench makes of its results: table, goals, plots, comparison with an older run, the pages."""

import copy
import importlib.util
import math
import re

import pytest
import torch
from helpers import ROOT

from fastmix.app import console
from fastmix.bench import compare as command
from fastmix.bench import pages
from fastmix.bench.cases.sweeps import SWEEPS
from fastmix.bench.harness import benchmark_tables, blocks, compare, growth, plots, report, steps
from fastmix.bench.harness.machine import describe, slug
from fastmix.ops.dispatch import OPERATORS

README = ROOT / "README.md"
CPU = torch.device("cpu")


def times(median_us, spread=0.02, **more):
    return {"median_us": median_us, "q1_us": median_us * (1 - spread), "q3_us": median_us * (1 + spread),
            "repeats": 9, "inner": 1, "extra_bytes": 0, **more}


def result(**provider_times):
    """A result of one case of 1 MB moved; floor 100 us."""
    entries = {"clone": times(100.0), **{k: v if isinstance(v, dict) else times(v) for k, v in provider_times.items()}}
    case = {"op": "blend", "case": "8x8", "mode": "forward", "quick": True, "formula": "2 N D s", "moved_bytes": 1e6,
            "clone_bytes": 1e6, "argument_sets": 1, "scratch_bytes": 64, "timed_seconds": 1.0,
            "cores_used_by_others": 0.0, "goals": {"compile": 2.0, "eager": 3.0, "floor": 1.5},
            "floor_us": 100.0, "providers": entries}
    return {"format": report.FORMAT, "date": "2026-01-02T03:04:05+00:00", "machine": describe(CPU, "Test machine"),
            "settings": {"quick": True, "seconds": 1.0}, "cases": [case]}


# ---------------------------------------------------------------- report

def test_goals_and_losses_are_reported():
    results = result(eager=300.0, compile=100.0, cpu=times(200.0, extra_bytes=1000), peer=150.0)
    case = results["cases"][0]
    assert {what: met for what, _, _, met in report.judged(case, "cpu")} == \
        {"compile": False, "eager": False, "floor": False, "memory": False}
    text = report.summary(results)
    assert "goals: 0 met, 4 missed" in text
    assert "faster 1 times, slower 2 times" in text
    assert "cpu takes 2.00x the time of compile" in text
    assert "cpu takes 1.33x the time of peer" in text
    table = report.case_table(case)
    assert "vs compile 0.50x (goal >=2x) MISSED" in table
    better = result(eager=300.0, compile=200.0, cpu=100.0)["cases"][0]
    assert all(met for *_, met in report.judged(better, "cpu"))
    assert "MISSED" not in report.case_table(better)


def test_reasons_and_failures_are_reported():
    results = result(cpu={"error": "RuntimeError: no kernel"}, triton={"skipped": "fastmix has no triton kernel for "
                                                                      "blend yet"})
    assert "cpu: FAILED: RuntimeError: no kernel" in report.case_table(results["cases"][0])
    assert "not run (blend): triton: fastmix has no triton kernel for it yet" in report.summary(results)
    assert report.failures(results) == ["blend 8x8, forward: cpu: RuntimeError: no kernel"]


def test_disturbed_cases_are_marked():
    case = result(cpu=100.0)["cases"][0]
    assert "disturbed" not in report.case_table(case)
    assert "other processes used 0.7 cores" in report.case_table(case | {"cores_used_by_others": 0.7})


@pytest.mark.parametrize(("text", "what"), [("{", "is not JSON"), ("{}", "is not a result"), (None, "does not exist")])
def test_load_names_a_bad_file(tmp_path, text, what):
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=what):
        report.load(tmp_path / "r.json")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_plots_are_drawn(tmp_path):
    lines = plots.draw(result(eager=300.0, compile=100.0, cpu=200.0, peer=150.0), tmp_path / "r.json")
    assert len(lines) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r-roofline.png", "r-speedup.png"]
    assert plots.draw(result(eager=300.0), tmp_path / "r.json") == ["no plots: no fastmix backend ran"]


def test_machine_is_described():
    machine = describe(CPU)
    assert machine["cores"] >= 1 and machine["isa"] and machine["packages"]["torch"]
    assert slug("AMD EPYC, 2 cores, AVX512") == "amd-epyc-2-cores-avx512"


# ---------------------------------------------------------------- compare

@pytest.mark.parametrize(("new", "code"), [
    (times(109.0), 0),  # below 10 %
    (times(120.0), 1),
    (times(120.0, spread=0.2), 0),  # the ranges overlap
    (times(50.0), 0),
])
def test_compare_finds_regressions(new, code):
    text, found = compare.compare(result(cpu=100.0), result(cpu=new))
    assert found == code
    assert ("REGRESSION" in text) == bool(code)


def settings(results, **changes):
    return results | {"settings": results["settings"] | changes}


def second_case(results, **changes):
    """The same result with another case after the first."""
    return results | {"cases": [*results["cases"], copy.deepcopy(results["cases"][0]) | {"case": "9x9"} | changes]}


@pytest.mark.parametrize("new", [
    result(cpu=100.0),  # its second case is not there: renamed, removed, or the run was stopped
    second_case(result(cpu=100.0), case="9x10"),
    second_case(result(cpu=100.0), mode="forward+backward"),
    second_case(result(cpu=100.0), providers={"clone": times(100.0)}),
    second_case(result(cpu=100.0), providers={"cpu": {"error": "RuntimeError: no kernel"}}),
    second_case(result(cpu=100.0), providers={"cpu": {"skipped": "the C++ library is not built"}}),
    settings(result(cpu=100.0), ops=["blend"]),
    settings(result(cpu=100.0), providers=["eager", "cpu"]),
    result(eager=100.0),
    result() | {"cases": []},
])
def test_compare_cannot_miss_what_vanished(new):
    old = second_case(result(cpu=100.0))
    assert compare.compare(old, second_case(result(cpu=100.0)))[1] == 0
    text, code = compare.compare(old, new)
    assert code == 1 and "VANISHED" in text
    reason = new["cases"][-1]["providers"].get("cpu", {}) if len(new["cases"]) == 2 else {}
    assert (reason.get("error") or reason.get("skipped") or "not in the new result") in text


def test_compare_leaves_out_what_was_not_asked_for():
    old = second_case(second_case(result(cpu=100.0), op="paste", case="10x10"), quick=False)
    for case in ({"ops": ["blend"]}, {"quick": True, "ops": ["blend"]}):
        asked = settings(second_case(result(cpu=100.0)), **case)
        assert compare.compare(old, asked)[1] == 0
    quick = settings(result(cpu=100.0), quick=True)
    assert "of 2 0 became slower" in compare.compare(old, quick)[0]  # paste's quick case is missed, 9x9 is not one
    assert compare.compare(old, settings(quick, providers=["triton"]))[1] == 2


def test_compare_ignores_peers_and_refuses_what_cannot_be_compared():
    old = result(cpu=100.0, eager=100.0, peer=100.0)
    assert compare.compare(old, result(cpu=100.0, eager=900.0, peer=900.0))[1] == 0
    other = copy.deepcopy(old)
    other["machine"]["name"] = "Another"
    text, code = compare.compare(old, other)
    assert code == 2 and "Another" in text
    other = copy.deepcopy(old)
    assert compare.compare(result(eager=100.0), old)[1] == 2  # nothing of ours to compare with


def test_compare_from_files(tmp_path, capsys):
    report.save(result(cpu=100.0), tmp_path / "old.json")
    report.save(result(cpu=150.0), tmp_path / "new.json")
    paths = [str(tmp_path / name) for name in ("old.json", "new.json")]
    assert command.main(paths) == 1
    assert command.main(paths[:1] * 2) == 0
    assert console.run(command.main, [paths[0], str(tmp_path / "none.json")]) == 2
    assert "+50%" in capsys.readouterr().out


# ---------------------------------------------------------------- pages

def test_the_speed_table_shows_wins_losses_and_the_machine():
    found = result(eager=300.0, compile=100.0, cpu=200.0, peer=150.0)
    table = benchmark_tables.speed([("bench/results/x/r.json", found)])
    assert "Test machine" in table and "[r.json](bench/results/x/r.json)" in table
    row = next(line for line in table.splitlines() if line.startswith("| `blend`"))
    assert row == "| `blend` | 8x8, forward | 200 us (cpu) | **0.5x** (slower) | 1.5x | **0.75x** (slower) `peer` | 2 |"


PLAIN = {"step": 1000.0, "data": 1.0, "saliency": 0.0, "mix": 0.0, "model": 998.0, "loss": 1.0}


def step_result(model="cnn", date="2026-01-02T03:04:05+00:00"):
    slow = {"method": "rmix", "ms": PLAIN | {"saliency": 900.0, "mix": 2.0}, "plan_ms": 0.25, "loss_backward_ms": 0.1,
            "ratio": 1.9, "added_percent": 90.2, "steps": 4}
    fast = {"method": "mixup", "ms": PLAIN | {"mix": 3.0}, "plan_ms": 0.5, "loss_backward_ms": 0.1, "ratio": 1.004,
            "added_percent": 0.3, "steps": 4}
    plain = fast | {"method": "none", "ms": PLAIN, "plan_ms": 0.0, "ratio": 1.0, "added_percent": 0.0}
    return {"format": steps.FORMAT, "date": date, "machine": describe(CPU, "Test machine"), "rows": [plain, fast, slow],
            "settings": {"model": model, "size": 32, "batch": 100, "classes": 10, "repeats": 2}}


def test_the_step_tables_show_the_breakdown_and_the_goals():
    text = benchmark_tables.steps([("a/x-step.json", step_result()), ("a/y-step.json", step_result("wrn16-8"))])
    assert "`cnn`, 32x32, batch 100" in text and "`wrn16-8`" in text and "[y-step.json](a/y-step.json)" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")][:3]
    assert rows == ["| `none` | 1000 | - | 1 | - | - | - | 998 | 1 | - |",
                    "| `mixup` | 1.004x | 0.30 % | 1 | - | 3 | 0.5 | 998 | 1 | added <= 1 %: met |",
                    "| `rmix` | 1.900x | 90.20 % | 1 | 900 | 2 | 0.25 | 998 | 1 | step <= 1.7x: **missed** |"]


def sweeps():
    """Every sweep of the bench with times that are the product of its sizes, in us."""
    rows = [{"op": s.op, "size": s.size, "fixed": s.fixed, "values": list(s.values), "exponent": 1.0,
             "median_us": [float(v * math.prod(s.fixed.values())) for v in s.values]} for s in SWEEPS]
    return {"format": growth.FORMAT, "date": "2026-01-02T03:04:05+00:00", "machine": describe(CPU, "Test machine"),
            "sweeps": rows}


def test_the_tables_of_larger_problems_are_computed_from_the_sweeps():
    text = benchmark_tables.scale([("a/x-scale.json", sweeps())])
    assert "Computed, not measured" in text and "[x-scale.json](a/x-scale.json)" in text
    rows = {cells[0].split(",")[0]: cells[1:] for cells in
            (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))}
    one, two = 256 * 224, 32 * 224  # images of a step, and of a rank of 8
    assert rows["blend of 2"][1:] == [report.duration(one * 2), report.duration(two * 2)]
    assert rows["paste of 3"][1:] == [report.duration(one * 3), report.duration(two * 3)]
    loss = rows["loss with its gradient"]
    assert loss == ["N^1.00, J^1.00, K^1.00", report.duration(256 * 21841 * 2), report.duration(32 * 21841 * 2)]
    assert rows["full ISDA: statistics"] == ["A^1.00", "-", "-"]
    assert {s.op for s in SWEEPS} == {op for _, op, _ in benchmark_tables.GROWTH}
    assert rows["diag"][-1] == report.size(growth.exchanged_bytes("diag", 21841, 2048, 256))


def test_the_headline_has_a_row_for_each_of_its_cases():
    cases = [result(eager=300.0, compile=100.0, cpu=200.0)["cases"][0] | {"op": op, "case": case, "mode": mode}
             for _, op, case, mode in benchmark_tables.HEADLINE]
    step = step_result(benchmark_tables.HEADLINE_STEP[0])
    step["rows"][1]["method"] = benchmark_tables.HEADLINE_STEP[1]
    found = [("r.json", result() | {"cases": cases})]
    text = benchmark_tables.headline(found, [("a-step.json", step_result()), ("b-step.json", step)], "docs/all.md")
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(cases) + 1 and all("| 200 us | **0.5x** (slower) | 1.5x |" in row for row in rows[:-1])
    assert "| preact-resnet18, 100 images of 32x32 | +0.30 % of a plain step | - | - |" in rows[-1]
    assert "Test machine" in text and "[docs/all.md](docs/all.md)" in text
    assert "[b-step.json](b-step.json)" in text and "a-step" not in text


NAMES = ("bench", "speed", "step", "scale", "host")


def page_with_blocks(folder):
    page = folder / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("# A\n" + "".join(f"\n<!-- {name}:begin -->\nold\n<!-- {name}:end -->\n" for name in NAMES)
                    + "\nafter\n")
    return page


def test_a_page_is_written_between_its_markers(tmp_path):
    page, results = page_with_blocks(tmp_path), tmp_path / "bench" / "results"
    here = results / "m"
    for name, content in (("r", result(cpu=200.0)), ("quick", result(cpu=123.0)), ("old", {"format": "step-1"}),
                          ("a-step", step_result()), ("b-step", step_result("wrn16-8")), ("c-scale", sweeps())):
        whole = content.get("settings", {}) | {"quick": name == "quick"}
        report.save(content | {"settings": whole} if "settings" in content else content, here / f"{name}.json")
    # Older, of a model that has a newer one.
    report.save(step_result(date="2025-01-01T00:00:00+00:00"), here / "z-step.json")
    assert pages.newest(results) == {"operators": [here / "r.json"], "scale": [here / "c-scale.json"],
                                     "steps": [here / "a-step.json", here / "b-step.json"], "host": [], "goals": []}
    arguments = [str(page), "--results", str(results)]
    assert console.run(pages.main, [*arguments, "--check"]) == 1
    assert "old" in page.read_text()
    assert console.run(pages.main, arguments) == 0
    text = page.read_text()
    assert text.startswith("# A\n") and text.endswith("\n\nafter\n") and "old" not in text and "123 us" not in text
    assert "200 us" in text and "`wrn16-8`" in text and "Computed, not measured" in text and "z-step" not in text
    assert "[r.json](../bench/results/m/r.json)" in text
    assert console.run(pages.main, [*arguments, "--check"]) == 0
    report.save(step_result("wrn16-8") | {"rows": []}, here / "b-step.json")
    assert console.run(pages.main, [*arguments, "--check"]) == 1  # a file changed under the page
    (here / "b-step.json").unlink()
    assert console.run(pages.main, [*arguments, "--check"]) == 2
    page.write_text("no markers")
    assert console.run(pages.main, arguments) == 2
    assert page.read_text() == "no markers"


@pytest.mark.parametrize("text", ["<!-- a:begin -->\n", "<!-- a:begin -->\n<!-- b:end -->\n",
                                  "<!-- a:end -->\n<!-- a:begin -->\n", "a <!-- a:begin -->\n<!-- a:end -->\n",
                                  "<!-- a:begin -->\n<!-- b:begin -->\n<!-- b:end -->\n<!-- a:end -->\n"])
def test_a_block_that_does_not_end_is_an_error(text):
    with pytest.raises(ValueError, match=r"block|begin"):
        blocks.rewritten(text, lambda name, present: "")


def test_an_unknown_block_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no block nothing"):
        pages.page("<!-- nothing:begin -->\n<!-- nothing:end -->\n", tmp_path)


@pytest.mark.parametrize("name", pages.PAGES)
def test_the_pages_show_what_their_files_say(name):
    page = ROOT / name
    text = page.read_text()
    assert text == pages.page(text, page.parent), "run python -m fastmix bench pages"
    if name == pages.BENCHMARKS:
        changed = text.replace("Above 1x fastmix is faster.", "Fastmix is faster.")
        assert changed != pages.page(changed, page.parent)


def test_the_committed_pages_are_those_of_measured_results():
    benchmarks, readme = (ROOT / pages.BENCHMARKS).read_text(), README.read_text()
    for text in (benchmarks, readme):
        assert "No result is committed yet" not in text
    assert all(f"<!-- {name}:begin -->" in benchmarks for name in NAMES[1:])
    assert "<!-- bench:begin -->" in readme and f"]({pages.BENCHMARKS})" in readme
    rows = [line for line in readme.splitlines() if re.search(r"`(\w+)` \| ", line)]
    shown = [op for _, op, _, _ in benchmark_tables.HEADLINE] + [benchmark_tables.HEADLINE_STEP[1]]
    assert [op for op in shown if not any(f"`{op}` | " in row for row in rows)] == []
    table = (ROOT / "docs" / "operators.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(OPERATORS)
