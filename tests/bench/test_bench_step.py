"""The step bench: its figures from given times, its goals, one tiny run."""

import json

import pytest

from fastmix.app import console
from fastmix.app.training.timing import PHASES
from fastmix.bench import step
from fastmix.bench.harness import steps


def times(**ms):
    own = dict.fromkeys(PHASES, 0.0) | ms
    return own | {"step": sum(own.values())}


PLAIN = [times(data=1, model=98, loss=1)] * 3


def test_added_is_all_but_the_model_beyond_a_plain_step():
    found = steps.row("mixup", [times(data=0.5, mix=2, model=120, loss=1)] * 3, PLAIN, 0.1)
    assert found["added_percent"] == pytest.approx(1.5)
    assert found["ratio"] == pytest.approx(1.235) and found["plan_ms"] == 0.1 and found["steps"] == 6


def test_what_the_loss_adds_to_backward_is_added():
    found = steps.row("isda", [times(data=1, model=110, loss=2)] * 3, PLAIN, back=1.75, plain_back=0.5)
    assert found["added_percent"] == pytest.approx(1 + 1.25) and found["loss_backward_ms"] == 1.75


def test_ratio_is_the_median_of_the_rounds():
    rounds = [times(model=100), times(model=300), times(model=110)]
    assert steps.row("mixup", rounds, PLAIN, 0.0)["ratio"] == pytest.approx(1.1)


def test_goals():
    rows = [steps.row("mixup", [times(mix=3, model=98)] * 3, PLAIN, 0.0),
            steps.row("rmix", [times(saliency=50, model=98)] * 3, PLAIN, 0.0),
            steps.row("focal", [times(model=500)] * 3, PLAIN, 0.0)]
    assert [line.rpartition(" ")[2] for line in steps.verdicts(rows)] == ["met", "met"]
    slow = steps.row("rmix", [times(saliency=100, model=98)] * 3, PLAIN, 0.0)
    assert steps.verdicts([slow]) == ["rmix: step 1.98x, goal <= 1.7x, MISSED"]


def test_a_tiny_run(tmp_path, capsys, counted_clock):
    path = tmp_path / "step.json"
    names = ["none", "cutmix", "rmix", "rmix/half", "rmix/alternate", "isda", "isda/diag", "manifold-mixup", "focal",
             "soft-crop", "label-smoothing"]
    assert step.main(["--model", "cnn", "--batch", "4", "--size", "16", "--classes", "3", "--repeats", "2",
                      "--method", ",".join(names), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    rows = {found["method"]: found for found in result["rows"]}
    assert list(rows) == names and rows["none"]["ratio"] == 1
    assert rows["rmix"]["ms"]["saliency"] > rows["rmix/alternate"]["ms"]["saliency"] > 0
    assert rows["cutmix"]["plan_ms"] > 0 == rows["cutmix"]["ms"]["saliency"] and rows["isda"]["ms"]["mix"] == 0
    assert min(found["loss_backward_ms"] for found in rows.values()) > 0
    assert "goal <= 1.35x" in capsys.readouterr().out


def test_a_run_ends_with_its_time(tmp_path):
    path = tmp_path / "step.json"
    assert step.main(["--model", "cnn", "--batch", "4", "--size", "16", "--classes", "3", "--repeats", "50",
                      "--minutes", "0", "--method", "mixup", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["settings"]["repeats"] == step.LEAST and {found["steps"] for found in result["rows"]} == {4}


@pytest.mark.parametrize(("flags", "text"), [(["--method", "rlmix"], "rlmix cannot be measured here"),
                                             (["--repeats", "0"], "--repeats"), (["--model", "none"], "--model")])
def test_bad_arguments_end_with_code_two(flags, text, capsys):
    assert console.run(step.main, flags) == 2 and text in capsys.readouterr().err
