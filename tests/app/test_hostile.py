"""Hostile files of every format that is read: each ends in one line that names the file, none runs code, none takes
memory beyond what its header promises, and what is right is still read."""

import ast
import gzip
import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch
from helpers import ROOT, training
from helpers.hostile import npy, png, wrong

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")
pytest.importorskip("PIL")

from PIL import Image

from fastmix.app import data
from fastmix.app.data import arrays, cifar, idx, images
from fastmix.app.data.folder import read_boxes
from fastmix.app.data.split import read_index
from fastmix.app.results.collect import read_step
from fastmix.app.selfsupervised.options import SslOptions
from fastmix.app.subsets import compare as subsets
from fastmix.app.training import checkpoint, compare, run
from fastmix.app.training.options import RULES, Options

# Every call by which a file is read, and the test that hands it hostile files, or why there is none. A call that is not
# here, as of a new format, fails the test at the end.
READERS = {
    "files.py: os.open": "test_devices_and_pipes_are_not_read", "files.py: json.loads": "test_json",
    "files.py: path.open": "to append",
    "states.py: zipfile.ZipFile": "test_a_small_archive_of_much_is_refused",
    "states.py: torch.load": "test_no_flipped_bit_and_no_lost_page_loads_as_other_weights",
    "app/claims.py: os.open": "test_a_lock_that_is_a_link_empties_nothing",
    "app/data/idx.py: gzip.open": "test_idx_files_that_lie", "app/data/idx.py: path.open": "test_idx_files_that_lie",
    "app/data/mnist5k.py: gzip.open": "test_bombs_take_no_memory",
    "app/data/mnist5k.py: np.loadtxt": "of an installed package, its length bounded",
    "app/data/pickles.py: pickletools.genops": "test_any_bytes_are_a_pickle_or_an_error",
    "app/data/pickles.py: np.frombuffer": "test_instructions_that_no_pickle_of_numpy_has",
    "app/data/cifar.py: np.frombuffer": "test_records_of_cifar",
    "app/data/folder.py: csv.reader": "test_boxes_that_are_none",
    "app/data/images.py: pillow().open": "test_images_that_are_none",
    "app/data/arrays.py: np.frombuffer": "test_npy_files_that_lie",
    "app/subsets/table.py: zipfile.ZipFile": "test_damaged_archives_of_statistics",
    "app/subsets/table.py: archive.open": "test_damaged_archives_of_statistics",
    "app/subsets/table.py: json.loads": "test_damaged_archives_of_statistics",
    "app/training/compare.py: json.loads": "metrics of the runs before, for a picture that may fail",
    "app/training/compare.py: (path / METRICS).read_text": "as json.loads there",
    "app/data/images.py: file.load": "test_images_that_are_none",
    "states.py: archive.open": "test_no_flipped_bit_and_no_lost_page_loads_as_other_weights",
    "mixers/base.py: torch.frombuffer": "the state of a generator, by who unpickles a mixer",
    "ops/library.py: torch.ops.load_library": "the package's own",
    "ops/library.py: (_PACKAGE / 'ops' / 'schemas.def').read_text": "the package's own",
    "ops/choice.py: path.read_text": "the package's own", "ops/choice.py: json.loads": "the package's own",
    "ops/dispatch.py: choice.load": "the package's own",
    "ops/checkout.py: (root / 'pyproject.toml').read_text": "test_what_lies_beside_an_installed_package_is_not_its",
    "app/import_torchvision.py: path.read_text": "of an installed package",
    "_starting.py: open": "a stream that is closed", "_starting.py: os.open": "/dev/null",
    "app/console.py: os.open": "/dev/null"}
# Names of functions that read, in this project, Python, numpy, torch and Pillow, and of packages for other formats.
OPENING = {
    "read_text", "read_bytes", "open", "load", "loads", "loadtxt", "fromfile", "frombuffer", "genfromtxt", "memmap",
    "ZipFile", "TarFile", "reader", "read_csv", "genops", "Unpickler", "load_library", "decompress", "LZMAFile",
    "BZ2File", "imread", "decode_image", "read_image", "safe_open", "load_file", "parse", "fromstring"}


