"""Host times: what is measured, what is shown of it, and goals."""

import json

from fastmix.bench import host, pages
from fastmix.bench.harness import host_table

SHORT = (host.Case("half", lambda: sum(range(2000)), "whole", lambda: sum(range(40000)), times=1.0),
         host.Case("alone", lambda: sum(range(2000)), us=0.001), host.Case("no goal", lambda: None))


def test_a_run_writes_its_result_and_a_page_shows_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(host, "cases", lambda: list(SHORT))
    path = tmp_path / "results" / "m" / "host.json"
    assert host.main(["--seconds", "0", "--json", str(path), "--machine", "m"]) == 0
    half, alone, none = json.loads(path.read_text())["cases"]
    assert half["met"] and 0 < half["ratio"] < 1 and half["us"] < half["beside_us"] and half["rounds"] == 5
    assert alone["met"] is False and alone["ratio"] is None and none["met"] is None
    shown = capsys.readouterr().out
    assert "<= 1x" in shown and "<= 0.001 us MISSED" in shown
    page = tmp_path / "page.md"
    page.write_text("<!-- host:begin -->\n<!-- host:end -->\n")
    assert pages.main([str(page), "--results", str(tmp_path / "results")]) == 0
    assert "| alone |" in page.read_text() and "[host.json](results/m/host.json)" in page.read_text()
    assert pages.main([str(page), "--check"]) == 0


def test_every_case_runs():
    for case in host.cases():
        case.call()
        if case.other:
            case.other()
    assert len(host_table.rows([host.measured(host.cases()[0], 0)])) == 2
