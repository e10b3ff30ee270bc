"""Runs that are killed at random instants and resumed until they end, whose bits are those of an uninterrupted run.

    make kill N=50 SEED=1

Every method of the program takes its turn, and self-supervised training; with torchrun two processes of which one, the
first or the second, is killed or stopped: the other ends within a minute and says so, and a resume goes on.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastmix.app.methods import METHODS

from . import training

SSL = "train-ssl"
OWN = {"isda-semi": ["--labelled", "100"]}
LIMIT = 60.0  # seconds in which the others end


def command(method: str, epochs: int = 3) -> list[str]:
    flags = [*training.TINY, "--limit", "300", "--epochs", str(epochs), "--batch", "20"]
    if method == SSL:
        return [SSL, *flags, "--linear-epochs", "2"]
    return ["train", *flags, "--method", method, "--augment", "crop-flip", *OWN.get(method, [])]


def start(arguments: list[str], processes: int = 1, script: Path | None = None) -> subprocess.Popen[str]:
    """A command, or several processes of it under torchrun, in a group of its own. script: to be run instead of the
    program."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    own = ["-m", "fastmix"] if script is None else [str(script)]
    return subprocess.Popen([sys.executable, *(launcher if processes > 1 else []), *own, *map(str, arguments)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=training.environment(),
                            start_new_session=True)


def children(pid: int) -> list[int]:
    """Processes that this one has started, in order."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return sorted(map(int, found.split()))


def ranks(launcher: int) -> dict[int, int]:
    """Rank -> process of what torchrun has started."""
    found = {}
    for pid in children(launcher):
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {int(word[5:]): pid for word in words if word.startswith(b"RANK=")}
    return found


def resume(method: str, out: Path, processes: int = 1) -> tuple[int, str]:
    """Continues a run, or begins it where it was killed before its folder was there."""
    there = (out / "config.json").exists()
    flags = [command(method)[0], "--resume", "--threads", "1", "--out", str(out)] if there else [
        *command(method), "--out", str(out)]
    process = start(flags, processes)
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


def kill_once(method: str, straight: Path, out: Path, seconds: float) -> None:
    """Kills a run after so many seconds, and again after half as many of its resume; then it must end as the other."""
    process = start([*command(method), "--out", str(out)])
    time.sleep(seconds)
    process.kill()
    process.communicate()
    if (out / "config.json").exists():
        process = start([command(method)[0], "--resume", "--threads", "1", "--out", str(out)])
        time.sleep(seconds / 2)
        process.kill()
        process.communicate()
    status, said = resume(method, out)
    assert status == 0, f"{method}, killed after {seconds:.2f} s: {said}"
    training.assert_same_training(straight, out)
    left = [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert not left, f"{method}, killed after {seconds:.2f} s, leaves {left}"


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def end_one(straight: Path, out: Path, rank: int, number: int, seconds: float = 0.0) -> float:
    """Sends a signal to one of two processes after their first epoch, or seconds later. Returns: the seconds until the
    other has ended."""
    process = start([*command("mixup", 40), "--out", str(out)], 2)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch "):
            break
    time.sleep(seconds)
    found = ranks(process.pid)
    os.kill(found[rank], number)
    began = time.monotonic()
    while lives(found[1 - rank]):
        assert time.monotonic() - began < LIMIT, "the other process has not ended"
        time.sleep(0.1)
    took = time.monotonic() - began
    if number == signal.SIGSTOP:
        os.kill(found[rank], signal.SIGKILL)  # torchrun would wait for another half minute
    said = process.communicate(timeout=600)[0]
    lines = [line for line in said.splitlines() if line.startswith("fastmix: ")]
    assert len(lines) == 1 and "continue with: torchrun --nproc-per-node 2 -m fastmix train --resume" in lines[0], said
    process = start(["train", "--resume", "--threads", "1", "--out", str(out)], 2)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    training.assert_same_training(straight, out)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*METHODS, SSL])
    given = parser.parse_args()
    rng, folder = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="fastmix-kill-"))
    times: dict[str, float] = {}
    for number in range(given.kills):
        method = given.methods[number % len(given.methods)]
        if method not in times:
            began = time.monotonic()
            status, said = resume(method, folder / f"{method}-straight")
            assert status == 0, said
            times[method] = time.monotonic() - began
        seconds = rng.uniform(0.2, times[method])
        kill_once(method, folder / f"{method}-straight", folder / str(number), seconds)
        print(f"{number + 1}/{given.kills} {method}, killed after {seconds:.2f} of {times[method]:.2f} s: same bits",
              flush=True)
    process = start([*command("mixup", 40), "--out", str(folder / "two")], 2)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    for rank in (0, 1):
        for signal_ in (signal.SIGKILL, signal.SIGSTOP):
            took = end_one(folder / "two", folder / f"two-{rank}-{signal_.name}", rank, signal_, rng.uniform(0, 0.5))
            print(f"process {rank} of 2 got {signal_.name}: the other ended after {took:.1f} s, resumed: same bits",
                  flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
