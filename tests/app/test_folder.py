"""Folders as users have them: which part is read as what, what is left out, and what is refused."""

import os

import numpy as np
import pytest
import torch

from fastmix import __main__ as program
from fastmix.app import data
from fastmix.app.console import FAILURE, CommandError
from fastmix.app.data import scan
from fastmix.app.training.options import Options
from fastmix.app.training.setup import load_data

PIL = pytest.importorskip("PIL.Image")
COLOURS = {name: 20 * (i + 1) for i, name in enumerate(("ant", "bee", "cat", "dog"))}


def write(folder, count=5, colour=100, side=8):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        PIL.fromarray(np.full((side, side, 3), colour, np.uint8)).save(folder / f"{i}.png")


def tree(root, *folders, count=5):
    """Folders with images, of the colour of the class that they are named after."""
    for folder in folders:
        write(root / folder, count, COLOURS.get(folder.rsplit("/", 1)[-1], 100))
    return root


def loaded(root, **options):
    return data.load("folder", str(root), 8, **options)


def account(root, **options):
    line = load_data(Options(data="folder", root=str(root), **options)).account
    assert "\n" not in line
    return line


def refused(root, **options):
    with pytest.raises(CommandError) as caught:
        loaded(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def train(tmp_path, *flags):
    """The exit status of a short run on tmp_path/data."""
    return program.main(["train", "--data", "folder", "--root", str(tmp_path / "data"), "--epochs", "1", "--image-size",
                         "8", "--threads", "1", "--out", str(tmp_path / "run"), *flags])


def names(split):
    return sorted({os.path.basename(os.path.dirname(file)) for file in split.files})


# ---------------------------------------------------------------- splits

@pytest.mark.parametrize("test", ["test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev", "Val",
                                  "VALID", "Test", "Eval", "Dev"])
@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
def test_a_split_that_is_held_out_is_used_by_whatever_name(tmp_path, train, test):
    tree(tmp_path, f"{train}/ant", f"{train}/bee", f"{test}/ant", f"{test}/bee", count=3)
    dataset = loaded(tmp_path)
    assert dataset.classes == ["ant", "bee"]
    assert {os.path.relpath(file, tmp_path).split(os.sep)[0] for file in dataset.test.files} == {test}
    assert (len(dataset.train), len(dataset.test)) == (6, 6)
    assert f"6 training images ({train}/), 6 test images ({test}/)" in account(tmp_path)


def test_of_two_splits_that_are_held_out_the_other_is_named(tmp_path):
    tree(tmp_path, "train/ant", "train/bee", "val/ant", "val/bee", "test/ant", "test/bee", "extra/ant")
    assert "10 test images (test/)" in account(tmp_path)
    assert "left out: extra/ (beside train/), val/ (test/ is tested on)" in account(tmp_path)


@pytest.mark.parametrize("splits", [("val", "test"), ("Val", "Test"), ("test",), ("valid",)])
def test_splits_without_one_to_train_on_are_no_classes(tmp_path, splits):
    tree(tmp_path, *(f"{split}/{name}" for split in splits for name in ("ant", "bee")))
    message = refused(tmp_path)
    assert "but no train/" in message and "--layout flat" in message and all(split in message for split in splits)
    assert loaded(tmp_path, layout="flat").classes == sorted(splits)


def test_test_images_without_classes_leave_the_split_to_the_training_images(tmp_path):
    tree(tmp_path, "train/ant", "train/bee", "test")
    line = account(tmp_path)
    assert "2 test images (20 % of every class, held out)" in line and "test/ (no images in class folders)" in line
    tree(tmp_path, "valid/ant", "valid/bee")
    assert "10 test images (valid/)" in account(tmp_path)


def test_folders_that_mean_the_same_are_refused(tmp_path):
    tree(tmp_path, "train/ant", "Train/bee", "val/ant")
    assert "Train/ and train/" in refused(tmp_path)


def test_a_test_set_may_lack_a_class_and_the_labels_stay(tmp_path):
    tree(tmp_path, "train/ant", "train/bee", "train/cat", "test/ant", "test/cat")
    (tmp_path / "test" / "bee").mkdir()
    dataset = loaded(tmp_path)
    assert dataset.classes == ["ant", "bee", "cat"] and dataset.test.labels.tolist() == [0] * 5 + [2] * 5
    images, labels = next(dataset.test.batches([torch.arange(10)]))
    assert [COLOURS[dataset.classes[label]] for label in labels.tolist()] == images[:, 0, 0, 0].tolist()
    tree(tmp_path, "test/dog")
    assert "has classes that" in refused(tmp_path) and "lacks: dog" in refused(tmp_path)


def test_accents_that_are_stored_in_two_ways_are_one_class(tmp_path):
    tree(tmp_path, "train/caf\u00e9", "train/bee", "test/cafe\u0301", "test/bee")
    dataset = loaded(tmp_path)
    assert dataset.classes == ["bee", "caf\u00e9"] and dataset.test.labels.tolist() == [0] * 5 + [1] * 5


# ---------------------------------------------------------------- classes named as splits

@pytest.mark.parametrize("layout", ["auto", "flat"])
def test_a_class_may_be_called_train(tmp_path, layout):
    tree(tmp_path, "train", "bus", "car")
    dataset = loaded(tmp_path, layout=layout)
    assert dataset.classes == ["bus", "car", "train"] and names(dataset.train) == ["bus", "car", "train"]
    tree(tmp_path, "test")
    assert "train has no class directories" in refused(tmp_path) and "--layout flat" in refused(tmp_path)
    assert loaded(tmp_path, layout="flat").classes == ["bus", "car", "test", "train"]


def test_valid_and_invalid_are_classes(tmp_path):
    assert loaded(tree(tmp_path, "valid", "invalid")).classes == ["invalid", "valid"]


def test_train_beside_other_folders_is_asked_about(tmp_path):
    tree(tmp_path, "train/steam", "train/diesel", "bus", "car")
    message = refused(tmp_path)
    assert "is it a split or a class?" in message and "--layout split" in message
    assert loaded(tmp_path, layout="flat").classes == ["bus", "car", "train"]
    assert loaded(tmp_path, layout="split").classes == ["diesel", "steam"]
    assert "bus/ (beside train/), car/ (beside train/)" in account(tmp_path, layout="split")


def test_classes_that_hold_splits_are_refused(tmp_path):
    """ROOT/CLASS/train and ROOT/data/train: test images would be trained on."""
    tree(tmp_path, "a/train", "a/test", "b/train", "b/test")
    assert "holds train/ and test/, so it is no class" in refused(tmp_path)
    assert loaded(tmp_path, layout="flat").classes == ["a", "b"]


def test_the_layout_belongs_to_the_run(tmp_path, capsys):
    tree(tmp_path / "data", "train", "test")
    assert train(tmp_path) == FAILURE
    assert "--layout flat" in capsys.readouterr().err
    assert train(tmp_path, "--layout", "flat") == 0
    assert program.main(["evaluate", "--checkpoint", str(tmp_path / "run"), "--only", "calibration"]) == 0
    assert capsys.readouterr().out.count("2 classes (test, train), 8 training images, 2 test images (20 %") == 2
    assert program.main(["train", "--layout", "flat", "--data", "digits"]) == 2


# ---------------------------------------------------------------- what is no image to train on

def test_hidden_files_and_folders_are_left_out_and_said(tmp_path):
    tree(tmp_path, "ant", "bee", ".ipynb_checkpoints", "__MACOSX/ant", "ant/.ipynb_checkpoints", "bee/@eaDir")
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "ant" / name).write_bytes(b"no image")
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "ant" / "notes.txt").write_text("x")
    (tmp_path / "bee" / "0.heic").write_text("x")
    write(tmp_path / "ant" / "deeper", 1)
    PIL.new("RGB", (8, 8)).save(tmp_path / "stray.png")
    dataset = loaded(tmp_path)
    files = [os.path.relpath(file, tmp_path) for split in (dataset.train, dataset.test) for file in split.files]
    assert dataset.classes == ["ant", "bee"] and sorted(files) == sorted(
        [*(f"{name}/{i}.png" for name in ("ant", "bee") for i in range(5)), "ant/deeper/0.png"])
    line = account(tmp_path)
    assert "2 classes" in line and "12 hidden" in line and "1 image in no class folder (stray.png)" in line
    assert "2 files of other kinds" in line and ".txt" in line and ".heic" in line and "8x8 pixels" in line


