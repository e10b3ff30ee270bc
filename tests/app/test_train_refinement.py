"""Runs with a refinement: rates by epoch, what the model sees, resume, two processes, report and curves."""

import json
import math

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from torch.nn import functional

import fastmix
from fastmix.app import data, methods
from fastmix.app.cli.train import main
from fastmix.app.console import UsageError
from fastmix.app.figures import training as pictures
from fastmix.app.training import report, run
from fastmix.app.training.distributed import Processes
from fastmix.app.training.evaluate import augmented_risk
from fastmix.app.training.loop import train_epoch, training_step
from fastmix.app.training.options import Options
from fastmix.app.training.timing import StepTimer

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", limit=200)


def make(digits, **kwargs):
    return run.setup(Options(**kwargs), digits, HERE)


def a_batch(setup, count=20):
    images, y = next(setup.dataset.train.batches([torch.arange(count)]))
    return setup.inputs(images, None), y


@pytest.mark.parametrize(("flags", "want"), [
    ({"schedule": "multistep"}, [0.3, 0.3, 0.03, 0.003, 0.003, 0.003]),
    ({"schedule": "multistep", "milestones": (1, 3), "gamma": 0.2}, [0.3, 0.06, 0.06, 0.012, 0.012, 0.012]),
    ({"schedule": "multistep", "refine_lr": 0.007}, [0.3, 0.3, 0.03, 0.003, 0.007, 0.007]),
    ({"schedule": "onecycle"}, [None, None, None, 3e-5, 0.003, 0.003]),
    ({"schedule": "cosine", "lr": 0.1}, [None, None, None, None, 0.001, 0.001]),
])
def test_rates_by_epoch(digits, flags, want):
    setup = make(digits, method="mixup", epochs=6, refine_epochs=2, batch=100, **flags)
    rates = [train_epoch(setup, epoch, StepTimer(HERE.device), lambda: None)["lr"] for epoch in range(1, 7)]
    for rate, expected in zip(rates, want, strict=True):
        assert expected is None or rate == pytest.approx(expected, rel=1e-9)


def test_cosine_with_warmup(digits):
    setup = make(digits, schedule="cosine", lr=0.2, epochs=10, warmup=2, batch=50)
    rates = []
    for _ in range(40):
        rates.append(setup.scheduler.get_last_lr()[0])
        setup.optimizer.step()
        setup.scheduler.step()
    rise, fall = rates[:8], rates[8:]
    assert rise == pytest.approx([0.2 * (i + 1) / 8 for i in range(8)])
    assert fall == pytest.approx([0.1 * (1 + math.cos(i / 32 * math.pi)) for i in range(32)])


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_refinement_is_plain_training(digits, method, monkeypatch):
    """Clean images, hard labels, no smoothing, no saliency pass, whatever the method."""
    setup = make(digits, method=method, epochs=4, refine_epochs=1, label_smoothing=0.2, labelled=100)
    monkeypatch.setattr(fastmix, "input_saliency", None)  # would fail if called
    setup.refinement.begin(4, setup.mixer, setup.optimizer)
    x, y = a_batch(setup)
    known = 10 if method == "isda-semi" else 20
    setup.model.train()
    with torch.no_grad():
        want = functional.cross_entropy(setup.model(x)[:known], y[:known])
    timer = StepTimer(HERE.device)
    timer.start()
    loss, logits, target = training_step(setup, x, y, 1.0, timer)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert torch.equal(target, y[:known]) and len(logits) == known


def test_manifold_mixup_trains_on_mixed_features(digits):
    """The loss of a step is that of the blend after the layer, against the mixed label."""
    setup = make(digits, method="manifold-mixup", layers=("features.4",))
    x, y = a_batch(setup)
    setup.model.train()
    torch.manual_seed(3)
    plan = setup.mixer.plan(x)
    with torch.no_grad():
        hidden = fastmix.functional.blend(setup.model.features[:5](x), plan.index, plan.weight)
        logits = setup.model.classifier(setup.model.features[5:](hidden).mean((2, 3)))
        want = fastmix.functional.soft_cross_entropy(logits, plan.target(y))
    torch.manual_seed(3)
    timer = StepTimer(HERE.device)
    timer.start()
    loss, _, target = training_step(setup, x, y, 1.0, timer)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert torch.equal(target.weight, plan.weight)


def test_the_risk_of_the_training_images_as_augmented(digits):
    """Without mixing it is the clean risk; a mixed label's entropy keeps it above; crops count too."""
    setup = make(digits, method="mixup", epochs=4, refine_epochs=1, augment="none", lr=0.1, batch=40)
    for epoch in (1, 2, 3):
        train_epoch(setup, epoch, StepTimer(HERE.device), lambda: None)
    clean = run.evaluate(setup, digits.train)["loss"]
    mixed = augmented_risk(setup, 3)
    assert mixed > clean + 0.1 and mixed == augmented_risk(setup, 3)
    setup.refinement.begin(4, setup.mixer)
    assert augmented_risk(setup, 4) == pytest.approx(clean, rel=1e-6)
    cropped = make(digits, method="none", epochs=2, refine_epochs=1, augment="crop-flip")
    cropped.model.load_state_dict(setup.model.state_dict())
    cropped.refinement.begin(2)
    assert augmented_risk(cropped, 2) > clean + 0.1


