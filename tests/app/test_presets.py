"""Presets: every one makes sense, fills what is not given, and the papers' tables are in them."""

import dataclasses
import json
import re

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training

from fastmix import __main__ as program
from fastmix.app import methods, models
from fastmix.app.cli import train as command
from fastmix.app.console import USAGE, UsageError
from fastmix.app.training import options, presets
from fastmix.app.training.options import Options
from fastmix.app.training.recipes import PRESETS

FIELDS = {field.name for field in dataclasses.fields(Options)}
OTHERS = ("soft-crop", "soft-noise", "soft-resized-crop", "label-smoothing", "focal")  # may not be in METHODS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_sense(name):
    preset = PRESETS[name]
    assert preset.name == name and re.fullmatch(r"paper/[a-z0-9.-]+", name) and preset.source
    assert {"method", "model", "data", "epochs", "batch", "lr", "schedule"} <= preset.options.keys() <= FIELDS
    model = preset.options["model"]
    assert model.startswith("torchvision:") or any(re.fullmatch(pattern, model) for pattern, _ in models.FAMILIES)
    method = preset.options["method"]
    assert method in methods.METHODS or method in OTHERS
    own = Options(**preset.options)
    options.check(own)
    assert not own.milestones or (own.schedule == "multistep" and own.milestones[-1] < own.epochs - own.refine_epochs)
    assert not own.warmup or own.schedule == "cosine"
    if method in methods.METHODS:
        methods.check_flags([method], preset.options.keys())
        parsed = vars(command.parser().parse_args(presets.flags(preset).split()))
        assert parsed == preset.options  # the flags that it prints are the preset


def test_table_1_of_k_image_mixing():
    table = {"dmixup-pn110-c100": (3, 1 / 3), "dcutmix-pn110-c100": (5, 0.2), "dmixup-pn200-c100": (3, 1),
             "dcutmix-pn200-c100": (5, 1), "dmixup-pn200-c10": (5, 0.2), "dcutmix-pn200-c10": (3, 1 / 3)}
    for name, (k, alpha) in table.items():
        own = PRESETS[f"paper/{name}"].options
        assert (own["k"], own["alpha"]) == (k, alpha) and own["method"] == name.split("-")[0]
        assert own["data"] == {"c10": "cifar10", "c100": "cifar100"}[name.split("-")[2]]
        assert own["model"] == {"pn110": "pyramidnet110-64", "pn200": "pyramidnet200-240"}[name.split("-")[1]]
        assert (own["epochs"], own["batch"], own["lr"], own["milestones"]) == (300, 64, 0.25, (150, 225))
    for k in (3, 4, 5, 7):
        assert PRESETS[f"paper/saliency-dcutmix-k{k}-rn50-imagenet"].options["k"] == k


def test_hyper_parameters_of_the_other_papers():
    rmix = PRESETS["paper/rmix-parn18-c100"].options
    assert (rmix["alpha"], rmix["patches"], rmix["levels"], rmix["lr"], rmix["epochs"], rmix["batch"],
            rmix["schedule"]) == (1.0, (2, 4), 10, 0.3, 300, 100, "onecycle")
    assert PRESETS["paper/rmix-wrn28-10-c100"].options["epochs"] == 400
    assert PRESETS["paper/rmix-rn50-imagenet"].options["alpha"] == 0.2
    isda = PRESETS["paper/isda-wrn28-10-c100"].options
    assert (isda["milestones"], isda["gamma"], isda["epochs"], isda["weight_decay"]) == ((60, 120, 160, 200), 0.2, 240,
                                                                                       5e-4)
    diagonal = {name: PRESETS[f"paper/isda-{name}-imagenet"].options for name in ("rn50", "rn101", "densenet121")}
    assert [own["strength"] for own in diagonal.values()] == [7.5, 5.0, 1.0]
    assert all(own["isda_kind"] == "diag" and own["batch"] == 512 for own in diagonal.values())
    soft = PRESETS["paper/soft-crop-rn18-c100"].options
    assert (soft["epochs"], soft["batch"], soft["schedule"], soft["lr"]) == (500, 128, "cosine", 0.1)
    assert PRESETS["paper/soft-crop-efficientnet-b0-c100"].options["lr"] == 0.025
    # B.1: sigma decays for the last 20 epochs of CIFAR-100, of nothing else.
    for name, preset in PRESETS.items():
        decays = name.startswith("paper/soft-") and preset.options["data"] == "cifar100"
        assert preset.options.get("sigma_decay", 0) == (20 if decays else 0), name
    table_9 = {"resnet110": (160, 128, 1e-4, 0.1, (80, 120), 0.1),
               "se-resnet110": (200, 128, 1e-4, 0.1, (80, 120, 160), 0.1),
               "wrn16-8": (240, 128, 5e-4, 0.1, (60, 120, 160, 200), 0.2),
               "densenet-bc100-12": (300, 64, 1e-4, 0.1, (150, 200, 250), 0.1),
               "resnext29-8x64d": (350, 128, 5e-4, 0.05, (150, 225, 300), 0.1)}
    for model, row in table_9.items():
        own = PRESETS[f"paper/isda-{model}-c10"].options
        assert tuple(own[key] for key in ("epochs", "batch", "weight_decay", "lr", "milestones", "gamma")) == row
    # Appendix A: ImageNet with the weight decay of CIFAR.
    for model, decay in {"rn50": 1e-4, "densenet121": 1e-4, "resnext50": 5e-4, "resnext101": 5e-4}.items():
        assert PRESETS[f"paper/isda-{model}-imagenet"].options["weight_decay"] == decay
    shake = PRESETS["paper/isda-shake-shake-2x32d-c100"].options
    assert (shake["epochs"], shake["batch"], shake["schedule"]) == (1800, 64, "cosine")
    refined = PRESETS["paper/refined-mixup-parn18-c100"].options
    assert (refined["epochs"], refined["refine_epochs"], refined["milestones"]) == (450, 50, (150, 275))
    assert PRESETS["paper/refined-cutmix-wrn28-10-c10"].options["prob"] == 0.5
    assert PRESETS["paper/refined-mixup-alpha0.2-rn50-imagenet"].options["refine_lr"] == 1e-4


