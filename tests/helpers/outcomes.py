"""pytest -p helpers.outcomes --outcomes FILE: how the tests ended, in a file that is true at every moment.

A run that hangs, crashes or is ended leaves what it had. Under pytest-xdist the controller writes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

EVERY = 1.0  # seconds between two writes


class Outcomes:
    def __init__(self, path: Path) -> None:
        self.path, self.written = path, 0.0
        self.counts: dict[str, int] = {}
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        if report.failed:
            text = report.longreprtext.strip().splitlines() or [""]
            error = next((line[2:] for line in text if line.startswith("E ")), text[-1])
            self.failed[report.nodeid] = error.strip()[:200]
        if time.monotonic() - self.written > EVERY:
            self.write(False)

    def write(self, whole: bool) -> None:
        self.written = time.monotonic()
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items())) or "no test ran"
        found = {"whole": whole, "counts": self.counts, "failed": self.failed,
                 "summary": [said + ("" if whole else ", and then it was ended"),
                             *(f"{name}: {why}" for name, why in list(self.failed.items())[:20])]}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(found) + "\n")
        part.replace(self.path)

    def pytest_sessionfinish(self) -> None:
        self.write(True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="the file")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(path))
