"""Checkpoints: damage is found, another run's is refused, and each refusal is one line that names the file."""

import io
import json
import os
import random
import shutil
import stat
import zipfile

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from helpers.training import call

from fastmix import files, states
from fastmix.app.console import CommandError
from fastmix.app.training import checkpoint
from fastmix.files import DamagedFile
from fastmix.states import digest, misfit, optimizer_misfit, read_state, write_state

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 4096


def state():
    generator = torch.Generator().manual_seed(0)
    return {"model": {f"{i}.weight": torch.randn(16, 40, generator=generator) for i in range(24)},
            "step": 3, "lr": 0.1, "none": None, "on": True, "names": ["a", "ü"], "pair": (1, 2.5),
            "kinds": [torch.arange(3).to(d) for d in (torch.int64, torch.uint8, torch.bool, torch.bfloat16)],
            "empty": torch.empty(0), "scalar": torch.tensor(2.0), "strided": torch.ones(4, 6).t()}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_state(path, state())
    return path


def test_a_state_comes_back_and_torch_reads_it_too(written):
    wanted = digest(state())
    found = read_state(written)
    assert found.pop("format") == states.FORMAT and digest(found) == wanted
    assert torch.load(written, weights_only=True)["digest"] != ""
    assert read_state(written.with_name("nothing")) is None
    # The format before had no digest.
    torch.save({"format": 1, "step": 3}, written)
    assert read_state(written) == {"format": 1, "step": 3}


def same_or_refused(path, content, wanted):
    """Whether the content is refused; what loads all the same (of a flip in padding) is what was written."""
    path.write_bytes(content)
    try:
        found = read_state(path)
    except DamagedFile as error:
        line, = str(error).splitlines()
        assert line.startswith(str(path))
        return True
    assert digest(found) == wanted
    return False


