"""make test gives each backend but the processor's own half of the parameters; between them nothing is left out."""

from types import SimpleNamespace

from conftest import _in_its_half, _variants


class Item:
    def __init__(self, nodeid, **params):
        self.nodeid, self.params = nodeid, params
        if params:
            self.callspec = SimpleNamespace(params=params)


def items(function, sets, variants):
    return [Item(f"{function}[{variant}-{n}]", variant=variant, n=n) for variant in variants for n in range(sets)]


def kept(found, variant):
    return [item.params["n"] for item in found if item.params["variant"] == variant]


def test_a_half_each_and_all_between_two():
    variants = ("reference", "cpu-portable", "cpu-avx2", "cpu-avx512", "simt", "triton")
    found = _in_its_half(items("test_x", 9, variants))
    own = next((name for name in reversed(_variants("cpu")) if name.startswith("cpu-")), None)
    for variant in variants:
        assert len(kept(found, variant)) == (9 if variant == own else 4 if variant in ("cpu-avx2", "simt") else 5)
    if own not in ("cpu-portable", "cpu-avx2"):
        assert sorted(kept(found, "cpu-portable") + kept(found, "cpu-avx2")) == list(range(9))
    assert sorted(kept(found, "simt") + kept(found, "triton")) == list(range(9))


def test_short_functions_and_others_are_kept():
    found = [*items("test_y", 3, ["simt", "triton"]), Item("test_z"), Item("test_z[1]", n=1)]
    assert _in_its_half(found) == found