# idx, npy, npz, records, tables

def idx_file(path, sizes, content, kind=8):
    raw = bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + content
    path.write_bytes(gzip.compress(raw, 1) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
@pytest.mark.parametrize("sizes, count, text", [
    ((2**32 - 1, 2**32 - 1, 2**32 - 1), 9, "cannot hold"), ((2**31, 2**31, 4), 9, "cannot hold"),
    ((2**16, 2**16, 2**16), 0, "cannot hold"), ((20, 0, 28), 0, "want images of 1 to"),
    ((1, 2000, 1), 2000, "want images of 1 to"), ((3, 2, 2), 11, "11 bytes of data|cannot hold"),
    ((3, 2, 2), 13, "more than 12")])
def test_idx_files_that_lie(tmp_path, name, sizes, count, text):
    path = idx_file(tmp_path / name, sizes, bytes(count))
    assert name in wrong(idx.read_idx, path, 3, "GET", match=text)


def test_idx_files_of_another_kind(tmp_path):
    for kind in (9, 11, 12, 13, 14):
        wrong(idx.read_idx, idx_file(tmp_path / "x", (3,), bytes(24), kind), 1, "GET", match="begins with")
    assert idx.read_idx(idx_file(tmp_path / "x", (3,), b"abc"), 1, "GET").tolist() == [97, 98, 99]


@pytest.mark.parametrize("content", [
    b"", b"\x93NUMPY", b"PK\x03\x04", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"),
    npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }", bytes(17)),
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([1])), npy("{" * 3000), npy("("),
    npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }"), npy("__import__('os').system('touch called')"),
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", bytes(16)), npy("\0" * 20), npy("1" * 5000),
    npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 1), }", bytes(16)),
    npy("{'descr': '<i8', 'fortran_order': False, 'shape': (True,), }", bytes(8)),
    npy("{'descr': ('<i8', (2**40,)), 'fortran_order': False, 'shape': (1,), }", bytes(8)),
    npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }", struct.pack("<q", 100)),
    npy("{'descr': '<u8', 'fortran_order': False, 'shape': (1,), }", b"\xff" * 8), pickle.dumps([1]),
    npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }", bytes(16)), b"\x93NUMPY\x03\x00\xff\xff\xff\x7f"])
def test_npy_files_that_lie(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_bytes(content)
    assert "x.npy" in wrong(read_index, tmp_path / "x.npy", 100) and not (tmp_path / "called").exists()


@pytest.mark.parametrize("dtype", ["<i8", "<i4", ">i4", "|u1", "<u8"])
def test_npy_files_that_do_not(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.array([3, 1, 2]).astype(dtype))
    assert read_index(tmp_path / "x.npy", 4).tolist() == [3, 1, 2]
    for version in ((1, 0), (2, 0)):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asfortranarray(np.arange(6.0).reshape(2, 3)), version)
        assert np.array_equal(arrays.read(buffer.getvalue(), "f", (2, None)), np.arange(6.0).reshape(2, 3))


def test_records_of_cifar(tmp_path):
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\x0a" + bytes(3072))
    wrong(cifar._binary_batch, path, match="holds label 10, want 0 to 9")
    with path.open("wb") as file:
        file.truncate(3073 * 10_001)
    wrong(cifar._binary_batch, path, match="want at most 10000 records")


@pytest.mark.parametrize("text", [
    "", "file,top,left,height\n", "file;top;left;height;width\n", "\xff\n", '"' + "x" * 200_000,
    "file,top,left,height,width\na.png,nan,1,2,3\n", "file,top,left,height,width\na.png,1,1,inf,3\n",
    "file,top,left,height,width\na.png,1,1,3,nan\n", "file,top,left,height,width\na.png,1,-1e300,3,3\n",
    "file,top,left,height,width\na.png,1,1,0,3\n", "file,top,left,height,width\na.png,1,1,3,3,4\n",
    "file,top,left,height,width\n" + "a" * 200_000 + ",1,1,3,3\n", "file,top,left,height,width\na\0.png,1,1,3,3\n"])
