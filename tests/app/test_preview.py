"""python -m fastmix preview."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from PIL import Image

from fastmix import __main__ as program
from fastmix.app import methods
from fastmix.app.console import FAILURE, USAGE
from fastmix.app.training import preview
from fastmix.app.training.options import Options


def call(capsys, *arguments):
    status = program.main(["preview", *(str(a) for a in arguments)])
    return status, capsys.readouterr().err


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_draws(tmp_path, capsys, method):
    if methods.METHODS[method].extra:
        pytest.importorskip("stable_baselines3")
    out = tmp_path / "grid.png"
    status, err = call(capsys, "--method", method, "--out", out, "--steps", 5, "--threads", 1, "--count", 4)
    assert status == 0 and ("saliency" in err) == methods.METHODS[method](Options()).needs_saliency
    with Image.open(out) as picture:
        assert picture.size[0] > 500 and picture.convert("L").getextrema() == (0, 255)


def test_the_same_seed_draws_the_same_picture(tmp_path, capsys):
    pictures = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / f"{name}.png"
        assert call(capsys, "--method", "mixup", "--out", out, "--seed", seed, "--count", 2)[0] == 0
        with Image.open(out) as picture:
            pictures[name] = np.asarray(picture)
    assert np.array_equal(pictures["a"], pictures["b"]) and not np.array_equal(pictures["a"], pictures["c"])


def test_a_run_gives_the_model_and_its_data(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    assert program.main(["train", *training.TINY, "--epochs", "1", "--out", str(folder)]) == 0
    monkeypatch.setattr(preview, "train_briefly", None)  # would fail if called
    assert call(capsys, "--method", "rmix", "--run", folder, "--out", tmp_path / "grid.png")[0] == 0
    status, err = call(capsys, "--method", "rmix", "--run", tmp_path / "no", "--out", tmp_path / "grid.png")
    assert status == FAILURE and "config.json" in err


def test_unlabelled_images(tmp_path, capsys):
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), 80 * i, np.uint8)).save(tmp_path / f"image{i}.png")
    flags = ["--data", "folder", "--root", tmp_path, "--image-size", 16, "--out", tmp_path / "grid.png"]
    assert call(capsys, "--method", "mixup", *flags)[0] == 0
    status, err = call(capsys, "--method", "rmix", *flags)
    assert status == FAILURE and "saliency needs labels" in err and str(tmp_path) in err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--out", "x.png"], "--method"), (["--method", "mixup"], "--out"),
    (["--method", "mixup", "--out", "x.jpg"], "ending in .png"),
    (["--method", "mixup", "--out", "/nowhere/x.png"], "no directory"),
    (["--method", "mixup", "--k", "2", "--out", "x.png"], "--k means nothing"),
    (["--method", "rmix", "--run", "r", "--steps", "3", "--out", "x.png"], "--steps"),
])
def test_wrong_usage(capsys, arguments, message):
    status, err = call(capsys, *arguments)
    assert status == USAGE and message in err
