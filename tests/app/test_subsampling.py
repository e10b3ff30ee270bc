"""Uncertainty of images by anchored mixtures, the selections made from it, the subsample command."""

import io
import json

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers import training
from helpers.support import seeded
from helpers.training import call

import fastmix
from fastmix import subsampling
from fastmix.app import data
from fastmix.app.cli.train import main as train
from fastmix.app.console import FAILURE, USAGE, CommandError, UsageError
from fastmix.app.subsets.table import MEASURES
from fastmix.app.training import checkpoint
from fastmix.app.training.options import Options
from fastmix.app.training.setup import load_data
from fastmix.files import DamagedFile
from fastmix.reference import functional as reference
from fastmix.states import write_state
from fastmix.subsampling import AnchoredDCutMix, RunningMoments, subsample, uncertainty

pytestmark = pytest.mark.usefixtures("one_thread")


class Linear(torch.nn.Module):
    """A model whose every pixel counts, with batch normalisation: its mode matters."""

    def __init__(self, pixels=64, classes=4):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(pixels)
        self.fc = torch.nn.Linear(pixels, classes)

    def forward(self, x):
        return self.fc(self.norm(x.flatten(1)))


def blobs(rows=37, side=8, classes=4):
    x = torch.randn(rows, 1, side, side, generator=seeded(3))
    return torch.utils.data.TensorDataset(x, torch.arange(rows) % classes)


def test_the_anchor_keeps_its_share_and_the_others_divide_the_rest():
    mixer = AnchoredDCutMix(0.3, 2, 2 / 9, generator=seeded())
    x = torch.zeros(20000, 1, 40, 40)
    phi, alpha = mixer._shares(x)
    phi = phi.double()
    assert alpha == 0
    assert (phi[:, 0] == phi[0, 0]).all() and phi[0, 0] == pytest.approx(0.3)
    assert (phi.sum(1) - 1).abs().max() < 1e-6
    # A symmetric Dirichlet of two with alpha a has variance 1 / (4 (2 a + 1)), here of 0.7.
    assert phi[:, 1:].mean(0).tolist() == pytest.approx([0.35, 0.35], abs=0.01)
    assert phi[:, 1].var().item() == pytest.approx(0.7**2 / (4 * (4 / 9 + 1)), rel=0.03)
    plan = mixer.plan(x[:500])
    side = round(40 * 0.7**0.5)
    assert (plan.boxes[:, 0, 2:] == side).all()
    assert (plan.weight[:, 0] * 1600).round().unique().tolist() == [1600 - side**2]
    assert plan.weight[:, 1].unique().numel() > 20


@pytest.mark.parametrize(("arguments", "message"), [((0.0,), "anchor is 0.0"), ((1.0,), "anchor is 1.0"),
                                                    ((0.5, 0), "others is 0"), ((0.5, 2, 0.0), "alpha is 0.0")])
