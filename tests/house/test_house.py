"""The house: a file per op in every folder, the library's symbols, the package without its library."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from helpers.packages import build_script

import fastmix
from fastmix.ops import library
from fastmix.ops.dispatch import OPERATORS

LIBRARY = next(iter(sorted((ROOT / "fastmix").glob("_C.*so"))), None)
needs_library = pytest.mark.skipif(LIBRARY is None, reason="the C++ library is not built")


@pytest.mark.parametrize("op", OPERATORS)
def test_every_op_has_its_files_and_its_row(op):
    files = [f"fastmix/ops/{op}.py", f"fastmix/reference/{op}.py", f"csrc/cpu/{op}.cpp", f"tests/ops/test_{op}.py",
             f"bench/cases/{op}.py"]
    for file in files:
        assert (ROOT / file).is_file(), f"{file} is missing"
    page = ROOT / "docs" / "operators.md"
    row = re.search(rf"^\| `{op}` .*$", page.read_text(), re.M)
    assert row, f"{page} has no row for {op}"
    for link in re.findall(r"\]\(([^)]+)\)", row.group()):
        assert (page.parent / link).exists(), f"{page} links to {link}"
    for file in files:
        assert f"](../{file})" in row.group(), f"the row of {op} does not link to {file}"


# scale_gradient_ decides on the device what the CPU decides by reading the incoming gradient.
GPU_ONLY = {"scale_gradient_"}
# Nothing but Triton serves full covariances on a GPU.
TRITON_ONLY = {"isda_logits_kept", "isda_logits_kept_backward"}


@needs_library
def test_every_schema_has_an_implementation():
    registered = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
    for name in library.schemas():
        if name in GPU_ONLY:
            assert f'm.impl("{name}"' in registered, f"{name} has no CUDA kernel"
            continue
        if name in TRITON_ONLY:
            assert f"def {name}(" in (ROOT / "kernels" / "isda_kept.py").read_text()
            continue
        op = getattr(torch.ops.fastmix, name).default
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CPU"), f"{name} has no CPU kernel"


# Folder of csrc -> the folders that its files may include. Operators of the CPU and of CUDA know nothing of each other.
LAYERS = {"core": ("core",), "torch": ("core", "torch"), "cpu": ("core", "torch", "cpu"),
          "cuda": ("core", "torch", "cuda")}


@pytest.mark.parametrize("folder", LAYERS)
def test_csrc_includes_only_what_lies_below(folder):
    for path in (ROOT / "csrc" / folder).rglob("*.*"):
        included = re.findall(r'^#include ["<](core|torch|cpu|cuda)/', path.read_text(), re.M)
        assert set(included) <= set(LAYERS[folder]), f"{path} includes {included}"


def test_csrc_has_a_file_an_operator():
    forms = {*OPERATORS, "isda_consistency"}  # isda's second form
    for folder, suffix in (("cpu", r"\.(h|cpp|simd\.cpp)"), ("cuda", r"\.cuh?")):
        for path in (ROOT / "csrc" / folder).glob("*.*"):
            assert re.sub(rf"{suffix}$", "", path.name) in forms, f"{path} is no operator's: a helper belongs in lib/"


@needs_library
def test_library_uses_the_stable_abi_only():
    symbols = subprocess.run(["nm", "-DC", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True)
    unstable = [line for line in symbols.stdout.splitlines() if re.search(r"\b(at|c10|torch::jit)::", line)]
    assert not unstable, f"symbols that change between torch versions: {unstable}"
    assert "Py" not in re.findall(r"\bU (Py\w*)", symbols.stdout)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("source", sorted((ROOT / "csrc" / "cpu").glob("*.simd.cpp")), ids=lambda p: p.name)
def test_kernels_export_no_weak_symbols(source, tmp_path):
    """The linker keeps one of several weak copies: the AVX-512 one would crash an older processor."""
    script = build_script()
    flags = [*script.FLAGS, *script.X86_LEVELS["avx512"], "-DFASTMIX_INSTRUCTION_SET=avx512", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, "-c", source, "-o", tmp_path / "k.o"], check=True)
    symbols = subprocess.run(["nm", "-C", tmp_path / "k.o"], capture_output=True, text=True, check=True).stdout
    weak = [line for line in symbols.splitlines() if re.search(r" [WVu] ", line)]
    assert not weak, weak


def test_import_is_light():
    code = """