def test_linked_folders_and_files_are_followed(tmp_path):
    tree(tmp_path / "store", "one", "two/deeper")
    root = tmp_path / "root"
    (root / "ant").mkdir(parents=True)
    (root / "bee").symlink_to(tmp_path / "store" / "one")
    (root / "ant" / "linked").symlink_to(tmp_path / "store" / "two")
    (root / "ant" / "x.png").symlink_to(tmp_path / "store" / "one" / "0.png")
    dataset = loaded(root)
    assert dataset.classes == ["ant", "bee"] and len(dataset.train) + len(dataset.test) == 11
    (root / "ant" / "again").symlink_to(tmp_path / "store" / "two")  # twice is no loop
    assert len(loaded(root).train) + len(loaded(root).test) == 16


@pytest.mark.parametrize(("link", "target"), [("ant/loop", "ant"), ("ant/up", "."), ("all", "."),
                                              ("ant/deep/up", "ant")])
def test_links_to_folders_that_they_are_in_are_refused(tmp_path, link, target):
    tree(tmp_path, "ant", "bee", "ant/deep")
    (tmp_path / link).symlink_to((tmp_path / target).resolve())
    message = refused(tmp_path)
    assert "leads back to" in message and str(tmp_path / link) in message


def test_broken_links_are_named(tmp_path):
    tree(tmp_path, "ant", "bee")
    (tmp_path / "ant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "ant" / "self.png").symlink_to(tmp_path / "ant" / "self.png")
    (tmp_path / "cat").symlink_to(tmp_path / "nowhere")
    assert "left out: 3 broken links (ant/gone.png, ant/self.png, cat)" in account(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "x.png").symlink_to(tmp_path / "nowhere.png")
    assert "dog has no images" in refused(tmp_path) and "but broken links (dog/x.png)" in refused(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_opened(tmp_path):
    tree(tmp_path, "ant", "bee")
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    assert len(loaded(tmp_path).train) == 8


def test_a_file_has_its_suffix_in_any_capitals(tmp_path):
    tree(tmp_path, "ant", "bee")
    for i in range(5):
        (tmp_path / "ant" / f"{i}.png").rename(tmp_path / "ant" / f"{i}.PNG")
    assert len(loaded(tmp_path).train) == 8


def test_the_order_of_the_files_is_that_of_their_folders(tmp_path):
    for name in ("a-b/0.png", "a/1.png", "a/0.png", "c.png"):
        write((tmp_path / name).parent, 0)
        PIL.new("RGB", (8, 8)).save(tmp_path / name)
    found, = scan.images([str(tmp_path)], str(tmp_path), scan.LeftOut())
    assert [os.path.relpath(file, tmp_path) for file in found] == ["a/0.png", "a/1.png", "a-b/0.png", "c.png"]


# ---------------------------------------------------------------- what was read, and damaged files

def test_one_line_says_what_was_read(tmp_path, capsys):
    tree(tmp_path / "data", "train/ant", "train/bee", "val/ant", "val/bee")
    write(tmp_path / "data" / "train" / "ant", 1, side=20)
    PIL.new("RGBA", (9, 12)).save(tmp_path / "data" / "val" / "ant" / "clear.png")
    PIL.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "data" / "val" / "ant" / "wide.png")
    assert train(tmp_path) == 0
    line, = [line for line in capsys.readouterr().out.splitlines() if line.startswith("folder ")][:1]
    assert line == (f"folder {tmp_path / 'data'}: 2 classes (ant, bee), 10 training images (train/), 12 test "
                    "images (val/), of 8x8 to 20x20 pixels, 1 of more than 8 bits, scaled to 8, 1 with "
                    "transparency, laid over white, read as 8x8 RGB")


@pytest.mark.parametrize("flags", [[], ["--workers", "2"], ["--check-data", "full"]])
def test_damaged_files_are_named_before_the_first_epoch(tmp_path, capsys, flags):
    tree(tmp_path / "data", "ant", "bee")
    (tmp_path / "data" / "ant" / "1.png").write_bytes(b"")
    content = (tmp_path / "data" / "bee" / "3.png").read_bytes()
    (tmp_path / "data" / "bee" / "3.png").write_bytes(content[:-30])
    assert train(tmp_path, *flags) == FAILURE
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "2 of 10 images cannot be used" in err
    assert f"{tmp_path / 'data' / 'ant' / '1.png'} cannot be read as an image (the file is empty)" in err
    assert str(tmp_path / "data" / "bee" / "3.png") in err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_that_no_check_has_seen_is_one_line(tmp_path, capsys, workers):
    tree(tmp_path / "data", "ant", "bee")
    path = tmp_path / "data" / "ant" / "1.png"
    path.write_bytes(b"no image")
    assert train(tmp_path, "--check-data", "none", "--workers", str(workers)) == FAILURE
    err = capsys.readouterr().err
    assert err == f"fastmix: {path} cannot be read as an image (of no kind that Pillow knows)\n"


# ---------------------------------------------------------------- a model and another folder

@pytest.fixture
def trained(tmp_path, capsys):
    tree(tmp_path / "data", "train/ant", "train/bee", "train/cat", "test/ant", "test/bee", "test/cat", count=4)
    assert train(tmp_path) == 0
    capsys.readouterr()
    return tmp_path / "run"


def test_a_model_keeps_its_labels_on_test_images_that_lack_a_class(tmp_path, trained, capsys):
    tree(tmp_path / "other", "test/bee", "test/cat", count=3)
    arguments = ["evaluate", "--checkpoint", str(trained), "--only", "calibration", "--root", str(tmp_path / "other")]
    assert program.main(arguments) == 0
    assert "3 classes (ant, bee, cat), 0 training images, 6 test images (test/)" in capsys.readouterr().out
    assert program.main(["subsample", "--checkpoint", str(trained), "--root", str(tmp_path / "other"), "--out",
                         str(tmp_path / "i.npy")]) == FAILURE
    assert "has no training images to choose from" in capsys.readouterr().err
    tree(tmp_path / "other", "test/dog")
    assert program.main(arguments) == FAILURE
    assert "has classes that the model lacks: dog" in capsys.readouterr().err


def test_a_run_goes_on_with_its_classes_alone(tmp_path, trained, capsys):
    tree(tmp_path / "data", "train/beetle")
    (trained / "report.json").unlink()
    assert program.main(["train", "--resume", "--out", str(trained)]) == FAILURE
    err = capsys.readouterr().err
    assert "was trained on other classes (only there: none; only in the data: beetle)" in err
