"""Expected failures: one line that names the place and the remedy, an exit status, no traceback."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from helpers.training import call

from fastmix import _starting, files, states
from fastmix.app import console
from fastmix.app.errors import FAILURE, INTERRUPTED, USAGE, CommandError, explained
from fastmix.app.training import checkpoint, loop
from fastmix.ops.dispatch import CannotServe

RUN = ["train", *training.TINY, "--epochs", "2"]


def one_line(err):
    """Of stderr."""
    line, = err.splitlines()
    assert line.startswith("fastmix: ") and "Traceback" not in line
    return line


def raising(error):
    def command(argv):
        raise error
    return command


# Errors in words

@pytest.mark.parametrize("error, status, text", [
    (OSError(errno.ENOSPC, "No space left on device"), FAILURE, "the output cannot be written: No space left"),
    (PermissionError(errno.EACCES, "Permission denied", "runs/x"), FAILURE, "runs/x: Permission denied"),
    (MemoryError(), FAILURE, "out of memory (MemoryError); try a smaller --batch"),
    (torch.OutOfMemoryError("CUDA out of memory\nmore"), FAILURE, "out of memory (CUDA out of memory)"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), FAILURE, "smaller --batch"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), FAILURE, "fewer --workers"),
    (CannotServe("view: backend 'cuda' was asked for"), USAGE, "FASTMIX_BACKEND=auto takes what is there"),
    (KeyboardInterrupt(), INTERRUPTED, "interrupted"), (_starting.Stopped(signal.SIGTERM), 143, "terminated"),
    (ZeroDivisionError("division by zero"), FAILURE, "ZeroDivisionError: division by zero (FASTMIX_DEBUG=1 shows"),
    (CommandError("Caught CommandError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                  "  File\nfastmix.app.errors.CommandError: a/0.png: cannot be read: no"), FAILURE,
     "fastmix: a/0.png: cannot be read: no")])
def test_every_error_is_a_line(capsys, error, status, text):
    assert console.run(raising(error), []) == status
    assert text in one_line(capsys.readouterr().err)


def test_the_traceback_is_shown_on_demand(capsys, monkeypatch):
    monkeypatch.setenv("FASTMIX_DEBUG", "1")
    assert console.run(raising(ZeroDivisionError("x")), []) == FAILURE
    err = capsys.readouterr().err
    assert "Traceback" in err and "in command" in err and err.splitlines()[-1].startswith("fastmix: ZeroDivisionError")


def test_the_reader_of_a_pipe_that_has_enough_is_no_failure_to_speak_of(capsys):
    assert console.run(raising(BrokenPipeError()), []) == FAILURE and capsys.readouterr().err == ""


def test_of_many_processes_the_first_one_says_what_all_know(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert console.run(raising(loop.NotFinite("diverged")), []) == FAILURE and capsys.readouterr().err == ""
    assert console.run(raising(CommandError("a/0.png")), []) == FAILURE and "a/0.png" in capsys.readouterr().err


# Places that cannot be written

@pytest.mark.parametrize("command", [RUN, ["train-ssl", *training.TINY], ["train", "--compare", "none,mixup"]])
@pytest.mark.parametrize("below", ["", "x/y"])
def test_a_file_in_the_way(tmp_path, capsys, command, below):
    (tmp_path / "file").write_text("")
    status, out, err = call(capsys, *command, "--out", tmp_path / "file" / below)
    assert (status, out) == (USAGE, "") and f"{tmp_path / 'file'} is a file" in one_line(err)


@pytest.mark.parametrize("function, path", [("make_folder", "runs/x"), ("write_atomically", "x"), ("append", "x"),
                                            ("remove", "x")])
def test_a_failed_write_names_its_file(tmp_path, monkeypatch, function, path):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("mkdir", "unlink", "open"):
        monkeypatch.setattr(files.Path, name, full)
    monkeypatch.setattr(files.os, "open", full)
    arguments = {"write_atomically": [b""], "append": [""]}.get(function, [])
    with pytest.raises(files.WriteError, match=rf"{path} cannot be \w+: No space left on device") as caught:
        getattr(files, function)(tmp_path / path, *arguments)
    ended = explained(caught.value)
    assert ended.code == FAILURE and "make room" in str(ended)


def test_no_room_for_a_checkpoint_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    out, write, calls = tmp_path / "run", files.write_atomically, []

    def full_at_the_second(path, content):
        calls.append(path.name)
        if calls.count(checkpoint.NAME) == 2:
            raise files.WriteError(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        write(path, content)

    monkeypatch.setattr(states, "write_atomically", full_at_the_second)
    status, _, err = call(capsys, *RUN, "--out", out)
    assert status == FAILURE
    line = one_line(err)
    assert f"{out / checkpoint.NAME} cannot be written: No space left on device; make room" in line
    assert f"the last finished epoch is kept, continue with: python -m fastmix train --resume --out {out}" in line
    monkeypatch.undo()
    assert call(capsys, "train", "--resume", "--out", out)[0] == 0 and checkpoint.load(out)["epoch"] == 2


@pytest.mark.parametrize("command", [["preview", "--method", "mixup", "--out", "folder.png"],
                                     ["evaluate", "--checkpoint", "x", "--out", "folder.json"],
                                     ["subsample", "--checkpoint", "x", "--out", "folder.npy"],
                                     ["subsample", "--checkpoint", "x", "--compare", "top", "--out", "file"]])
def test_an_out_of_the_wrong_kind_is_refused_before_the_work(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for suffix in ("png", "json", "npy"):
        (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / "file").write_text("")
    status, _, err = call(capsys, *command)
    assert status == USAGE and "--out: " in one_line(err)


def test_a_result_of_the_bench_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, _, err = call(capsys, "bench", "scale", "--json", tmp_path / "file" / "x.json")
    assert status == USAGE and "is a file" in one_line(err)


# A process of its own

def environment(**more):
    return {**training.environment(), **more}


@pytest.mark.parametrize("value, status, text", [("gpu", USAGE, "FASTMIX_BACKEND: backend is 'gpu', want one of"),
                                                 ("cuda", USAGE, "FASTMIX_BACKEND=auto")])
def test_a_backend_that_is_not_there(tmp_path, value, status, text):
    if value == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    done = training.fastmix(*RUN, "--out", tmp_path / "run", env=environment(FASTMIX_BACKEND=value))
    assert done.returncode == status and done.stdout == "" and text in one_line(done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content, status, text", [
    ("raise KeyboardInterrupt", INTERRUPTED, "interrupted"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)", INTERRUPTED, "interrupted"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(60)", 143, "terminated"),
    ("raise ImportError('libtorch.so: cannot open')", FAILURE, "cannot be imported: libtorch.so: cannot open")])
def test_what_comes_while_torch_is_imported(tmp_path, content, status, text):
    (tmp_path / "torch.py").write_text(content)
    path = os.pathsep.join([str(tmp_path), training.environment()["PYTHONPATH"]])
    done = training.fastmix("info", env=environment(PYTHONPATH=path))
    assert done.returncode == status and text in one_line(done.stderr)


def test_the_installed_script_begins_as_the_module_does(tmp_path, monkeypatch):
    script = tmp_path / "fastmix"
    script.write_text("import sys\nfrom fastmix.__main__ import main\nsys.exit(main())\n")
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), training.environment()["PYTHONPATH"]])
    done = training.run([sys.executable, script, "info"], env=environment(PYTHONPATH=path))
    assert done.returncode == INTERRUPTED and "interrupted" in one_line(done.stderr)
    for argv, started, program in (([str(script), "train"], [str(script), "train"], True),
                                   ([str(script)], ["-c", "from multiprocessing.spawn import spawn_main"], False),
                                   (["fastmix.py"], ["fastmix.py"], False), (["-m"], ["-m", "fastmix", "info"], True)):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, *started])
        assert _starting._is_program() is program, argv


def test_the_library_in_a_program_of_others_is_left_alone():
    code = ("import signal, sys, warnings; before = sys.excepthook, signal.getsignal(2), list(warnings.filters);"
            "import fastmix; assert before[:2] == (sys.excepthook, signal.getsignal(2));"
            "assert signal.getsignal(15) == signal.SIG_DFL")
    training.run([sys.executable, "-c", code], check=True)


def shell(script, **kwargs):
    return training.run(["bash", "-c", script.replace("FASTMIX", f"{sys.executable} -m fastmix")], **kwargs)


@pytest.mark.parametrize("script, status, lines", [
    ("FASTMIX info >&-", 0, 0), ("FASTMIX nothing 2>&-", USAGE, 0), ("FASTMIX info >&- 2>&-", 0, 0),
    ("FASTMIX presets | true; exit ${PIPESTATUS[0]}", FAILURE, 0), ("FASTMIX info > /dev/full", FAILURE, 1),
    ("FASTMIX nothing 2> /dev/full", USAGE, 0)])
def test_closed_and_full_streams(script, status, lines):
    done = shell(script)
    assert done.returncode == status and len(done.stderr.splitlines()) == lines and "Traceback" not in done.stderr


def test_a_closed_stdout_gets_into_no_file(tmp_path):
    flags = " ".join(map(str, [*RUN, "--out", tmp_path / "run"]))
    done = shell(f"FASTMIX {flags} >&- 2>&-")
    assert done.returncode == 0 and checkpoint.load(tmp_path / "run")["epoch"] == 2
    assert len(training.metrics(tmp_path / "run")) == 2


def test_head_ends_a_run_and_is_told_how_to_go_on(tmp_path):
    """The reader ends before the first epoch does."""
    flags = " ".join(map(str, [*RUN, "--out", tmp_path / "run"]))
    done = shell(f"FASTMIX {flags} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == FAILURE and "nobody reads the output any more" in one_line(done.stderr)


@pytest.mark.parametrize("number, status, word", [(signal.SIGTERM, 143, "terminated"),
                                                  (signal.SIGHUP, 129, "the terminal was closed")])
def test_a_signal_keeps_the_checkpoint(tmp_path, number, status, word):
    out = tmp_path / "run"
    flags = [*training.TINY, "--limit", "1000", "--batch", "20", "--epochs", "200"]
    process = training.start("train", *flags, "--out", out)
    for line in process.stdout:
        if line.startswith("epoch   1/200"):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == status
    assert one_line(err).startswith(f"fastmix: {word}; the last finished epoch is kept, continue with: ")
    assert checkpoint.load(out)["epoch"] >= 1 and not (out / ".lock").exists()


def test_a_signal_ends_a_run_with_workers_in_one_line(tmp_path):
    from PIL import Image

    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (12, 12), (10 * i, 0, 0)).save(tmp_path / "images" / name / f"{i}.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "fastmix", "train", "--data", "folder", "--root", tmp_path / "images", "--image-size",
         "8", "--workers", "2", "--epochs", "500", "--batch", "4", "--threads", "1", "--out", tmp_path / "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=training.environment(), start_new_session=True)
    for line in process.stdout:
        if line.startswith("epoch   1/500"):
            break
    os.killpg(process.pid, signal.SIGTERM)  # as of a batch system: the workers too
    _, err = process.communicate(timeout=600)
    assert process.returncode == 143 and "terminated" in one_line(err)


def test_a_second_signal_does_not_wait(tmp_path):
    code = """
