"""The CPU kernels read nothing before or behind their tensors: these lie against pages that end the process."""

import signal
import sys

import pytest
from helpers import training

from fastmix.ops import library

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect by ctypes"),
    pytest.mark.skipif(library.missing is not None, reason="no C++ library"),
]

SCRIPT = """
import ctypes, mmap, sys
import torch
import fastmix
import fastmix.functional as F

torch.manual_seed(0)
libc = ctypes.CDLL(None, use_errno=True)
PAGE, kept, at_end = mmap.PAGESIZE, [], False

def guarded(t):
    "A copy between two pages that may not be touched, against the second or the first."
    last = t.dim() == 4 and not t.is_contiguous()
    dense = t.permute(0, 2, 3, 1).contiguous() if last else t.contiguous()
    size = dense.nbytes
    pages = -(-size // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    begin = PAGE + (pages * PAGE - size if at_end else 0)
    copy = torch.frombuffer(area, dtype=dense.dtype, count=dense.numel(), offset=begin).view(dense.shape)
    copy.copy_(dense)
    for page in (0, pages + 1):
        assert libc.mprotect(ctypes.c_void_p(start + page * PAGE), ctypes.c_size_t(PAGE), 0) == 0
    kept.append(area)
    return copy.permute(0, 3, 1, 2) if last else copy

def with_gradient(fn, x, *more):
    x = guarded(x).requires_grad_()
    more = [guarded(m) if isinstance(m, torch.Tensor) else m for m in more]
    out = fn(x, *more)
    out = out[0] if isinstance(out, tuple) else out
    g = torch.randn_like(out)
    torch.autograd.grad(out, x, guarded(g) if g.numel() > 1 else g)

def images(n, c, h, w, layout, dtype):
    x = torch.randn(n, c, h, w).to(dtype)
    return x.contiguous(memory_format=layout)

def run(n, c, h, w, layout, dtype):
    x = images(n, c, h, w, layout, dtype)
    index, weight = torch.randint(0, n, (n, 3)), torch.rand(n, 3)
    with_gradient(F.blend, x, index, weight)
    boxes = torch.tensor([[[1, 2, h - 1, w - 2], [h - 1, w - 1, 1, 1]]] * n, dtype=torch.int32)
    with_gradient(F.paste, x, index, boxes)
    mask = torch.randint(0, 2, (n, h, w), dtype=torch.uint8) > 0
    with_gradient(F.patch_mix, x, index[:, 0], mask, torch.tensor(0.3))
    with_gradient(F.crop, x, torch.randint(-h, h, (n, 2)))
    window = torch.tensor([[1.3, 2.7, h / 2, w / 2]] * n)
    whole = torch.tensor([[0.0, 0.0, h, w]] * n)
    for box in (window, whole):
        for size in ((h, w), (2 * h + 1, w + 3), (5, 7)):
            with_gradient(lambda v, b, size=size: F.resized_crop(v, b, size), x, box)
    F.saliency_map(guarded(x), (h, w))
    F.saliency_mask(guarded(x), (h, w), guarded(torch.rand(n)))
    F.saliency_peak(guarded(x))
    bytes_ = torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8).contiguous(memory_format=layout)
    view = fastmix.View.draw(bytes_, torch.rand(c), torch.rand(c) + 0.5, pad=2, memory_format=layout)
    fastmix.DCutMix(k=3, alpha=0.2)(guarded(bytes_), torch.randint(0, 5, (n,)), view=view)
    fastmix.Mixup(alpha=1.0)(guarded(bytes_), torch.randint(0, 5, (n,)), view=view)

def classes(n, j, a, dtype):
    z, y = torch.randn(n, j).to(dtype), torch.randint(0, j, (n,))
    target = fastmix.SoftTarget(guarded(torch.randint(0, j, (n, 2))), guarded(torch.rand(n, 2)))
    with_gradient(lambda v: F.soft_cross_entropy(v, target), z)
    with_gradient(lambda v, t: F.soft_kl(v, t), z, torch.rand(n, j).softmax(1))
    weight = guarded(torch.randn(j, a))
    for kind, cov in (("full", torch.eye(a).repeat(j, 1, 1)), ("diag", torch.rand(j, a)), ("shared", torch.eye(a))):
        cov = guarded(cov)
        with_gradient(lambda v, y: F.isda_logits(v, weight, cov, y, 0.5, kind=kind), z, y)
        pixels = torch.randn(2, j, 5, 7).to(dtype)
        labels = torch.randint(0, j, (2, 5, 7))
        wanted = guarded(torch.randn(j, a)).requires_grad_()
        out = F.isda_logits(guarded(pixels), wanted, cov, guarded(labels), 0.5, kind=kind)
        torch.autograd.grad(out, wanted, guarded(torch.randn(2, j, 5, 7).to(dtype)))
        with_gradient(lambda v: F.isda_consistency(v, weight, cov, 0.5, kind=kind), z)
        count, mean = guarded(torch.zeros(j, dtype=torch.int64)), guarded(torch.zeros(j, a))
        F.covariance_update_(count, mean, guarded(torch.zeros(cov.shape)), guarded(torch.randn(n, a).to(dtype)),
                             guarded(y), kind=kind)

if sys.argv[1:] == ["read"]:
    at_end = True
    ctypes.string_at(guarded(torch.rand(7)).data_ptr(), PAGE)

for isa in range(torch.ops.fastmix._cpu_isa(-1) + 1):
    torch.ops.fastmix._cpu_isa(isa)
    for at_end in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                for shape in ((3, 3, 6, 40), (2, 1, 5, 17), (2, 4, 3, 5), (1, 3, 33, 33)):
                    run(*shape, layout, dtype)
                kept.clear()
            for shape in ((5, 7, 3), (9, 37, 21), (3, 130, 17)):
                classes(*shape, dtype)
            kept.clear()
print("nothing outside was read")
"""


def run(*args):
    return training.run([sys.executable, "-c", SCRIPT, *args])


def test_kernels_read_nothing_outside_their_tensors():
    result = run()
    assert result.returncode == 0 and "nothing outside" in result.stdout, (result.returncode, result.stderr[-2000:])


def test_the_pages_end_a_process_that_reads_outside():
    result = run("read")
    assert result.returncode == -signal.SIGSEGV and "nothing outside" not in result.stdout, result.stderr[-2000:]