def test_boxes_that_are_none(tmp_path, text):
    (tmp_path / "boxes.csv").write_text(text, encoding="latin1")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    split = data.FolderSplit([tmp_path / "a.png"], torch.zeros(1, dtype=torch.int64), 8)
    assert "boxes.csv" in wrong(read_boxes, tmp_path / "boxes.csv", split)


# Images

IMAGES = {"bomb.png": png(40_000, 40_000, zlib.compress(bytes(1000))), "huge.png": png(2**31 - 1, 2**31 - 1),
          "empty.png": png(0, 0), "cut.png": png(8, 8, zlib.compress(bytes(9))), "none.jpg": b"\xff\xd8\xff\xd9",
          "text.jpg": b"GIF89a", "gif.gif": b"GIF89a\xff\xff\xff\xff\xf7\0\0", "bmp.bmp": b"BM" + bytes(60),
          "tiff.tif": b"II*\0\x08\0\0\0\xff\xff" + bytes(40), "webp.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
          "ppm.ppm": b"P6\n999999999 999999999\n255\n", "jp2.jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20),
          "avif.avif": b"\0\0\0\x1cftypavif" + bytes(20)}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_are_none(tmp_path, name):
    (tmp_path / name).write_bytes(IMAGES[name])
    assert name in wrong(images.read_image, tmp_path / name, 8)


