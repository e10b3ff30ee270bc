"""Triton kernels whose outputs have more than 2^31 elements: their last programs, in the interpreter.

Inputs are one image (row) expanded, outputs memory that is reserved and touched by those programs alone.
"""

import builtins

import pytest
import torch

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget, View
from fastmix.ops import library
from fastmix.ops.dispatch import why_not
from fastmix.ops.enums import Loss, Reduction, Weighting

pytestmark = [pytest.mark.interpreted, pytest.mark.slow,
              pytest.mark.skipif(why_not("blend", "triton", "cpu") is not None,
                                 reason="runs in Triton's interpreter: TRITON_INTERPRET=1")]
SHAPE = (3, 32, 32)
IMAGES = 2**31 // 3072 + 5
ROWS, CLASSES = 2**16 + 8, 2**15


@pytest.fixture(autouse=True)
def last_programs_of_large_grids(monkeypatch):
    """Of a grid of more than 1000 programs the interpreter runs the last two. Nothing is filled."""
    from triton.runtime import interpreter

    def last(*bounds):
        return builtins.range(bounds[0] - 2, bounds[0]) if len(bounds) == 1 and bounds[0] > 1000 else range(*bounds)

    monkeypatch.setattr(interpreter, "range", last, raising=False)
    torch.use_deterministic_algorithms(False)
    with fastmix.backend("triton"):
        yield


def batch(channels_last=False, dtype=torch.bfloat16):
    """A batch of one image, and the same image IMAGES times."""
    x = torch.randn(1, *SHAPE).to(dtype) if dtype.is_floating_point else torch.randint(0, 256, (1, *SHAPE), dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    return x, x.expand(IMAGES, -1, -1, -1)


def check(call, *args, x, many):
    """The last image of many images is that of one. args: (one, N of them)."""
    few, out = call(x, *(one for one, _ in args)), call(many, *(all_of_them for _, all_of_them in args))
    assert out.numel() > 2**31
    torch.testing.assert_close(out[-1], few[0], rtol=0, atol=0)


def own(columns):
    """Every image from itself."""
    return torch.zeros(1, columns, dtype=torch.int64), torch.arange(IMAGES).unsqueeze(1).repeat(1, columns)


def everywhere(t):
    return t, t.expand(IMAGES, *t.shape[1:])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_images(channels_last, backward):
    x, many = batch(channels_last)
    boxes, weight = torch.tensor([[[2, 3, 9, 40]]], dtype=torch.int32), torch.tensor([[0.25, 0.5]])
    index, lam = own(2), torch.tensor(0.3)
    mask = everywhere(torch.ones(1, 1, 1, dtype=torch.bool))
    if backward:
        check(library.kernels("paste").paste_backward, index, everywhere(boxes), x=x, many=many)
        check(library.kernels("blend").blend_backward, index, everywhere(weight), x=x, many=many)
        mixed = library.kernels("patch_mix").patch_mix_backward
        check(lambda v, i, m: mixed(v, i[:, 0], m, lam), index, mask, x=x, many=many)
    else:
        check(F.paste, index, everywhere(boxes), x=x, many=many)
        check(F.blend, index, everywhere(weight), x=x, many=many)
        check(lambda v, i, m: F.patch_mix(v, i[:, 0], m, lam)[0], index, mask, x=x, many=many)


@pytest.mark.parametrize("channels_last", [False, True])
def test_view(channels_last):
    x, many = batch(channels_last, torch.uint8)
    mean = torch.tensor([0.4, 0.5, 0.6])
    flip, shift = everywhere(torch.ones(1, dtype=torch.bool)), everywhere(torch.tensor([[1, -2]]))
    boxes, weight, index = torch.tensor([[[2, 3, 9, 40]]], dtype=torch.int32), torch.tensor([[0.25, 0.5]]), own(2)
    mask = everywhere(torch.ones(1, 1, 1, dtype=torch.bool))
    view = View(mean, mean, out_dtype=torch.bfloat16,
                memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def seen(f, s):
        return view._replace(flip=f, shift=s)
    check(lambda v, f, s: seen(f, s).apply(v), flip, shift, x=x, many=many)
    check(lambda v, i, b, f, s: F.paste(v, i, b, view=seen(f, s)), index, everywhere(boxes), flip, shift, x=x,
          many=many)
    check(lambda v, i, w, f, s: F.blend(v, i, w, view=seen(f, s)), index, everywhere(weight), flip, shift, x=x,
          many=many)
    check(lambda v, i, m, f, s: F.patch_mix(v, i[:, 0], m, torch.tensor(0.3), view=seen(f, s))[0], index, mask, flip,
          shift, x=x, many=many)


@pytest.mark.parametrize("channels_last", [False, True])
def test_crops(channels_last):
    """Not the gradient of resized_crop: its second launch reads what all programs of the first wrote."""
    x, many = batch(channels_last)
    check(F.crop, everywhere(torch.tensor([[1, -2]])), x=x, many=many)
    box = everywhere(torch.tensor([[1.5, 2.0, 20.0, 25.0]]))
    check(lambda v, b: F.resized_crop(v, b, SHAPE[1:]), box, x=x, many=many)


@pytest.mark.parametrize("loss", [F.soft_cross_entropy, F.soft_kl])
def test_the_gradient_of_logits(loss):
    z = torch.randn(1, CLASSES).to(torch.bfloat16)
    target = SoftTarget(torch.tensor([[5, CLASSES - 1]]), torch.tensor([[0.25, 0.75]]))
    expanded = SoftTarget(target.index.expand(ROWS, 2).contiguous(), target.weight.expand(ROWS, 2).contiguous())
    kernel = library.kernels("soft_target").soft_target
    code = (Loss.CROSS_ENTROPY if loss is F.soft_cross_entropy else Loss.KL).value
    none = Reduction.NONE.value
    rest = (None, None, None, None, 0.0, -100, code, Weighting.UNWEIGHTED.value, none, True)
    few = kernel(z, *target, *rest)
    many = kernel(z.expand(ROWS, CLASSES), *expanded, *rest)
    assert many[1].numel() > 2**31
    assert torch.equal(many[0][-1:], few[0]) and torch.equal(many[1][-1:], few[1])


def test_scaling_a_gradient():
    grad = torch.empty(ROWS, CLASSES, dtype=torch.bfloat16)
    grad[-1] = 1.0
    library.kernels("soft_target").scale_gradient_(grad, torch.tensor(3.0))
    assert (grad[-1, -64:] == 3).all()
