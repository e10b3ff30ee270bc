"""Every --method: its step as one graph, and one epoch of it in two processes."""

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")

from helpers import training
from torch._dynamo.testing import CompileCounterWithBackend

from fastmix import RLMix
from fastmix.app import data, methods
from fastmix.app.methods.objective import Classifier
from fastmix.app.training import run
from fastmix.app.training.distributed import Processes
from fastmix.app.training.options import Options

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", limit=60)


def skip_without_extras(method):
    if methods.METHODS[method].extra:
        pytest.importorskip("stable_baselines3")


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_step_of_every_method_is_one_graph(digits, method):
    """Images and labels to the loss and its gradients: mixing, model, loss."""
    skip_without_extras(method)
    torch._dynamo.reset()
    setup = run.setup(Options(method=method, labelled=40, batch=20), digits, HERE)
    model, mixer, objective = setup.model, setup.mixer, setup.objective
    counter = CompileCounterWithBackend("aot_eager")
    torch.manual_seed(0)
    x, y, saliency = torch.randn(8, 1, 8, 8), torch.arange(8), torch.randn(8, 1, 8, 8)
    weights = list(model.parameters())

    def step(x, y, saliency):
        target = y
        if isinstance(mixer, RLMix):
            plan = mixer.plan(x, saliency, torch.full((8,), 0.5))
            x, target = plan.apply(x), plan.target(y)
        elif mixer is not None:
            x, target = mixer(x, y, saliency)
        features = x.flatten(1)[:, :1].expand(-1, model.classifier.in_features)
        return objective.loss(model(x), target, y, 3, Classifier(model.classifier, features))

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    losses = []
    for _ in range(3):
        loss = compiled(x, y, saliency)
        gradients = torch.autograd.grad(loss, weights)
        assert loss.isfinite() and all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)
        losses.append(loss.item())
    assert counter.frame_count == 1
    if mixer is not None:
        assert len(set(losses)) > 1  # plans are drawn in every call, not once for the graph


EPOCHS = """
import torch, torch.distributed as dist
from fastmix.app import data
from fastmix.app.training import run
from fastmix.app.training.distributed import processes
from fastmix.app.training.loop import train_epoch
from fastmix.app.training.options import Options
from fastmix.app.training.timing import StepTimer

with processes("cpu") as here:
    digits = data.load("digits", limit=61)
    for method in {methods!r}:
        setup = run.setup(Options(method=method, labelled=40, batch=20, epochs=1, lr=0.01), digits, here)
        before = [p.detach().clone() for p in setup.model.parameters()]
        entry = train_epoch(setup, 1, StepTimer(here.device), lambda: None)
        weights = torch.cat([p.detach().reshape(-1) for p in setup.model.parameters()])
        others = [torch.empty_like(weights) for _ in range(2)]
        dist.all_gather(others, weights)
        assert torch.equal(*others), f"{{method}}: the processes' weights differ"
        assert weights.isfinite().all() and not torch.equal(weights, torch.cat([p.reshape(-1) for p in before])), method
        if here.first:
            print(method, entry["train_loss"], flush=True)
        del setup
"""


def test_every_method_trains_in_two_processes(tmp_path):
    pytest.importorskip("stable_baselines3")
    script = tmp_path / "epochs.py"
    script.write_text(EPOCHS.format(methods=list(methods.METHODS)))
    result = training.torchrun(script)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(methods.METHODS)
