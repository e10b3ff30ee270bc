"""fastmix.compat.patch replaces classes where they are named, and puts them back."""

import sys
import types

import pytest

import fastmix
from fastmix.compat import patching


@pytest.fixture
def library(monkeypatch):
    """A library "peer" with one class that a script has imported by name, and ours for it."""
    modules = {name: types.ModuleType(name) for name in ("peer", "peer.mixing", "script", "fastmix.compat.peer")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    original, ours = type("Mix", (), {}), type("Mix", (), {})
    modules["peer"].Mix = modules["peer.mixing"].Mix = modules["script"].Mix = original
    modules["fastmix.compat.peer"].Mix = ours
    monkeypatch.setattr(patching, "CLASSES", {"peer": (("peer.mixing", ("Mix",)),)})
    return modules, original, ours


def test_every_place_is_replaced_and_put_back(library):
    modules, original, ours = library
    done = fastmix.patch("peer")
    assert sorted(done.names) == ["peer.Mix", "peer.mixing.Mix", "script.Mix"] and "script.Mix" in repr(done)
    assert modules["script"].Mix is modules["peer"].Mix is ours
    assert fastmix.patch("peer").names == []
    fastmix.unpatch()
    assert modules["script"].Mix is modules["peer.mixing"].Mix is original


def test_a_context_undoes_what_it_did(library):
    modules, original, ours = library
    with pytest.raises(KeyError), fastmix.patch("peer") as done:
        assert modules["script"].Mix is ours and len(done.names) == 3
        raise KeyError
    assert modules["script"].Mix is original
    with fastmix.patch("peer"):
        with fastmix.patch("peer"):
            pass
        assert modules["script"].Mix is ours
    assert modules["script"].Mix is original


def test_names_that_are_not_known():
    with pytest.raises(ValueError, match="patch: libraries has 'keras', want some of timm, torchvision"):
        fastmix.patch("keras")


def test_timm_and_torchvision():
    pytest.importorskip("timm.data", exc_type=ImportError)
    v2 = pytest.importorskip("torchvision.transforms.v2", exc_type=ImportError)
    import timm.data
    import timm.loss

    with fastmix.patch() as done:
        assert timm.data.Mixup.__module__ == timm.loss.BinaryCrossEntropy.__module__ == "fastmix.compat.timm"
        assert v2.CutMix.__module__ == "fastmix.compat.torchvision" and "timm.data.mixup.Mixup" in done.names
    assert timm.data.Mixup.__module__ == "timm.data.mixup"
