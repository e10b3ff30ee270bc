"""Names are data: printed, drawn, quoted and stored as they are."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("torchmetrics")

from helpers import training
from PIL import Image

from fastmix import __main__ as program
from fastmix.app import console, names
from fastmix.app.console import FAILURE, CommandError
from fastmix.app.figures import drawing
from fastmix.app.figures import report as report_picture
from fastmix.app.figures import training as pictures
from fastmix.app.results import render
from fastmix.app.results.runs import Recipe, flags
from fastmix.app.training import compare, report, run, samples
from fastmix.app.training.options import Options
from fastmix.files import remove, write_atomically
from fastmix.targets import SoftTarget

BYTES = os.fsdecode(b"caf\xe9")
NAMES = ["a$b$c", "$x_1^2$", "back\\slash", "_", "[red]x[", "50%", "%(s)s", "#1", "two  blanks", " blank ",
         "{brace}", "{0}", "-dash", "`tick`", "*star*", "a|b", "<b>", "'q\"", "a,b", "F\u00e4hre",
         "\u05e2\u05d1\u05e8\u05d9\u05ea", "\U0001f600", "\u732b", ":smile:",
         "line\nbreak", "esc\x1b[31m", BYTES, "\u202eright", "x" * 200]
SHOWN = {"line\nbreak": "line\\nbreak", "esc\x1b[31m": "esc\\x1b[31m", BYTES: "caf\\xe9", "\u202eright": "\\u202eright"}


def folder_of(root, *classes, count=2):
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for j in range(count):
            Image.fromarray(np.full((8, 8, 3), 5 * i + j, np.uint8)).save(root / name / f"{name[:40]} {j}.png")
    return root


# ---------------------------------------------------------------- text

@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_printed_as_it_is_on_one_line(name):
    text = names.printable(name)
    assert text == SHOWN.get(name, name) and len(text.splitlines()) == 1
    text.encode()  # any UTF-8 stream takes it
    assert names.printable(text) == text


def test_bytes_that_are_utf_8_after_all_are_shown_as_text():
    """As Python holds them under LANG=C."""
    assert names.printable("F\udcc3\udca4hre") == "F\u00e4hre"
    assert names.printable("\ud800") == "\\ud800"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_reads_back_every_name():
    for name in NAMES:
        word = names.quoted(name)
        assert len(word.splitlines()) == 1 and word == names.printable(word)
        said = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
        assert said == os.fsencode(name), word
    assert names.quoted("plain/name-1.png") == "plain/name-1.png"
    assert names.flag("--out", "-x y") == "--out='-x y'" and names.flag("--seed", 3) == "--seed 3"


def test_names_are_no_markdown():
    for name in NAMES:
        cell = names.markdown(name)
        bare = cell.replace("\\\\", "")
        assert len(cell.splitlines()) == 1
        for i, c in enumerate(bare):
            assert c not in "`*_{}[]<>#|~$" or bare[i - 1] == "\\", cell
    lines = [["method", "x"], ["a|b*c*", "1.2x*"]]
    assert render.markdown(lines, named=True).splitlines()[2] == "| a\\|b\\*c\\* | 1.2x* |"


def test_long_names_keep_their_ends():
    assert names.shortened("abcdef", 6) == "abcdef" and names.shortened("abcdefgh", 5) == "ab\u2026gh"
    assert names.wrapped("x" * 200, 20) == ["x" * 20, "x" * 10 + "\u2026" + "x" * 9, "x" * 20]
    assert names.wrapped("", 20) == [""]
    assert names.wrapped("001.Black_footed_Albatross", 20) == ["001.Black_footed_", "Albatross"]
    assert names.listed("abcd", 2) == "a, b and 2 more"


def test_models_with_slashes_and_colons_are_no_folders():
    assert Options(model="timm:hf-hub:org/name").label() == "none-digits-timm-hf-hub-org-name-seed0"


def test_files_with_long_names_are_written_and_removed(tmp_path):
    path = tmp_path / ("\u00e4" * 120 + ".json")
    write_atomically(path, b"x")
    (tmp_path / (".\u00e4" + "\u00e4" * 99 + ".left")).write_bytes(b"of a process that was killed")
    assert path.read_bytes() == b"x"
    remove(path)
    assert list(tmp_path.iterdir()) == []


def test_the_flags_of_a_row_can_be_typed():
    typed = flags(Recipe.of(Options(subset="my $set.npy", model="-x"), 1))
    assert typed == {"subset": "--subset 'my $set.npy'", "model": "--model=-x"}


# ---------------------------------------------------------------- terminals

class Terminal(io.TextIOWrapper):
    def __init__(self, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding)

    def isatty(self):
        return True

    @property
    def text(self):
        self.flush()
        return self.buffer.getvalue().decode("utf-8", "replace")


def test_names_are_no_markup_of_bars_and_tables(monkeypatch):
    name = "[red]x[/red] :smile: [b"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with console.progress_bar(name, 2) as advance:
        advance()
    assert name in terminal.text
    print(report.plain(f"title {name}", ("method", "%"), [[name, "1.0"]]))
    assert f"title {name}" in terminal.text and terminal.text.count(name) >= 3


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_no_name_and_no_locale_ends_a_command(monkeypatch, encoding):
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)

    def command(argv):
        print("\U0001f600", BYTES, "\u00b1")
        raise CommandError(f"F\u00e4hre {BYTES}\nis\x1b[31m gone")

    assert console.run(command, []) == FAILURE
    assert len(terminal.text.splitlines()) == 2 and "\\nis\\x1b[31m gone" in terminal.text


# ---------------------------------------------------------------- pictures

@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    figures = []
    real = drawing._literal

    def kept(figure):
        real(figure)
        figures.append(figure)

    monkeypatch.setattr(drawing, "_literal", kept)
    return figures


def texts(figure):
    from matplotlib.text import Text

    return {text.get_text(): text for text in figure.findobj(Text)}


def in_font(text):
    from matplotlib.font_manager import FontProperties, findfont

    return all(ord(c) in drawing._glyphs(findfont(FontProperties())) for c in text if c != "\n")


def test_names_are_drawn_as_they_are(tmp_path, drawn, recwarn):
    images = torch.rand(len(NAMES), 4, 4, 3)
    target = SoftTarget(torch.arange(len(NAMES)).view(-1, 1), torch.ones(len(NAMES), 1))
    lines = [pictures.shares(target, NAMES, row) for row in range(len(NAMES))]
    pictures.samples(images, images, NAMES, lines, None, "$title$ \\ _", tmp_path / "$a$.png")
    pictures.gallery(images, NAMES, {"mixup": (images, lines)}, "$title$", tmp_path / "gallery.png")
    for figure in drawn:
        found = texts(figure)
        assert all(in_font(text) for text in found)
        assert not any(text.get_parse_math() for shown, text in found.items() if "$" in shown)
        for name in NAMES:
            if len(name) < 20 and in_font(names.printable(name)):
                assert names.printable(name) in found and f"{names.printable(name)}: 100 %" in found
        assert "\\U0001f600" in found or in_font("\U0001f600")
    assert "$title$ \\ _" in texts(drawn[0]) and not list(recwarn)
    with Image.open(tmp_path / "$a$.png") as picture:
        assert picture.size[0] > 800


def test_a_fallback_font_is_used_where_one_has_the_character(tmp_path, drawn, monkeypatch):
    real = drawing._glyphs
    monkeypatch.setattr(drawing, "_glyphs", lambda font: real(font) | ({0x732b} if "Mono" in font else set()))
    image = torch.rand(1, 4, 4, 3)
    pictures.samples(image, None, ["\u732b"], [[]], None, "t", tmp_path / "a.png")
    text = texts(drawn[0])["\u732b"]
    assert any("Mono" in family for family in text.get_fontfamily())


def test_names_along_an_axis_and_logarithms_beside_them(tmp_path, drawn):
    row = {"name": f"mixup --subset {names.quoted('$a$ _b')} \u732b", "seeds": 1, "runs": [{"test_accuracy": 0.5}],
           "test_accuracy": {"mean": 0.5, "std": None}}
    report_picture.draw({"rows": [row], "title": "$t$"}, tmp_path / "r.png")
    assert "mixup\n--subset '$a$ _b' \\u732b" in texts(drawn[0]) and "$t$" in texts(drawn[0])
    history = [{"epoch": i, "train_loss": 1, "train_accuracy": 0.5, "lr": 10.0 ** -i} for i in range(3)]
    pictures.curves(history, "$t$", tmp_path / "c.png")
    found = texts(drawn[1])
    assert not found["$t$"].get_parse_math()
    assert any(text.get_parse_math() for shown, text in found.items() if "mathdefault" in shown)


def test_what_matplotlib_cannot_draw_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "new", lambda *a, **k: 1 / 0)
    with pytest.raises(drawing.NotDrawn, match=r"r\.png cannot be drawn \(division by zero\)"):
        report_picture.draw({"rows": [{"test_accuracy": {"mean": 1.0}}], "title": ""}, tmp_path / "r.png")


# ---------------------------------------------------------------- whole runs

@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("data") / "my $data [b] 50% \u00e4", *NAMES)


def test_a_run_on_names_of_every_kind(tmp_path, strange, capfd):
    out = tmp_path / f"run $a$ [red] {BYTES}"
    arguments = ["--data", "folder", "--root", str(strange), "--image-size", "8", "--epochs", "1", "--threads", "1"]
    assert program.main(["train", *arguments, "--layout", "flat", "--method", "dcutmix", "--out", str(out)]) == FAILURE
    assert "too few to hold 20 %" in capfd.readouterr().err  # two images of every class
    for i in range(2, 5):
        for name in NAMES:
            shutil.copy(strange / name / f"{name[:40]} 0.png", strange / name / f"{i}.png")
    assert program.main(["train", *arguments, "--method", "dcutmix", "--out", str(out)]) == 0
    stdout, stderr = capfd.readouterr()
    assert stderr == "" and f"folder {strange}: {len(NAMES)} classes ( blank , #1, $x_1^2$, " in stdout
    assert json.loads((out / "config.json").read_text())["root"] == str(strange)
    assert all((out / name).exists() for name in run.FILES)
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert sorted(state["classes"]) == sorted(NAMES)
    result = tmp_path / f"{BYTES} $.json"
    assert program.main(["evaluate", "--checkpoint", str(out), "--only", "calibration", "--out", str(result)]) == 0
    assert program.main(["report", str(out), "--out", str(tmp_path / "\U0001f600.json"), "--fgsm-images", "5"]) == 0
    stderr = capfd.readouterr().err
    assert stderr == f"fastmix: written to {tmp_path}/\U0001f600.json and {tmp_path}/\U0001f600.png\n"
    assert json.loads(result.read_text())["run"] == out.name


def test_umlauts_in_a_locale_without_them(tmp_path):
    root = folder_of(tmp_path / "V\u00f6gel", "F\u00e4hre", "M\u00f6we", count=5)
    environment = training.environment() | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = training.fastmix("preview", "--data", "folder", "--root", root, "--image-size", "8", "--method", "mixup",
                            "--out", tmp_path / "\u00e4.png", "--threads", "1", env=environment)
    assert done.returncode == 0 and done.stderr == "" and "V\\xf6gel: 2 classes (F\\xe4hre, M\\xf6we)" in done.stdout
    assert (tmp_path / "\u00e4.png").exists()


def test_what_continues_a_run_can_be_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastmix.app.cli.train.train_all", interrupted)
    out = tmp_path / "a b$c"
    assert program.main(["train", "--data", "digits", "--out", str(out)]) == 130
    assert f"--resume --out '{out}'" in capsys.readouterr().err


def interrupted(request, here):
    request.folder.mkdir()
    (request.folder / run.CONFIG).write_text("{}")
    raise KeyboardInterrupt


@pytest.mark.parametrize("failing", ["curves", "samples"])
def test_no_picture_fails_a_run_and_the_report_comes_first(tmp_path, monkeypatch, capsys, failing):
    out, before = tmp_path / "run", []

    def broken(*arguments):
        before.append((out / "report.json").exists())
        raise RuntimeError("no\nglyph")

    monkeypatch.setattr(*((run.pictures, "curves") if failing == "curves" else (samples, "take_samples")), broken)
    assert program.main(["train", *training.TINY, "--method", "mixup", "--epochs", "1", "--out", str(out)]) == 0
    assert before == [True]
    assert capsys.readouterr().err == f"fastmix: warning: {out / failing}.png is missing (no)\n"


def test_no_picture_fails_a_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare.pictures, "compare", interrupted_by(OSError(28, "No space left on device")))
    out = tmp_path / "both"
    assert program.main(["train", *training.TINY, "--compare", "none,mixup", "--epochs", "1", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "compare.png is missing" in captured.err and "No space left" in captured.err
    assert "mixup" in captured.out and len(json.loads((out / "compare.json").read_text())["runs"]) == 2


def interrupted_by(error):
    def call(*arguments):
        raise error
    return call
