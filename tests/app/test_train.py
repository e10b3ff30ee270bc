"""The training loop: methods, resume after a kill, divergence, timing, several processes."""

import dataclasses
import json
import os

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training

import fastmix
from fastmix import files
from fastmix.app import data, methods
from fastmix.app.cli.train import main
from fastmix.app.console import CommandError, UsageError
from fastmix.app.figures import training as pictures
from fastmix.app.training import checkpoint, loop, ratio, run
from fastmix.app.training.distributed import Processes
from fastmix.app.training.evaluate import evaluate
from fastmix.app.training.loop import LossGuard, NotFinite, mixed, train_epoch
from fastmix.app.training.options import Options
from fastmix.app.training.timing import PHASES, StepTimer
from fastmix.targets import SoftTarget

HERE = Processes(0, 1, torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", limit=300)


def make(digits, **kwargs):
    return run.setup(Options(**({"epochs": 2} | kwargs)), digits, HERE)


@pytest.mark.parametrize("method", ["none", "mixup", "cutmix", "cutout", "rmix"])
def test_bytes_and_their_images_give_the_same_batch(digits, method):
    """One pass from bytes, or first the images and then the mixture."""
    setup = make(dataclasses.replace(digits, flips=True), method=method, channels_last=True)
    images, y = next(digits.train.batches([torch.arange(24)]))
    batch, timer, batches = setup.byte_batch(images, setup.augmentation(1)), StepTimer(HERE.device), []
    assert batch.view.flip is not None and batch.view.shift.abs().max() == 1
    for form in (batch, batch.images()):
        torch.manual_seed(0)
        setup.model.eval()
        timer.start()
        with mixed(setup, form, y, timer) as pair:
            batches.append(pair)
    (one, target), (two, same) = batches
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    assert one.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(target, same) if method == "none" else torch.equal(target.weight, same.weight)


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_learns(digits, method):
    if methods.METHODS[method].extra:
        pytest.importorskip("stable_baselines3")
    # The paper's windows leave little of an image: more epochs than a test has.
    sigma = 0.1 if method == "soft-resized-crop" else None
    setup = make(digits, method=method, epochs=6, batch=30, lr=0.1, labelled=100, sigma=sigma)
    timer = StepTimer(HERE.device)
    entries = [train_epoch(setup, epoch, timer, lambda: None) for epoch in range(1, 7)]
    assert entries[-1]["train_loss"] < entries[0]["train_loss"]
    assert evaluate(setup, digits.test)["accuracy"] > 0.6  # chance: 0.1
    assert (entries[0]["ms"]["saliency"] > 0) == setup.method.needs_saliency
    assert (entries[0]["ms"]["mix"] > 0) == (setup.mixer is not None)
    assert entries[0]["ms"]["step"] >= max(entries[0]["ms"][phase] for phase in PHASES) > 0


def test_methods_see_the_same_images_in_the_same_order(digits):
    """What a method draws must not move the order, the crops or the first weights of a run."""
    flipped = dataclasses.replace(digits, flips=True)
    seen = {}
    for name, dataset, method in (("none", flipped, "none"), ("mixup", flipped, "mixup"), ("rmix", flipped, "rmix"),
                                  ("uncropped", digits, "none")):
        setup = make(dataset, method=method)
        weights = [p.detach().clone() for p in setup.model.parameters()]
        inputs, original = [], setup.byte_batch

        def spy(images, crops, inputs=inputs, original=original):
            batch = original(images, crops)
            inputs.append(batch.images())
            return batch

        setup.byte_batch = spy
        train_epoch(setup, 1, StepTimer(HERE.device), lambda: None)
        seen[name] = weights + inputs
    for method in ("mixup", "rmix"):
        assert all(torch.equal(a, b) for a, b in zip(seen["none"], seen[method], strict=True))
    assert not torch.equal(seen["none"][-1], seen["uncropped"][-1])


def test_epochs_differ_and_seeds_differ(digits):
    firsts = [data.training_steps(300, 100, data.derived_seed(seed, 1, epoch))[0].own.tolist()
              for seed in (0, 1) for epoch in (1, 2)]
    assert len({tuple(order) for order in firsts}) == 4
    a, b = make(digits, seed=0).model, make(digits, seed=1).model
    assert not torch.equal(next(a.parameters()), next(b.parameters()))


def test_ece_and_accuracy_are_those_of_the_definition(digits):
    setup = make(digits)
    train_epoch(setup, 1, StepTimer(HERE.device), lambda: None)
    result = evaluate(setup, digits.test)
    setup.model.eval()
    images, y = next(digits.test.batches([torch.arange(len(digits.test.labels))]))
    with torch.no_grad():
        p = setup.model(setup.inputs(images, None)).double().softmax(1)
    confidence, predicted = p.max(1)
    bins = (confidence * 10).long().clamp(max=9)
    ece = sum((bins == b).double().mean() * ((predicted == y)[bins == b].double().mean()
                                             - confidence[bins == b].mean()).abs() for b in bins.unique())
    assert result["accuracy"] == pytest.approx((predicted == y).double().mean().item())
    assert result["loss"] == pytest.approx(-p[range(len(y)), y].log().mean().item(), rel=1e-5)
    assert result["ece"] == pytest.approx(ece.item(), abs=1e-5)


def test_cheaper_saliency(digits):
    """half: the gradient at the 2x2 means, repeated, statistics untouched; alternate: none in every other step."""
    setup = make(digits, method="rmix", saliency="half")
    images, y = next(digits.train.batches([torch.arange(6)]))
    x = setup.inputs(images, None)
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}
    small = torch.nn.functional.avg_pool2d(x, 2)
    grad = setup.method.saliency(setup.model, x, y, setup.scheduler.last_epoch)
    assert all(torch.equal(value, before[name]) for name, value in setup.model.state_dict().items())
    want = fastmix.input_saliency(setup.model, small, y, update_stats=False)
    torch.testing.assert_close(grad, torch.nn.functional.interpolate(want, scale_factor=2))
    setup = make(digits, method="rmix", saliency="alternate")
    pass_by_step = []
    for _ in range(4):
        grad = setup.method.saliency(setup.model, x, y, setup.scheduler.last_epoch)
        pass_by_step.append(bool(grad.any()))
        setup.optimizer.step()
        setup.scheduler.step()
    assert pass_by_step == [True, False, True, False]
    odd = dataclasses.replace(digits, shape=(1, 7, 8))
    with pytest.raises(UsageError, match="--saliency half: the images are 7 x 8, want even sides"):
        make(odd, method="rmix", saliency="half")