@pytest.mark.parametrize(("method", "stop"), [("saliency-dcutmix", 2), ("manifold-mixup", 4), ("isda", 4)])
def test_resume_lands_in_the_right_phase(tmp_path, monkeypatch, method, stop):
    flags = [*training.TINY, "--method", method, "--augment", "crop-flip", "--epochs", "4", "--refine-epochs", "2",
             "--label-smoothing", "0.1", "--batch", "50"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert main([*flags, "--out", str(straight)]) == 0
    real = run.train_epoch

    def interrupted(setup, epoch, *args):
        if epoch == stop:
            raise RuntimeError("power cut")
        return real(setup, epoch, *args)

    monkeypatch.setattr(run, "train_epoch", interrupted)
    with pytest.raises(RuntimeError, match="power cut"):
        main([*flags, "--out", str(broken)])
    monkeypatch.setattr(run, "train_epoch", real)
    assert main(["--resume", "--out", str(broken)]) == 0
    training.assert_same_training(straight, broken)
    entries = training.metrics(broken)
    assert [entry["phase"] for entry in entries] == ["augmentation"] * 2 + ["refinement"] * 2
    assert [entry["lr"] for entry in entries[2:]] == [0.003, 0.003]
    one, two = (json.loads((folder / "report.json").read_text()) for folder in (straight, broken))
    assert one["risk"] == two["risk"] and set(one["risk"]) == {"augmentation", "refinement"}
    assert one["risk"]["augmentation"]["epoch"] == 2 and one["risk"]["refinement"]["clean"] == entries[3]["clean_loss"]


def test_two_processes_and_the_table(tmp_path):
    result = training.torchrun("-m", "fastmix", "train", "--compare", "saliency-dcutmix,manifold-mixup",
                               *training.TINY, "--limit", "101", "--epochs", "2", "--refine-epochs", "1", "--lr",
                               "0.01", "--batch", "20", "--out", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    table = lines[lines.index(report.RISK_TITLE) + 3:][:2]
    assert [line.split()[0] for line in table] == ["saliency-dcutmix", "manifold-mixup"]
    for name in ("saliency-dcutmix", "manifold-mixup"):
        found = json.loads((tmp_path / "two" / f"{name}-seed0" / "report.json").read_text())
        assert found["processes"] == 2 and found["risk"]["augmentation"]["augmented"] > 1
        assert found["step_ratio"] > 0 and found["ms"]["mix"] > 0


def test_curves_end_and_begin_where_the_phases_do(tmp_path, monkeypatch):
    """Figure 1: the augmented loss ends at the dashed line, the clean one goes on."""
    figures = []
    real = pictures._new
    monkeypatch.setattr(pictures, "_new", lambda *args: figures.append(real(*args)) or figures[-1])
    history = [{"epoch": e, "train_loss": 2.0, "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.6, "lr": 0.1,
                "clean_loss": 0.7, "phase": "augmentation" if e < 4 else "refinement"} for e in range(1, 6)]
    pictures.curves(history, "title", tmp_path / "curves.png")
    loss = figures[0][1][0][0]
    lines = {line.get_label(): line for line in loss.get_lines()}
    assert list(lines["train, as mixed"].get_xdata()) == [1, 2, 3]
    assert list(lines["train, clean"].get_ydata()) == [0.7] * 5 and len(lines["test"].get_xdata()) == 5
    assert [line.get_xdata()[0] for line in loss.get_lines() if line.get_linestyle() == "--"] == [3.5]


@pytest.mark.parametrize(("flags", "message"), [
    (["--epochs", "3", "--refine-epochs", "3"], "--refine-epochs is 3, want less than --epochs, 3"),
    (["--refine-lr", "0.1"], "--refine-lr is for the epochs of --refine-epochs"),
    (["--schedule", "multistep", "--milestones", "3,2"], "--milestones is 3,2, want rising epochs"),
    (["--method", "manifold-mixup", "--layers", "nowhere"], "--layers: ManifoldMixup: layers holds 'nowhere'"),
    (["--method", "mixup", "--layers", "input"], "--layers means nothing to mixup; it is for manifold-mixup"),
    (["--method", "manifold-mixup", "--layers", "input,"], "want names with commas"),
])
def test_wrong_usage(tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        main([*training.TINY, *flags, "--out", str(tmp_path / "run")])


def test_tests_are_rare_where_asked(tmp_path, capsys):
    """--test-every: the same weights, a test at its multiples and at the end of both phases."""
    for every in (1, 2):
        assert main(["--method", "mixup", *training.TINY, "--epochs", "5", "--refine-epochs", "2", "--test-every",
                     str(every), "--out", str(tmp_path / str(every))]) == 0
    often, rare = (training.metrics(tmp_path / str(every)) for every in (1, 2))
    assert [entry["epoch"] for entry in rare if "test_accuracy" in entry] == [2, 3, 4, 5]
    assert [entry["epoch"] for entry in rare if "augmented_loss" in entry] == [3, 5]
    assert [entry["phase"] for entry in rare] == [entry["phase"] for entry in often]
    assert "test_accuracy" not in rare[0] and rare[1:] == often[1:]
    reports = [json.loads((tmp_path / str(every) / "report.json").read_text()) for every in (1, 2)]
    assert reports[0]["test_accuracy"] == reports[1]["test_accuracy"] and reports[0]["ece"] == reports[1]["ece"]
