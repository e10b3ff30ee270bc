"""train --method rlmix: a run, resume, two processes, the missing extra."""

import importlib
import json
import sys

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training

import fastmix
from fastmix.app import data
from fastmix.app.cli.train import main
from fastmix.app.console import CommandError, UsageError
from fastmix.app.figures import training as pictures
from fastmix.app.training import checkpoint, run
from fastmix.app.training.distributed import Processes
from fastmix.app.training.options import Options

HERE = Processes(0, 1, torch.device("cpu"))
FLAGS = [*training.TINY, "--method", "rlmix", "--batch", "20"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def extra():
    pytest.importorskip("gymnasium")
    pytest.importorskip("stable_baselines3")


def test_resume_is_bit_identical(tmp_path, extra, monkeypatch, counted_clock):
    """Stopped in the third epoch, after the policy has learnt in two."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main([*FLAGS, "--epochs", "4", "--out", str(straight)]) == 0
    real = run.train_epoch

    def interrupted(setup, epoch, *args):
        entry = real(setup, epoch, *args)
        if epoch == 3:
            raise KeyboardInterrupt
        return entry

    with monkeypatch.context() as patched:
        patched.setattr(run, "train_epoch", interrupted)
        assert main([*FLAGS, "--epochs", "4", "--out", str(stopped)]) == 130
    state = checkpoint.load(stopped)
    assert state["epoch"] == 2
    first = run.setup(Options(method="rlmix", batch=20, epochs=4), data.load("digits", limit=200), HERE).policy
    learnt = dict(training.leaves(state["policy"]))
    assert any(not torch.equal(value, learnt[path]) for path, value in training.leaves(first.state_dict())
               if path.startswith("/policy/"))
    assert main(["--resume", "--out", str(stopped)]) == 0
    training.assert_same_training(straight, stopped)
    entries = training.metrics(straight)
    assert all(0 < entry["reward"] <= 1 and 0 <= entry["q"] <= 0.99 for entry in entries)
    assert all(0 < entry["random_reward"] <= 1 and entry["random_reward"] != entry["reward"] for entry in entries)
    report = json.loads((straight / "report.json").read_text())
    assert report["policy"] == {key: entries[-1][key] for key in ("reward", "random_reward", "q", "levels")}
    assert sum(report["policy"]["levels"]) == pytest.approx(1) and len(report["policy"]["levels"]) == 10
    assert report["ms"]["policy"] > 0 and report["ms"]["step"] > report["ms"]["policy"]
    assert report["step_ratio"] > 1.2


def test_beside_other_methods(tmp_path, extra, capsys):
    """One table; the column of the policy's time is there for all."""
    flags = [*training.TINY, "--compare", "none,rmix,rlmix", "--epochs", "1", "--out", str(tmp_path / "c")]
    assert main(flags) == 0
    out = capsys.readouterr().out
    header, = [line for line in out.splitlines() if line.startswith("method")]
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("none ", "rmix ", "rlmix "))}
    assert header.endswith("policy %") and rows["none"][-1] == rows["rmix"][-1] == "0" and int(rows["rlmix"][-1]) > 0


def test_two_processes_train_with_one_policy(tmp_path, extra):
    out = tmp_path / "two"
    result = training.torchrun("-m", "fastmix", "train", *FLAGS, "--limit", "101", "--epochs", "2", "--out", out)
    assert result.returncode == 0, result.stderr
    first, second = training.metrics(out)
    assert 0 < first["random_reward"] <= 1 and second["reward"] != first["reward"]
    assert json.loads((out / "report.json").read_text())["processes"] == 2


def test_grids_that_do_not_fit_are_named(extra):
    mnist = data.load("digits")
    mnist.shape = (1, 28, 28)
    with pytest.raises(UsageError, match=r"method rlmix: .*divisible by 8.*choose another --grid than 8"):
        run.setup(Options(method="rlmix"), mnist, HERE)
    with pytest.raises(UsageError, match="--discount means nothing to rmix; it is for rlmix"):
        main(["--method", "rmix", "--discount", "0"])


def test_curves_show_the_reward_beside_that_of_chance(tmp_path, monkeypatch):
    figures = []
    real = pictures._new
    monkeypatch.setattr(pictures, "_new", lambda *args: figures.append(real(*args)) or figures[-1])
    history = [{"epoch": e, "train_loss": 2.0, "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.6, "lr": 0.1,
                "reward": 0.7, "random_reward": 0.6, "q": 0.4, "levels": [0.7, 0.2, 0.1]} for e in (1, 2, 3)]
    pictures.curves(history, "title", tmp_path / "curves.png")
    *_, reward, percentile = figures[0][1][0]
    assert [list(line.get_ydata()) for line in reward.get_lines()] == [[0.7] * 3, [0.6] * 3]
    assert percentile.get_images()[0].get_array().tolist() == [[0.7] * 3, [0.2] * 3, [0.1] * 3]
    assert len(figures[0][1][0]) == 5 and (tmp_path / "curves.png").stat().st_size > 1000


def test_the_reward_that_there_is_to_find(tmp_path, extra):
    """bench rl-reward against an episode: the same images, percentiles, partners and lambda, the same reward."""
    from fastmix.app import policy as rl
    from fastmix.bench import rl_reward

    setup = run.setup(Options(method="rlmix", batch=20), data.load("digits", limit=40), HERE)
    setup.mixer = fastmix.RLMix(1e12, pairing="flip")  # nothing is left to chance
    setup.model.train()
    images, y = next(setup.dataset.train.batches([torch.arange(20)]))
    table = rl_reward.Table(setup, setup.inputs(images, None), y)
    levels = torch.arange(20) % 10
    own, paid = table.rewards(table.q[levels], 3)
    game = rl.Episode(setup.model, setup.mixer, iter([(table.x, y)]), 1, lambda y, mixed, target: setup.objective.loss(
        setup.model(mixed), target, y, 0).backward())
    torch.testing.assert_close(game.act(levels), paid, atol=1e-4, rtol=0)
    assert own.mean().item() == pytest.approx(paid.mean().item(), abs=1e-6) and not torch.equal(own, paid)
    found = rl_reward.measure(setup, 2, 12)
    assert found["policy_minus_random"]["mean"] == pytest.approx(found["policy"] - found["random"])
    assert len(found["together"]) == len(found["alone"]) == 10 and all(0 < v < 1 for v in found["together"])
    assert "all at random" in rl_reward.show(found)


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    real = importlib.import_module

    def without(name, *args):
        if name.startswith("gymnasium"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(CommandError, match=r"method rlmix needs gymnasium: pip install 'fastmix\[rl\]'"):
        main([*FLAGS, "--epochs", "1", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_the_package_without_the_extra_names_it():
    code = """
import sys
sys.modules["stable_baselines3"] = sys.modules["gymnasium"] = None
try:
    import fastmix.app.policy
except ImportError as error:
    print(error)
"""
    result = training.run([sys.executable, "-c", code])
    assert "fastmix.app.policy needs gymnasium: pip install 'fastmix[rl]'" in result.stdout, result.stderr
