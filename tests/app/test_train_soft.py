"""Training with Soft Augmentation and its baselines: losses, sigma over the epochs, resume, ranks, --augment."""

import dataclasses
import sys
import types
from importlib.util import find_spec

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from PIL import Image

from fastmix.app import data, import_torchvision, methods
from fastmix.app.cli import preview
from fastmix.app.cli.train import main
from fastmix.app.console import INTERRUPTED, CommandError, UsageError
from fastmix.app.training import loop, run
from fastmix.app.training.augment import Augmentation
from fastmix.app.training.distributed import Processes
from fastmix.app.training.loop import train_epoch, training_step
from fastmix.app.training.options import Options
from fastmix.app.training.samples import take_samples
from fastmix.app.training.timing import StepTimer

HERE = Processes(0, 1, torch.device("cpu"))
SOFT = ("soft-crop", "soft-resized-crop", "soft-noise")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", limit=200)


def make(digits, **kwargs):
    return run.setup(Options(**({"epochs": 3} | kwargs)), digits, HERE)


def step(setup, x, y):
    timer = StepTimer(HERE.device)
    timer.start()
    return training_step(setup, x, y, 1.0, timer)


def some(setup, count=40):
    images, y = next(setup.dataset.train.batches([torch.arange(count)]))
    return setup.inputs(images, None), y


# ---------------------------------------------------------------- the losses

@pytest.mark.parametrize("weighting", ["sample", "none", "weight", "batch_mean"])
@pytest.mark.parametrize("method", SOFT)
def test_a_step_has_the_chosen_loss(digits, method, weighting):
    setup = make(digits, method=method, weighting=weighting, k=3)
    x, y = some(setup)
    seen = []
    original = setup.mixer.forward
    setup.mixer.forward = lambda *args: seen.append(original(*args)) or seen[-1]
    setup.model.train()
    loss, logits, target = step(setup, x, y)
    (images, soft), = seen
    p = soft.confidence()
    assert images.shape == x.shape and torch.equal(soft.index, y.unsqueeze(1)) and target is soft
    assert setup.mixer.k == 3 and setup.mixer.num_classes == 10 and p.std() > 0
    t, log_q = soft.dense(10).double(), logits.double().log_softmax(1)
    kl = (torch.special.xlogy(t, t) - t * log_q).sum(1)
    hard = -log_q.gather(1, y.unsqueeze(1)).squeeze(1)
    want = {"sample": (p * kl).mean(), "none": kl.mean(), "weight": (p * hard).mean(),
            "batch_mean": p.mean() * kl.mean()}[weighting]
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [0.0, 0.3])
def test_label_smoothing_is_a_method(digits, given):
    setup = make(digits, method="label-smoothing", label_smoothing=given)
    x, y = some(setup)
    loss, logits, _ = step(setup, x, y)
    want = torch.nn.functional.cross_entropy(logits, y, label_smoothing=given or 0.1)
    torch.testing.assert_close(loss, want)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_focal_is_a_method(digits, gamma):
    setup = make(digits, method="focal", focal_gamma=gamma)
    x, y = some(setup)
    loss, logits, _ = step(setup, x, y)
    p = logits.softmax(1)[range(len(y)), y]
    torch.testing.assert_close(loss, (-(1 - p) ** gamma * p.log()).mean())


def test_flags_reach_the_mixer(digits):
    setup = make(digits, method="soft-crop", sigma=0.7, fill="random", prob=0.25)
    assert (setup.mixer.sigma, setup.mixer.fill, setup.mixer.prob) == (0.7, "random", 0.25)
    assert make(digits, method="soft-noise").mixer.sigma == 0.1
    resized = make(digits, method="soft-resized-crop")
    assert resized.mixer.plan(some(resized)[0]).size == (8, 8)


# ---------------------------------------------------------------- sigma over the epochs

