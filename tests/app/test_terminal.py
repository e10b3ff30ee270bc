"""What a person sees at a terminal of 80 columns, and of 60: tables, help, suggestions; runs that are extended."""

import itertools
import json
import re

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from helpers.training import call

import fastmix
from fastmix import __main__ as program
from fastmix.app import methods, tables
from fastmix.app.command_line import Parser, meant
from fastmix.app.console import USAGE
from fastmix.app.results import render
from fastmix.app.training import checkpoint, jobs, report, run, schedules
from fastmix.app.training.options import Options
from fastmix.bench.harness.report import aligned

RUN = ["train", *training.TINY, "--epochs", "2"]
pytestmark = pytest.mark.usefixtures("one_thread")


# Tables

def reports(method, seeds, policy=False, risk=True):
    phases = {"data": 1.25, "saliency": 12.5, "mix": 0.5, "model": 123.4, "loss": 0.1}
    found = []
    for seed in range(seeds):
        one = {"method": method, "test_accuracy": 0.98765 - seed / 100, "best_accuracy": 1.0 - seed / 50,
               "train_accuracy": 1.0, "ece": 0.1234 + seed / 100, "step_ratio": 10.23,
               "ms": {"step": 12345.6, **phases, **({"policy": 3.0} if policy else {})}}
        if risk:
            risks = {"augmented": 2.3456 + seed, "clean": 1.2345}
            one["risk"] = {"augmentation": risks, "refinement": risks}
        found.append(one)
    return found


def numbers(text):
    return sorted(re.findall(r"\d[\d.]*", text))


@pytest.mark.parametrize("columns", [40, 50, 60, 70, 80, 100, 132, 300])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_result_table_fits_every_terminal(capsys, monkeypatch, columns, seeds):
    groups = {name: reports(name, seeds, policy=True) for name in ("none", "soft-resized-crop", "saliency-dcutmix")}
    printed = {}
    for width in (1000, columns):
        monkeypatch.setenv("COLUMNS", str(width))
        report.show("digits, 1438 training images, cnn, 30 epochs, 3 seeds", groups)
        printed[width] = capsys.readouterr().out
    assert max(map(tables.cells, printed[columns].splitlines())) <= columns
    assert "…" not in printed[columns] and numbers(printed[columns]) == numbers(printed[1000])
    assert all(heading in printed[columns] for heading in report.COLUMNS[1:])


def test_accuracies_of_several_seeds_stand_together_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    report.show("title", {name: reports(name, 3, risk=False) for name in methods.METHODS})
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.splitlines()[1].split() == ["method", "test", "acc", "%", "best", "%", "train", "acc", "%", "ECE", "%"]
    assert "ms/step" in second.splitlines()[0] and "loss %" in second.splitlines()[0]
    for name in methods.METHODS:
        assert len(re.findall(rf"^{name} ", first, re.M)) == len(re.findall(rf"^{name} ", second, re.M)) == 1


@pytest.mark.parametrize("width", [20, 33, 60, 80])
def test_tables_never_cut(width):
    rows = [["a method --with several --flags 12.5 --in its/name", "98.76 ± 0.12 %", "1.00x"], ["none", "-", "10x"],
            ["one-word-that-is-longer-than-a-third-of-the-line", "1", ""], ["猫猫 é", "2", "3"]]
    text = tables.table(("method", "test accuracy", "step"), rows, width)
    assert all(cell in text for row in rows for cell in row[1:])
    assert all(word in text for row in rows for word in row[0].split())
    if width >= 60:
        assert max(map(tables.cells, text.splitlines())) <= max(width, 48 + 2 + 14)


def test_a_flag_stays_with_its_value():
    text = tables.table(("method", "a" * 30, "b" * 10), [["none --epochs 65 --batch 20", "1", "2"]], 60)
    assert "--epochs 65" in text and "--batch 20" in text and text.splitlines()[2].startswith("none")


def test_a_table_that_fits_has_its_parts_side_by_side():
    assert len(tables.table(("a", "b", "c"), [["1", "2", "3"]], 80, [2]).splitlines()) == 3
    assert tables.table(("a", "b" * 9, "c" * 9), [["1", "2", "3"]], 15, [2]).count("a") == 2


def test_wide_and_joining_characters():
    lines = tables.table(("name", "x"), [["猫", "1"], ["e\u0301", "2"]], 80).splitlines()
    assert [tables.cells(line) for line in lines] == [7] * 4