def test_no_flipped_bit_and_no_lost_page_loads_as_other_weights(written):
    content, wanted = written.read_bytes(), digest(read_state(written))
    rng = random.Random(17)
    refused = 0
    for bit in rng.sample(range(8 * len(content)), 400):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        refused += same_or_refused(written, bytes(damaged), wanted)
    assert refused > 300
    for place in [rng.randrange(0, len(content), PAGE) for _ in range(100)]:
        assert same_or_refused(written, content[:place] + bytes(min(PAGE, len(content) - place))
                               + content[place + PAGE:], wanted)
    for length in (0, 1, 22, len(content) // 2, len(content) - 1):
        assert same_or_refused(written, content[:length], wanted)


def repacked(content, change=None, **options):
    """The archive written anew with right CRCs; change: member -> its bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, (change or {}).get(name.partition("/")[2], lambda data: data)(old.read(name)))
    return out.getvalue()


def test_what_crcs_do_not_see_the_digest_does(written):
    """Weights that were exchanged by a hand that writes right CRCs."""
    content = written.read_bytes()
    same_or_refused(written, repacked(content), digest(read_state(written)))
    assert same_or_refused(written, repacked(content, {"data/0": lambda data: bytes(len(data))}), "")
    assert same_or_refused(written, repacked(content, {"data.pkl": lambda data: data.replace(b"step", b"stop")}), "")


def test_a_small_archive_of_much_is_refused(written):
    """A gigabyte of zeros, compressed to a megabyte."""
    content = repacked(written.read_bytes(), {"data/0": lambda data: bytes(2**22)}, compression=zipfile.ZIP_DEFLATED)
    assert len(content) < 2**20
    written.write_bytes(content)
    with pytest.raises(DamagedFile, match="a member is compressed"):
        read_state(written)


def test_an_expanded_tensor_is_refused(written):
    torch.save({"format": 2, "digest": "", "w": torch.zeros(1).expand(10**12)}, written)
    with pytest.raises(DamagedFile, match="larger than what is stored"):
        read_state(written)


@pytest.mark.parametrize("value, text", [
    ({"format": 3, "digest": ""}, "has format 3, this fastmix reads 1 and 2"), ({"a": 1}, "no checkpoint of fastmix"),
    ([1, 2], "no checkpoint of fastmix"), ({"format": 2}, "another digest"), ({"format": True}, "no checkpoint of"),
    (torch.zeros(3), "no checkpoint of fastmix")])
def test_other_files_of_torch_are_refused(written, value, text):
    torch.save(value, written)
    with pytest.raises(DamagedFile, match=text):
        read_state(written)


class Calls:
    def __reduce__(self):
        return os.mkdir, ("called",)


def test_no_code_is_run(written, monkeypatch):
    monkeypatch.chdir(written.parent)
    torch.save({"format": 2, "digest": "", "a": Calls()}, written)
    with pytest.raises(DamagedFile):
        read_state(written)
    assert not os.path.exists("called")


def test_only_plain_values_are_written(written):
    for value in (object(), {1, 2}, torch.zeros(2, 2).to_sparse()):
        with pytest.raises(TypeError, match="a state holds"):
            write_state(written, {"a": value})


def test_devices_and_pipes_are_not_read(tmp_path):
    os.symlink("/dev/zero", tmp_path / "zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("zero", "pipe"):
        for read in (read_state, files.read_json, files.read_bytes):
            with pytest.raises(DamagedFile, match="no regular file"):
                read(tmp_path / name)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(DamagedFile, match="has 11 bytes, want at most 10"):
        files.read_bytes(tmp_path / "large", 10)


def test_misfits_are_named():
    like = {"w": torch.zeros(2, 3), "n": [1, 2.0], "s": "x"}
    assert misfit({"w": torch.ones(2, 3), "n": [3, 4], "s": "y"}, like) is None
    for other, text in [({"w": torch.zeros(3, 2), "n": [1, 2], "s": "x"}, "w is torch.float32 (3, 2), want"),
                        ({"w": torch.zeros(2, 3).double(), "n": [1, 2], "s": "x"}, "w is torch.float64"),
                        ({"w": torch.zeros(2, 3), "n": [1], "s": "x"}, "n has another length"),
                        ({"w": torch.zeros(2, 3), "n": [1, None], "s": "x"}, "n.1 is NoneType, want float"),
                        ({"w": torch.zeros(2, 3)}, " has other entries (n)"), (3, " has other entries")]:
        assert text in misfit(other, like)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer_misfit(optimizer.state_dict(), optimizer) is None
    moved = optimizer.state_dict()
    moved["state"][0]["momentum_buffer"] = torch.zeros(1)
    assert "optimizer.0.momentum_buffer is (1,), want (2, 3)" in optimizer_misfit(moved, optimizer)
    # A scheduler would take any attribute.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    checkpoint.restore("scheduler", scheduler, scheduler.state_dict())
    with pytest.raises(ValueError, match=r"scheduler has other entries \(step\)"):
        checkpoint.restore("scheduler", scheduler, scheduler.state_dict() | {"step": 1})


# Runs

RUN = ["train", *training.TINY, "--epochs", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that is to be resumed by another epoch, and one of another method, and one of another model."""
    folder = tmp_path_factory.mktemp("runs")
    from fastmix import __main__ as program
    threads = torch.get_num_threads()
    for name, flags in (("none", []), ("mixup", ["--method", "mixup"]), ("wide", ["--model", "resnet32"])):
        assert program.main([*RUN, *flags, "--epochs", "1", "--limit", "20", "--batch", "10",
                             "--out", str(folder / name)]) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def run(runs, tmp_path):
    shutil.copytree(runs / "none", tmp_path / "run")
    return tmp_path / "run"


def resumed(capsys, run):
    """The line of a resume that fails, without a traceback."""
    status, _, err = call(capsys, "train", "--resume", "--epochs", "2", "--out", run)
    line, = err.splitlines()
    assert status in (1, 2) and line.startswith("fastmix: ") and "FASTMIX_DEBUG" not in line, line
    return line


def changed(path, change):
    found = read_state(path)
    change(found)
    write_state(path, found)


def drop(name):
    return lambda found: found.pop(name)


def put(*path, value):
    def change(found):
        for name in path[:-1]:
            found = found[name]
        found[path[-1]] = value
    return change


@pytest.mark.parametrize("change, text", [
    (drop("model"), "model is missing"), (drop("optimizer"), "optimizer is missing"),
    (drop("history"), "history is missing"), (put("epoch", value="2"), "epoch is str"),
    (put("history", value=[]), "there are 0 in its history"), (put("history", 0, "lr", value=None), "lr is NoneType"),
    (put("history", 0, "ms", value={}), "step is missing"), (put("classes", value=[1]), "classes is no list of names"),
    (put("classes", value=["x"]), "other classes"), (put("options", "lr", value=9.0), "lr = 9.0, config.json"),
    (put("model", "x", value=torch.zeros(1)), "model has other entries (x)"),
    (put("optimizer", "state", 0, "momentum_buffer", value=torch.zeros(3)), "optimizer.0.momentum_buffer is (3,)"),
    (put("world", value=2), "2 processes")])
def test_a_checkpoint_with_other_content_is_one_line(run, capsys, change, text):
    changed(run / checkpoint.NAME, change)
    line = resumed(capsys, run)
    assert text in line and (str(run / checkpoint.NAME) in line or "classes" in line or "processes" in line)


@pytest.mark.parametrize("other, text", [("mixup", "method = 'mixup', config.json beside it says 'none'"),
                                         ("wide", "model = 'resnet32', config.json")])
def test_the_checkpoint_of_another_run(runs, run, capsys, other, text):
    shutil.copy(runs / other / checkpoint.NAME, run)
    assert text in resumed(capsys, run)
    # The same options, other shapes.
    options = checkpoint.load(runs / "none")["options"]
    changed(run / checkpoint.NAME, put("options", value=options))
    if other == "wide":
        assert f"{run / checkpoint.NAME} is of another run than config.json beside it (model has other" in resumed(
            capsys, run)


def test_a_whole_checkpoint_continues(run, capsys):
    for name in (".checkpoint.pt.0123abcd", ".metrics.jsonl.k1ll3d", ".report.json.x"):
        (run / name).write_bytes(b"of a process that was killed")
    (run / ".other.file").write_text("not ours")
    changed(run / checkpoint.NAME, lambda found: None)
    assert call(capsys, "train", "--resume", "--epochs", "2", "--out", run)[0] == 0
    assert checkpoint.load(run)["epoch"] == 2 and checkpoint.load(run)["fastmix"]
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".other.file"]


