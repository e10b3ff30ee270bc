"""CIFAR's python batches: those of every Python and protocol are read; a pickle that is anything else calls nothing."""

import copyreg
import os
import pickle
import struct

import numpy as np
import pytest
from helpers.hostile import wrong

from fastmix.app import data
from fastmix.app.console import CommandError
from fastmix.app.data import cifar, pickles


def old(data, labels, order="C", key="labels"):
    """A batch as Python 2 has written it, protocol 2, byte for byte in the form of the originals."""
    def text(value):
        return b"U" + bytes([len(value)]) + value
    def number(value):
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value) if value < 65536 else (
            b"J" + struct.pack("<i", value))
    raw = np.asarray(data).tobytes(order)
    return (b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + b"q\x03"
            + text(key.encode()) + b"q\x04]q\x05(" + b"".join(map(number, labels)) + b"e" + text(b"data")
            + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + text(b"b")
            + b"\x87Rq\x09(K\x01" + number(data.shape[0]) + number(data.shape[1]) + b"\x86cnumpy\ndtype\nq\x0a"
            + text(b"u1") + b"K\x00K\x01\x87Rq\x0b(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            + (b"\x88" if order == "F" else b"\x89") + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
            + text(b"filenames") + b"q\x0c]q\x0d(" + text(b"a.png") + text(b"b.png") + b"eu.")


def batch(count=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), [int(v) for v in rng.integers(0, 10, count)]


def load_batch(tmp_path, content):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    return cifar._python_batch(path, "labels", 10, "GET")


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_pickles_of_python_2(tmp_path, order):
    images_, labels = batch()
    content = old(images_, labels, order)
    theirs = pickle.loads(content, encoding="latin1")  # it is what Python and numpy read
    assert np.array_equal(theirs["data"], images_) and theirs["labels"] == labels
    got, found = load_batch(tmp_path, content)
    assert np.array_equal(got.reshape(3, 3072), images_) and found.tolist() == labels


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keys", [str, str.encode])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_pickles_of_python_3(tmp_path, protocol, keys, order):
    images_, labels = batch()
    content = {keys("data"): np.asarray(images_, order=order), keys("labels"): labels, keys("filenames"): ["a"] * 3}
    for module in (b"numpy._core", b"numpy.core"):
        raw = pickle.dumps(content, protocol=protocol)
        if protocol < 4:  # later ones hold the length of the name
            raw = raw.replace(b"numpy._core", module).replace(b"numpy.core", module)
        got, found = load_batch(tmp_path, raw)
        assert np.array_equal(got.reshape(3, 3072), images_) and found.tolist() == labels


