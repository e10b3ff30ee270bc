"""What the operator tests share: dtypes, layouts, guard bands, the error budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OFFSETS = (0, 1, 7, 40)
# Variants of GPU kernels: rows with an index out of range become NaN, no value is read back to raise.
NAN_ROWS = ("simt", "cuda")


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def embedded(x: Tensor, offset: int) -> Tensor:
    """x's values, contiguous, inside a larger storage whose other elements are NaN: a read past an edge shows."""
    storage = torch.full((x.numel() + offset + 64,), float("nan") if x.is_floating_point() else 1, dtype=x.dtype)
    view = storage[offset:offset + x.numel()].view(x.shape)
    return view.copy_(x)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _strided(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _every_other_image(x: Tensor) -> Tensor:
    wide = torch.full((2 * x.shape[0], *x.shape[1:]), float("nan"), dtype=x.dtype)
    wide[::2] = x
    return wide[::2]


# Image layouts with the same values: name -> function of a (N, C, H, W) tensor.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": _channels_last,
    "strided": _strided,
    "transposed": _transposed,
    "every_other_image": _every_other_image,
    "offset_7": lambda x: embedded(x, 7),
}


def expanded(x: Tensor) -> Tensor:
    """The first image N times, stride 0."""
    return x[:1].expand(x.shape)


def within_budget(ours: Tensor, truth: Tensor, stock: Tensor, what: str = "", units: int = 2) -> None:
    """|ours - truth| <= |stock - truth| + two (or units) units in the last place of the largest value.

    truth: the reference in float64. stock: the reference (or stock torch) in the dtype of ours. Nothing is truer
    than float64, so there both may be off, by the rounding of sums over 21841 classes: 256 units. Halves are float32
    sums rounded once, ours and stock's alike, so an eighth of the units: sums kept in halves are off by more.
    """
    assert ours.shape == truth.shape, f"{what}: shape {tuple(ours.shape)}, want {tuple(truth.shape)}"
    assert ours.dtype == stock.dtype, f"{what}: dtype {ours.dtype}, want {stock.dtype}"
    if ours.numel() == 0:
        return
    error = (ours.double() - truth).abs().max().item()
    allowed = (stock.double() - truth).abs().max().item()
    units = 256 if ours.dtype == torch.float64 else units / 8 if ours.dtype.itemsize == 2 else units
    tiny = units * torch.finfo(ours.dtype).eps * truth.abs().max().item()
    assert error <= allowed + tiny, f"{what}: error {error:.3e}, stock torch has {allowed:.3e} (+ {tiny:.1e})"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in every bit: NaN equals NaN, -0 differs from 0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def compiled(fn: Callable) -> Callable:
    """fn through torch.compile(fullgraph=True), cheap to build: graph capture and autograd, no code generation."""
    torch._dynamo.reset()
    return torch.compile(fn, fullgraph=True, backend="aot_eager")


def check_compiled(step: Callable, x: Tensor, *args: Tensor) -> None:
    """step(x, *args) and its gradient in x under torch.compile are those of the eager call."""
    torch.testing.assert_close(compiled(step)(x, *args), step(x, *args))
    got, = torch.autograd.grad(compiled(step)(x, *args).square().sum(), x)
    want, = torch.autograd.grad(step(x, *args).square().sum(), x)
    torch.testing.assert_close(got, want)


def check_registered(eager: Callable[[Tensor], Tensor], registered: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Values, gradients and their gradients are the same bits; x float64 that requires grad."""
    assert same_bits(registered(x), eager(x))
    g = torch.randn_like(eager(x)).requires_grad_()
    first = [torch.autograd.grad(fn(x), x, g, create_graph=True)[0] for fn in (eager, registered)]
    assert same_bits(*first)
    assert same_bits(*[torch.autograd.grad(grad.square().sum(), g)[0] for grad in first])
    torch.autograd.gradgradcheck(registered, x)


def check_functorch(loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """torch.func.grad of a loss is torch.autograd's."""
    got = torch.func.grad(loss)(x)
    x = x.detach().requires_grad_()
    want, = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(got, want)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def loss_and_gradient(criterion, logits, target):
    """A loss, and its gradient with respect to the logits; where it has rows, of their sum."""
    logits = logits.clone().requires_grad_()
    loss = criterion(logits, target)
    loss.backward(torch.ones_like(loss))
    return loss.detach(), logits.grad