import sys, time, torch
before, start = set(sys.modules), time.process_time()
import fastmix
print(time.process_time() - start)
print([m for m in ("triton", "matplotlib", "sklearn", "torchmetrics") if m in set(sys.modules) - before])
"""
    best = 9.0
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        seconds, heavy = out.stdout.splitlines()
        assert heavy == "[]"
        best = min(best, float(seconds))
    assert best < 0.3, f"import fastmix takes {best:.2f} s beyond torch"


def test_without_the_library_the_reference_serves(tmp_path):
    shutil.copytree(ROOT / "fastmix", tmp_path / "fastmix", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, fastmix
    ours = [w for w in caught if "fastmix" in str(w.message)]
assert len(ours) == 1 and "C++ library is missing" in str(ours[0].message), caught
x = torch.randn(4, 3, 8, 8, requires_grad=True)
fastmix.functional.blend(x, torch.zeros(4, 2, dtype=torch.long), torch.rand(4, 2)).sum().backward()
assert x.grad.abs().sum() > 0
try:
    with fastmix.backend("cpu"):
        fastmix.functional.saliency_map(x, (2, 2))
except RuntimeError as error:
    assert "C++ library is missing" in str(error)
else:
    raise AssertionError("an explicit choice must raise")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path,
                   env={**os.environ, "PYTHONPATH": str(tmp_path)})


@pytest.mark.skipif(not list((ROOT / "fastmix").glob("_C.*so")), reason="needs the C++ library")
@pytest.mark.parametrize("old,new,text", [("int h,", "int more, int h,", "another operator"),
                                          ("FASTMIX_OP(\"blend(", 'FASTMIX_OP("brand_new(Tensor x) -> Tensor")\n'
                                           "FASTMIX_OP(\"blend(", "no operator brand_new")])
def test_a_library_of_other_sources_is_an_error(tmp_path, old, new, text):
    shutil.copytree(ROOT / "fastmix", tmp_path / "fastmix", ignore=shutil.ignore_patterns("__pycache__"))
    schemas = tmp_path / "fastmix" / "ops" / "schemas.def"
    before = schemas.read_text()
    schemas.write_text(before.replace(old, new, 1))
    assert schemas.read_text() != before
    done = subprocess.run([sys.executable, "-c", "import fastmix"], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "ImportError" in done.stderr and text in done.stderr and "Build it again" in done.stderr


def test_backend_choice():
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(ValueError, match="backend is 'gpu', want one of"):
        fastmix.backend("gpu")
    with fastmix.backend("cuda"), pytest.raises(RuntimeError, match="saliency: backend 'cuda' was asked for"):
        fastmix.functional.saliency_map(x, (2, 2))
    code = "import fastmix"
    env = {**os.environ, "FASTMIX_BACKEND": "fast"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)
    assert out.returncode != 0 and "FASTMIX_BACKEND: backend is 'fast'" in out.stderr


def test_set_debug_checks_on_every_backend():
    fastmix.set_debug(True)
    try:
        with fastmix.backend("reference"), pytest.raises(IndexError, match="blend: index of row 1 is 5"):
            fastmix.functional.blend(torch.randn(2, 3), torch.tensor([[0], [5]]), torch.ones(2, 1))
    finally:
        fastmix.set_debug(False)


@pytest.mark.skipif(shutil.which("ninja") is None and importlib.util.find_spec("ninja") is None, reason="no ninja")
@pytest.mark.parametrize("name", ["a b", "it's $HOME: 100%"])
def test_a_path_may_hold_anything_that_a_shell_reads(tmp_path, name):
    """The build file of a library in such a folder, with a compiler that writes down what it is called with."""
    setup, folder = build_script(), tmp_path / name
    (folder / "csrc" / "cpu").mkdir(parents=True)
    for source in ("ops.cpp", "cpu/x.cpp"):
        (folder / "csrc" / source).write_text("")
    setup.ROOT = folder
    fake = tmp_path / "cxx"
    fake.write_text(f'#!{sys.executable}\nimport sys\nopen(sys.argv[sys.argv.index("-o") + 1], "w").write("")\n'
                    f'open({str(tmp_path / "calls")!r}, "a").write(repr(sys.argv[1:]) + "\\n")\n')
    fake.chmod(0o755)
    (folder / "build").mkdir()
    (folder / "build" / "build.ninja").write_text(
        setup.NinjaBuild.ninja_file(str(fake), folder / "torch", folder / "_C.so"))
    subprocess.run([*setup.NinjaBuild.ninja(), "-C", str(folder / "build")], check=True, capture_output=True)
    calls = [ast.literal_eval(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert len(calls) == 3 and (folder / "_C.so").exists()
    for call in calls[:2]:
        assert f"-I{folder / 'csrc'}" in call and call[call.index("-isystem") + 1] == str(folder / "torch" / "include")
        assert call[call.index("-c") + 1].startswith(str(folder / "csrc"))
    assert f"-L{folder / 'torch' / 'lib'}" in calls[2]