def test_the_report_and_the_bench_fold_too(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    row = {"name": "rmix --saliency half --label-smoothing 0.1 --patches 2,4", "method": "rmix", "flags": [],
           "seeds": 3, "runs": [{}], **{key: {"mean": 0.9, "std": 0.01} for key in render.KEYS}}
    text = render.plain("title", render.table({"rows": [row]}))
    assert max(map(len, text.splitlines())) <= 60 and "90.00 ± 1.00 %" in text and "--patches 2,4" in text
    lines = aligned([("provider", *("heading" * 2 for _ in range(6))), ("cpu", *("1.23 ms" for _ in range(6)))])
    assert max(map(len, lines)) <= 60 and "".join(lines).count("1.23 ms") == 6


@pytest.mark.parametrize("width", [60, 80])
def test_the_line_of_an_epoch_fits(width):
    entry = {"train_loss": 2.345, "train_accuracy": 1, "test_loss": 2.345, "test_accuracy": 1, "reward": 0.6,
             "random_reward": 0.6, "q": 0.5}
    parts = [(0, "epoch 100/100"), (2, "lr 3.05e-05"), *run.Run.describe(None, entry), (4, "1234.5 ms/step"),
             (3, "1234.5 s")]
    line = tables.line_of(parts, width)
    assert len(line) <= width and "train 2.345 100.0 %" in line and "test 2.345 100.00 %" in line
    assert tables.line_of(parts, 300) == "  ".join(text for _, text in parts)


def test_a_run_at_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = call(capsys, "train", "--compare", "none,soft-resized-crop", "--seeds", 2, *training.TINY,
                            "--epochs", 2, "--refine-epochs", 1, "--out", tmp_path / "x")
    assert status == 0 and err == ""
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80


# Help and words that are nearly right

def test_the_version(capsys):
    assert call(capsys, "--version") == (0, f"fastmix {fastmix.__version__}\n", "")


@pytest.mark.parametrize("words, text", [
    (["trian"], "unknown command 'trian', did you mean train?"), (["evalute"], "did you mean evaluate?"),
    (["train", "--epoch", "3"], "unrecognized arguments: --epoch 3, did you mean --epochs?"),
    (["train", "--methd=rmix"], "did you mean --method?"),
    (["train", "--method", "rmx"], "invalid choice: 'rmx', did you mean rmix"),
    (["train", "--compare", "none,mixpu"], "names 'mixpu', want some of"),
    (["train", "--data", "cifar-10"], "'cifar-10', did you mean cifar10"),
    (["train", "--model", "preact-resnet-18"], "did you mean preact-resnet18?"),
    (["evaluate", "--checkpoint", "x", "--only", "calibratoin"], "did you mean calibration?"),
    (["subsample", "--checkpoint", "x", "--out", "x.npy", "--how", "tpo"], "did you mean top?"),
    (["bench", "opertors"], "did you mean operators?"), (["bench", "--op", "pase"], "did you mean paste?"),
    (["bench", "step", "--method", "rmix/hlaf"], "did you mean rmix/half?"),
    (["bench", "scale", "--op", "pastte"], "did you mean paste?")])
def test_what_a_word_may_have_meant(capsys, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(capsys, *words)
    assert status == USAGE and err.count("\n") == 1 and text in err


def test_no_guess_for_a_word_that_is_like_none():
    assert meant("xyzzy", methods.METHODS) == "" and meant("", ["a"]) == ""


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", [name for name in program.COMMANDS if name != "bench"])
def test_help_fits_a_terminal(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for flag in ("--help", "--help-all") if command in ("train", "preview") else ("--help",):
        with pytest.raises(SystemExit) as caught:
            program.main([command, flag])
        lines = capsys.readouterr().out.splitlines()
        assert caught.value.code == 0 and lines[0].startswith(f"usage: python -m fastmix {command} ") and not lines[1]
        examples = [line for line in lines if re.match(r" +(python -m fastmix|torchrun|--\w+|\()", line)]
        assert max(len(line) for line in (lines if columns == 80 else lines[1:])
                   if line not in examples or columns == 80) <= columns


def test_the_help_of_train_begins_with_what_is_common(capsys):
    texts = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            program.main(["train", flag])
        texts[flag] = capsys.readouterr().out
    short, full = texts["--help"], texts["--help-all"]
    assert len(short.splitlines()) < 60 and short.index("common:") < short.index("--method") < short.index("output:")
    common = ("--method", "--data", "--model", "--epochs", "--out", "--resume", "--device")
    assert all(f"\n  {flag} " in short and f"\n  {flag} " in full for flag in common)
    parser = __import__("fastmix.app.cli.train", fromlist=["parser"]).parser()
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert all(f"  {flag}" in full for flag in flags - {"-h"})
    assert "--focal-gamma" not in short and "--help-all" in short and "rmix: patches by saliency" in full


def test_a_usage_names_what_must_be_given():
    parser = Parser(prog="x")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--more")
    parser.add_argument("folders", nargs="+", metavar="DIR")
    assert parser.format_usage() == "usage: x --out FILE [options] DIR ...\n"


# A run that is extended

@pytest.mark.parametrize("flags", [["--schedule", "onecycle"], ["--schedule", "multistep"],
                                   ["--schedule", "cosine", "--warmup", "1"], ["--refine-epochs", "1"]])
def test_a_finished_run_is_extended(tmp_path, capsys, flags):
    folder = tmp_path / "run"
    assert call(capsys, *RUN, *flags, "--batch", "50", "--out", folder)[0] == 0
    before = training.metrics(folder)
    status, out, err = call(capsys, "train", "--resume", "--epochs", 5, "--out", folder / "checkpoint.pt")
    assert status == 0 and err == ""
    told, = [line for line in out.splitlines() if line.startswith("epochs 3 to 5 follow")]
    assert "schedule of 5 epochs (lr " in told and "not the result of 5 epochs from the start" in told
    entries = training.metrics(folder)
    assert entries[:2] == before and [entry["epoch"] for entry in entries] == [1, 2, 3, 4, 5]
    assert json.loads((folder / "report.json").read_text())["epochs"] == 5
    assert Options.from_json(folder / "config.json").epochs == 5
    # The rates are those of the longer schedule from there on.
    other = tmp_path / "five"
    assert call(capsys, *RUN[:-1], 5, *flags, "--batch", "50", "--out", other)[0] == 0
    rates = [[entry["lr"] for entry in found[2:]] for found in (entries, training.metrics(other))]
    assert rates[0] == pytest.approx(rates[1])
    # Finished as it is now, it is not trained again, and not shortened.
    status, out, _ = call(capsys, "train", "--resume", "--epochs", 5, "--out", folder)
    assert status == 0 and "epoch 5/5" not in out
    status, _, err = call(capsys, "train", "--resume", "--epochs", 3, "--out", folder)
    assert status == USAGE and "has 5 finished epochs, want --epochs 5 or more, not 3" in err


def test_an_extension_that_was_killed_goes_on(tmp_path, capsys):
    folder = tmp_path / "run"
    assert call(capsys, *RUN, "--batch", "50", "--out", folder)[0] == 0
    training.killed("fastmix.app.training.loop", "update", 6, "train", "--resume", "--epochs", 4, "--out", folder)
    assert checkpoint.load(folder)["epoch"] == 3 and not (folder / "report.json").exists()
    status, out, _ = call(capsys, "train", "--resume", "--out", folder)
    assert status == 0 and "epoch 4/4" in out and "follow the" not in out
    assert json.loads((folder / "report.json").read_text())["epochs"] == 4


def test_a_comparison_is_extended_and_reported(tmp_path, capsys):
    folder = tmp_path / "both"
    assert call(capsys, "train", "--compare", "none,mixup", *RUN[1:], "--out", folder)[0] == 0
    assert call(capsys, "train", "--resume", "--epochs", 3, "--out", folder)[0] == 0
    content = json.loads((folder / "compare.json").read_text())
    assert "3 epochs" in content["title"] and {one["epochs"] for one in content["runs"]} == {3}
    # A run whose report is of fewer epochs than it is to have counts as one that has not ended.
    config = folder / "none-seed0" / "config.json"
    config.write_text(config.read_text().replace('"epochs": 3', '"epochs": 4'))
    status, out, err = call(capsys, "report", folder, "--fgsm-images", 0)
    assert status == 0 and "left out, not ended" in err and "mixup" in out


def test_the_schedule_moves_to_where_it_stands():
    """A step at a time, or at once: the same rates."""
    import torch

    for options in (Options(epochs=6), Options(epochs=6, schedule="multistep"), Options(epochs=6, schedule="cosine")):
        model = torch.nn.Linear(1, 1)
        rates = []
        for at_once in (False, True):
            optimizer = schedules.optimizer(options, model)
            scheduler = schedules.scheduler(options, optimizer, 4)
            if at_once:
                schedules.move(scheduler, optimizer, 10)
            else:
                for _ in range(10):
                    optimizer.step()
                    scheduler.step()
            for _ in itertools.repeat(None, 14):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
        assert rates[:14] == pytest.approx(rates[14:])


def test_what_a_run_leaves_names_the_command(tmp_path, monkeypatch):
    from fastmix.app.training.places import kept

    assert kept([tmp_path], "train", tmp_path) == ""
    (tmp_path / "config.json").write_text("")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert kept([tmp_path], "train", tmp_path) == (
        f"no epoch was finished, continue with: torchrun --nproc-per-node 4 -m fastmix train --resume --out {tmp_path}")
    assert jobs.Request([], None, False).jobs == []