def test_shares_that_make_no_mixture(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnchoredDCutMix(*arguments)


def test_running_moments_are_those_of_all_values():
    values = 1e6 + torch.randn(50, 7, dtype=torch.float64, generator=seeded())  # sums of squares would cancel
    values[:, 6] = 0
    moments = RunningMoments(7)
    for row in values:
        moments.add(row)
    mean, std, cv = moments.result()
    assert np.allclose(mean, values.numpy().mean(0), rtol=1e-14)
    assert np.allclose(std, values.numpy().std(0), rtol=1e-8)
    assert np.allclose(cv[:6], (std / mean)[:6], rtol=1e-14) and cv[6] == 0


def test_uncertainty_is_that_of_the_definition():
    """Every mixture again with the reference operators and dense labels in float64."""
    dataset, model = blobs(), Linear().train()
    found = uncertainty(model, dataset, 0.4, 3, 0.5, 5, batch_size=10, seed=7)
    assert model.training and model.norm.num_batches_tracked == 0
    x, y = dataset.tensors
    exact = Linear().double().eval()
    exact.load_state_dict(model.state_dict())
    losses = np.zeros((5, 37))
    for number in range(5):
        order = [s.own for s in data.training_steps(37, 10, data.derived_seed(7, subsampling.ORDER, number))]
        assert sorted(torch.cat(order).tolist()) == list(range(37))
        for b, index in enumerate(order):
            seed = data.derived_seed(7, subsampling.MIXING, number, b)
            plan = AnchoredDCutMix(0.4, 3, 0.5, generator=seeded(seed)).plan(x[index])
            assert (plan.index[:, 0] == torch.arange(len(index))).all()
            mixed = reference.paste(x[index].double(), plan.index, plan.boxes)
            log_p = exact(mixed).log_softmax(1).detach()
            losses[number, index] = -(plan.target(y[index]).dense(4) * log_p).sum(1)
    assert np.allclose(found.mean, losses.mean(0), rtol=1e-5)
    assert np.allclose(found.std, losses.std(0), rtol=1e-4, atol=1e-6)
    assert np.allclose(found.cv, losses.std(0) / losses.mean(0), rtol=1e-4, atol=1e-6)
    assert found.mean.dtype == torch.float64


def test_an_interrupted_measurement_goes_on_in_the_middle_of_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(subsampling, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(subsampling, "ROUND", 1)
    dataset, model, state = blobs(), Linear().eval(), tmp_path / "state"
    straight = uncertainty(model, dataset, samples=3, batch_size=10)

    def interrupt(number, done, batches):
        if (number, done) == (1, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uncertainty(model, dataset, samples=3, batch_size=10, state=state, progress=interrupt)
    seen = []
    again = uncertainty(model, dataset, samples=3, batch_size=10, state=state, progress=lambda *at: seen.append(at))
    assert seen == [(1, 3, 4), (1, 4, 4), (2, 1, 4), (2, 2, 4), (2, 3, 4), (2, 4, 4)]
    assert all(torch.equal(a, b) for a, b in zip(again, straight, strict=True))
    with pytest.raises(ValueError, match=r"state holds statistics of other settings \(anchor is 0.5, not 0.6\)"):
        uncertainty(model, dataset, 0.6, samples=3, batch_size=10, state=state)
    model.fc.bias.data += 1
    with pytest.raises(ValueError, match=r"other settings \(weights is"):
        uncertainty(model, dataset, samples=3, batch_size=10, state=state)
    state.write_bytes(b"PK torn")
    with pytest.raises(DamagedFile, match="state is damaged"):
        uncertainty(model, dataset, samples=3, batch_size=10, state=state)


def test_a_loss_that_is_no_number_is_named():
    dataset, model = blobs(), Linear().eval()
    dataset.tensors[0][5] = float("nan")
    with pytest.raises(ValueError, match="the loss of a mixture with image"):
        uncertainty(model, dataset, samples=2)
    with pytest.raises(ValueError, match="samples is 1, want at least 2"):
        uncertainty(model, dataset, samples=1)
    with pytest.raises(ValueError, match="batch_size is 1, want at least 2"):
        uncertainty(model, dataset, samples=2, batch_size=1)


def test_selection_by_hand():
    labels = torch.tensor([0, 1, 0, 1, 0, 0, 1, 2, 0])
    cv = torch.tensor([.1, .9, .5, .2, .5, .4, .3, .0, .3])
    # Class 0 in descending order: 2, 4 (a tie), 5, 8, 0; class 1: 1, 6, 3; class 2: 7.
    assert subsample(cv, labels, 0.4).tolist() == [1, 2, 4, 7]
    assert subsample(cv, labels, 0.4, 2).tolist() == [1, 2, 5, 7]
    assert subsample(cv, labels, 0.4, 4).tolist() == [0, 1, 2, 7]
    assert subsample(-cv, labels, 0.4).tolist() == [0, 3, 7, 8]
    assert subsample(cv, labels, 0.01).tolist() == [1, 2, 7]  # at least one of a class
    assert subsample(cv, labels, 1.0).tolist() == list(range(9))
    assert subsample(cv[:0], labels[:0], 0.5).tolist() == []
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(labels, subsample(cv, labels, 0.4)), batch_size=4)
    assert next(iter(loader)).tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize(("cv", "labels", "ratio", "interval", "error", "message"), [
    (torch.ones(4), torch.zeros(3, dtype=torch.int64), 0.5, 1, ValueError, r"labels has shape \(3,\), want \(4,\)"),
    (torch.ones(4), torch.zeros(4), 0.5, 1, TypeError, "labels has dtype float32, want int64"),
    (torch.ones(4), torch.zeros(4, dtype=torch.int64), 0.0, 1, ValueError, "ratio is 0.0"),
    (torch.ones(4), torch.zeros(4, dtype=torch.int64), 1.5, 1, ValueError, "ratio is 1.5"),
    (torch.ones(4), torch.zeros(4, dtype=torch.int64), 0.5, 0, ValueError, "interval is 0"),
    (torch.ones(4), torch.zeros(4, dtype=torch.int64), 0.5, 4, ValueError, "interval is 4, want at most 3: class 0"),
    (torch.tensor([1.0, float("nan")]), torch.zeros(2, dtype=torch.int64), 0.5, 1, ValueError, "cv of image 1 is NaN"),
])
def test_selections_that_make_no_sense(cv, labels, ratio, interval, error, message):
    with pytest.raises(error, match=message):
        subsample(cv, labels, ratio, interval)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer") / "run"
    assert train([*training.TINY, "--method", "dcutmix", "--epochs", "3", "--out", str(folder)]) == 0
    return folder


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "settings"}


def test_the_command_writes_indices_and_a_table(scorer, tmp_path, capsys):
    out = tmp_path / "idx.npy"
    status, text, err = call(capsys, "subsample", "--data", "digits", "--checkpoint", scorer, "--samples", 4, "--out",
                             out, "--ratio", 0.2)
    assert status == 0 and err == "" and "mixture 4/4 of 1438 images" in text and f"written to {out}" in text
    table = arrays(tmp_path / "idx.table.npz")
    labels = data.load("digits").train.labels
    assert table["index"].tolist() == list(range(1438)) and table["label"].tolist() == labels.tolist()
    assert np.allclose(table["cv"], table["std"] / table["mean"])
    index = np.load(out)
    assert index.dtype == np.int64
    assert index.tolist() == subsample(torch.from_numpy(table["cv"]), labels, 0.2).tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["idx.npy", "idx.table.npz"]
    # Another selection takes the statistics from the table.
    for how in MEASURES:
        status, text, _ = call(capsys, "subsample", "--checkpoint", scorer, "--samples", 4, "--out", out, "--how", how,
                               "--ratio", 0.2)
        assert status == 0 and "mixture" not in text
        chosen = np.load(out)
        assert len(chosen) == len(index)
        measure = {"std": table["std"], "easy": -table["mean"], "hard": table["mean"]}.get(how)
        if measure is not None:
            for label in range(10):
                kept = np.isin(np.arange(1438), chosen)
                own = labels.numpy() == label
                assert measure[own & kept].min() >= measure[own & ~kept].max()
        assert (chosen.tolist() == index.tolist()) == (how == "top")


def test_a_pool_of_some_images_is_indexed_in_the_whole_set(scorer, tmp_path, capsys):
    out = tmp_path / "idx.npy"
    assert call(capsys, "subsample", "--checkpoint", scorer, "--samples", 2, "--limit", 100, "--out", out)[0] == 0
    pool = data.balanced_subset(data.load("digits").train.labels, 100, "--limit")
    assert len(np.load(out)) == 10 and np.isin(np.load(out), pool.numpy()).all()
    status, _, err = call(capsys, "subsample", "--checkpoint", scorer, "--samples", 3, "--limit", 100, "--out", out)
    assert status == USAGE and "(samples is 2, not 3); --overwrite" in err
    assert call(capsys, "subsample", "--checkpoint", scorer, "--samples", 3, "--limit", 100, "--out", out,
                "--overwrite")[0] == 0


def test_killed_and_taken_up_by_two_processes_equals_one(scorer, tmp_path, capsys):
    """kill -9 while the third state is written, then the rest on two gloo ranks: the table of one process that was
    never disturbed, bit for bit."""
    flags = ["--checkpoint", str(scorer), "--limit", "300", "--batch", "20", "--samples", "60", "--threads", "1",
             "--device", "cpu"]
    assert call(capsys, "subsample", *flags, "--out", tmp_path / "straight.npy")[0] == 0
    training.killed("os", "replace", 3, "subsample", *flags, "--out", tmp_path / "killed.npy")
    assert not (tmp_path / "killed.npy").exists()
    assert len(list(tmp_path.glob(".killed.table.npz.partial.*"))) == 1  # what was being written
    done = checkpoint.read(tmp_path / "killed.table.npz.partial")["count"]
    assert 1 <= done < 60
    result = training.torchrun("-m", "fastmix", "subsample", *flags, "--out", tmp_path / "killed.npy")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("mixture")]
    assert "continuing" in result.stdout and len(lines) == 60 - done and lines[0].startswith(f"mixture {done + 1}/60")
    one, two = (arrays(tmp_path / f"{name}.table.npz") for name in ("straight", "killed"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert np.load(tmp_path / "killed.npy").tolist() == np.load(tmp_path / "straight.npy").tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.npy", "killed.table.npz", "straight.npy",
                                                          "straight.table.npz"]


@pytest.mark.parametrize(("arguments", "status", "message"), [
    (["--data", "mnist5k"], USAGE, "--data is mnist5k, but"),
    (["--checkpoint", "nowhere"], USAGE, "--checkpoint: there is no folder nowhere"),
    (["--checkpoint", "{empty}"], FAILURE, "config.json is missing"),
    (["--ratio", "0"], USAGE, "--ratio: is 0"),
    (["--ratio", "1.5"], USAGE, "is 1.5, want a share above 0"),
    (["--samples", "1"], USAGE, "--samples is 1"),
    (["--batch", "1"], USAGE, "--batch is 1, want at least 2"),
    (["--anchor", "1"], USAGE, "anchor is 1.0"),
    (["--out", "idx.txt"], USAGE, "want a name ending in .npy"),
    (["--out", "no/where/idx.npy"], USAGE, "there is no directory"),
    (["--how", "best"], USAGE, "invalid choice: 'best'"),
    (["--compare", "top,best"], USAGE, "names 'best'"),
    (["--samples", "2", "--how", "interval", "--interval", "50", "--limit", "200"], USAGE, "interval is 50"),
])
def test_wrong_usage(scorer, tmp_path, capsys, arguments, status, message):
    (tmp_path / "empty").mkdir()
    arguments = [argument.format(empty=tmp_path / "empty") for argument in arguments]
    code, _, err = call(capsys, "subsample", "--checkpoint", scorer, "--out", tmp_path / "idx.npy", *arguments)
    assert code == status and message in err and "Traceback" not in err
    assert not (tmp_path / "idx.npy").exists()


def test_weights_of_another_model_are_refused(scorer, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((scorer / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model": "preact-resnet18"}))
    code, _, err = call(capsys, "subsample", "--checkpoint", other, "--out", tmp_path / "idx.npy")
    assert code == FAILURE and "has no checkpoint.pt" in err
    (other / "checkpoint.pt").write_bytes((scorer / "checkpoint.pt").read_bytes())
    code, _, err = call(capsys, "subsample", "--checkpoint", other, "--out", tmp_path / "idx.npy")
    assert code == FAILURE and "are those of another model" in err


def test_partial_statistics_of_other_settings_are_kept(scorer, tmp_path, capsys):
    out, partial = tmp_path / "idx.npy", tmp_path / "idx.table.npz.partial"
    write_state(partial, {"settings": {"rows": 7}})
    before = partial.read_bytes()
    status, _, err = call(capsys, "subsample", "--checkpoint", scorer, "--samples", 2, "--out", out)
    assert status == USAGE and "(rows is 7, not 1438); --overwrite starts anew" in err
    assert partial.read_bytes() == before and not out.exists()
    assert call(capsys, "subsample", "--checkpoint", scorer, "--samples", 2, "--out", out, "--overwrite")[0] == 0
    assert not partial.exists()


def test_a_model_that_diverged_is_a_failure(scorer, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((scorer / "config.json").read_bytes())
    state = checkpoint.load(scorer)
    state["model"]["classifier.bias"].fill_(float("nan"))
    checkpoint.save(folder, state)
    status, _, err = call(capsys, "subsample", "--checkpoint", folder, "--samples", 2, "--out", tmp_path / "idx.npy")
    assert status == FAILURE and "is not a finite number" in err


@pytest.mark.parametrize("damage", [lambda b: b"PK no table", lambda b: b[:len(b) // 2],
                                    lambda b: b[:200] + bytes(100) + b[300:]])
def test_a_damaged_table_is_named(scorer, tmp_path, capsys, damage):
    whole = io.BytesIO()
    np.savez(whole, settings=np.array("{}"), mean=np.zeros(99), std=np.zeros(99), cv=np.zeros(99))
    (tmp_path / "idx.table.npz").write_bytes(damage(whole.getvalue()))
    code, _, err = call(capsys, "subsample", "--checkpoint", scorer, "--out", tmp_path / "idx.npy")
    assert code == USAGE and "idx.table.npz is damaged" in err


def test_training_on_a_subset(tmp_path, capsys):
    index = np.arange(0, 1438, 7)[::-1].copy()
    np.save(tmp_path / "idx.npy", index.astype(np.int32))
    chosen = load_data(Options(subset=str(tmp_path / "idx.npy"))).train
    whole = data.load("digits").train
    assert torch.equal(chosen.images, whole.images[index.tolist()])
    assert torch.equal(chosen.labels, whole.labels[index.tolist()])
    assert train(["--subset", str(tmp_path / "idx.npy"), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["train_images"] == len(index) and report["test_images"] == 359
    with pytest.raises(UsageError, match="--subset and --limit exclude each other"):
        train(["--subset", "idx.npy", "--limit", "100"])


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot be read"), (b"\x93NUMPY torn", "cannot be read"), (np.array([0.5]), "holds float64"),
    (np.zeros((2, 2), np.int64), r"holds int64 \(2, 2\)"), (np.zeros(0, np.int64), "is empty"),
    (np.array([0, 1438]), "holds index 1438"), (np.array([-1, 3]), "holds index -1"), (np.array([3, 3]), "twice"),
    (np.array([{}], dtype=object), "cannot be read"),
])
def test_bad_index_files_are_named(tmp_path, capsys, content, message):
    path = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(CommandError, match=message) as caught:
        train(["--subset", str(path), "--out", str(tmp_path / "run")])
    assert str(path) in str(caught.value) and not (tmp_path / "run").exists()


def test_comparison_of_selections(scorer, tmp_path, capsys):
    folder = tmp_path / "cmp"
    flags = ["subsample", "--checkpoint", scorer, "--out", folder, "--compare", "top,interval,random,easy,hard",
             "--ratios", "0.1,0.2", "--epochs", 1, "--samples", 2, "--limit", 300, "--test-limit", 100]
    status, text, _ = call(capsys, *flags)
    assert status == 0 and text.count("test acc") == 10
    content = json.loads((folder / "subsets.json").read_text())
    assert [entry["images"] for entry in content["results"]] == [30] * 5 + [60] * 5
    assert content["settings"]["test_images"] == 100
    rows = [line.split() for line in text.splitlines() if line.split()[:1] == ["easy"]]
    errors = [100 * (1 - e["test_accuracy"]) for e in content["results"] if e["how"] == "easy"]
    assert [float(cell) for cell in rows[0][1:]] == pytest.approx(errors, abs=0.006)
    assert (folder / "subsets.png").stat().st_size > 10000
    # A point that a kill has cost is trained again, to the same end; the others are kept.
    (folder / "subsets.json").write_text(json.dumps(content | {"results": content["results"][:-1]}))
    status, text, _ = call(capsys, *flags)
    assert status == 0 and text.count("test acc") == 1
    assert json.loads((folder / "subsets.json").read_text()) == content
    status, _, err = call(capsys, *flags[:-1], 90)
    assert status == USAGE and "(test_images is 100, not 90)" in err


def test_exported():
    assert fastmix.uncertainty is uncertainty and fastmix.subsample is subsample
