"""Which backend serves, and the reasons when one cannot."""

import os
import subprocess
import sys

import pytest
import torch

import fastmix
import fastmix.functional as F
from fastmix.ops import dispatch, library
from fastmix.ops.dispatch import AUTO, BACKENDS, OPERATORS, why_not

Z, Y = torch.randn(3, 4), torch.tensor([0, 1, 2])


def test_auto_names_backends_that_have_the_operator():
    assert set(AUTO) == set(OPERATORS)
    for operator, table in AUTO.items():
        for device, name in table.items():
            assert name in BACKENDS
            assert why_not(operator, name, device) is None
    assert AUTO["blend"]["cuda"] == AUTO["covariance"]["cuda"] == "triton"
    assert why_not("covariance", "cuda", "cuda") == "fastmix has no cuda kernel for covariance"


def test_reasons():
    assert why_not("blend", "reference", "xpu") is None
    assert "serves CPU tensors" in why_not("blend", "cpu", "cuda")
    assert "serves CUDA tensors" in why_not("blend", "triton", "xpu")
    with pytest.raises(ValueError, match=r"backend is 'tirton', want one of reference, cpu, triton, cuda(, simt)? or"):
        fastmix.backend("tirton")


@pytest.mark.skipif(why_not("blend", "triton", "cpu") is None, reason="the interpreter serves CPU tensors")
def test_an_explicit_choice_that_cannot_serve_raises():
    with fastmix.backend("triton"), pytest.raises(RuntimeError, match=r"backend 'triton' was .*TRITON_INTERPR"):
        F.soft_cross_entropy(Z, Y)


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, **environment}, timeout=600)


def test_the_environment_chooses_triton_and_import_leaves_it_alone():
    code = """
import sys, torch
import fastmix.ops.dispatch
assert "fastmix.kernels" not in sys.modules
import fastmix.functional as F
loss = F.soft_cross_entropy(torch.zeros(2, 4), torch.tensor([1, 2]))
assert "fastmix.kernels.soft_target" in sys.modules and "fastmix.kernels.blend" not in sys.modules
print(f"{loss.item():.4f}")
"""
    done = run(code, TRITON_INTERPRET="1", FASTMIX_BACKEND="triton")
    assert done.stdout == "1.3863\n", done.stderr


def test_schemas_are_the_same_in_both_namespaces():
    for name in library.schemas():
        ours = getattr(torch.ops.fastmix_triton, name).default._schema
        theirs = getattr(torch.ops.fastmix, name).default._schema
        assert str(ours).split("::")[1] == str(theirs).split("::")[1]


def test_a_backend_that_serves_some_forms_of_an_operator(monkeypatch):
    assert "serve diag and identity, this is full" in dispatch.why_not("isda", "cuda", "cuda", "full")
    assert dispatch.why_not("isda", "triton", "cuda", "full") is None or not dispatch._TRITON_INSTALLED
    monkeypatch.setitem(dispatch.AUTO, "isda", {"cpu": "cuda"})  # as on a GPU with the CUDA library
    x = torch.randn(2)
    assert dispatch.select("isda", x, "diag") == "cuda"
    assert dispatch.select("isda", x, "full") in ("triton", "reference")