@pytest.mark.parametrize(("schedule", "want"), [("onecycle", (0.003, 0.3, 3e-5)), ("multistep", (0.3, 0.3, 0.003))])
def test_learning_rates(digits, schedule, want):
    setup = make(digits, schedule=schedule, epochs=10)
    rates = []
    for _ in range(30):
        rates.append(setup.scheduler.get_last_lr()[0])
        setup.optimizer.step()
        setup.scheduler.step()
    assert (rates[0], max(rates), rates[-1]) == pytest.approx(want)
    if schedule == "onecycle":
        assert rates.index(max(rates)) == 8  # 30 % of 30 steps, counted from 0


@pytest.mark.parametrize(("epochs", "batch"), [(1, 300), (2, 300), (1, 100), (3, 300)])
@pytest.mark.parametrize("schedule", ["onecycle", "multistep"])
def test_the_shortest_runs_have_a_schedule(digits, schedule, epochs, batch):
    setup = make(digits, schedule=schedule, epochs=epochs, batch=batch)
    for epoch in range(1, epochs + 1):
        assert train_epoch(setup, epoch, StepTimer(HERE.device), lambda: None)["train_loss"] > 0


def test_bf16_and_label_smoothing_train(digits):
    setup = make(digits, method="rmix", amp="bf16", label_smoothing=0.1)
    seen = set()
    setup.model.classifier.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    assert train_epoch(setup, 1, StepTimer(HERE.device), lambda: None)["train_loss"] > 0
    assert seen == {torch.bfloat16}  # the saliency pass and the training pass
    assert next(setup.model.parameters()).dtype == torch.float32


