"""The sweeps: exponents of known laws, every call runs, one tiny result."""

import json
import math

import pytest
import torch
import torch.distributed as dist

from fastmix.app import console
from fastmix.bench import scale
from fastmix.bench.cases.sweeps import SWEEPS
from fastmix.bench.harness import growth
from fastmix.losses.isda_ranks import update_over_ranks


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponent_of_a_power_law_with_a_fixed_cost_hidden_at_small_sizes(power):
    values = (10, 100, 1000, 10000, 100000)
    assert growth.exponent(values, [3 * v ** power for v in values]) == pytest.approx(power)
    late = growth.exponent(values, [50 + v for v in values])
    assert late == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda s: f"{s.op}-{s.size}")
def test_every_sweep_runs_at_its_smallest(sweep):
    assert list(sweep.values) == sorted(set(sweep.values)) and len(sweep.values) >= 4
    sweep.call(sweep.values[0], torch.device("cpu"))()


def law(op, size, values, fixed, power):
    return {"op": op, "size": size, "values": list(values), "fixed": fixed, "exponent": power[size],
            "median_us": [2.0 * v ** power[size] * math.prod(f ** power[k] for k, f in fixed.items()) for v in values]}


def test_predictions_follow_the_laws():
    power = {"N": 1.0, "side": 2.0, "K": 0.5}
    sweeps = [law("blend", "N", (16, 256), {"side": 64, "K": 2}, power),
              law("blend", "side", (32, 192), {"N": 32, "K": 2}, power),
              law("blend", "K", (1, 8), {"N": 64, "side": 64}, power), law("paste", "N", (1, 2), {"side": 9}, power)]
    assert growth.predicted(sweeps, "blend", N=256, side=64, K=2) == pytest.approx(sweeps[0]["median_us"][-1])
    assert growth.predicted(sweeps, "blend", N=512, side=224, K=4) == pytest.approx(2 * 512 * 224 ** 2 * 2)
    with pytest.raises(ValueError, match="no sweep of isda"):
        growth.predicted(sweeps, "isda", N=1)
    with pytest.raises(ValueError, match="no sweep of paste over side"):
        growth.predicted(sweeps, "paste", N=1, side=10)


def test_predictions_start_from_the_nearest_measurement():
    """An error of an exponent counts for little when there is little left to go."""
    near = {"op": "loss", "size": "J", "values": [10, 20000], "fixed": {"N": 128}, "exponent": 1.0,
            "median_us": [1, 700]}
    far = {"op": "loss", "size": "N", "values": [16, 32], "fixed": {"J": 10}, "exponent": 1.0, "median_us": [1, 9]}
    assert growth.predicted([far, near], "loss", J=21000, N=128) == pytest.approx(700 * 1.05)


@pytest.mark.parametrize("kind", ["full", "diag", "shared", "identity"])
def test_bytes_that_ranks_exchange(kind, monkeypatch):
    sent = []
    monkeypatch.setattr(dist, "all_reduce", lambda t, group=None: sent.append(t.nbytes))
    j, a, labels = 7, 5, torch.tensor([1, 1, 4])
    cov = {"full": (j, a, a), "diag": (j, a), "shared": (a, a), "identity": (0,)}[kind]
    update_over_ranks(torch.zeros(j, dtype=torch.int64), torch.zeros(j, a), torch.zeros(cov), torch.randn(3, a), labels,
                      None, kind, None)
    assert sum(sent) == growth.exchanged_bytes(kind, j, a, present=2)


def test_a_short_run_writes_its_result(tmp_path, capsys):
    path = tmp_path / "scale.json"
    assert scale.main(["--op", "isda diag", "--seconds", "0", "--json", str(path)]) == 0
    sweeps = json.loads(path.read_text())["sweeps"]
    assert [(s["op"], s["size"]) for s in sweeps] == [("isda diag", "N"), ("isda diag", "J"), ("isda diag", "A")]
    assert all(len(s["median_us"]) == len(s["values"]) and min(s["median_us"]) > 0 for s in sweeps)
    assert "exponent" in capsys.readouterr().out


def test_an_unknown_operator_is_named(capsys):
    assert console.run(scale.main, ["--op", "nothing"]) == 2
    assert "--op nothing: no sweep begins so; there are blend" in capsys.readouterr().err