def test_no_image_runs_a_program(tmp_path, monkeypatch):
    """PostScript by the name of a photograph: Pillow would hand it to Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    assert "a.png" in wrong(images.read_image, tmp_path / "a.png", 8) and not (tmp_path / "called").exists()


def test_sheets_of_another_size(tmp_path, monkeypatch):
    for size, mode in (((1024, 10_001), "RGB"), ((1023, 5), "RGB"), ((1024, 5), "L"), ((1024, 5), "RGBA")):
        Image.new(mode, size).save(tmp_path / "x.png")
        wrong(cifar._sheet, tmp_path / "x.png", match=r"x\.png is .* want a PNG sheet")
    Image.new("RGB", (1024, 5)).save(tmp_path / "x.gif")
    (tmp_path / "x.gif").rename(tmp_path / "x.png")  # of another kind
    wrong(cifar._sheet, tmp_path / "x.png", match="is damaged")
    Image.new("RGB", (1024, 5)).save(tmp_path / "x.png")
    for labels in ("[1, 2, 3, 4, 1.5]", "[1, 2, 3, 4, 1e30]", f"[1, 2, 3, 4, {10**30}]", "[[1, 2, 3, 4, 5]]", "{}", "[",
                   "[" * 100_000, "[1, 2, 3, 4, NaN]", "[1, 2, 3, 4, true]", "9" * 5000, "[1, 2, 3, 4, 10]"):
        (tmp_path / "l.json").write_text(labels)
        assert "l.json" in wrong(cifar._sheets, [tmp_path / "x.png"], tmp_path / "l.json")
    (tmp_path / "l.json").write_text("[1, 2, 3, 4, 5]")
    assert cifar._sheets([tmp_path / "x.png"], tmp_path / "l.json")[0][1].tolist() == [1, 2, 3, 4, 5]


# JSON of folders

TEXTS = ["", "[", "[1]", "3", "null", "{}", '"x"', "[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "\xff", "\0", "NaN",
         '{"folders": 3, "settings": 1, "format": "step-1", "method": 1, "epochs": {}}']


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_json(tmp_path, text):
    def at(name):
        (tmp_path / name).write_text(text, encoding="latin1")
        return tmp_path / name
    assert "config.json" in wrong(Options.from_json, at("config.json"))
    assert "config.json" in wrong(SslOptions.from_json, at("config.json"))
    at("compare.json")
    assert "compare.json" in wrong(compare.members, tmp_path)
    at("report.json")
    assert "report.json" in wrong(run.finished, tmp_path, 3)
    assert "step.json" in wrong(read_step, at("step.json"))
    assert "subsets.json" in wrong(subsets._read, at("subsets.json"), {}, False)


CONFIG = Options(method="rmix").to_json()


@pytest.mark.parametrize("name, value", [
    ("method", "nothing"), ("method", 3), ("method", ["rmix"]), ("data", "../x"), ("data", None), ("model", {}),
    ("epochs", 0), ("epochs", 1.5), ("epochs", 10**30), ("epochs", True), ("epochs", "3"), ("lr", -1), ("lr", "x"),
    ("lr", float("nan")), ("lr", float("inf")), ("seed", -1), ("amp", "fp16"), ("channels_last", 1), ("workers", 1e9),
    ("augment", "x"), ("schedule", None), ("patches", [2, "x"]), ("patches", [0]), ("levels", [1]), ("alpha", {"a": 1}),
    ("alpha", "one"), ("root", 3), ("root", "a\0b"), ("unknown", 1), ("__class__", 1), ("saliency", "all"),
    ("milestones", [2.5]), ("momentum", 2)])
def test_a_configuration_holds_what_flags_give(tmp_path, name, value):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {name: value}))
    line = wrong(Options.from_json, tmp_path / "config.json", match="no configuration of a run")
    assert name in line and str(tmp_path) in line


def test_every_configuration_of_ours_is_read(tmp_path):
    from fastmix.app.methods import METHODS
    from fastmix.app.training import presets

    for options in [*(Options(method=name) for name in METHODS),
                    *(Options(**presets.fill({"preset": name}, None)) for name in presets.PRESETS)]:
        checkpoint.write_json(tmp_path / "config.json", options.to_json())
        assert Options.from_json(tmp_path / "config.json") == options.resolved()
    checkpoint.write_json(tmp_path / "config.json", SslOptions().to_json())
    assert SslOptions.from_json(tmp_path / "config.json") == SslOptions()


def test_the_rules_of_options_are_those_of_their_flags():
    from fastmix.app.cli import train, train_ssl
    from fastmix.app.selfsupervised import options

    for parser, rules in ((train.parser(), RULES), (train_ssl.parser(), options.RULES)):
        for action in parser._actions:
            if action.dest in rules and action.dest not in ("method", "channels_last"):
                rule = rules[action.dest]
                assert (tuple(action.choices) if action.choices else action.type or str) == rule, action.dest


def test_results_of_the_step_benchmark_are_read():
    for path in (ROOT / "bench" / "results").glob("*/*-step.json"):
        assert read_step(path)["rows"]


# Memory

BOMBS = """
import sys
from pathlib import Path
from fastmix.app.console import CommandError
from fastmix.app.data import cifar, idx, images, mnist5k
from fastmix.app.data.split import read_index
from fastmix.files import DamagedFile
from fastmix.states import read_state
import resource
folder = Path(sys.argv[1])
images.pillow()
mnist5k._file = lambda: folder / "mnist5k.csv.gz"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for read, *arguments in [(idx.read_idx, folder / "bomb-idx.gz", 3, ""), (cifar._sheet, folder / "sheet.png"),
                         (mnist5k.load, "mnist5k", None, None), (read_index, folder / "index.npy", 1000),
                         (cifar._python_batch, folder / "pickle", "labels", 10, ""), (read_state, folder / "state"),
                         (images.read_image, folder / "image.png", 8)]:
    try:
        read(*arguments)
    except (CommandError, DamagedFile) as error:
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{used:.0f} {str(error)[:80]}")
    else:
        raise SystemExit(f"{read} took it")
