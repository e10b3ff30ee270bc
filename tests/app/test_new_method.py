"""Adding a method is adding one file; and what the declarations of options promise."""

import dataclasses
import json
import shutil
import sys

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import ROOT, training

import fastmix
from fastmix.app import methods
from fastmix.app.cli import train as command
from fastmix.app.console import CommandError
from fastmix.app.methods import METHODS, OPTIONS, Method
from fastmix.app.training.options import Options, RunOptions

# The whole of it: a mixer of the library under another name, an option of its own and one of the program's.
FILE = '''
"""Mixup whose shares are more or less even."""

from __future__ import annotations

import fastmix
import fastmix.functional as F

from .. import arguments
from .base import Method
from .common import LABEL_SMOOTHING, PROB
from .option import Option

EVENNESS = Option("evenness", arguments.positive, "how even the shares are", "Mixup", argument="alpha")
TEMPERATURE = Option("temperature", arguments.positive, "of the logits", "none", default=1.0)


class EvenMixup(Method):
    name, about = "even-mixup", "shares that are even"
    options = (EVENNESS, TEMPERATURE, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.Mixup

    def loss(self):
        temperature = self.value("temperature")
        return lambda logits, target: F.soft_cross_entropy(logits / temperature, target)
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with one file more."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "fastmix", folder / "fastmix", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "fastmix" / "app" / "methods" / "even_mixup.py").write_text(FILE)
    return folder


def environment(package):
    return training.environment() | {"PYTHONPATH": str(package)}


def run(package, *arguments):
    done = training.fastmix(*arguments, cwd=package, env=environment(package))
    return done.returncode, done.stdout, done.stderr


def test_its_flags_are_in_the_help(package):
    status, out, _ = run(package, "train", "--help-all")
    text = " ".join(out.split())
    assert status == 0 and "even-mixup: shares that are even" in text
    assert "--evenness EVENNESS how even the shares are (even-mixup: 1)" in text  # fastmix.Mixup's own default
    assert "--temperature TEMPERATURE of the logits (even-mixup: 1)" in text
    assert "soft-noise, isda, isda-semi, even-mixup: 1)" in text  # --prob; a method without a position comes last


def test_it_trains_is_stored_continued_and_reported(package, tmp_path):
    folder = tmp_path / "run"
    flags = ["--method", "even-mixup", "--evenness", "4", *training.TINY, "--epochs", "1", "--out", folder]
    status, out, err = run(package, "train", *flags)
    assert status == 0 and "even-mixup" in out, err
    config = json.loads((folder / "config.json").read_text())
    assert (config["method"], config["evenness"], config["temperature"], config["prob"]) == ("even-mixup", 4, 1, 1)
    assert config["alpha"] is None  # not an option of it
    status, _, err = run(package, "train", "--resume", "--evenness", "2", "--out", folder)
    assert status == 2 and "was trained with evenness = 4.0, not 2.0" in err
    assert run(package, "train", "--resume", "--out", folder)[0] == 0
    assert run(package, "train", *flags[:2], *flags[4:-1], tmp_path / "other")[0] == 0
    status, out, err = run(package, "report", folder, tmp_path / "other", "--fgsm-images", "0", "--threads", "1")
    names = [line.split("  ")[0] for line in out.splitlines()[-2:]]
    assert status == 0 and names == ["even-mixup --evenness 4.0", "even-mixup"], err
    with pytest.raises(CommandError, match=r"config\.json is (missing or )?no configuration of a run"):
        Options.from_json(folder / "config.json")  # here there is no such method


def test_its_option_is_checked_and_filled(package, tmp_path):
    status, _, err = run(package, "train", "--method", "mixup", "--evenness", "2", "--out", tmp_path / "x")
    assert status == 2 and "--evenness means nothing to mixup; it is for even-mixup" in err
    status, _, err = run(package, "train", "--method", "even-mixup", "--evenness", "0", "--out", tmp_path / "x")
    assert status == 2 and "--evenness: is 0, want a number above 0" in err
    code = """
from fastmix.app.training import presets
given = {"preset": "paper/refined-cutmix-parn18-c100", "method": "even-mixup", "evenness": 2.0}
filled = presets.fill(given)
print(filled["evenness"], filled["refine_epochs"], "prob" in filled, "alpha" in filled)
"""
    done = training.run([sys.executable, "-c", code], cwd=package, env=environment(package), check=True)
    assert done.stdout.split() == ["2.0", "50", "False", "False"]


def test_it_is_drawn(package, tmp_path):
    out = tmp_path / "grid.png"
    status, _, err = run(package, "preview", "--method", "even-mixup,none,mixup", "--out", out, "--threads", "1")
    assert status == 0 and out.stat().st_size > 1000, err


# ---------------------------------------------------------------- the declarations

def test_every_file_is_a_method_or_shared_by_methods():
    shared = {"base", "common", "objective", "option", "registry", "soft", "__init__"}
    files = {path.stem for path in (ROOT / "fastmix" / "app" / "methods").glob("*.py")} - shared
    assert files == {name.replace("-", "_") for name in METHODS}


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_declaration_is_whole(method):
    assert method.about and method.__doc__
    assert len({option.name for option in method.options}) == len(method.options)
    for option in method.options:
        assert option.help and option.source
        assert option.help in [other.help for other in OPTIONS[option.name]]
        value = method.default(option.name)
        assert option.shown(value)  # a default of None says in words what it means
        if option.choices is not None:
            assert value in option.choices
    names = {field.name for field in dataclasses.fields(Options)}
    assert {option.name for option in method.options} <= names - {field.name for field in
                                                                  dataclasses.fields(RunOptions)}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=lambda options: options[0].name)
def test_options_of_one_name_are_one_flag(options):
    assert len({(option.parse, option.choices, option.metavar, option.training) for option in options}) == 1


@pytest.mark.parametrize(("method", "name", "want"), [
    ("mixup", "alpha", 1.0), ("dcutmix", "k", 3), ("dcutmix", "alpha", None), ("rmix", "patches", (2, 4)),
    ("rmix", "levels", 10), ("rlmix", "grid", 8), ("soft-crop", "sigma", 0.3), ("soft-noise", "sigma", 0.1),
    ("soft-noise", "k", 1), ("soft-crop", "k", 2), ("soft-crop", "weighting", "sample"), ("focal", "focal_gamma", 2.0),
    ("isda", "isda_kind", "full"), ("isda", "isda_schedule", "linear"), ("cutout", "length", None),
    ("manifold-mixup", "layers", "auto"), ("label-smoothing", "label_smoothing", 0.1),
    ("none", "label_smoothing", 0.0)])
def test_defaults_are_those_of_the_classes(method, name, want):
    assert METHODS[method].default(name) == want


def test_what_is_left_out_is_not_passed_on(monkeypatch):
    seen = []

    class Spy(fastmix.DCutMix):
        def __init__(self, k=7, alpha=None, *, prob=1.0):
            seen.append((k, alpha, prob))
            super().__init__(k, alpha, prob=prob)

    class Spied(Method):
        name, about = "spied", ""
        options = METHODS["dcutmix"].options
        mixer_class = Spy

    assert Spied.default("k") == 7
    Spied(Options()).mixer((3, 8, 8), 10)
    Spied(Options(alpha=0.2)).mixer((3, 8, 8), 10)
    assert seen == [(7, None, 1.0), (7, 0.2, 1.0)]


def test_a_configuration_of_an_older_version_is_read_and_continued(tmp_path):
    """It holds every option, also those that its method does not read, with the defaults of that time."""
    old = {"method": "rmix", "preset": None, "data": "digits", "root": None, "image_size": None, "limit": 200,
           "subset": None, "augment": "auto", "model": "cnn", "epochs": 1, "test_every": 1, "batch": 100,
           "schedule": "onecycle", "milestones": None, "gamma": 0.1, "warmup": 0, "lr": 0.3, "momentum": 0.9,
           "weight_decay": 0.0005, "label_smoothing": 0.0, "refine_epochs": 0, "refine_lr": None, "alpha": None,
           "k": None, "patches": [2, 4], "saliency": "full", "grid": 8, "levels": 10, "discount": 0.0, "length": None,
           "layers": None, "prob": 1.0, "isda_kind": "full", "isda_schedule": "linear", "strength": 0.5,
           "labelled": 1000, "consistency": 1.0, "sigma": None, "sigma_decay": 0, "weighting": "sample", "fill": 0.0,
           "focal_gamma": 2.0, "seed": 0, "amp": "none", "channels_last": True, "device": "cpu", "threads": 1,
           "workers": 0}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(old))
    read = Options.from_json(tmp_path / "old" / "config.json")
    new = Options(method="rmix", limit=200, epochs=1, device="cpu", threads=1)
    assert read.reduced() == new and read.to_json()["patches"] == [2, 4]
    assert command.main(["--resume", "--patches", "2,4", "--out", str(tmp_path / "old")]) == 0
    assert command.main([*training.TINY, "--method", "rmix", "--epochs", "1", "--out", str(tmp_path / "new")]) == 0
    training.assert_same_training(tmp_path / "old", tmp_path / "new")
    stored = json.loads((tmp_path / "new" / "config.json").read_text())
    assert stored["patches"] == [2, 4] and stored["alpha"] == 1.0 and stored["grid"] is None


def test_label_smoothing_is_an_option_of_training(monkeypatch):
    smoothed = [name for name in METHODS if METHODS[name].option("label_smoothing")]
    assert "focal" not in smoothed and "soft-crop" not in smoothed and len(smoothed) == len(METHODS) - 4
    assert not methods.is_own("label_smoothing") and methods.is_own("alpha")