def test_the_loss_guard_names_the_first_bad_step():
    guard = LossGuard(Processes(0, 1, torch.device("cpu")), 7)
    guard.EVERY = guard._every = 100
    for step in range(5):
        guard.add(torch.tensor(float("nan") if step in (2, 4) else 1.0), 0.1 * (step + 1))
    with pytest.raises(NotFinite, match=r"epoch 7, step 3 of the epoch, learning rate 0\.3"):
        guard.stop_if_bad()


def test_divergence_keeps_the_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    real = run.train_epoch

    def poisoned(setup, epoch, *args):
        if epoch == 3:
            with torch.no_grad():
                next(setup.model.parameters()).fill_(float("inf"))
        return real(setup, epoch, *args)

    monkeypatch.setattr(run, "train_epoch", poisoned)
    with pytest.raises(NotFinite, match=r"epoch 3, step 1 .*learning rate .*checkpoint of epoch 2 is kept"):
        main([*training.TINY, "--epochs", "4", "--out", str(folder)])
    state = checkpoint.load(folder)
    assert state["epoch"] == 2 and all(t.isfinite().all() for t in state["model"].values())
    assert len(training.metrics(folder)) == 2


def test_a_last_update_that_diverges_is_not_saved(tmp_path, monkeypatch):
    real = run.train_epoch

    def poisoned(setup, epoch, *args):
        entry = real(setup, epoch, *args)
        if epoch == 2:
            with torch.no_grad():
                setup.model.classifier.bias.fill_(float("nan"))
        return entry

    monkeypatch.setattr(run, "train_epoch", poisoned)
    with pytest.raises(NotFinite, match="test loss after epoch 2"):
        main([*training.TINY, "--epochs", "3", "--out", str(tmp_path / "run")])
    assert checkpoint.load(tmp_path / "run")["epoch"] == 1


