"""python -m fastmix report: which runs count, the rows, the commands that repeat them, FGSM, the page."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import torch
from helpers import ROOT

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training

from fastmix.app import console, data
from fastmix.app.cli import report as command
from fastmix.app.cli import train as train_command
from fastmix.app.evaluation import attacks
from fastmix.app.figures import report as picture
from fastmix.app.results import render, runs
from fastmix.app.results.collect import Fgsm, spread
from fastmix.app.training.options import Options
from fastmix.app.training.trained import Trained
from fastmix.bench import pages

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two comparisons: one ended, one with another --patches that did not."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    flags = [*training.TINY, "--epochs", "1", "--batch", "50"]
    assert train_command.main([*flags, "--compare", "none,rmix", "--seeds", "2", "--out", str(folder / "a")]) == 0
    assert train_command.main([*flags, "--compare", "none,rmix", "--patches", "2", "--out", str(folder / "b")]) == 0
    (folder / "b" / "rmix-seed0" / "report.json").rename(folder / "kept.json")
    return folder


def report(*arguments):
    return command.main([*map(str, arguments), "--threads", "1"])


def test_rows_are_means_over_the_seeds(compared, tmp_path, capsys):
    out = tmp_path / "r.json"
    assert report(compared / "a", compared / "b", "--fgsm-images", "60", "--out", out, "--machine", "here") == 0
    printed, said = capsys.readouterr()
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["rows"]] == ["none", "rmix"] and found["machine"] == "here"
    assert found["title"] == "digits, 200 training images, cnn, 1 epochs, 2 seeds"
    none, rmix = found["rows"]
    reports = [json.loads((compared / "a" / f"rmix-seed{i}" / "report.json").read_text()) for i in (0, 1)]
    for key in ("test_accuracy", "train_accuracy", "ece", "step_ratio"):
        a, b = (one[key] for one in reports)
        assert rmix[key]["mean"] == pytest.approx((a + b) / 2)
        assert rmix[key]["std"] == pytest.approx(abs(a - b) / 2**0.5)
    assert [one["seed"] for one in rmix["runs"]] == [0, 1] and none["step_ratio"]["mean"] == 1
    assert found["fgsm"]["images"] == 60 and 0 <= none["fgsm"]["mean"] <= none["test_accuracy"]["mean"] + 0.1
    # b's plain run reads no --patches, so it is seed 0 of the plain row once more; its rmix has not ended.
    assert "left out, not ended" in said and "b/rmix-seed0" in said
    assert "left out, same settings and seed" in said and "b/none-seed0" in said
    mean = sum(one["test_accuracy"] for one in reports) / 2
    assert f"{100 * mean:.2f} ±" in printed
    assert out.with_suffix(".png").stat().st_size > 5000


def test_another_setting_is_a_row_of_its_own(compared, capsys):
    folder = compared / "b" / "rmix-seed0"
    (folder / "report.json").write_text((compared / "kept.json").read_text())
    try:
        assert report(folder, compared / "a" / "rmix-seed1", "--fgsm-images", "0", "--markdown") == 0
    finally:
        (folder / "report.json").unlink()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| method | test accuracy") and "FGSM" not in lines[0]
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["rmix --patches 2", "rmix"]


def test_steps_of_the_bench(compared, tmp_path, capsys):
    step = {"format": "step-1", "date": "d", "machine": {"name": "quiet"},
            "settings": {"model": "m", "batch": 8, "size": 32},
            "rows": [{"method": "none", "ratio": 1.0}, {"method": "rmix", "ratio": 1.5}]}
    file, out = tmp_path / "step.json", tmp_path / "r.json"
    file.write_text(json.dumps(step))
    kept = (compared / "kept.json").read_text()
    (compared / "b" / "rmix-seed0" / "report.json").write_text(kept)
    try:
        assert report(compared / "a", compared / "b", "--fgsm-images", "0", "--out", out, "--step", file) == 0
    finally:
        (compared / "b" / "rmix-seed0" / "report.json").unlink()
    results = json.loads(out.read_text())
    cells = {line[0]: line[-1] for line in render.table(results)}
    assert cells["none"] == "1" and cells["rmix"] == "1.50x"
    assert cells["rmix --patches 2"] == f"{json.loads(kept)['step_ratio']:.2f}x*"  # not what the bench has timed
    assert "by the step benchmark with m, 8 images of 32 x 32 on quiet" in render.notes(results)[-1]
    file.write_text("{}")
    assert console.run(command.main, [str(compared / "a"), "--step", str(file)]) == 1
    assert "no result of the step benchmark" in capsys.readouterr().err


def test_the_attack_is_that_of_evaluate(compared):
    """In pixels, on the same images for all runs; here once more with other batches."""
    one, = runs.find([compared / "a" / "none-seed1"])[0]
    device = torch.device("cpu")
    fgsm = Fgsm(60, 8 / 255, device)
    got = fgsm(one)
    trained = Trained.load(one.folder, device)
    index = data.balanced_subset(trained.dataset.test.labels, 60, "")
    images, y = next(trained.dataset.test.batches([index]))
    x = images.float() / 255
    attacked = attacks.fgsm(trained.forward_pixels, x, y, 8 / 255)
    assert got == pytest.approx((trained.forward_pixels(attacked).argmax(1) == y).double().mean().item())
    clean = (trained.forward_pixels(x).argmax(1) == y).double().mean().item()
    assert got < clean
    # More than there are: all. The data set is read once.
    reads = []
    everything = Fgsm(10**6, 0.0, device)
    everything._dataset = lambda options, real=everything._dataset: reads.append(real(options)) or reads[-1]
    accuracy = json.loads((one.folder / "report.json").read_text())["test_accuracy"]
    assert everything(one) == pytest.approx(accuracy) == pytest.approx(everything(one))
    assert reads[0][0] is reads[1][0] and len(reads[0][1].labels) == len(reads[0][0].test.labels)


OPTIONS = [
    Options(method="rmix", data="fashion-mnist", limit=5000, patches=(2,), saliency="half", threads=1, seed=3),
    Options(method="mixup", epochs=30, refine_epochs=10, refine_lr=0.003, channels_last=False, prob=0.5),
    Options(method="none", schedule="multistep", milestones=(3, 5), gamma=0.2, grid=7),
    Options(method="soft-crop", fill="random", sigma_decay=2, label_smoothing=0.1, amp="bf16", epochs=5),
    Options(method="manifold-mixup", layers=("input", "a b"), subset="some index.npy"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.method)
@pytest.mark.parametrize("seeds", [[0], [3], [0, 1, 2], [0, 1, 5]])
def test_the_command_asks_for_the_same_runs(options, seeds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = [runs.Run(Path(), dataclasses.replace(options, seed=seed), {"processes": 1}) for seed in seeds]
    recipe = members[0].recipe
    asked = []
    for line in runs.commands(recipe, members):
        start, flags = shlex.split(line)[:4], shlex.split(line)[4:]
        assert start == ["python", "-m", "fastmix", "train"]
        asked += [job.options for job in train_command.request(flags).jobs]
    assert [own.seed for own in asked] == seeds and all(runs.Recipe.of(own, 1) == recipe for own in asked)
    assert all(own.threads == options.threads for own in asked)


def test_the_command_of_several_processes():
    one = runs.Run(Path(), Options(method="rmix", root="here", device="cuda"), {"processes": 2})
    assert runs.commands(one.recipe, [one]) == [
        "torchrun --nproc-per-node 2 -m fastmix train --method rmix --root DIR"]


def test_spread():
    assert spread([1.0]) == {"mean": 1.0, "std": None} and spread([1.0, 3.0])["std"] == pytest.approx(2**0.5)


def test_folders_without_runs_are_named(tmp_path, compared, capsys):
    assert console.run(command.main, [str(tmp_path)]) == 2
    assert "there is no run in" in capsys.readouterr().err
    assert console.run(command.main, [str(compared / "b" / "rmix-seed0")]) == 1
    assert "no run has ended" in capsys.readouterr().err
    assert console.run(command.main, [str(compared / "a"), "--out", "x.txt"]) == 2


def test_the_picture_has_a_line_per_row(compared, tmp_path, monkeypatch):
    figures = []
    real = picture.drawing.new
    monkeypatch.setattr(picture.drawing, "new", lambda *a, **k: figures.append(real(*a, **k)) or figures[-1])
    results = {"title": "t", "rows": [
        {"name": name, "method": "m", "seeds": 1, "runs": [{"test_accuracy": a, "ece": 0.1}],
         "test_accuracy": {"mean": a, "std": None}, "ece": {"mean": 0.1, "std": 0.01}}
        for name, a in (("low", 0.5), ("high", 0.9))]}
    picture.draw(results, tmp_path / "p.png")
    axes = figures[0][1][0]
    assert len(axes) == 2  # no FGSM
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["high", "low"]


# ---- the page

def test_the_page_shows_its_files():
    text = (ROOT / "docs" / "results.md").read_text()
    assert pages.page(text, ROOT / "docs") == text, "run python -m fastmix bench pages"


def test_the_page_holds_every_method_it_has_a_claim_for():
    claims = json.loads((ROOT / "docs" / "results" / "claims.json").read_text())
    from fastmix.app.methods import METHODS

    assert {claim["method"] for claim in claims["claims"]} <= set(METHODS)
    assert {claim["paper"] for claim in claims["claims"]} <= set(claims["papers"])
    assert all(claim["text"] and ("table" in claim) != ("section" in claim) for claim in claims["claims"])


def _page(tmp_path, results, claims):
    (tmp_path / "r.json").write_text(json.dumps(results))
    (tmp_path / "claims.json").write_text(json.dumps(claims))
    return pages.page("before\n<!-- r.json:begin -->\nold\n<!-- r.json:end -->\nafter\n", tmp_path)


CLAIMS = {"papers": {"P": "the paper"}, "claims": [
    {"method": "mixup", "paper": "P", "table": "2", "model": "M", "data": "D", "text": "2 to 1 %"},
    {"method": "mixup", "refined": True, "paper": "P", "section": "3.1", "model": "", "data": "D", "text": "1 to 0 %"}]}


def test_a_block_of_the_page(tmp_path):
    def row(method, *flags):
        value = {"mean": 0.5, "std": 0.01}
        line = f"python -m fastmix train --method {method} --limit 9 {' '.join(flags)}".strip()
        return {"name": " ".join([method, *flags]), "method": method, "flags": list(flags), "seeds": 2, "runs": [{}],
                "commands": [f"{line} --seeds 2"], "test_accuracy": value}

    results = {"rows": [row("none"), row("mixup"), row("mixup", "--refine-epochs 3")], "machine": "X"}
    text = _page(tmp_path, results, CLAIMS)
    assert text.startswith("before\n<!-- r.json:begin -->\n| method |") and text.endswith("-->\nafter\n")
    assert "| none | 50.00 ± 1.00 % | - |" in text
    assert "| mixup | 50.00 ± 1.00 % | D, M: 2 to 1 % (the paper, Table 2) |" in text
    assert "| mixup --refine-epochs 3 | 50.00 ± 1.00 % | D: 1 to 0 % (the paper, Sec. 3.1) |" in text
    assert 'TRAIN="python -m fastmix train --limit 9 --seeds 2"' in text
    assert "$TRAIN --method mixup --refine-epochs 3\n" in text
    assert pages.page(text, tmp_path) == text
    results["rows"][1]["test_accuracy"]["mean"] = 0.25
    assert "| mixup | 25.00" in _page(tmp_path, results, CLAIMS)


def test_the_block_of_a_reward(tmp_path):
    found = {"random": 0.5, "policy": 0.6, "policy_minus_random": {"mean": 0.1, "standard_error": 0.02},
             "levels": [0.0, 0.99], "together": [0.1, 0.2], "alone": [0.3, 0.4], "alone_for_itself": [0.7, 0.8],
             "oracle": 0.9, "std_of_a_reward": 0.07}
    text = _page(tmp_path, {"reward": found, "draws": 5}, CLAIMS)
    assert "all by the policy 0.600: +0.100 ± 0.020" in text and "| 0.99 | 0.200 | 0.400 | 0.800 |" in text


def test_check_tells_a_page_that_is_old(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("no block\n")
    assert console.run(pages.main, [str(page)]) == 2
    page.write_text("<!-- r.json:begin -->\n<!-- r.json:end -->\n")
    assert console.run(pages.main, [str(page)]) == 2  # no r.json
    _page(tmp_path, {"runs": []}, CLAIMS)
    assert console.run(pages.main, [str(page), "--check"]) == 1
    assert console.run(pages.main, [str(page)]) == 0 and console.run(pages.main, [str(page), "--check"]) == 0


def test_the_reward_of_a_policy_is_shown():
    one = {"method": "rlmix", "seeds": 2, "test_accuracy": spread([0.5, 0.7]), "name": "rlmix", "runs": [{}]}
    learnt = one | {"reward": spread([0.7, 0.8]), "random_reward": spread([0.6, 0.62]), "q": spread([0.1, 0.3])}
    heading, row = render.table({"rows": [learnt]})
    assert heading[-1] == "reward" and row[-1] == "0.750 (0.610) at 0.20"
    assert any(note.startswith("reward: ") for note in render.notes({"rows": [learnt]}))
    assert "reward" not in render.table({"rows": [one]})[0]


def test_a_comparison_is_a_report_too():
    one = {"test_accuracy": 0.5, "train_accuracy": 1.0, "ece": 0.1, "step_ratio": 1.5}
    found = render.rows({"runs": [one | {"method": "a"}, one | {"method": "a", "test_accuracy": 0.7}]})
    assert len(found) == 1 and found[0]["test_accuracy"]["mean"] == pytest.approx(0.6) and found[0]["seeds"] == 2
    with pytest.raises(console.CommandError, match="neither a report nor a comparison"):
        render.rows({"parts": 1})


def test_the_command_line():
    done = training.fastmix("report", "--help")
    assert done.returncode == 0 and "--fgsm-images" in done.stdout
    assert "  report " in training.fastmix("--help").stdout
