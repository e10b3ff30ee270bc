"""Which GPU backend serves: the table in the package, and a dispatcher that does what a table says."""

import json

import pytest
import torch

import fastmix
import fastmix.functional as F
from fastmix.ops import choice, dispatch
from fastmix.ops.dispatch import CUDA_OPERATORS, FORMS, OPERATORS

SMALL, LARGE = torch.empty(100, 3, 32, 32), torch.empty(1, 1).expand(choice.LARGE, 1)
LAST = SMALL.contiguous(memory_format=torch.channels_last)


def entry(backend, **where):
    return {"operator": "paste", "backend": backend, "reason": "measured", "source": "a card", **where}


def both(name, form):
    return True


def chosen(entries, x, form=None, serves=both):
    found = choice.decide(entries, serves)
    return found if found is None or isinstance(found, str) else found(x, form)


def test_the_table_names_every_operator_with_a_reason_and_its_source():
    table = choice.load()
    assert set(table) == set(OPERATORS)
    for operator, entries in table.items():
        for found in entries:
            assert len(found["reason"]) > 20 and found["source"]
            if "predicted" in found["reason"]:
                assert found["source"] == "docs/gpu.md"
        if operator not in CUDA_OPERATORS:
            assert [found["backend"] for found in entries] == ["triton"]


def test_a_cuda_library_serves_what_the_table_gives_it():
    """As on a GPU: both libraries are there, and CUDA has the forms that it has."""
    def serves(op):
        return lambda name, form: name == "triton" or (
            op in CUDA_OPERATORS and (form is None or form in FORMS.get((op, "cuda"), (form,))))

    table = choice.load()
    for op in ("paste", "patch_mix", "view"):
        assert choice.decide(table[op], serves(op)) == "cuda"
    assert chosen(table["isda"], SMALL, "diag", serves("isda")) == "cuda"
    assert chosen(table["isda"], SMALL, "full", serves("isda")) == "triton"
    assert choice.decide(table["blend"], serves("blend")) == "triton"


@pytest.mark.parametrize("where,x,backend", [
    ({"size": "small"}, SMALL, "triton"), ({"size": "small"}, LARGE, "cuda"), ({"size": "large"}, LARGE, "triton"),
    ({"element": 2}, SMALL, "cuda"), ({"element": 2}, SMALL.bfloat16(), "triton"),
    ({"element": 1}, SMALL.byte(), "triton"),
    ({"layout": "channels_last"}, LAST, "triton"), ({"layout": "channels_last"}, SMALL, "cuda"),
    ({"layout": "channels_last", "element": 2}, LAST, "cuda"),
    ({"layout": "channels_last", "element": 2, "size": "small"}, LAST.half(), "triton")])
def test_shape_and_dtype_decide(where, x, backend):
    assert chosen([entry("triton", **where), entry("cuda")], x) == backend


def test_the_first_entry_that_matches_counts():
    entries = [entry("cuda", size="small", element=4), entry("triton", size="small"), entry("cuda")]
    assert chosen(entries, SMALL) == "cuda" and chosen(entries, SMALL.half()) == "triton"


def test_forms_are_told_apart():
    entries = [entry("triton", form="diag"), entry("cuda")]
    assert chosen(entries, SMALL, "diag") == "triton" and chosen(entries, SMALL, "identity") == "cuda"


def test_what_does_not_change_the_answer_is_not_asked():
    entries = [entry("cuda", size="small", form="diag"), entry("cuda", element=2), entry("cuda")]
    assert choice.decide(entries, both) == "cuda"


def test_a_backend_that_is_not_there_means_the_other():
    entries = [entry("triton", element=2), entry("cuda")]
    assert choice.decide(entries, lambda name, form: name == "triton") == "triton"
    assert choice.decide(entries, lambda name, form: name == "cuda") == "cuda"
    assert choice.decide(entries, lambda name, form: False) is None


def test_the_dispatcher_follows_a_table(monkeypatch, tmp_path):
    """A table in another file, as if the CPU were a card: small batches go to one backend, large ones to the other."""
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"entries": [entry("triton", size="small"), entry("cuda")]}))
    found = choice.decide(choice.load(path)["paste"], both)
    monkeypatch.setitem(dispatch.AUTO, "paste", {"cpu": found})
    assert dispatch.select("paste", SMALL) == "triton" and dispatch.select("paste", LARGE) == "cuda"
    with fastmix.backend("reference"):
        assert dispatch.select("paste", SMALL) == "reference"


def test_a_compiled_call_follows_the_table_without_a_break(monkeypatch):
    """The reference stands for one of the backends: this machine has no GPU."""
    found = choice._compiled(("element", ("reference", "reference", ("size", ("cpu", "reference")), "reference")))
    monkeypatch.setitem(dispatch.AUTO, "blend", {"cpu": found})
    index, weight = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    x = torch.randn(2, 3, 4, 4)
    mixed = torch.compile(lambda x: F.blend(x, index, weight), fullgraph=True, backend="eager")
    assert torch.equal(mixed(x), x[:1].expand(2, -1, -1, -1)) and torch.equal(mixed(x.half()), mixed(x).half())


@pytest.mark.parametrize("bad,message", [
    ({"backend": "cpu"}, "backend is 'cpu', want one of cuda, triton"), ({"reason": ""}, "an entry without reason"),
    ({"size": "huge"}, "size is 'huge', want one of small, large"), ({"sizes": 3}, "sizes in an entry of paste"),
    ({"layout": "planes"}, "the last entry of paste does not match every call")])
def test_a_table_that_cannot_be_understood(tmp_path, bad, message):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"entries": [entry("cuda") | bad]}))
    with pytest.raises(ValueError, match=message):
        choice.load(path)
