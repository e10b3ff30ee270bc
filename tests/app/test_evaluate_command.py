"""The evaluate command, from a run's folder to its JSON and its page, and the boxes of data sets."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from helpers.training import call
from PIL import Image

from fastmix import __main__ as program
from fastmix.app import data
from fastmix.app.cli.train import main as train
from fastmix.app.console import FAILURE, USAGE, CommandError
from fastmix.app.training import run

pytestmark = pytest.mark.usefixtures("one_thread")


# Boxes

def test_digit_canvas_has_its_digits_where_its_boxes_are():
    canvas, digits = data.load("digit-canvas"), data.load("digits")
    boxes = canvas.test_boxes()
    assert canvas.shape == (1, 32, 32) and torch.equal(canvas.test.labels, digits.test.labels)
    assert len(boxes) == len(canvas.test.labels)
    for i in range(0, len(boxes), 40):
        top, left, height, width = boxes[i][0].tolist()
        ink = digits.test.images[i, 0].repeat_interleave(2, 0).repeat_interleave(2, 1)
        ink = torch.where(ink >= 96, ink.int(), 0)
        rows, columns = ink.any(1).nonzero(), ink.any(0).nonzero()
        ink = ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        assert ink.shape == (height, width)
        assert (canvas.test.images[i, 0, top:top + height, left:left + width] >= ink).all()
    again = data.load("digit-canvas")
    assert torch.equal(again.train.images, canvas.train.images) and torch.equal(boxes[5], again.test_boxes()[5])


def write_folder(root, boxes):
    """6 pictures of 40 x 20 a class, a white square in each."""
    for part in ("train", "test"):
        for name in "ab":
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(3):
                Image.new("RGB", (40, 20), (i * 40, 0, 0)).save(root / part / name / f"{i}.png")
    (root / "test" / "boxes.csv").write_text(boxes)


BOXES = "file,top,left,height,width\n" + "".join(f"{name}/{i}.png,2,{12 + i},10,5\n" for name in "ab" for i in range(3))


def test_boxes_of_a_folder_follow_the_cut_and_the_resize(tmp_path):
    """A picture of 40 x 20 keeps columns 10 to 30, then doubles to 40 x 40."""
    write_folder(tmp_path, BOXES + "b/2.png,0,0,20,14.5\n")
    boxes = data.load("folder", str(tmp_path), 40).test_boxes()
    assert [b.shape for b in boxes] == [(1, 4)] * 5 + [(2, 4)]
    assert boxes[1].tolist() == [[4, 6, 20, 10]]
    assert boxes[5].tolist() == [[4, 8, 20, 10], [0, 0, 40, 9]]  # what is left of the cut is cut off


@pytest.mark.parametrize(("text", "message"), [
    ("a/0.png,1,2,3,4\n", r"line 1: is 'a/0.png,1,2,3,4', want file,top,left,height,width"),
    (BOXES + "a/0.png,1,2,3\n", "line 8: is 'a/0.png,1,2,3', want a file and four numbers"),
    (BOXES + "a/0.png,1,2,x,4\n", "line 8"), (BOXES + "a/0.png,1,2,0,4\n", "sizes above 0"), (BOXES + "\n", "line 8"),
    (BOXES.replace("b/1.png", "b/9.png"), "has no box for b/1.png"),
])
def test_bad_boxes_are_named(tmp_path, text, message):
    write_folder(tmp_path, text)
    dataset = data.load("folder", str(tmp_path), 40)
    with pytest.raises(CommandError, match=message) as caught:
        dataset.test_boxes()
    assert "boxes.csv" in str(caught.value)


# The command

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(["--data", "digit-canvas", "--limit", "400", "--batch", "40", "--epochs", "6", "--lr", "0.1",
                  "--threads", "1", "--device", "cpu", "--out", str(folder)]) == 0
    return folder


def test_everything_from_a_run_to_the_page(trained, tmp_path, capsys):
    out = tmp_path / "all.json"
    flags = ["evaluate", "--checkpoint", trained, "--limit", 100, "--surface-images", 20, "--points", 3, "--pgd-steps",
             2, "--device", "cpu", "--out", out]
    status, text, err = call(capsys, *flags)
    assert status == 0 and err == "" and f"written to {out}" in text
    content = json.loads(out.read_text())
    parts = content["parts"]
    assert list(parts) == ["calibration", "occlusion", "attacks", "noise", "surface", "cam"]
    assert all(f"{name}: " in text for name in parts)
    assert content["images"] == 100 and content["epoch"] == 6 and content["data"] == "digit-canvas"
    accuracy = parts["calibration"]["accuracy"]
    assert accuracy > 0.3
    bins = parts["calibration"]["bins"]
    assert sum(b["count"] for b in bins) == 100
    assert sum(b["count"] * b["accuracy"] for b in bins) / 100 == pytest.approx(accuracy)
    ece = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 100
    assert parts["calibration"]["ece"] == pytest.approx(ece, abs=1e-6)
    curve = parts["occlusion"]["curve"]
    assert [e["share"] for e in curve] == [0, 0.2, 0.4, 0.6, 0.8] and curve[0]["accuracy"] == accuracy
    assert curve[1]["hidden"] == 14**2 / 32**2
    attacked = parts["attacks"]["accuracy"]
    assert attacked["clean"] == pytest.approx(accuracy, abs=0.011) and attacked["fgsm"] < accuracy
    assert parts["noise"]["curve"][0]["loss"] == [pytest.approx(parts["surface"]["loss"], rel=1e-4)] * 5
    for which in ("hessian", "random"):
        assert parts["surface"][which]["steps"] == [-0.5, 0, 0.5]
        assert parts["surface"][which]["loss"][1][1] == pytest.approx(parts["surface"]["loss"], rel=1e-4)
    assert parts["surface"]["eigenvalues"][0] > 0 and len(parts["surface"]["eigenvalues"]) == 2
    assert parts["cam"]["top1"] <= parts["cam"]["known"] <= parts["cam"]["best"]["known"] <= 1
    assert parts["cam"]["best"]["known"] > 0.2 and parts["cam"]["accuracy"] == pytest.approx(accuracy, abs=0.011)
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.size[0] > 1500 and picture.convert("L").getextrema() == (0, 255)
    # The same again, whichever parts are asked for.
    status, _, _ = call(capsys, *flags, "--only", "attacks,occlusion")
    again = json.loads(out.read_text())["parts"]
    assert list(again) == ["occlusion", "attacks"] and again["attacks"]["accuracy"] == attacked
    assert again["occlusion"]["curve"] == curve


def test_two_processes_judge_as_one(trained, tmp_path):
    """Whatever the processes share: batches (seven of 15 images, one of 5), boxes, the loss over weights."""
    flags = ["evaluate", "--checkpoint", trained, "--limit", "110", "--batch", "15", "--surface-images", "20",
             "--points", "3", "--pgd-steps", "2", "--device", "cpu", "--threads", "1", "--out"]
    assert program.main([str(a) for a in (*flags, tmp_path / "one.json")]) == 0
    done = training.torchrun("-m", "fastmix", *flags, tmp_path / "two.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("calibration: accuracy") == 1 == done.stdout.count("written to")
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    parts = [content.pop("parts") for content in (one, two)]
    assert one == two and list(parts[0]) == list(parts[1])
    for part in parts:
        for content in part.values():
            del content["seconds"]
    # Images are counted in the same batches with the same draws; sums over weights' losses are in another order.
    for name in ("calibration", "occlusion", "attacks", "cam"):
        assert parts[0][name] == parts[1][name], name
    for name in ("noise", "surface"):
        left, right = dict(training.leaves(parts[0][name])), dict(training.leaves(parts[1][name]))
        assert left.keys() == right.keys()
        for path, value in left.items():
            assert right[path] == pytest.approx(value, rel=2e-3), f"{name}{path}"
    with Image.open(tmp_path / "two.png") as picture:
        assert picture.size[0] > 1500


def test_default_files_belong_to_the_run(trained, capsys):
    status, _, _ = call(capsys, "evaluate", "--checkpoint", trained / "checkpoint.pt", "--only", "calibration")
    assert status == 0
    report = json.loads((trained / "report.json").read_text())
    part = json.loads((trained / "evaluation.json").read_text())["parts"]["calibration"]
    assert part["accuracy"] == report["test_accuracy"] and part["ece"] == pytest.approx(report["ece"], abs=1e-6)
    assert part["loss"] == pytest.approx(report["test_loss"], rel=1e-5)
    assert (trained / "evaluation.png").exists()
    assert {"evaluation.json", "evaluation.png"} == set(run.EVALUATION)


@pytest.mark.parametrize(("arguments", "status", "message"), [
    (["--checkpoint", "nowhere"], USAGE, "--checkpoint: there is no folder nowhere"),
    (["--checkpoint", "{empty}"], FAILURE, "config.json is missing"),
    (["--checkpoint", "{unfinished}"], FAILURE, "has no checkpoint.pt: no epoch was finished"),
    (["--checkpoint", "{other}"], FAILURE, "are those of another model"),
    (["--checkpoint", "{damaged}"], FAILURE, "checkpoint.pt is damaged"),
    (["--checkpoint", "{digits}", "--only", "cam"], FAILURE, "part cam: --data digits has no boxes"),
    (["--only", "accuracy"], USAGE, "names 'accuracy', want some of calibration, occlusion"),
    (["--epsilon", "300"], USAGE, "--epsilon is 300"),
    (["--points", "1"], USAGE, "--points is 1"),
    (["--limit", "5"], USAGE, "--limit is 5, want at least one image for each of the 10 classes"),
    (["--root", "x"], USAGE, "reads no --root"),
    (["--out", "page.png"], USAGE, "want a name ending in .json"),
    (["--out", "no/where/x.json"], USAGE, "there is no directory"),
])
def test_wrong_usage(trained, tmp_path, capsys, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    config = json.loads((trained / "config.json").read_text())
    weights = (trained / "checkpoint.pt").read_bytes()
    folders = {"empty": (None, None), "unfinished": (config, None), "damaged": (config, weights[:1000]),
               "other": (config | {"model": "preact-resnet18"}, weights),
               "digits": (config | {"data": "digits"}, weights)}
    for name, (settings, content) in folders.items():
        (tmp_path / name).mkdir()
        if settings is not None:
            (tmp_path / name / "config.json").write_text(json.dumps(settings))
        if content is not None:
            (tmp_path / name / "checkpoint.pt").write_bytes(content)
    arguments = [a.format(**{name: tmp_path / name for name in folders}) for a in arguments]
    code, _, err = call(capsys, "evaluate", "--checkpoint", trained, *arguments)
    assert code == status and message in err and "Traceback" not in err


@pytest.mark.parametrize("package", ["matplotlib", "torchmetrics", "scipy"])
def test_missing_extras_are_named(trained, tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    status, _, err = call(capsys, "evaluate", "--checkpoint", trained, "--out", tmp_path / "x.json")
    assert status == FAILURE and f"{package}: pip install 'fastmix[train]'" in err


def test_a_model_or_data_without_localisation_is_judged_without(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train([*training.TINY, "--epochs", "1", "--out", str(folder)]) == 0
    status, text, _ = call(capsys, "evaluate", "--checkpoint", folder, "--limit", 50, "--surface-images", 10,
                           "--points", 3)
    assert status == 0 and "cam: left out, --data digits has no boxes" in text
    assert "cam" not in json.loads((folder / "evaluation.json").read_text())["parts"]


def test_ticks_of_a_flat_surface_differ():
    from fastmix.app.figures.evaluation import distinct

    assert distinct(np.array([2.301, 2.302, 2.303])) == ["2.301", "2.302", "2.303"]
    assert distinct(np.array([0.01, 1.0, 1000.0])) == ["0.01", "1", "1e+03"]
