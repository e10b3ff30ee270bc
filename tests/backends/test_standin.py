"""The device that stands in for a GPU refuses what one refuses, and the operators' tests run on it.

In processes of their own: the device, once made known, changes torch for the whole process.
"""

import subprocess
import sys

import pytest
from helpers import ROOT

REFUSED = {"numpy": "x.numpy()", "a view's numpy": "x[1:].t().numpy()", "asarray": "np.asarray(x)",
           "both devices": "x + torch.zeros(3, 4, device='cpu')", "from_numpy": "x * torch.from_numpy(np.ones(4, 'f'))",
           "an index of the device": "torch.zeros(3, 4, device='cpu')[x > 0]",
           "a generator of the CPU": "torch.randn(2, generator=torch.Generator())",
           "a permutation by the CPU's": "torch.randperm(2, generator=torch.Generator())",
           "assert_close": "torch.testing.assert_close(x, x.cpu())"}
ALLOWED = {"cpu": "x.cpu().numpy()", "item": "x.sum().item()", "tolist": "x.tolist()",
           "0-d": "x + torch.tensor(1.0, device='cpu')", "indices": "x[torch.tensor([0, 2], device='cpu')]",
           "a list": "x[[0, 2]]", "numbers": "torch.tensor([1.0, 2]) + torch.arange(2)", "copy_": "x.copy_(x.cpu())",
           "new_tensor": "x.new_tensor([1.0]) + x",
           "a generator": "torch.randn(2, generator=torch.Generator(x.device))",
           "a gradient": "torch.autograd.grad((x * w).sum(), w)[0] + x",
           "equal": "torch.testing.assert_close(x, x + 0)"}
CODE = """
import sys
import numpy as np, torch
from helpers import standin
standin.install()
torch.set_default_device(standin.NAME)
refused, allowed = eval(sys.stdin.read())
for name, text in [*refused.items(), *allowed.items()]:
    x, w = torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)
    assert x.device.type == standin.NAME and not x.is_cpu
    try:
        eval(text)
        print(name, "runs")
    except Exception as error:
        print(name, "raises", type(error).__name__)
"""


def test_it_refuses_what_a_gpu_refuses():
    done = subprocess.run([sys.executable, "-c", CODE], input=repr((REFUSED, ALLOWED)), capture_output=True, text=True,
                          cwd=ROOT / "tests", env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    assert [line.rpartition(" raises ")[0] for line in said[:len(REFUSED)]] == list(REFUSED)
    assert said[len(REFUSED):] == [f"{name} runs" for name in ALLOWED]


# Without what differentiates by differences: minutes, and nothing of it is the device's.
LONG = "not gradcheck and not derivative and not repeatable and not requires_grad"


@pytest.mark.slow
def test_the_operators_tests_forget_no_copy():
    """Every test function once, with its first parameters."""
    done = subprocess.run([sys.executable, "-m", "pytest", "tests/ops", "tests/mixers", "tests/losses", "--device",
                           "standin", "--backend", "reference", "--once", "-m", "not slow", "-k", LONG, "-q", "-p",
                           "no:cacheprovider", "--tb=short"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
