"""Runs of the command line in processes of their own, and what they leave behind."""

import functools
import json
import os
import signal
import subprocess
import sys

import torch

from fastmix import __main__ as program

from . import ROOT

TINY = ["--data", "digits", "--limit", "200", "--threads", "1", "--device", "cpu"]


def environment():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1",
                         "PYTHONUNBUFFERED": "1"}


def fastmix(*arguments, cwd=None, **kwargs):
    command = [sys.executable, "-m", "fastmix", *map(str, arguments)]
    return run(command, cwd=cwd, **kwargs)


def call(capsys, *arguments):
    """Exit status, stdout, stderr of a command in this process."""
    status = program.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def run(command, **kwargs):
    """A process with its output, as text. The limit is for what hangs, on a busy machine too."""
    defaults = {"capture_output": True, "text": True, "env": environment(), "timeout": 600}
    return subprocess.run(command, **defaults | kwargs)


def torchrun(*arguments, **kwargs):
    """Two processes: a script, or -m and a module, and its arguments."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return run([*launcher, *map(str, arguments)], **kwargs)


def killed(module, function, call, *arguments):
    """A command that is killed, as by kill -9, when it comes to a function's call of that number: always at the same
    place, however busy the machine is."""
    script = f"""
import os, signal, sys
import {module} as module
from fastmix.__main__ import main

function, calls = module.{function}, []

def counted(*args, **kwargs):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)

module.{function} = counted
main(sys.argv[1:])
"""
    result = run([sys.executable, "-c", script, *map(str, arguments)])
    assert result.returncode == -signal.SIGKILL, result.stderr


def start(*arguments):
    """A command as from a terminal: what a shell starts in the background, tests included, ignores SIGINT."""
    return subprocess.Popen([sys.executable, "-m", "fastmix", *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=environment(),
                            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL))


def metrics(folder):
    """The lines of metrics.jsonl without what a clock measured."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k not in ("ms", "seconds")} for entry in entries]


def leaves(value, path=""):
    """(path, leaf) of a nested state."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}/{i}")
    else:
        yield path, value


def assert_same_training(a, b):
    """The states of two runs agree bit for bit."""
    one, two = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (a, b))
    for key in ("model", "optimizer", "scheduler", "objective", "policy", "best", "epoch"):
        left, right = dict(leaves(one[key])), dict(leaves(two[key]))
        assert left.keys() == right.keys()
        for path, value in left.items():
            same = torch.equal(value, right[path]) if isinstance(value, torch.Tensor) else value == right[path]
            assert same, f"{key}{path}"
    assert metrics(a) == metrics(b)
