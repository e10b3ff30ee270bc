"""Kills at random instants, and a process of several that is stopped; `make kill` does the same for every method."""

import os
import random
import signal

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import kills
from helpers.training import call

from fastmix.app.training import checkpoint

# The first process stops itself in its third epoch. The time in which the others notice is a matter of seconds here.
STOPPED = """
import os, signal, sys
from fastmix.__main__ import main
from fastmix.app.training import run, watch

watch.BEAT, watch.SILENCE = 0.5, 4.0
train_epoch = run.train_epoch

def stopping(setup, epoch, *more):
    if epoch == 3 and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGSTOP)
    return train_epoch(setup, epoch, *more)

run.train_epoch = stopping
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.usefixtures("one_thread")
def test_a_kill_at_a_random_instant_changes_no_bit(tmp_path, capsys):
    rng = random.Random(17)
    method = rng.choice(["dcutmix", "isda", "soft-crop"])
    assert call(capsys, *kills.command(method), "--out", tmp_path / "straight")[0] == 0
    kills.kill_once(method, tmp_path / "straight", tmp_path / "killed", rng.uniform(2, 6))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_the_others_end_where_a_process_is_stopped_and_a_resume_goes_on(tmp_path):
    script, out = tmp_path / "stopped.py", tmp_path / "run"
    script.write_text(STOPPED)
    process = kills.start([*kills.command("mixup", 4), "--out", out], 2, script)
    said = []
    for line in process.stdout:  # ends by the line that the test is about, or with the process
        said.append(line)
        if line.startswith("fastmix: "):
            break
    for pid in kills.ranks(process.pid).values():
        if kills.lives(pid):
            os.kill(pid, signal.SIGKILL)  # the stopped one: torchrun would wait for half a minute
    process.communicate(timeout=600)
    assert said[-1].startswith("fastmix: process 0 of this run has not answered for 4 s: it was stopped, or its "
                               "machine is gone; the last finished epoch is kept, continue with: torchrun "
                               "--nproc-per-node 2 -m fastmix train --resume --out"), said
    assert checkpoint.load(out)["epoch"] == 2
    status, text = kills.resume("mixup", out, 2)
    assert status == 0 and checkpoint.load(out)["epoch"] == 4, text
