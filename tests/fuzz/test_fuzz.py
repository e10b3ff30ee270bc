"""10,000 calls of every public name on every backend; and that the fuzzer sees what it is there to see.

The calls run in processes of their own: what ends one is named by the call that did it.
"""

from collections import Counter

import pytest
import torch
from helpers import public, simt_build

import fastmix
import fastmix.functional as F
from fastmix.ops import dispatch, library
from fuzz import __main__ as command
from fuzz import outcome, search, strategies, variants
from fuzz.values import Call

pytestmark = pytest.mark.usefixtures("one_thread")
CALLS = {"cpu": 9000, "simt": 600, "triton": 400}


def why_not(backend):
    if backend == "cpu" or library.missing is not None:
        return library.missing
    return simt_build.missing() if backend == "simt" else None


@pytest.mark.slow
@pytest.mark.parametrize("backend", CALLS)
def test_ten_thousand_calls(backend):
    if why_not(backend):
        pytest.skip(why_not(backend))
    if backend == "simt":
        simt_build.library()  # built here, so that building is not taken for a call that does not end
    report = command.fuzz(backend, CALLS[backend], seed=17, large=False)
    assert not report.found and report.calls >= CALLS[backend], report.summary()
    assert report.counts["returned"] > CALLS[backend] / 3, report.summary()
    assert report.counts["raised"] > CALLS[backend] / 5, report.summary()


def test_every_public_name_has_a_strategy():
    assert set(public.callables()) == set(strategies.STRATEGIES)


def test_a_new_name_is_missed(monkeypatch):
    monkeypatch.setattr("fastmix.functional.__all__", [*F.__all__, "unsharp"])
    monkeypatch.setattr("fastmix.functional.unsharp", lambda x: x, raising=False)
    monkeypatch.setattr(public, "PUBLIC", public.names())
    assert set(public.callables.__wrapped__()) - set(strategies.STRATEGIES) == {"functional.unsharp"}


# ---------------------------------------------------------------- it sees what no call may do

def found(monkeypatch, function, number=600):
    """What is found where this function of gradients is `functional.saliency_peak`."""
    monkeypatch.setattr(outcome, "PACKAGE", __file__)  # it stands for the package's
    monkeypatch.setitem(outcome.NAMESPACE, "F", type("F", (), {"saliency_peak": staticmethod(function)}))
    return search.search("functional.saliency_peak", "cpu", number, 0, lambda source: None, Counter(), large=False)


def internal(grad):
    return F.saliency_peak(grad) if isinstance(grad, torch.Tensor) else grad.shape


def unnamed(grad):
    if isinstance(grad, torch.Tensor) and grad.shape[0] == 3:
        raise ValueError("saliency_peak: something is wrong")
    return F.saliency_peak(grad)


def changing(grad):
    return F.saliency_peak(grad.zero_() if isinstance(grad, torch.Tensor) and grad.dtype == torch.float64 else grad)


def another(grad):
    return F.saliency_peak(grad) + (dispatch._State.forced == "cpu")


def half(grad):
    return F.saliency_peak(grad)[:, :1]


@pytest.mark.parametrize("function,words", [
    (internal, "AttributeError is no error for a caller"), (unnamed, "names no argument"),
    (changing, "grad was changed"), (another, "is not that of the reference"), (half, "shapes and dtypes are")])
def test_the_faults_that_it_is_there_for(monkeypatch, function, words):
    caught = found(monkeypatch, function)
    assert caught is not None and words in caught.what, caught
    assert 4 <= len(caught.source.splitlines()) <= 6, caught.source  # imports, backend, seed, grad and the call


def test_what_it_prints_can_be_pasted(monkeypatch, capsys):
    with fastmix.backend("auto"):  # what is pasted chooses a backend for good
        exec(found(monkeypatch, half, 60).source, {})
    assert capsys.readouterr().out.startswith("tensor([[")


CRASH = """
import os, sys, threading, time
def wait():
    while not hasattr(sys.modules.get("fuzz.outcome"), "NAMESPACE"):
        time.sleep(0.01)
    sys.modules["fastmix.functional"].paste_areas = lambda *_: os.abort()
threading.Thread(target=wait, daemon=True).start()
"""


def test_a_call_that_ends_the_process_is_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    last = command.fuzz("cpu", 400, seed=0, large=False, path=(str(tmp_path),)).found[-1]
    assert "ends the process by SIGABRT" in last["what"] and "F.paste_areas(" in last["source"], last


def test_a_call_that_does_not_end_is_named(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(CRASH.replace("os.abort()", "time.sleep(600)"))
    monkeypatch.setattr(command, "HANGS", 15.0)
    last = command.fuzz("cpu", 400, seed=0, large=False, path=(str(tmp_path),)).found[-1]
    assert "does not end" in last["what"] and "F.paste_areas(" in last["source"], last


def test_arguments_that_cannot_be_made_are_no_call():
    with pytest.raises(outcome.Impossible):
        call = Call("functional.blend", ["x = torch.rand(2) @ torch.rand(3)"], ["x"])
        outcome.check(call, "reference", 0, variants.serving)
