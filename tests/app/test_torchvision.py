"""The declaration that lets a CUDA build of torchvision be imported beside a torch without CUDA."""

import os
import subprocess
import sys

import pytest
import torch

INIT = """
import torch
from .version import __version__
@torch.library.register_fake("torchvision::nms")
def fake(dets, scores, iou_threshold):
    return dets
"""


def imports(tmp_path, version, code):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(INIT)
    (package / "version.py").write_text(f"__version__ = '{version}'\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), os.getcwd()])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path})


PREPARED = ("from fastmix.app.import_torchvision import prepare; prepare(); prepare(); "
            "import torchvision")


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_a_cuda_build_imports_once_prepared(tmp_path):
    assert imports(tmp_path, "0.28.0+cu130", PREPARED).returncode == 0


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_a_matching_build_is_left_alone(tmp_path):
    """It declares its operators itself, and a second declaration would be an error."""
    done = imports(tmp_path, "0.28.0+cpu", PREPARED)
    assert done.returncode != 0 and "torchvision::nms" in done.stderr


def test_without_torchvision_nothing_happens(monkeypatch):
    from fastmix.app import import_torchvision

    monkeypatch.setattr(import_torchvision, "find_spec", lambda name: None)
    monkeypatch.setattr(import_torchvision, "_declared", [])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    import_torchvision.prepare()
    assert not import_torchvision._declared
