"""Training with ISDA: the loss of a step, labelled draws, two processes, the segmentation example."""

import importlib.util

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import ROOT, training

import fastmix.functional as F
from fastmix.app import data
from fastmix.app.cli.train import main
from fastmix.app.console import UsageError
from fastmix.app.methods.isda import ISDA
from fastmix.app.methods.isda_semi import LabelledDraws
from fastmix.app.training import run
from fastmix.app.training.distributed import Processes
from fastmix.app.training.loop import training_step
from fastmix.app.training.options import Options
from fastmix.app.training.timing import StepTimer

HERE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", limit=300)


def step(setup, x, y):
    timer = StepTimer(HERE.device)
    timer.start()
    return training_step(setup, x, y, 1.0, timer)


@pytest.mark.parametrize("kind", ["full", "diag", "shared", "identity"])
def test_a_step_has_the_loss_of_the_paper(digits, kind):
    setup = run.setup(Options(method="isda", isda_kind=kind, strength=0.7, isda_schedule="constant", epochs=1), digits,
                      HERE)
    images, y = next(setup.dataset.train.batches([torch.arange(40)]))
    x = setup.inputs(images, None)
    setup.model.train()
    features = []
    head = setup.objective.classifier(setup.model)
    handle = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    loss, logits, target = step(setup, x, y)
    handle.remove()
    weight = head.weight.detach()  # moved by the step: the logits at its start give it back
    state = setup.objective.criterion.covariance
    assert state.count.sum() == 40 and torch.equal(target, y) and len(logits) == 40
    again = run.setup(setup.options, digits, HERE)
    old = again.objective.classifier(again.model).weight
    assert not torch.equal(weight, old)
    augmented = F.isda_logits(logits, old, state.cov, y, 0.7, kind=kind)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(augmented, y))
    mean = torch.stack([features[0][y == c].mean(0) for c in y.unique()])
    torch.testing.assert_close(state.mean[y.unique()], mean, rtol=1e-4, atol=1e-5)


def test_unlabelled_images_give_no_label_away(digits):
    """The step of isda-semi must not change with the labels of its second half."""
    def weights(y):
        setup = run.setup(Options(method="isda-semi", labelled=50, isda_schedule="constant", epochs=1), digits, HERE)
        setup.model.train()
        _, logits, target = step(setup, x, y)
        assert len(logits) == len(target) == 20
        return [p.detach() for p in setup.model.parameters()], setup.objective.criterion.covariance.count

    setup = run.setup(Options(), digits, HERE)
    images, y = next(setup.dataset.train.batches([torch.arange(40)]))
    x = setup.inputs(images, None)
    other = torch.cat([y[:20], (y[20:] + 3) % 10])
    (a, count), (b, _) = weights(y), weights(other)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True)) and count.sum() == 20


def test_consistency_pulls_on_unlabelled_images(digits):
    losses = {}
    for weight in (0.0, 1.0):
        setup = run.setup(Options(method="isda-semi", labelled=50, consistency=weight, isda_schedule="constant",
                                  epochs=1), digits, HERE)
        images, y = next(setup.dataset.train.batches([torch.arange(40)]))
        setup.model.train()
        losses[weight] = step(setup, setup.inputs(images, None), y)[0].item()
    assert losses[1.0] > losses[0.0] + 0.1


def test_labelled_draws_are_balanced_and_take_turns(digits):
    draws = LabelledDraws(digits.train.labels, 50)
    assert torch.bincount(digits.train.labels[draws.index]).tolist() == [5] * 10
    steps = data.training_steps(300, 40, 0)
    both = draws.steps(steps, 7)
    for one, two in zip(steps, both, strict=True):
        half = len(one.own)
        assert torch.equal(two.own[half:], one.own) and two.total == 2 * one.total
        assert set(two.own[:half].tolist()) <= set(draws.index.tolist())
    drawn = torch.cat([two.own[:len(one.own)] for one, two in zip(steps, both, strict=True)])
    assert torch.bincount(drawn)[draws.index].tolist() == [6] * 50
    assert not torch.equal(both[0].own, draws.steps(steps, 8)[0].own)