def test_notes_say_what_the_tables_do_not():
    for name, preset in PRESETS.items():
        method, own, note = preset.options["method"], preset.options, preset.note
        if method == "manifold-mixup":
            assert "layers are not stated" in note, name
        if preset.source.startswith("R-Mix"):
            assert ("steps, rate and batch are not stated" if "imagenet" in name else "weight decay") in note, name
            assert ("400 epochs as Section 4.1" in note) == (own["epochs"] == 400 and method != "cutmix"), name
        if preset.source.startswith("ISDA") and own["model"] == "wrn28-10":
            assert "without dropout" in note, name  # Section 6.2.2: there every WRN-28-10 has it


NAME = "paper/refined-cutmix-parn18-c100"


def test_given_flags_win():
    assert presets.fill({"lr": 0.7}) == {"lr": 0.7} and presets.fill({}, "mixup") == {"method": "mixup"}
    filled = presets.fill({"preset": NAME})
    assert filled == PRESETS[NAME].options | {"preset": NAME}
    filled = presets.fill({"preset": NAME, "lr": 0.7, "prob": 1.0, "data": "digits"})
    assert (filled["lr"], filled["prob"], filled["data"], filled["batch"]) == (0.7, 1.0, "digits", 128)


def test_another_method_keeps_the_training_and_not_the_methods_flags():
    for filled in (presets.fill({"preset": NAME, "method": "mixup"}), presets.fill({"preset": NAME}, "mixup")):
        assert filled["method"] == "mixup" and filled["refine_epochs"] == 50
        assert "prob" not in filled and "alpha" not in filled
    assert presets.fill({"preset": NAME, "alpha": 0.3}, "mixup")["alpha"] == 0.3


def test_shorter_runs_are_scaled():
    filled = presets.fill({"preset": NAME, "epochs": 45})
    assert (filled["milestones"], filled["refine_epochs"], filled["epochs"]) == ((15, 28), 5, 45)
    assert presets.fill({"preset": NAME, "epochs": 45, "milestones": (7,)})["milestones"] == (7,)
    assert presets.fill({"preset": NAME, "epochs": 2})["refine_epochs"] == 1
    assert presets.fill({"preset": "paper/refined-mixup-alpha0.2-rn50-imagenet", "epochs": 1})["refine_lr"] is None
    for epochs in (1, 2, 3, 10):
        for name in PRESETS:
            if PRESETS[name].options["method"] in methods.METHODS:
                options.check(Options(**presets.fill({"preset": name, "epochs": epochs})))


def test_another_schedule_drops_the_milestones():
    filled = presets.fill({"preset": NAME, "schedule": "onecycle"})
    assert "milestones" not in filled and "gamma" not in filled


def test_a_run_and_its_resume_remember_the_preset(tmp_path):
    flags = ["--preset", "paper/dcutmix-pn110-c100", *training.TINY, "--model", "cnn", "--epochs", "2"]
    out = ["--out", str(tmp_path / "run")]
    assert command.main([*flags, *out]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["method"], config["k"], config["alpha"], config["batch"], config["data"], config["milestones"],
            config["preset"]) == ("dcutmix", 5, 0.2, 64, "digits", [1, 2], "paper/dcutmix-pn110-c100")
    (tmp_path / "run" / "report.json").unlink()
    assert command.main(["--resume", *out]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["preset"] == "paper/dcutmix-pn110-c100"
    wanted = command.request([*flags, "--compare", "none,dcutmix", "--out", str(tmp_path / "both")])
    assert [(job.options.method, job.options.k, job.options.lr) for job in wanted.jobs] == [("none", None, 0.25),
                                                                                          ("dcutmix", 5, 0.25)]


def test_errors_say_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match="there is no 'paper/dcutmix-pn110-c10'; near are paper/dcutmix-pn110-c100"):
        presets.get("paper/dcutmix-pn110-c10")
    with pytest.raises(UsageError, match="--milestones means nothing to --schedule onecycle"):
        command.request([*training.TINY, "--milestones", "1"])
    with pytest.raises(UsageError, match="--model cnn13 cannot take images of 8x8 pixels"):
        command.main(["--preset", "paper/isda-semi-cnn13-c10", *training.TINY, "--labelled", "50", "--out",
                      str(tmp_path / "x")])


def test_a_method_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr(presets, "METHODS", {"none": None})
    with pytest.raises(UsageError, match="--preset paper/rmix-parn18-c100: there is no method 'rmix' here"):
        presets.fill({"preset": "paper/rmix-parn18-c100"})


def test_listing(capsys):
    assert program.main(["presets"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PRESETS) and len(out.splitlines()) == len(PRESETS)
    assert program.main(["presets", "dcutmix", "Table 1", "--flags"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and "--k 5 --alpha 0.2" in lines[1] and "top-1 error 16.95 %" in lines[0]
    assert program.main(["presets", "nonsense"]) == USAGE