def test_the_names_of_cifar_100(tmp_path):
    names = [f"class{i}" for i in range(100)]
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(old(*batch(), key="fine_labels"))
    for values in (names, [name.encode() for name in names]):
        (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": values}, protocol=2))
        assert data.load("cifar100", str(tmp_path)).classes == names
    for values in (names[:-1], names[:-1] * 2, [1] * 100, "x", None, {}):
        (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": values}, protocol=2))
        wrong(data.load, "cifar100", str(tmp_path), match="meta is damaged")


class Reduced:
    def __init__(self, *made):
        self.made = made

    def __reduce__(self):
        return self.made


ARRAY = Reduced(np.ndarray, ((4,), np.dtype("uint8"), b"abcd", 0))
ATTACKS = {
    "the constructor of numpy's array": {"data": ARRAY, "labels": [1]},
    "an array from a buffer at an offset": {"data": Reduced(np.ndarray, ((1, 3072), np.dtype("uint8"), bytes(9), -64)),
                                            "labels": [1]},
    "an array of objects": {"data": np.array([[None]], object), "labels": [1]},
    "labels of objects": {"data": batch(1)[0], "labels": np.array([1], object)},
    "eval": {"data": Reduced(eval, ("1",)), "labels": [1]},
    "os.system": Reduced(os.system, ("touch called",)),
    "attributes": {"data": Reduced(getattr, ("x", "upper")), "labels": [1]},
    "numpy's own readers": {"data": Reduced(np.load, ("/etc/passwd",)), "labels": [1]},
    "a structured type": {"data": np.zeros((1, 3072), [("a", "u1")]), "labels": [1]},
    "floats": {"data": np.zeros((1, 3072)), "labels": [1]},
    "images of another size": {"data": np.zeros((1, 3071), np.uint8), "labels": [1]},
    "no images": {"data": np.zeros((0, 3072), np.uint8), "labels": []},
    "a cube": {"data": np.zeros((1, 1, 3072), np.uint8), "labels": [1]},
    "labels in two dimensions": {"data": batch(1)[0], "labels": np.zeros((1, 1), np.uint8)},
    "nested labels": {"data": batch(1)[0], "labels": [[1]]}, "fractions": {"data": batch(1)[0], "labels": [1.5]},
    "texts": {"data": batch(1)[0], "labels": ["1"]}, "truths": {"data": batch(1)[0], "labels": [True]},
    "too many labels": {"data": batch(1)[0], "labels": [1, 2]},
    "a label of 10^30": {"data": batch(1)[0], "labels": [10**30]},
    "a label of 10^6000": {"data": batch(1)[0], "labels": [10**6000]},
    "a negative label": {"data": batch(1)[0], "labels": [-1]},
    "no dictionary": [1], "nothing of it": {}, "a set": {"data": {1}, "labels": [1]}, "complex": {"data": 1j}}


@pytest.mark.parametrize("protocol", [1, 2, 4, 5])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_pickle_that_attacks_is_refused(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    if protocol < 2 and "10^6000" in name:
        pytest.skip("Python writes no such number there")
    line = wrong(load_batch, tmp_path, pickle.dumps(ATTACKS[name], protocol=protocol))
    assert "data_batch_1" in line and not (tmp_path / "called").exists()


def state_of(shape, content, dtype=b"u1", version=b"K\x01"):
    """An array by the instructions of protocol 2, whatever it says of itself."""
    numbers = b"".join(b"\x8a" + bytes([len(raw)]) + raw for raw in (
        value.to_bytes(9, "little", signed=True) for value in shape))
    return (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(" + version + b"(" + numbers
            + b"tcnumpy\ndtype\nU" + bytes([len(dtype)]) + dtype + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
            b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(content)) + content + b"tb")


@pytest.mark.parametrize("body", [
    b"X\x04\x00\x00\x00data" + state_of(shape, bytes(6144)) for shape in (
        (2, 3073), (-2, -3072), (2**40, 3072), (2**64 - 1, 3072), (2, 0), (2**32, 2**32), ())] + [
    b"X\x04\x00\x00\x00data" + state_of((2, 3072), bytes(6144), kind)
    for kind in (b"O8", b"i8", b"V1", b"S1", b"i1")] + [
    b"X\x04\x00\x00\x00datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",  # no content
    b"X\x04\x00\x00\x00datacnumpy\nndarray\n(K\x02tR", b"X\x04\x00\x00\x00datacnumpy\ndtype\n(X\x01\x00\x00\x00OtR",
    b"X\x04\x00\x00\x00data" + state_of((2, 3072), bytes(6144)) + b"}b", b"X\x04\x00\x00\x00datac_codecs\nencode\n}b",
    b"X\x04\x00\x00\x00datac_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR",
    b"X\x04\x00\x00\x00data\x82\x01", b"X\x04\x00\x00\x00dataPname\n", b"X\x04\x00\x00\x00data(cos\nsystem\nX\x01\x00"
    b"\x00\x00ao", b"X\x04\x00\x00\x00datacos\nsystem\n)\x81", b"X\x04\x00\x00\x00dataB\xff\xff\xff\x7fab",
    b"X\x04\x00\x00\x00data\x8e" + struct.pack("<Q", 2**62) + b"ab", b"X\x04\x00\x00\x00datar\xff\xff\xff\x7f",
    b"e", b"u", b"R", b"b", b"h\x09", b"0", b"\x95" + struct.pack("<Q", 2**62), b"(" * 9, b"]" * 9])
def test_instructions_that_no_pickle_of_numpy_has(tmp_path, body):
    content = b"\x80\x02}(" + body + b"X\x06\x00\x00\x00labels](K\x01K\x02eu."
    assert "data_batch_1" in wrong(load_batch, tmp_path, content)


def test_any_bytes_are_a_pickle_or_an_error(tmp_path):
    """Hundreds of damaged batches; what is still read has images and labels in range."""
    images_, labels = batch(2)
    content = old(images_, labels)
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(0, 300) if rng.random() < 0.8 else len(content) - rng.integers(1, 80))
            damaged[place] = rng.integers(0, 256)
        try:
            got, found = load_batch(tmp_path, bytes(damaged))
        except CommandError:
            continue
        assert got.dtype == np.uint8 and got.shape[1:] == (3, 32, 32) and len(got) == len(found)
        assert found.min() >= 0 and found.max() < 10


def test_nothing_of_numpy_and_no_extension_can_be_called(monkeypatch):
    """The registry of copyreg is not looked at, and of names only those of the table are known."""
    copyreg.add_extension("os", "system", 0x7f)
    try:
        wrong(pickles.load, b"\x80\x02\x82\x7fX\x01\x00\x00\x00a\x85R.", kind=pickles.Unreadable)
    finally:
        copyreg.remove_extension("os", "system", 0x7f)
    for name in ("numpy\nload", "numpy\nmemmap", "numpy.core.multiarray\nscalar", "numpy.ctypeslib\nas_array",
                 "builtins\nbytearray", "numpy.core.multiarray\n_reconstruct.__globals__"):
        wrong(pickles.load, b"\x80\x02}X\x01\x00\x00\x00ac" + name.encode() + b"\ns.", kind=pickles.Unreadable,
              match="asks for")