def test_two_processes_step_as_one(tmp_path):
    """5 images over 2 processes, 3 and 2: the covariances and the weights of one process with all 5."""
    script = tmp_path / "uneven.py"
    script.write_text("""
import dataclasses, torch
from fastmix.app import data, models
from fastmix.app.training import run
from fastmix.app.training.distributed import Processes, processes
from fastmix.app.training.loop import train_epoch
from fastmix.app.training.options import Options
from fastmix.app.training.timing import StepTimer

def build(name, classes, shape):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.Linear(12, classes))

models.build = build
digits = data.load("digits")
five = dataclasses.replace(digits, train=digits.train.subset(torch.arange(5)))
options = Options(method="isda", isda_schedule="constant", epochs=2, batch=3, schedule="multistep", lr=0.1)

def train(options, here, alone):
    setup = run.setup(options, five, here)
    if alone:
        setup.objective = setup.objective.alone()
    for epoch in (1, 2):
        train_epoch(setup, epoch, StepTimer(here.device), lambda: None)
    return [p.detach() for p in setup.model.parameters()], setup.objective.criterion.covariance

with processes("cpu") as here:
    weights, state = train(options, here, False)
    assert state.count.sum() == 10
    if here.first:
        want_weights, want = train(dataclasses.replace(options, batch=5), Processes(0, 1, here.device), True)
        for a, b in zip([*weights, state.mean, state.cov], [*want_weights, want.mean, want.cov]):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        print("agreed")
""")
    result = training.torchrun(script)
    assert result.returncode == 0 and "agreed" in result.stdout, result.stderr


def test_torchrun_trains_and_resumes_with_its_covariances(tmp_path):
    flags = [*training.TINY, "--limit", "101", "--epochs", "1", "--lr", "0.01", "--batch", "10"]
    result = training.torchrun("-m", "fastmix", "train", *flags, "--method", "isda", "--out", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    state = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["objective"]
    assert state["count"].sum() == 101


def test_usage(digits, capsys):
    with pytest.raises(UsageError, match="--isda-kind means nothing to mixup; it is for isda, isda-semi"):
        main(["--method", "mixup", "--isda-kind", "diag", *training.TINY])
    with pytest.raises(UsageError, match="--labelled means nothing to isda; it is for isda-semi"):
        main(["--method", "isda", "--labelled", "10", *training.TINY])
    with pytest.raises(UsageError, match="--labelled is 400, want 1 to 300"):
        run.setup(Options(method="isda-semi", labelled=400), digits, HERE)
    with pytest.raises(UsageError, match=r"needs a last layer that is nn\.Linear with 10 outputs"):
        ISDA(Options(method="isda")).objective(torch.nn.Conv2d(1, 10, 1), 10, 1, HERE.device)


def test_cutout_goes_before_isda(digits):
    setup = run.setup(Options(method="isda", length=3, epochs=1), digits, HERE)
    assert setup.mixer is not None and setup.objective is not None
    images, y = next(setup.dataset.train.batches([torch.arange(20)]))
    loss, _, target = step(setup, setup.inputs(images, None), y)
    assert loss.isfinite() and torch.equal(target, y)


@pytest.mark.parametrize("method", ["isda", "cutmix"])
def test_segmentation_example_learns(method):
    path = ROOT / "examples" / "segmentation.py"
    spec = importlib.util.spec_from_file_location("segmentation", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    digits = data.load("digits")
    x, y = example.canvases(digits.train.images, digits.train.labels, 4, torch.Generator().manual_seed(0))
    assert x.shape == (4, 1, 32, 32) and y.shape == (4, 32, 32)
    assert set(y.unique().tolist()) <= {*range(11), 255} and (y == 255).any()
    assert example.train(method, 0, 20, 25, 0.5) > 0.08  # all background: 1/11 of about 0.85
