"""docs/gpu.md with what a card measured: a made-up result in, its figures beside the predicted ones out."""

import json

import pytest
from helpers import ROOT

from fastmix.bench import pages
from fastmix.bench.device import goals
from fastmix.bench.harness import measured, predicted


def row(name, backend, us, value, met, goal="share of copy >= 0.88"):
    return {"name": name, "shape": "256x3x224x224", "dtype": "fp32", "backend": backend, "measured_us": us,
            "spread_us": [us - 1, us + 1], "floor_us": 92.0, "predicted_us": 79.2, "goal": goal, "value": value,
            "met": met}


def result(card, date, *rows, device="cuda"):
    return {"format": measured.FORMAT, "date": date, "machine": {"name": card, "device": device}, "settings": {},
            "summary": [], "cases": {each["name"]: {"rows": [other for other in rows if other["name"] == each["name"]],
                                                    "errors": {}} for each in rows}}


H100 = result("NVIDIA H100 80GB HBM3", "2026-12-01T10:00:00",
              row("paste K=5 fp32", "cuda", 101.0, 0.91, True), row("paste K=5 fp32", "triton", 130.0, 0.71, False),
              row("soft_target 1024x1000 fp32", "cuda", 5.5, 5.5, True, "us in a graph <= 6"),
              row("mask + patch_mix 4x4 fp32", "cuda", 200.0, 1.31, False, "x floor <= 1.15"),
              row("rmix fp32", "default", 9.0, 9.0, True, "us in a graph <= 10"))
OLD = result("NVIDIA H100 80GB HBM3", "2026-11-30T10:00:00", row("paste K=5 fp32", "cuda", 500.0, 0.2, False))
CPU = result("a CPU", "2026-12-02T10:00:00", row("paste K=5 fp32", "cpu", 5.0, 0.9, True), device="cpu")


@pytest.fixture
def results(tmp_path):
    for number, found in enumerate((H100, OLD, CPU)):
        path = tmp_path / "results" / "card" / f"{number}-goals.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return tmp_path / "results"


PAGE = "<!-- predicted:begin -->\n<!-- predicted:end -->\n\n<!-- goals:begin -->\n<!-- goals:end -->\n"


def lines(text, begin):
    return [line for line in text.splitlines() if line.startswith(f"| {begin} |")]


def test_measured_figures_stand_beside_the_predicted_ones(results, tmp_path):
    files = pages.newest(results)
    assert [path.name for path in files["goals"]] == ["0-goals.json"]
    text = pages.page(PAGE, tmp_path, files, ROOT)
    head = next(line for line in text.splitlines() if line.startswith("| kernel"))
    assert "H100, predicted" in head and "H100, measured" in head and "H200, measured" not in head
    cuda, triton, *_ = lines(text, "paste K=5 fp32")
    assert "| 101 us (91%) |" in cuda.replace("cuda 101", "101") and "79.2 us" in cuda
    assert "triton 130 us (71%), MISSED" in triton
    assert "5.5 us" in lines(text, "soft_target 1024x1000 fp32")[0]
    assert "cuda 200 us (1.31x), MISSED" in lines(text, "mask + patch_mix 4x4 fp32")[0]
    assert lines(text, "rmix fp32")[0].endswith("us in a graph <= 10 | 9 us |")
    assert lines(text, "rmix fp32")[1].endswith("| - |")
    assert text.count("[0-goals.json](results/card/0-goals.json)") == 2
    assert pages.page(text, tmp_path, None, ROOT) == text  # --check: from the files that it links to


def test_without_results_all_of_it_stays_predicted(tmp_path):
    text = pages.page(PAGE, tmp_path, pages.newest(tmp_path), ROOT)
    assert "H100, measured" not in text and predicted.table(ROOT) in text
    assert text.count("not measured") == len(pages.wanted_goals())


def test_the_page_has_both_tables():
    text = (ROOT / "docs" / "gpu.md").read_text()
    assert pages.page(text, ROOT / "docs") == text


def test_a_result_of_the_device_check_is_put_under_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr("fastmix.bench.harness.command_line.RESULTS", tmp_path)
    steps = []
    for name, found in (("goals", H100), ("compile", result(H100["machine"]["name"], "2026-12-01T11:00:00",
                                                            row("b", "cuda", 1.0, 3.0, True, "x compile >= 2")))):
        steps.append(tmp_path / f"{name}.json")
        steps[-1].write_text(json.dumps({"step": name, "state": "done", "result": found}))
    path = goals.write(steps)
    assert path.parent.name == "nvidia-h100-80gb-hbm3" and path.name.endswith("-goals.json")
    assert set(measured.load(path)["cases"]) == {*H100["cases"], "b"}
    for bad, message in ((CPU, "measured on a CPU"), ({"format": 1}, "is not a result")):
        steps[0].write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=message):
            goals.write(steps[:1])