def test_writes_are_atomic(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_removed_file_takes_along_what_a_killed_write_left(tmp_path):
    for name in ("state", ".state.k1ll3d", "state.npy", ".other.k1ll3d"):
        (tmp_path / name).write_bytes(b"")
    files.remove(tmp_path / "state")
    files.remove(tmp_path / "not there")
    assert sorted(os.listdir(tmp_path)) == [".other.k1ll3d", "state.npy"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 torn"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / checkpoint.NAME).write_bytes(content)
    with pytest.raises(CommandError, match=r"checkpoint\.pt is damaged"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("method", ["rmix", "isda-semi"])
def test_kill_and_resume_is_bit_identical(tmp_path, method):
    """SIGKILL in the middle of an epoch, then --resume: weights, momentum, schedule, metrics as if nothing had been."""
    flags = [*training.TINY, "--limit", "600", "--method", method, "--augment", "crop-flip", "--epochs", "4",
             "--batch", "20", *(["--labelled", "100"] if method == "isda-semi" else [])]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert main([*flags, "--out", str(straight)]) == 0
    training.killed("fastmix.app.training.loop", "update", 40, "train", *flags, "--out", killed)
    assert not (killed / "report.json").exists()
    done = checkpoint.load(killed)["epoch"]
    assert 1 <= done < 4
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_lo')  # a line torn by the kill
    again = training.fastmix("train", "--resume", "--threads", "1", "--out", killed)
    assert again.returncode == 0, again.stderr
    assert f"continuing {killed} after epoch {done} of 4" in again.stdout
    training.assert_same_training(straight, killed)
    assert len(training.metrics(killed)) == 4


def test_resume_finishes_a_comparison(tmp_path):
    flags = ["--compare", "none,mixup", "--epochs", "1", *training.TINY, "--out", str(tmp_path / "c")]
    assert main(flags) == 0
    first = json.loads((tmp_path / "c" / "compare.json").read_text())
    weights = (tmp_path / "c" / "none-seed0" / "checkpoint.pt").read_bytes()
    for name in ("report.json", "checkpoint.pt", "metrics.jsonl"):
        (tmp_path / "c" / "mixup-seed0" / name).unlink()
    (tmp_path / "c" / "compare.png").unlink()
    assert main(["--resume", "--out", str(tmp_path / "c")]) == 0
    again = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert (tmp_path / "c" / "none-seed0" / "checkpoint.pt").read_bytes() == weights
    assert (tmp_path / "c" / "compare.png").exists()
    for method in ("none", "mixup"):
        assert again["summary"][method]["test_accuracy"] == first["summary"][method]["test_accuracy"]


def test_torchrun_writes_and_prints_once(tmp_path):
    flags = [*training.TINY, "--limit", "101", "--epochs", "1", "--lr", "0.01"]
    two = tmp_path / "two"
    result = training.torchrun("-m", "fastmix", "train", *flags, "--batch", "10", "--method", "rmix", "--out", two)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 1/1") == 1 and result.stdout.count("test acc %") == 1
    report = json.loads((two / "report.json").read_text())
    assert report["processes"] == 2 and report["test_images"] == 359 and report["train_images"] == 101
    assert sorted(p.name for p in two.iterdir()) == sorted(run.FILES)
    # A world of another size may not continue it.
    (two / "report.json").unlink()
    with pytest.raises(UsageError, match="trained by 2 processes, this is 1"):
        main(["--resume", "--out", str(two)])


def test_two_processes_average_uneven_shares_exactly(tmp_path):
    """5 images over 2 processes: 3 and 2. The mean over all 5 is wanted, not the mean of two means."""
    script = tmp_path / "uneven.py"
    script.write_text("""
import dataclasses, sys, torch, torch.distributed as dist
import fastmix
from fastmix.app import data, models
from fastmix.app.training import run
from fastmix.app.training.distributed import Processes, processes
from fastmix.app.training.loop import train_epoch
from fastmix.app.training.options import Options
from fastmix.app.training.timing import StepTimer

def build(name, classes, shape):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))

models.build = build
digits = data.load("digits")
five = dataclasses.replace(digits, train=digits.train.subset(torch.arange(5)))
options = Options(epochs=1, batch=3, schedule="multistep", lr=0.1)

def epoch(options, here):
    setup = run.setup(options, five, here)
    entry = train_epoch(setup, 1, StepTimer(here.device), lambda: None)
    return [p.detach() for p in setup.model.parameters()], entry

with processes("cpu") as here:
    weights, entry = epoch(options, here)
    if here.first:
        want_weights, want = epoch(dataclasses.replace(options, batch=5), Processes(0, 1, here.device))
        for a, b in zip(weights, want_weights):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert abs(entry["train_loss"] - want["train_loss"]) < 1e-6
        assert entry["train_accuracy"] == want["train_accuracy"]
        print("agreed")
""")
    result = training.torchrun(script)
    assert result.returncode == 0 and "agreed" in result.stdout, result.stderr


def test_step_ratio_counts_the_saliency_pass(digits, counted_clock):
    """A pass that does nothing but wait must show up in the ratio and in the report's phases."""
    assert ratio.step_ratio(make(digits, method="rmix"), repeats=5) > 1.2
    model = make(digits, method="rmix").model
    before = [p.detach().clone() for p in model.parameters()]
    ratio.step_ratio(make(digits, method="rmix"), repeats=1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("saliency, share", [("full", 1), ("alternate", 0.5)])
def test_step_ratio_leaves_out_the_saliency_passes_that_training_does(digits, monkeypatch, saliency, share):
    calls, steps, input_saliency = [], [], fastmix.input_saliency

    def counted(*args, **kwargs):
        calls.append(1)
        return input_saliency(*args, **kwargs)

    monkeypatch.setattr(fastmix, "input_saliency", counted)
    setup = make(digits, method="rmix", saliency=saliency)
    monkeypatch.setattr(ratio, "training_step", lambda variant, *rest: (
        steps.append(variant.mixer is not None), loop.training_step(variant, *rest)))
    before = setup.scheduler.last_epoch
    assert ratio.step_ratio(setup, repeats=3) > 0
    assert len(calls) == share * sum(steps) > 0
    assert setup.scheduler.last_epoch == before


def test_label_shares_under_a_picture():
    target = SoftTarget(torch.tensor([[2, 0, 2], [1, 0, 0]]), torch.tensor([[0.25, 0.35, 0.4], [0.999, 0.001, 0.0]]))
    names = ["cat", "dog", "emu"]
    assert pictures.shares(target, names, 0) == ["emu: 65 %", "cat: 35 %"]
    assert pictures.shares(target, names, 1) == ["dog: 100 %"]
