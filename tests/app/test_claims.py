"""Two commands never share a folder: claims, who holds them, what a dead process leaves."""

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from helpers.training import call

from fastmix import __main__ as program
from fastmix.app import claims
from fastmix.app.claims import Claim, Held
from fastmix.app.console import USAGE, UsageError
from fastmix.app.evaluation import report
from fastmix.app.training import checkpoint
from fastmix.app.training.places import Place, run_folder
from fastmix.bench.harness import command_line

RUN = ["train", *training.TINY, "--epochs", "1"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["flock", "no locks"])
def locks(request, monkeypatch):
    """With flock, and as on a file system that has none."""
    if request.param == "no locks":
        def flock(*arguments):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(claims.fcntl, "flock", flock)


# Claims

def test_a_folder_is_held_once_and_nothing_is_left(tmp_path, locks):
    folder = tmp_path / "a" / "b"
    with Claim.of_folder(folder):
        with pytest.raises(Held, match=rf"b is in use by process {os.getpid()} \(.*since 20.*another --out"):
            Claim.of_folder(folder)
        with Claim.of_folder(tmp_path / "a" / "c"):
            pass
        assert not (tmp_path / "a" / "c").exists()
    assert not (tmp_path / "a").exists()
    with Claim.of_folder(folder):
        (folder / "file").write_text("")
    assert [path.name for path in folder.iterdir()] == ["file"]
    with Claim.of_file(folder / "file"), pytest.raises(Held, match="another --json"):
        Claim.of_file(folder / "file", "--json")
    assert [path.name for path in folder.iterdir()] == ["file"]


def hold(folder, ready):
    Claim.of_folder(folder)
    ready.set()
    signal.pause()