def test_sigma_decays_in_its_place(digits):
    setup = make(digits, method="soft-crop", epochs=4, sigma_decay=2)
    mixer, buffer, seen = setup.mixer, setup.mixer._scale, []
    for epoch in (1, 2, 3, 4):
        train_epoch(setup, epoch, StepTimer(HERE.device), lambda: None)
        assert setup.mixer is mixer and mixer._scale is buffer
        seen.append((mixer.sigma, round(buffer.item(), 6)))
    assert seen == [(0.3, 0.3)] * 2 + [(0.0003, 0.0003)] * 2
    x, y = some(setup)
    assert torch.equal(mixer(x, y)[0], x)
    samples = take_samples(setup, digits.test)  # what training saw, not what is left at its end
    assert not torch.equal(samples.before, samples.after) and mixer.sigma == 0.3


@pytest.mark.parametrize("augment", ["auto", "trivial"])
def test_resume_after_an_interrupt_is_an_uninterrupted_run(tmp_path, monkeypatch, capsys, augment):
    if augment == "trivial" and find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    flags = [*training.TINY, "--method", "soft-crop", "--sigma-decay", "2", "--epochs", "4", "--fill", "random",
             "--augment", augment]
    assert main([*flags, "--out", str(tmp_path / "whole")]) == 0
    real = run.train_epoch

    def interrupted(setup, epoch, *args):
        if epoch == 4:
            raise KeyboardInterrupt
        return real(setup, epoch, *args)

    monkeypatch.setattr(run, "train_epoch", interrupted)
    assert main([*flags, "--out", str(tmp_path / "broken")]) == INTERRUPTED
    monkeypatch.setattr(run, "train_epoch", real)
    assert main(["--resume", "--out", str(tmp_path / "broken")]) == 0
    training.assert_same_training(tmp_path / "whole", tmp_path / "broken")


def test_two_processes(tmp_path):
    flags = [*training.TINY, "--limit", "101", "--epochs", "2", "--lr", "0.01", "--batch", "10", "--sigma-decay", "1",
             "--weighting", "batch_mean", "--method", "soft-crop"]
    result = training.torchrun("-m", "fastmix", "train", *flags, "--out", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert len(training.metrics(tmp_path / "two")) == 2


# ---------------------------------------------------------------- pictures

@pytest.mark.parametrize("method", SOFT)
def test_samples_show_the_confidence(digits, method):
    samples = take_samples(make(digits, method=method), digits.test, 6)
    assert len(samples.lines) == 6 and all(line[0].startswith("confidence ") for line in samples.lines)
    assert len({line[0] for line in samples.lines}) > 1


def test_preview_of_several(tmp_path):
    out = tmp_path / "grid.png"
    assert preview.main(["--method", ",".join(SOFT), "--out", str(out), "--count", "3", "--threads", "1"]) == 0
    with Image.open(out) as picture:
        assert picture.size[1] > 500


# ---------------------------------------------------------------- --augment

class Shifted:
    """Stands for a policy of torchvision: draws from torch's own generator and from nowhere else."""

    def __call__(self, image):
        assert image.dtype == torch.uint8 and image.ndim == 3
        return image.roll(int(torch.randint(0, 5, ())), 2)


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType("torchvision.transforms")
    module.RandAugment = module.TrivialAugmentWide = Shifted
    monkeypatch.setattr(import_torchvision, "load", lambda need, name: module)


def inputs_of(setup, epoch):
    batches, original = [], setup.byte_batch
    setup.byte_batch = lambda images, augmentation: batches.append(original(images, augmentation)) or batches[-1]
    entry = train_epoch(setup, epoch, StepTimer(HERE.device), lambda: None)
    return torch.cat([batch.images() for batch in batches]), entry


@pytest.mark.parametrize("augment", ["rand", "trivial"])
def test_a_policy_draws_per_image_and_moves_no_other_draw(digits, stand_in, augment):
    plain, _ = inputs_of(make(digits, method="mixup"), 1)
    images, entry = inputs_of(make(digits, method="mixup", augment=augment), 1)
    again, same = inputs_of(make(digits, method="mixup", augment=augment), 1)
    moved = [next(k for k in range(8) if torch.equal(a.roll(k, 2), b)) for a, b in zip(plain, images, strict=True)]
    assert set(moved) == set(range(5))
    assert torch.equal(images, again) and entry["train_loss"] == same["train_loss"]
    assert not torch.equal(images, inputs_of(make(digits, method="mixup", augment=augment), 2)[0])
    weights = []
    original = loop.mixed
    for chosen in ("none", augment):  # the mixer draws the same with a policy and without
        setup, torch_state = make(digits, method="mixup", augment=chosen), []
        loop.mixed = lambda *args, torch_state=torch_state: torch_state.append(torch.get_rng_state()) or original(*args)
        try:
            train_epoch(setup, 1, StepTimer(HERE.device), lambda: None)
        finally:
            loop.mixed = original
        weights.append(torch_state)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_soft_crops_replace_the_crop_not_the_flip(digits):
    flipped = dataclasses.replace(digits, flips=True)
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    for method, cropped in (("none", True), ("soft-noise", True), ("soft-crop", False), ("soft-resized-crop", False)):
        setup = make(flipped, method=method)
        out = setup.inputs(images, setup.augmentation(1))
        same, mirrored = ((out == setup.inputs(other, None)).flatten(1).all(1) for other in (images, images.flip(3)))
        assert (same | mirrored).all() != cropped and 20 < mirrored.sum() + 100 * cropped < 180
    assert make(flipped, augment="none").augmentation(1) is None and make(digits).augmentation(1) is None


def test_an_empty_batch_and_a_policy():
    images = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)
    assert Augmentation(None, 0, Shifted(), 0)(images).shape == (0, 1, 8, 8)


