"""The README's commands and code: every one is tried, or at least understood."""

import re
import shlex

import pytest
import torch
from helpers import ROOT

from fastmix.app.cli import evaluate as evaluate_command
from fastmix.app.cli import presets, preview
from fastmix.app.cli import report as report_command
from fastmix.app.cli import subsample as subset
from fastmix.app.cli import train as command
from fastmix.app.cli import train_ssl as ssl_command

README = (ROOT / "README.md").read_text()
PARSERS = {"train": command.parser, "train-ssl": ssl_command.parser, "preview": preview.parser,
           "evaluate": evaluate_command.parser, "subsample": subset.parser, "presets": presets.parser,
           "report": report_command.parser}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_python_blocks_run_in_order():
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["loss"].isfinite() and names["mixed"].shape == names["x"].shape
    assert isinstance(names["saliency"], torch.Tensor)


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("make ")])
def test_make_targets_exist(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.M), line


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("python -m fastmix ")])
def test_commands_parse(line):
    name, *flags = shlex.split(line)[3:]
    if name in PARSERS:
        PARSERS[name]().parse_args(flags)
    else:
        assert name == "info" and not flags


def test_the_readme_has_such_commands():
    assert len(commands()) > 8 and len(blocks("python")) >= 2


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