@pytest.fixture
def holder(tmp_path, locks):
    """A process that holds tmp_path / "held"."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "held", ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_the_death_of_the_holder_releases_it(tmp_path, holder):
    with pytest.raises(Held, match=f"in use by process {holder.pid} "):
        Claim.of_folder(tmp_path / "held")
    holder.kill()
    holder.join()
    assert (tmp_path / "held" / claims.LOCK).exists()
    Claim.of_folder(tmp_path / "held").release()
    assert not (tmp_path / "held" / claims.LOCK).exists()


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    """A process that decodes images may outlive, for a moment, a run that was killed."""
    parent, child = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            Claim.of_folder(tmp_path / "held")
            if os.fork() == 0:
                os.close(child[1])
                os.read(child[0], 1)  # lives until the test ends
            else:
                os.write(parent[1], b"x")
                signal.pause()
        os._exit(0)
    assert os.read(parent[0], 1) == b"x"
    with pytest.raises(Held):
        Claim.of_folder(tmp_path / "held")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    Claim.of_folder(tmp_path / "held").release()
    os.close(child[1])


def test_without_locks_a_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(claims, "fcntl", None)
    with Claim.of_folder(tmp_path / "held"):
        assert "this file system has no locks; if a run on another machine was killed" in capsys.readouterr().err


def test_without_locks_another_machine_is_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "fcntl", None)
    (tmp_path / f"{claims.LOCK}-owner").write_text(json.dumps({"pid": 2**22 + 1, "host": "elsewhere"}))
    with pytest.raises(Held, match=f"process {2**22 + 1} on elsewhere"):
        Claim.of_folder(tmp_path)
    (tmp_path / f"{claims.LOCK}-owner").write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    Claim.of_folder(tmp_path).release()


def test_a_holder_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE", 0)
    with Claim.of_folder(tmp_path):
        (tmp_path / claims.LOCK).write_text("{")
        with pytest.raises(Held, match="in use by another process:"):
            Claim.of_folder(tmp_path)


# Runs

@pytest.mark.parametrize("arguments", [
    ["train", "--resume"], ["train", "--overwrite", "--epochs", "1"], [*RUN], ["train-ssl", "--overwrite"],
    ["train", "--compare", "none,mixup", "--overwrite", "--epochs", "1"]])
def test_a_living_run_is_named_and_keeps_its_files(tmp_path, capsys, arguments):
    folder = tmp_path / "run"
    assert call(capsys, *RUN, "--out", folder)[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with Claim.of_folder(folder):
        status, out, err = call(capsys, *arguments, "--out", folder)
        assert status == USAGE and out == "" and err.count("\n") == 1
        assert f"{folder} is in use by process {os.getpid()} " in err
        assert (folder / claims.LOCK).exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_holds_its_folder_while_it_trains(tmp_path, capsys, monkeypatch):
    folder, save, seen = tmp_path / "both", checkpoint.save, []

    def save_and_look(where, state):
        for held in (folder, folder / "none-seed0", folder / "mixup-seed0"):
            with pytest.raises(Held):
                Claim.of_folder(held)
            seen.append(held)
        save(where, state)

    monkeypatch.setattr(checkpoint, "save", save_and_look)
    assert call(capsys, "train", "--compare", "none,mixup", *training.TINY, "--epochs", 1, "--out", folder)[0] == 0
    assert len(seen) == 6 and not list(folder.rglob(".*"))


def test_a_member_that_another_run_holds_stops_an_overwrite(tmp_path, capsys):
    folder = tmp_path / "both"
    assert call(capsys, "train", "--compare", "none,mixup", *training.TINY, "--epochs", 1, "--out", folder)[0] == 0
    with Claim.of_folder(folder / "mixup-seed0"):
        for flags in (["--compare", "none,cutmix", *training.TINY, "--overwrite"], [*training.TINY, "--overwrite"],
                      ["--resume"]):
            status, _, err = call(capsys, "train", *flags, "--out", folder)
            assert status == USAGE and "mixup-seed0 is in use" in err
    assert (folder / "mixup-seed0" / "report.json").exists() and not (folder / "cutmix-seed0").exists()


def test_two_runs_without_a_name_get_two_folders(tmp_path, monkeypatch):
    """The second has looked for a free folder before the first has made it."""
    monkeypatch.chdir(tmp_path)
    first, second = (Place.of(None, "x", False, False) for _ in range(2))
    assert first.folder == second.folder
    with contextlib.ExitStack() as stack:
        names = [place.claim(stack).name for place in (first, second, first)]
        assert names == ["x", "x-2", "x-3"]


def test_of_two_runs_with_one_name_the_second_is_refused(tmp_path):
    """Both have seen that the folder is free; the second comes while the first lives, or after it."""
    first, second = (Place.of(tmp_path / "x", "", False, False) for _ in range(2))
    with contextlib.ExitStack() as stack:
        folder = first.claim(stack)
        with pytest.raises(Held):
            second.claim(stack)
        (folder / "config.json").write_text("{}")
    with contextlib.ExitStack() as stack, pytest.raises(UsageError, match="already holds a run"):
        second.claim(stack)


def test_two_runs_started_together(tmp_path):
    """The first waits in its first epoch until the second has ended."""
    script = """
import pathlib, sys, time
import fastmix.app.training.loop as loop
from fastmix.__main__ import main

mark, update = pathlib.Path(sys.argv[1]), loop.update
def waits(*args, **kwargs):
    mark.with_name("started").touch()
    while not mark.exists():
        time.sleep(0.02)
    return update(*args, **kwargs)
