"""The sweeps: exponents of known laws, every call runs, one tiny result."""

import json

import pytest
import torch

from bench import scale


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponent_of_a_power_law_with_a_fixed_cost_hidden_at_small_sizes(power):
    values = (10, 100, 1000, 10000, 100000)
    assert scale.exponent(values, [3 * v ** power for v in values]) == pytest.approx(power)
    late = scale.exponent(values, [50 + v for v in values])
    assert late == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("sweep", scale.SWEEPS, ids=lambda s: f"{s.op}-{s.size}")
def test_every_sweep_runs_at_its_smallest(sweep):
    assert list(sweep.values) == sorted(set(sweep.values)) and len(sweep.values) >= 4
    sweep.make(sweep.values[0], torch.device("cpu"))()


def test_a_short_run_writes_its_result(tmp_path, capsys):
    path = tmp_path / "scale.json"
    assert scale.main(["--op", "isda diag", "--seconds", "0", "--json", str(path)]) == 0
    sweeps = json.loads(path.read_text())["sweeps"]
    assert [(s["op"], s["size"]) for s in sweeps] == [("isda diag", "J"), ("isda diag", "A")]
    assert all(len(s["median_us"]) == len(s["values"]) and min(s["median_us"]) > 0 for s in sweeps)
    assert "exponent" in capsys.readouterr().out


def test_an_unknown_operator_is_named(capsys):
    with pytest.raises(SystemExit):
        scale.main(["--op", "nothing"])
    assert "--op nothing: no sweep begins so; there are blend" in capsys.readouterr().err
