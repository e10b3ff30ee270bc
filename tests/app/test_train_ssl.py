"""python -m fastmix train-ssl: learning, linear evaluation, resume, two processes, what is written."""

import dataclasses
import itertools
import json

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from PIL import Image

from fastmix import __main__ as program
from fastmix.app import data
from fastmix.app.cli.train_ssl import main, parser
from fastmix.app.console import USAGE, CommandError
from fastmix.app.selfsupervised import run
from fastmix.app.selfsupervised.linear import linear_evaluation
from fastmix.app.selfsupervised.options import SslOptions
from fastmix.app.training import checkpoint
from fastmix.app.training.distributed import Processes
from fastmix.app.training.timing import StepTimer

HERE = Processes(0, 1, torch.device("cpu"))
FLAGS = [*training.TINY, "--batch", "64", "--linear-epochs", "5"]
pytestmark = pytest.mark.usefixtures("one_thread")


def make(limit=300, **options):
    return run.setup(SslOptions(**{"batch": 64, "lr": 0.05, "linear_epochs": 20} | options),
                     data.load("digits", limit=limit), HERE)


def play(setup, epochs):
    entries = []
    for number in range(1, epochs + 1):
        epoch = run.PairEpoch(setup, number, StepTimer(HERE.device), lambda: None)
        for pair, _ in epoch.batches():
            epoch.learn(pair)
        entries.append(epoch.result())
    return entries


def test_it_learns_without_labels_and_without_collapse():
    setup = make(epochs=12)
    first = linear_evaluation(setup, setup.model.backbone, 20, 1.0)
    entries = play(setup, 12)
    assert entries[-1]["train_loss"] < entries[0]["train_loss"] - 0.1 and entries[-1]["spread"] > 0.5
    result = linear_evaluation(setup, setup.model.backbone, 20, 1.0)
    assert result["test_accuracy"] > 0.6 and result["train_accuracy"] > 0.6  # chance: 0.1
    assert result != first and result["features"] == 128


def test_labels_do_not_matter_to_the_backbone():
    a, b = make(epochs=1), make(epochs=1)
    b.dataset.train._device_labels = b.dataset.train._device_labels.flip(0)
    for setup in (a, b):
        play(setup, 1)
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_the_linear_layer_does_not_touch_the_backbone():
    setup = make()
    before = {key: value.clone() for key, value in setup.model.state_dict().items()}
    a, b = (linear_evaluation(setup, setup.model.backbone, 3, 1.0) for _ in range(2))
    assert a == b
    assert all(torch.equal(value, before[key]) for key, value in setup.model.state_dict().items())


def test_pair_weights_change_the_step():
    """One step by hand: the weighted loss of the views that the epoch draws."""
    losses = {}
    for kind in ("none", "SA1", "SA2"):
        setup = make(limit=100, pair_weight=kind, batch=100, epochs=1)
        epoch = run.PairEpoch(setup, 1, StepTimer(HERE.device), lambda: None)
        pair, _ = next(epoch.batches())
        with torch.no_grad():
            p1, p2, z1, z2 = setup.model(*(run.normalised(setup, view) for view in (pair.first, pair.second)))
        cosine = torch.nn.functional.cosine_similarity
        rows = -0.5 * (cosine(p1, z2) + cosine(p2, z1))
        raw = {"none": torch.ones(100), "SA1": 1 - (1 - pair.iou)**4, "SA2": 1 - pair.iou**4}[kind]
        epoch.learn(pair)
        losses[kind] = epoch.result()["train_loss"]
        assert losses[kind] == pytest.approx((raw / raw.mean() * rows).mean().item(), abs=1e-5)
    assert len(set(losses.values())) == 3


def test_every_epoch_and_every_process_draws_its_own_views():
    setup = make(limit=100, batch=100, epochs=3)
    first = {}
    for epoch, rank in ((1, 0), (2, 0), (1, 1)):
        other = dataclasses.replace(setup, processes=Processes(rank, 2, HERE.device))
        pair = run.PairEpoch(other, epoch, StepTimer(HERE.device), lambda: None).inputs(setup.dataset.train.images)
        first[epoch, rank] = pair
        again = run.PairEpoch(other, epoch, StepTimer(HERE.device), lambda: None).inputs(setup.dataset.train.images)
        assert torch.equal(pair.first, again.first) and torch.equal(pair.boxes, again.boxes)
    boxes = [pair.boxes for pair in first.values()]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(boxes, 2))


