"""Commands and code of the README and of docs/: every one is tried, or at least understood."""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module

import pytest
import torch
from helpers import ROOT

import fastmix
from fastmix.app import import_torchvision
from fastmix.app.cli import evaluate as evaluate_command
from fastmix.app.cli import presets, preview
from fastmix.app.cli import report as report_command
from fastmix.app.cli import subsample as subset
from fastmix.app.cli import train as command
from fastmix.app.cli import train_ssl as ssl_command
from fastmix.bench.command import COMMANDS, DEFAULT

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
PARSERS = {"train": command.parser, "train-ssl": ssl_command.parser, "preview": preview.parser,
           "evaluate": evaluate_command.parser, "subsample": subset.parser, "presets": presets.parser,
           "report": report_command.parser}


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page=README):
    lines = [line.split("#")[0].strip() for block in blocks("sh", page) for line in block.splitlines()]
    return [line for line in lines if line]


def every_command(beginning):
    return [line for page in PAGES for line in commands(page) if line.startswith(beginning)
            and page.name != "adding.md"]  # whose commands are of what it adds; test_adding runs them


def run_in_order(page):
    """The names that the Python blocks of a page leave. What a block prints stands behind its print, or in lines of
    comment below it."""
    names = {}
    for block in blocks("python", page):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(block, page.name, "exec"), names)
        said = re.findall(r"^ *print\(.*\)  # (.*)$|^# (.*)$", block, re.M) if "print(" in block else []
        assert printed.getvalue().splitlines() == [behind or below for behind, below in said], block
    return names


RUNNABLE = [page for page in PAGES if blocks("python", page)
            and page.name != "adding.md"]  # which test_adding applies to a copy


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_python_blocks_run_in_order(page):
    import_torchvision.prepare()
    for library in ("timm.data", "torchvision.transforms.v2"):
        if f"fastmix.compat.{library.split('.')[0]}" in page.read_text():
            pytest.importorskip(library, exc_type=ImportError)
    try:
        names = run_in_order(page)
    finally:
        fastmix.unpatch()
    if page != README:
        return
    assert names["loss"].isfinite() and names["images"].shape == names["x"].shape
    assert isinstance(names["target"], fastmix.SoftTarget) and (names["target"].confidence() < 1).any()


@pytest.mark.parametrize("line", every_command("make "))
def test_make_targets_exist(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.M), line


def parse(parser, flags):
    if flags != ["--help"]:
        parser.parse_args(flags)


@pytest.mark.parametrize("line", every_command("python -m fastmix "))
def test_commands_parse(line):
    name, *flags = shlex.split(line)[3:]
    if name == "bench":
        command = flags.pop(0) if flags[0] in COMMANDS else DEFAULT
        parse(import_module(COMMANDS[command][0]).parser(), flags)
    elif name in PARSERS:
        parse(PARSERS[name](), flags)
    else:
        assert name == "info" and not flags


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in commands(ROOT / "CONTRIBUTING.md") if "-m pytest" in line])
def test_commands_of_contributors_find_tests(line):
    if "--device cuda" in line and not torch.cuda.is_available():
        pytest.skip("no GPU")
    variables = [word for word in shlex.split(line) if re.match(r"[A-Z_]+=", word)]
    arguments = shlex.split(line.partition("-m pytest ")[2])
    found = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments], cwd=ROOT, text=True,
                           capture_output=True, env={**os.environ, **dict(word.split("=") for word in variables)})
    assert found.returncode == 0 and re.search(r"^\d+(/\d+)? tests collected", found.stdout, re.M), found.stdout[-2000:]


def test_the_readme_fits_on_one_page():
    assert len(README.read_text().splitlines()) <= 150


def test_the_pages_have_such_commands():
    assert len(blocks("python")) >= 2
    assert len(commands(ROOT / "docs" / "training.md")) > 8
    assert len([line for line in commands(ROOT / "docs" / "benchmarks.md") if " bench " in line]) > 2


@every_page
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#]+)[)#]", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