def test_without_torchvision_the_command_says_what_to_install(digits, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(CommandError, match="--augment rand needs torchvision: pip install torchvision"):
        make(digits, augment="rand")


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("augment,channels", [("rand", 1), ("rand", 3), ("trivial", 1), ("trivial", 3)])
def test_the_policies_of_torchvision(digits, augment, channels):
    images = torch.randint(0, 256, (60, channels, 12, 12), dtype=torch.uint8)
    augmentation = make(digits, augment=augment).augmentation(1)
    out = augmentation(images)
    assert out.shape == images.shape and out.dtype == torch.uint8
    assert (out != images).flatten(1).any(1).sum() > 20
    assert not torch.equal(out, augmentation(images))
    assert torch.equal(out, make(digits, augment=augment).augmentation(1)(images))


# ---------------------------------------------------------------- usage

def test_usage(digits):
    with pytest.raises(UsageError, match="--sigma means nothing to mixup; it is for soft-crop, soft-"):
        main(["--method", "mixup", "--sigma", "0.1", *training.TINY])
    with pytest.raises(UsageError, match="--focal-gamma means nothing to soft-crop; it is for focal"):
        main(["--method", "soft-crop", "--focal-gamma", "1", *training.TINY])
    for method in ("soft-noise", "focal"):
        with pytest.raises(UsageError, match=f"--label-smoothing means nothing to {method}, whose loss is another"):
            main(["--method", method, "--label-smoothing", "0.1", *training.TINY])
    with pytest.raises(UsageError, match=r"fill.* is 'grey', want a number or random"):
        main(["--method", "soft-crop", "--fill", "grey", *training.TINY])
    with pytest.raises(UsageError, match="invalid choice: 'all'"):
        main(["--method", "soft-crop", "--weighting", "all", *training.TINY])
    with pytest.raises(UsageError, match=r"method soft-crop: SoftCrop: sigma is -1"):
        methods.of(Options(method="soft-crop", sigma=-1.0)).build_mixer((1, 8, 8), 10, HERE.device)