def test_damage_of_a_run_is_named_by_every_command(run, capsys):
    content = bytearray((run / checkpoint.NAME).read_bytes())
    content[len(content) // 2] ^= 4
    (run / checkpoint.NAME).write_bytes(content)
    assert f"{run / checkpoint.NAME} is damaged" in resumed(capsys, run)
    for command in (["evaluate", "--checkpoint", run], ["subsample", "--checkpoint", run, "--out", run / "x.npy"],
                    ["preview", "--method", "rmix", "--run", run, "--out", run / "x.png"]):
        status, _, err = call(capsys, *command)
        assert status == 1 and f"{run / checkpoint.NAME} is damaged" in err


# Folders and modes

@pytest.mark.parametrize("name", ["../victim", "/etc", "", ".", "..", "a/b", "a\0", 3, None])
def test_a_comparison_names_folders_of_its_own(tmp_path, runs, capsys, name):
    victim = tmp_path / "victim"
    shutil.copytree(runs / "none", victim)
    before = sorted(path.name for path in victim.iterdir())
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "compare.json").write_text(json.dumps({"folders": ["none-seed0", name]}))
    for flag in ("--overwrite", "--resume"):
        status, _, err = call(capsys, *RUN[:1], *([] if flag == "--resume" else RUN[1:]), flag, "--out", tmp_path / "c")
        assert status == 1 and "compare.json" in err and len(err.splitlines()) == 1, err
    assert sorted(path.name for path in victim.iterdir()) == before


def test_a_link_among_the_runs_of_a_comparison_is_not_followed(tmp_path, runs, capsys):
    shutil.copytree(runs / "none", tmp_path / "victim")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run").symlink_to("../victim")
    (tmp_path / "c" / "compare.json").write_text(json.dumps({"folders": ["run"]}))
    status, _, err = call(capsys, *RUN, "--overwrite", "--out", tmp_path / "c")
    assert status == 1 and "run is a link" in err and (tmp_path / "victim" / checkpoint.NAME).exists()


def test_a_lock_that_is_a_link_empties_nothing(tmp_path, capsys):
    (tmp_path / "letter").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to("../letter")
    status, _, err = call(capsys, *RUN, "--out", tmp_path / "run")
    assert status == 2 and "run cannot be written: .lock in it is a link, remove it" in err
    assert len(err.splitlines()) == 1 and (tmp_path / "letter").read_text() == "mine"
    (tmp_path / "run" / ".lock").unlink()
    os.mkfifo(tmp_path / "run" / ".lock")
    status, _, err = call(capsys, *RUN, "--out", tmp_path / "run")
    assert status == 2 and ".lock in it is no regular file" in err


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_are_those_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        files.write_atomically(tmp_path / "new", b"")
        files.append(tmp_path / "other", "")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask
        (tmp_path / "new").chmod(0o640)
        files.write_atomically(tmp_path / "new", b"x")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640  # as somebody has set it
    finally:
        os.umask(before)


def test_no_link_is_written_through(tmp_path):
    (tmp_path / "letter").write_text("mine")
    (tmp_path / "link").symlink_to("letter")
    files.write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "letter").read_text() == "mine" and not (tmp_path / "link").is_symlink()


def test_a_command_error_stays_one(tmp_path):
    (tmp_path / checkpoint.NAME).write_bytes(b"")
    with pytest.raises(CommandError):
        checkpoint.load(tmp_path)