loop.update = waits
sys.exit(main(sys.argv[2:]))
"""
    flags = [*map(str, RUN), "--out", str(tmp_path / "run")]
    first = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "go"), *flags], stderr=subprocess.PIPE,
                             env=training.environment(), text=True)
    while not (tmp_path / "started").exists():
        assert first.poll() is None, first.communicate()[1]
    second = training.fastmix(*flags, "--overwrite")
    (tmp_path / "go").touch()
    assert first.wait(600) == 0 and second.returncode == USAGE
    assert f"in use by process {first.pid} " in second.stderr and second.stderr.count("\n") == 1
    assert [entry["epoch"] for entry in training.metrics(tmp_path / "run")] == [1]


def test_resume_takes_over_from_a_dead_run(tmp_path, capsys):
    folder = tmp_path / "run"
    training.killed("fastmix.app.training.loop", "update", 3, *RUN[:-1], "2", "--batch", "100", "--out", folder)
    assert (folder / claims.LOCK).exists()
    assert call(capsys, "train", "--resume", "--out", folder)[0] == 0
    assert checkpoint.load(folder)["epoch"] == 2 and not (folder / claims.LOCK).exists()


def test_a_failure_before_the_run_leaves_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "train", "--data", "mnist")[0] != 0 and not (tmp_path / "runs").exists()
    assert call(capsys, "train", *training.TINY, "--model", "foo", "--out", "a/b")[0] == USAGE
    assert not (tmp_path / "a").exists()


def test_torchrun_refuses_once(tmp_path):
    with Claim.of_folder(tmp_path / "run"):
        done = training.torchrun("-m", "fastmix", *RUN, "--out", tmp_path / "run")
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if "is in use by process" in line] == [
        line for line in done.stderr.splitlines() if line.startswith(f"fastmix: {tmp_path / 'run'} is in use by")]
    assert done.stderr.count("is in use by process") == 1 and "fastmix/app" not in done.stderr


# Other writers

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert program.main([*map(str, RUN), "--out", str(folder)]) == 0
    return folder


def test_evaluate_and_subsample_hold_what_they_write(tmp_path, trained, capsys):
    cases = [(trained / "evaluation.json", ["evaluate", "--only", "calibration"]),
             (tmp_path / "x.json", ["evaluate", "--only", "calibration", "--out", tmp_path / "x.json"]),
             (tmp_path / "idx.table.npz", ["subsample", "--samples", 2, "--out", tmp_path / "idx.npy"]),
             (tmp_path / "t.npz", ["subsample", "--samples", 2, "--table", tmp_path / "t.npz", "--out",
                                   tmp_path / "i.npy"])]
    for file, command in cases:
        with Claim.of_file(file):
            status, _, err = call(capsys, *command, "--checkpoint", trained)
        assert status == USAGE and f"{file} is in use by process {os.getpid()} " in err and not file.exists()
        assert call(capsys, *command, "--checkpoint", trained)[0] == 0 and file.exists()
    with Claim.of_folder(tmp_path / "compared"):
        status, _, err = call(capsys, "subsample", "--checkpoint", trained, "--compare", "random", "--out",
                              tmp_path / "compared")
        assert status == USAGE and "compared is in use" in err
    assert not [path for path in (*tmp_path.rglob("*"), *trained.iterdir()) if path.name.startswith(".")]


def test_an_evaluation_of_a_run_that_was_replaced_is_not_put_beside_the_new(tmp_path, trained, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("evaluation.*"))
    evaluate_parts = report.evaluate_parts

    def replaced_meanwhile(*arguments):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"seed": 7}))
        return evaluate_parts(*arguments)

    monkeypatch.setattr(report, "evaluate_parts", replaced_meanwhile)
    status, _, err = call(capsys, "evaluate", "--only", "calibration", "--checkpoint", folder)
    assert status == 1 and "holds another run than the one that was evaluated" in err
    assert not (folder / "evaluation.json").exists()


def test_results_of_the_bench_get_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "RESULTS", tmp_path)
    result = {"date": "2026-01-02T03:04:05+00:00", "machine": {"name": "A machine"}}
    with command_line.result_file(None, result, "-scale") as first:
        with command_line.result_file(None, result, "-scale") as second:
            assert (first.name, second.name) == ("2026-01-02-0304-scale.json", "2026-01-02-0304-scale-2.json")
        first.write_text("{}")
    with command_line.result_file(None, result, "-scale") as third:
        assert third == second
    with command_line.result_file(tmp_path / "x.json", result), pytest.raises(Held, match="another --json"), \
            command_line.result_file(tmp_path / "x.json", result):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


# Names of runs

def test_a_run_may_be_named_by_its_checkpoint(tmp_path, trained, capsys):
    assert run_folder(trained / "checkpoint.pt") == trained == run_folder(trained)
    for command in (["train", "--resume", "--out"], ["report", "--fgsm-images", "0"],
                    ["evaluate", "--only", "calibration", "--checkpoint"],
                    ["preview", "--method", "rmix", "--out", tmp_path / "x.png", "--run"]):
        status, _, err = call(capsys, *command, trained / "checkpoint.pt")
        assert status == 0, err