"""


def test_bombs_take_no_memory(tmp_path):
    """Files of at most a megabyte that would unpack to a gigabyte, in a process whose memory is measured."""
    packer, block = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(2**24)
    piece = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = 40 * piece + packer.flush()  # 671 MB
    (tmp_path / "bomb-idx.gz").write_bytes(
        gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 10, 28, 28)) + b"\x1f\x8b\x08" + bytes(7) + packed)
    (tmp_path / "mnist5k.csv.gz").write_bytes(b"\x1f\x8b\x08" + bytes(7) + packed)
    (tmp_path / "sheet.png").write_bytes(png(1024, 2**20, b"\x78\xda" + packed))
    (tmp_path / "image.png").write_bytes(png(15_000, 15_000, b"\x78\xda" + packed))
    (tmp_path / "index.npy").write_bytes(npy("{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999,), }"))
    (tmp_path / "pickle").write_bytes(b"\x80\x02}B\xff\xff\xff\x7f" + b"r\xff\xff\xff\x7f.")
    with zipfile.ZipFile(tmp_path / "state", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive, archive.open(
            "archive/data/0", "w") as member:
        for _ in range(4):
            member.write(block)
    assert all(path.stat().st_size < 2**20 for path in tmp_path.iterdir())
    done = training.run([sys.executable, "-c", BOMBS, tmp_path])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7 and all(int(line.split()[0]) < 200 for line in lines), done.stdout


def test_damaged_archives_of_statistics(tmp_path):
    from types import SimpleNamespace

    from fastmix.app.console import UsageError
    from fastmix.app.subsets.table import Table

    table = Table.__new__(Table)
    table.path, table.index = tmp_path / "t.npz", torch.arange(4)
    table.settings = {"images": 4}
    table._scoring = SimpleNamespace()
    columns = {name: np.ones(4) for name in ("mean", "std", "cv")}
    np.savez_compressed(table.path, settings=np.array('{"images": 4}'), **columns)
    assert [len(column) for column in table._read()] == [4, 4, 4]
    bad = {"settings": np.array("[]")}, {"settings": np.array("[" * 30_000)}, {"mean": np.ones(5)}, {
        "cv": np.array([None] * 4)}, {"std": np.ones((2, 2))}, {"mean": np.zeros(10**7)}, {"settings": np.zeros(3)}
    for other in bad:
        np.savez_compressed(table.path, **{"settings": np.array('{"images": 4}'), **columns, **other})
        assert "t.npz" in wrong(table._read, kind=UsageError, match="overwrite")
    content = bytearray(table.path.read_bytes())
    for cut in (b"", bytes(content[:100]), b"PK\x05\x06" + bytes(18)):
        table.path.write_bytes(cut)
        assert "t.npz" in wrong(table._read, kind=UsageError, match="damaged")


# The list of all readers

OWN = {"files", "checkpoint", "library", "import_torchvision", "data", "digits", "pickles", "cls", "Trained", "compare",
       "importlib", "train_ssl", "arrays"}  # functions of ours of such a name, which come to one of the list


def calls(path):
    """Calls by which a file of the sources reads something, as they are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            written = ast.unparse(function)
            own = written.partition(".")[0] in OWN or "import_module" in written
            if name in OPENING and not own and (name == "open" or isinstance(function, ast.Attribute)):
                yield written


def test_every_call_that_reads_a_file_is_attacked():
    package = ROOT / "fastmix"
    found = {f"{path.relative_to(package).as_posix()}: {written}" for path in sorted(package.rglob("*.py"))
             for written in calls(path)}
    assert found == set(READERS)
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*/test_*.py"))
    missing = [name for name in READERS.values() if name.startswith("test_") and f"def {name}(" not in tests]
    assert not missing


def test_the_page_lists_every_variable_of_the_environment():
    page = (ROOT / "docs" / "security.md").read_text()
    for path in [ROOT / "setup.py", *(ROOT / "fastmix").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            words = []
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("environ.get", "getenv")):
                words = node.args[:1]
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
                words = [node.slice]
            elif isinstance(node, ast.Constant) and node.value == "LOCAL_RANK":
                words = [node]
            for word in words:
                assert not isinstance(word, ast.Constant) or f"`{word.value}`" in page, (path, word.value)


def test_the_page_lists_every_format():
    page = (ROOT / "docs" / "security.md").read_text()
    for word in ("checkpoint.pt", "config.json", "compare.json", "report.json", "subsets.json", "boxes.csv", "npz",
                 "idx", "pickle", "PNG sheet"):
        assert word in page