import signal, sys, time
from fastmix import _starting
_starting.TWICE = 0
def command():
    with _starting.signals_raised():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)
command()
"""
    done = training.run([sys.executable, "-c", code])
    assert done.returncode == 143 and done.stderr == "fastmix: terminated\n"


def test_signals_are_given_back_to_whoever_had_them():
    before = {number: signal.getsignal(number) for number in _starting.SIGNALS}
    assert console.run(lambda argv: 0, []) == 0
    assert {number: signal.getsignal(number) for number in _starting.SIGNALS} == before


def test_what_other_packages_warn_of_is_not_shown(tmp_path):
    """A warning of Python and a message of a logger, as matplotlib's of fonts; our own are one line."""
    (tmp_path / "sitecustomize.py").write_text("""
import threading
def speak():
    import logging, sys, time, warnings
    while "fastmix.app.cli.info" not in sys.modules:
        time.sleep(0.01)
    warnings.warn("third party")
    logging.getLogger("matplotlib.font_manager").warning("findfont")
    warnings.warn("fastmix: our own", RuntimeWarning)
threading.Thread(target=speak).start()
""")
    path = os.pathsep.join([str(tmp_path), training.environment()["PYTHONPATH"]])
    variables = environment(PYTHONPATH=path)
    del variables["PYTHONWARNINGS"]
    done = training.fastmix("info", env=variables)
    assert done.returncode == 0 and done.stderr == "fastmix: our own\n"