def test_rates():
    setup = make(epochs=2, lr=None, batch=256)
    assert [group["lr"] for group in setup.optimizer.param_groups] == [0.1, 0.1]
    play(setup, 2)
    encoder, predictor = (group["lr"] for group in setup.optimizer.param_groups)
    assert encoder == pytest.approx(0, abs=1e-9) and predictor == 0.1
    assert SslOptions().rate(2) == 0.4 and SslOptions(lr=0.3).rate(2) == 0.3


def test_a_run_leaves_its_files_and_resumes_bit_for_bit(tmp_path, capsys, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert program.main(["train-ssl", *FLAGS, "--epochs", "4", "--pair-weight", "SA1", "--out", str(straight)]) == 0
    out = capsys.readouterr().out
    assert "epoch 4/4" in out and "SimSiam" in out and "untrained" in out
    assert sorted(path.name for path in straight.iterdir()) == sorted(run.FILES)
    for name in (run.CURVES, run.PAIRS):
        with Image.open(straight / name) as picture:
            assert picture.size[0] > 800 and picture.convert("L").getextrema() == (0, 255)
    report = json.loads((straight / "report.json").read_text())
    assert report["pair_weight"] == "SA1" and 0.1 < report["linear"]["test_accuracy"] <= 1
    assert report["linear"] != report["untrained"] and report["ms"]["model"] > 0
    config = json.loads((straight / "config.json").read_text())
    assert config["pair_k"] == 4.0 and "alpha" not in config and "isda_kind" not in config

    real = run.PairEpoch.result

    def interrupted(epoch):
        if len(list((stopped / "metrics.jsonl").read_text().splitlines())) == 2:
            raise KeyboardInterrupt
        return real(epoch)

    with monkeypatch.context() as patched:
        patched.setattr(run.PairEpoch, "result", interrupted)
        assert main([*FLAGS, "--epochs", "4", "--pair-weight", "SA1", "--out", str(stopped)]) == 130
    assert "train-ssl --resume" in capsys.readouterr().err and checkpoint.load(stopped)["epoch"] == 2
    assert main(["--resume", "--out", str(stopped)]) == 0
    training.assert_same_training(straight, stopped)
    again = json.loads((stopped / "report.json").read_text())
    assert again["linear"] == report["linear"] and again["untrained"] == report["untrained"]
    assert main(["--resume", "--out", str(stopped)]) == 0  # a finished run: its table again
    assert "untrained" in capsys.readouterr().out


def test_flags_that_make_no_sense(tmp_path, capsys):
    held = tmp_path / "held"
    assert main([*FLAGS, "--epochs", "1", "--out", str(held)]) == 0
    capsys.readouterr()
    for flags, message in ((["--out", str(held)], "already holds a run"),
                           (["--resume", "--out", str(tmp_path / "no")], "there is no run"),
                           (["--resume", "--out", str(held), "--pair-weight", "SA1"], "trained with pair_weight"),
                           (["--resume", "--overwrite"], "exclude each other"),
                           (["--scale-min", "0"], "--scale-min is 0"), (["--dim", "2"], "--dim is 2"),
                           (["--alpha", "1"], "unrecognized arguments"), (["--batch", "1"], "--batch is 1")):
        assert program.main(["train-ssl", *flags]) == USAGE
        assert message in capsys.readouterr().err
    with pytest.raises(CommandError, match="no configuration of a run"):
        from fastmix.app.cli.train import main as train

        train(["--resume", "--out", str(held)])
    assert "--linear-epochs" in parser().format_help()


def test_two_processes(tmp_path):
    out = tmp_path / "two"
    result = training.torchrun("-m", "fastmix", "train-ssl", *FLAGS, "--limit", "101", "--epochs", "2",
                               "--pair-weight", "SA2", "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 2/2") == 1
    assert json.loads((out / "report.json").read_text())["processes"] == 2
