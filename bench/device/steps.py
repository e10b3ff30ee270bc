"""bench/device/check.sh CALL: the steps of the device check's three calls, in the order of their value."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys

from .check import Check, Step, ended, main
from .prepared import FOLDER, ROOT

HERE = ROOT / "bench" / "device"


def supervised(check: Check, step: str, budget: int, module: str, *args: object) -> list[str]:
    """A module that runs cases, under a parent that loads nothing. budget: seconds until which it starts anew."""
    command = check.module(module, "--worker", "--json", check.detail(step), "--device", check.kind, *args)
    parent = ROOT / "bench" / "harness" / "worker.py"
    return [check.python, str(parent), str(budget), str(check.detail(step)), *command[1:]]


def by_kind(check: Check, gpu: str, cpu: str) -> str:
    return cpu if check.dry else gpu


def load(check: Check) -> list[str]:
    return [check.python, str(HERE / "prepared.py"), "--site", str(check.site), "--detail", str(check.detail("load")),
            *(["--cpu"] if check.dry else [])]


def sanitizer(check: Check) -> list[str]:
    return [check.python, str(HERE / "sanitizer.py"), str(FOLDER), "--json", str(check.detail("sanitizer"))]


def pytest(check: Check, step: str, backend: str, *more: str) -> list[str]:
    """Tests of one backend, on many processes where there is pytest-xdist; not the slow ones."""
    def there(module: str) -> bool:
        return importlib.util.find_spec(module) is not None

    return [check.python, "-m", "pytest", "-p", "helpers.outcomes", "--outcomes", str(check.detail(step)), "--device",
            check.kind, "--backend", backend, "-q", "-m", "not slow", "-p", "no:cacheprovider", "--tb=short",
            *(["-n", by_kind(check, "12", "0")] if there("xdist") else []),
            *(["--timeout", "30"] if there("pytest_timeout") else []), *more]


def tests(check: Check) -> list[str]:
    if check.dry:
        return pytest(check, "tests", "cpu", "tests/ops/test_paste.py", "-k", "channels or clips")
    return pytest(check, "tests", "cuda", "tests/ops", "tests/mixers", "tests/losses")


def triton(check: Check) -> list[str]:
    if check.dry:
        return pytest(check, "triton", "reference", "tests/ops/test_paste.py", "-k", "channels or clips")
    return pytest(check, "triton", "triton", "tests/ops", "tests/losses")


def goals(check: Check, step: str, groups: str, budget: int) -> list[str]:
    return supervised(check, step, budget, "goals", "--groups", groups, "--root", check.work, "--seconds",
                      by_kind(check, "0.3", "0.003"))


def graphs(check: Check) -> list[str]:
    return supervised(check, "graphs", 40, "graphs", "--backends", by_kind(check, "cuda", "cpu"), "--limit", "20")


def ncu(check: Check) -> list[str]:
    return check.module("counters", "--json", check.detail("ncu"), *(["--small"] if check.dry else []))


def versus(check: Check) -> list[str] | str:
    """OLD, NEW: folders with a package inside; a dry run compares this tree with itself."""
    old = os.environ.get("OLD") or (str(check.site) if check.dry else "")
    if not old:
        return "nothing to compare with: OLD is not set"
    return [check.python, str(HERE / "versus.py"), "--old", old, "--new", os.environ.get("NEW") or str(check.site),
            "--json", str(check.detail("versus")), "--device", check.kind, *(["--small"] if check.dry else [])]


def backends(check: Check) -> list[str]:
    return supervised(check, "backends", 60, "backends", "--pair", by_kind(check, "cuda,triton", "cpu,eager"),
                      "--seconds", by_kind(check, "0.15", "0.003"))


def train(check: Check) -> list[str]:
    """One epoch of real digits (scikit-learn's), or of coloured squares where they are not there."""
    data = ["--data", "digits"]
    if importlib.util.find_spec("sklearn") is None:
        data = ["--data", "folder", "--root", str(check.work / "images"), "--image-size", "32"]
    command = [check.python, "-m", "fastmix", "train", *data, "--method", "dcutmix", "--epochs", "1", "--device",
               check.kind, "--out", str(check.work / "run"), "--overwrite", *(["--limit", "128"] if check.dry else [])]
    if "folder" not in data:
        return command
    images = " ".join(check.module("images", check.work / "images"))
    return ["bash", "-c", f"{images} && {' '.join(command)}"]


# Call -> its deadline in seconds and its steps, the most valuable first.
CALLS: dict[int, tuple[float, tuple[Step, ...]]] = {
    1: (240, (Step("load", 150, load), Step("sanitizer", 30, sanitizer), Step("tests", 75, tests),
              Step("goals", 100, lambda check: goals(check, "goals", "images,loss,calls,isda", 70)),
              Step("graphs", 60, graphs), Step("ncu", 40, ncu))),
    2: (230, (Step("load", 150, load), Step("versus", 60, versus), Step("backends", 80, backends),
              Step("triton", 60, triton), Step("train", 40, train),
              Step("compile", 60, lambda check: goals(check, "compile", "compile", 40)))),
    3: (150, (Step("load", 120, load),
              Step("goals", 110, lambda check: goals(check, "goals", by_kind(check, "isda,images,loss,calls", "isda"),
                                                     80)))),
}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, ended)
    sys.exit(main(sys.argv[1:], CALLS))
