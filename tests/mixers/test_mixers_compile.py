"""The mixers under torch.compile, their switch, what an import costs."""

import copy
import subprocess
import sys

import pytest
import torch
from helpers.mixing import MAKERS, SINGLE, batch, every, same
from torch._dynamo.testing import CompileCounterWithBackend

from fastmix import CutMix, Mixup, RandomChoice

pytestmark = pytest.mark.usefixtures("one_thread")

# ---------------------------------------------------------------- compilation

@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@every
@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_fullgraph_compile_and_toggling_recompiles_nothing(name, prob):
    torch.manual_seed(0)
    x, y, saliency = batch()
    mixer = MAKERS[name](prob=prob)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixer, fullgraph=True, backend=counter)
    draws = [compiled(x, y, saliency)[0] for _ in range(12)]
    if name not in SINGLE:
        assert any(not torch.equal(draws[0], draw) for draw in draws[1:])  # no draw is baked into the graph
    for _ in range(2):
        mixer.enabled = False
        mixed, target = compiled(x, y, saliency)
        assert torch.equal(mixed, x) and torch.equal(target.dense(6), torch.eye(6))
        mixer.enabled = True
        if name not in SINGLE:
            assert any(not torch.equal(compiled(x, y, saliency)[0], x) for _ in range(12))
    assert counter.frame_count == 1


@every
def test_compiled_apply_equals_eager(name):
    torch.manual_seed(0)
    x, y, saliency = batch()
    plan = MAKERS[name]().plan(x, saliency)
    compiled = torch.compile(lambda plan, x, y: plan.mix(x, y), fullgraph=True, backend="aot_eager")
    assert same(compiled(plan, x, y), plan.mix(x, y))


@pytest.mark.parametrize("name", ["CutMix-elem", "DCutMix", "RMix"])
def test_inductor(name):
    """The whole mixer through code generation; plans stay valid and repeat under manual_seed."""
    x, y, saliency = batch()
    mixer = MAKERS[name](prob=0.5)
    compiled = torch.compile(lambda x, y, s: (plan := mixer.plan(x, s), *plan.mix(x, y)), fullgraph=True)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append([compiled(x, y, saliency) for _ in range(8)])
    assert same(tuple(results[0]), tuple(results[1]))
    for plan, mixed, target in results[0]:
        eager = plan.mix(x, y)
        torch.testing.assert_close(mixed, eager[0])
        torch.testing.assert_close(target.dense(6), eager[1].dense(6))
        columns = plan.index[:, 1:] if "elem" not in name else plan.index[:, :1]
        assert torch.equal(columns.sort(0).values, torch.arange(6).unsqueeze(1).expand_as(columns))
    assert any(not torch.equal(results[0][0][1], mixed) for _, mixed, _ in results[0][1:])


def test_compiled_members_of_a_random_choice():
    x, y, _ = batch()
    choice = RandomChoice([Mixup(1.0), CutMix(1.0)])
    steps = {member: torch.compile(member, fullgraph=True, backend="aot_eager") for member in choice.mixers}
    for _ in range(4):
        assert steps[choice.choose()](x, y)[0].shape == x.shape
    whole = torch.compile(choice, backend="aot_eager")  # breaks at the choice, and works
    assert whole(x, y)[0].shape == x.shape
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="draws on the host"):
        torch.compile(choice, backend="aot_eager", fullgraph=True)(x, y)


def test_the_flag_follows_the_images():
    mixer = Mixup(1.0)
    mixer.enabled = False
    plan = mixer.plan(torch.empty(4, 3, device="meta"))
    assert plan.weight.device.type == "meta"
    assert not mixer.enabled
    plan = mixer.plan(torch.zeros(4, 3))
    assert plan.weight.tolist() == [[1, 0]] * 4
    assert mixer.state_dict() == {}
    assert not copy.deepcopy(mixer).enabled


def test_import_leaves_dynamo_alone():
    """It takes 2 s to import: torch.compiler.disable as a decorator would pull it in."""
    code = "import sys, fastmix; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
