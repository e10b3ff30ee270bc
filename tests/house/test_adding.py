"""The worked examples of docs/adding.md work: applied to a copy of the project, built and run there."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.worked_examples import apply, copy, sections

PAGE = sections((ROOT / "docs" / "adding.md").read_text())
OPERATOR = "An operator"


def run(root, *command, **environment):
    """The output of a command in a copy; AssertionError with it where the command fails."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=root, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **environment})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def with_operator(tmp_path_factory):
    """A copy with the new operator and, to be built in seconds, no C++ kernel of another one."""
    root = copy(tmp_path_factory.mktemp("operator") / "fastmix")
    paths = apply(PAGE[OPERATOR], root)
    for library in (root / "fastmix").glob("_C*"):
        library.unlink()
    for source in (root / "csrc" / "cpu").glob("*.cpp"):
        if str(source.relative_to(root)) not in paths:
            source.unlink()
    run(root, "setup.py", "-q", "build_ext", "--inplace", FASTMIX_CUDA="0")
    return root


@pytest.fixture(scope="module")
def with_method(tmp_path_factory):
    """A copy with everything but the operator, on the library of this checkout."""
    root = copy(tmp_path_factory.mktemp("method") / "fastmix")
    for title, text in PAGE.items():
        if title != OPERATOR:
            apply(text, root)
    return root


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("environment,backends", [({}, ("reference", "cpu-portable")),
                                                  ({"TRITON_INTERPRET": "1"}, ("triton",))], ids=["cpu", "interpreter"])
def test_the_operator_passes_its_test(with_operator, environment, backends):
    out = run(with_operator, "-m", "pytest", "-v", "tests/ops/test_gain.py", "tests/ops/test_raw_calls.py",
              "tests/ops/test_determinism.py", "-k", "not simt and (gain or every)", "-p", "no:cacheprovider",
              **environment)
    for backend in backends:
        assert re.search(rf"test_value_and_gradient\[{backend}-.* PASSED", out), out[-3000:]
    if not environment:
        for test in ("a_wrong_tensor", "the_same_bits_for_any_number_of_threads"):
            assert re.search(rf"test_{test}\[cpu-portable-gain\] PASSED", out), out[-3000:]
    assert "failed" not in out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_operator_is_a_file_in_every_folder_and_an_entry_of_the_bench(with_operator):
    run(with_operator, "-m", "fastmix", "bench", "pages")
    run(with_operator, "-m", "pytest", "-q", "tests/house/test_house.py", "-k", "files and gain", "-p",
        "no:cacheprovider")
    out = run(with_operator, "-m", "fastmix", "bench", "--op", "gain", "--quick", "--seconds", "0.1", "--providers",
              "eager,cpu", "--no-plots", "--json", with_operator / "gain.json")
    assert re.search(r"gain.*100x3x32x32", out)


def test_the_method_trains_on_the_data_set_with_the_model(with_method, tmp_path):
    out = run(with_method, "-m", "fastmix", "train", "--method", "half-mix", "--share", "0.25", "--data", "stripes",
              "--model", "mlp2", "--epochs", "1", "--out", tmp_path / "run")
    assert re.search(r"^half-mix +\d", out, re.M)
    assert "share of the width that is pasted (half-mix: 0.5)" in re.sub(
        r"\s+", " ", run(with_method, "-m", "fastmix", "train", "--help-all"))
    run(with_method, "-m", "fastmix", "preview", "--method", "half-mix", "--data", "digits", "--out",
        tmp_path / "half.png")
    code = """
import torch, fastmix
x, y = torch.randn(6, 1, 4, 8), torch.arange(6)
mixer = fastmix.HalfMix(0.25)
for call in (mixer, torch.compile(lambda x, y: mixer(x, y), fullgraph=True, backend="aot_eager")):
    images, target = call(x, y)
    assert torch.equal(images[..., :6], x[..., :6]) and torch.equal(images[..., 6:], x[target.index[:, 1], :, :, 6:])
    assert (target.weight == torch.tensor([0.75, 0.25])).all()
mixer.enabled = False
assert torch.equal(mixer(x, y)[0], x) and torch.equal(mixer(x, y)[1].dense(6), torch.eye(6))
"""
    run(with_method, "-c", code)


@pytest.mark.parametrize("title", PAGE)
def test_new_source_is_clean(title, tmp_path):
    """What a section adds is what `make lint` would accept, up to the order of a list, which `make format` sets."""
    root = copy(tmp_path / "fastmix")
    if paths := [path for path in apply(PAGE[title], root) if path.endswith(".py")]:
        run(root, "-m", "ruff", "check", "--ignore", "RUF022", *paths)


@pytest.mark.parametrize("text,message", [
    ("```python file=setup.py\nx\n```", "setup.py exists already"),
    ('```python add=setup.py after="no such line"\nx\n```', "setup.py has 0 lines with 'no such line', want one")])
def test_an_example_that_does_not_fit_is_seen(tmp_path, text, message):
    (tmp_path / "setup.py").write_text("y\n")
    with pytest.raises(ValueError, match=message):
        apply(text, tmp_path)
