"""What a call may do: return what the reference returns, or raise a clear error; and leave its arguments alone."""

from __future__ import annotations

import inspect
import re
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import public
from torch import Tensor
from torch.utils import _pytree as pytree

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget, View
from fastmix.ops.dispatch import CannotServe

from .values import Call

NAMESPACE: dict[str, Any] = {"torch": torch, "np": np, "fastmix": fastmix, "F": F, "SoftTarget": SoftTarget,
                             "View": View, "Path": Path, **{plan.__name__: plan for plan in public.plans()}}
PACKAGE = str(Path(fastmix.__file__).parent)
IMPORTS = "import numpy as np, torch, fastmix; from fastmix import functional as F, SoftTarget, View"
ALLOWED = (ValueError, TypeError, IndexError, RuntimeError, NotImplementedError, CannotServe)
OF_DEVICES = re.compile(r"device string|Invalid device|CUDA|accelerator|meta tensor|PyTorch was not compiled")
# Of C++, of torch's insides, or of Python's: not words for a person who called a function of ours.
LEAKED = re.compile(r"::|\.cpp|\.h:\d|\b0x[0-9a-f]{6}|torch\._(?!C\.Generator)|Alloc|INTERNAL ASSERT|enforce fail|"
                    r"object has no attribute|unsupported operand|not subscriptable|not iterable|object is not|"
                    r"must match the size of|autograd::|schema|argument '|\(position \d|Expected all tensors|Traceback")
OF_PYTHON = re.compile(r"(missing \d+ required|unexpected keyword argument|takes .*positional argument|"
                       r"got multiple values)")  # how Python says that a signature does not fit
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


COPIES = ("functional.paste", "functional.patch_mix", "functional.crop")


class Wrong(AssertionError):
    """A call did what no call may do."""


class Impossible(Exception):
    """The arguments themselves cannot be made: nothing was called."""


# ---------------------------------------------------------------- running it

class Outcome:
    """tensors: those of the result, gradients after them. error: what was raised instead; theirs: by the caller's code.
    results: how many of the tensors are no gradients."""

    def __init__(self, tensors: list[Any], error: BaseException | None = None, theirs: bool = False,
                 results: int = 0) -> None:
        self.tensors, self.error, self.theirs, self.results = tensors, error, theirs, results


def seeded(seed: int) -> None:
    """torch.manual_seed of a CPU: the whole of it formats a stack for each kind of accelerator that is not there."""
    torch.default_generator.manual_seed(seed)


def arguments(call: Call, seed: int) -> dict[str, Any]:
    """Fresh variables of the call. Raises: Impossible."""
    names = dict(NAMESPACE)
    seeded(seed)
    try:
        _run("\n".join(call.arguments), names)
    except Exception as error:
        raise Impossible from error
    return names


def _run(source: str, names: dict[str, Any]) -> None:
    exec(_compiled(source), names)


@cache
def _plain(source: str) -> Any:
    return compile(source, "<call>", "exec")


def _compiled(source: str) -> Any:
    return _plain(source) if len(source) < 40 else compile(source, "<call>", "exec")


def run(call: Call, names: dict[str, Any], gradients: bool) -> Outcome:
    """The steps of a call on its variables."""
    *before, last = call.steps
    try:
        _run("\n".join([*before, f"result = {last}"]), names)
        found = [t for t in pytree.tree_leaves(names["result"]) if isinstance(t, (Tensor, int, float, str))]
        found = [field for t in found for field in (t if isinstance(t, SoftTarget) else (t,))]
        return Outcome(found + (gradients_of(found, names) if gradients else []), results=len(found))
    except Exception as error:
        found = Outcome([], error, theirs(error))
        error.__traceback__ = None  # frames would keep their tensors
        return found


def theirs(error: BaseException) -> bool:
    """Whether it comes from the caller's own code: a model, a line of the call itself."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__, limit=None)]
    ours = [i for i, name in enumerate(files) if name.startswith(PACKAGE)]
    parts = ("<call>", "/torch/nn/modules/", "/torch/utils/data/")
    return not ours or any(part in name for name in files[ours[-1]:] for part in parts)


def gradients_of(found: list[Any], names: dict[str, Any]) -> list[Tensor | None]:
    """Of a sum of all that has one, with respect to all variables that require one."""
    leaves = [t for t in names.values() if isinstance(t, Tensor) and t.requires_grad and t.is_leaf]
    outputs = [t for t in found if isinstance(t, Tensor) and t.requires_grad and not t.is_nested]
    if not leaves or not outputs:
        return []
    total = sum((t.double() * torch.linspace(-1, 1, t.numel(), dtype=torch.float64).view(t.shape)).sum()
                if t.ndim else t.double() for t in outputs)
    return list(torch.autograd.grad(total, leaves, allow_unused=True))


# ---------------------------------------------------------------- judging it

@cache
def known(name: str) -> frozenset[str]:
    """The names of what a callable takes, and the fields of what is made of data."""
    every = public.callables()
    found = set(inspect.signature(every[name]).parameters) if name in every else set()
    return frozenset(found - {"self", "cls", "options", "args", "kwargs"})


def nameable(call: Call) -> set[str]:
    """What an error may speak of: the arguments of the call and of the calls before it."""
    source = " ".join(call.steps)
    used = set(re.findall(r"\b(?:fastmix\.|F\.)?(\w+)\(", source)) | {call.name, call.name.partition(".")[0]}
    found = set(re.findall(r"(\w+)=", source)) | {call.name.rpartition(".")[2]}
    for name in used:
        found |= known(name) | known(f"functional.{name}") | known(f"{call.name.partition('.')[0]}.{name}")
    return found | set(known("Mixer.forward")) | set(known("RLMix.plan")) | {"plan", "rows", "features", "q", "layer"}


def of_devices(call: Call) -> bool:
    """Whether it names a device, or moves something between some."""
    source = " ".join([*call.steps, *call.arguments])
    return "device" in source or ".to(" in source or "pin_memory" in source


def judge_error(call: Call, error: BaseException) -> None:
    """Raises: Wrong for an error that is not one of ours or does not say what is wrong."""
    text, kind = str(error), type(error).__name__
    if of_devices(call) and (OF_DEVICES.search(text) or "to()" in text):
        return  # torch's own words on its own argument
    if not isinstance(error, ALLOWED) or isinstance(error, RecursionError):
        raise Wrong(f"{kind} is no error for a caller: {text[:300]}")
    if isinstance(error, CannotServe) or (isinstance(error, TypeError) and OF_PYTHON.search(text)):
        return
    if call.name == "uncertainty" and text.endswith("is not a finite number"):
        return
    if "\n" in text or len(text) > 400:
        raise Wrong(f"{kind} of more than a line: {text[:300]!r}")
    found = LEAKED.search(text)
    if found:
        raise Wrong(f"{kind} speaks of {found[0]!r}: {text}")
    op, _, said = text.partition(":")
    words = set(re.findall(r"\w+", said))
    if call.wrong is not None and not set(call.wrong.split(".")) & words:
        raise Wrong(f"{kind} does not name {call.wrong}: {text}")
    if not words & (nameable(call) | known(op) | known(f"{op}.forward") | known(f"functional.{op}")):
        raise Wrong(f"{kind} names no argument: {text}")
    if call.good:
        raise Wrong(f"{kind} for good arguments: {text}")


def snapshot(names: dict[str, Any]) -> list[tuple[str, Tensor, Tensor, int | None]]:
    """Of every variable that is a plain tensor: its name, itself, its values, its version."""
    return [(name, t, t.detach().clone(), None if t.is_inference() else t._version) for name, t in names.items()
            if type(t) is Tensor and t.layout is torch.strided and t.device.type == "cpu" and not t.is_quantized
            and not t.is_nested]


def judge_arguments(before: list[tuple[str, Tensor, Tensor, int | None]], may_change: set[str]) -> None:
    for name, t, was, version in before:
        moved_on = version is not None and t._version != version
        if name not in may_change and (moved_on or not _same_bits(t.detach(), was)):
            raise Wrong(f"{name} was changed: {t} was {was}")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(_bits(a), _bits(b)))


def _bits(t: Tensor) -> Tensor:
    return t.resolve_neg().resolve_conj().clone(memory_format=torch.contiguous_format).reshape(-1, 1).view(torch.uint8)


def judge_result(call: Call, got: Outcome) -> None:
    """Shapes and dtypes as the strategy says, finite numbers for finite ones."""
    if call.returns is not None:
        found = [(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in got.tensors if isinstance(t, Tensor)]
        if found[:len(call.returns)] != call.returns:
            raise Wrong(f"shapes and dtypes are {found[:len(call.returns)]}, want {call.returns}")
    if call.good and not call.wild:
        for i, t in enumerate(got.tensors):
            if isinstance(t, Tensor) and t.is_floating_point() and not bool(t.isfinite().all()):
                raise Wrong(f"result {i} is not finite, the arguments are: {t}")


def judge_same(call: Call, got: Outcome, want: Outcome, *, rows_may_be_nan: bool) -> None:
    """As the reference. rows_may_be_nan: this backend does not read values back, its bad rows are NaN."""
    if want.error is not None or got.error is not None:
        if rows_may_be_nan and isinstance(want.error, IndexError) and got.error is None:
            return
        if isinstance(want.error, CannotServe) or isinstance(got.error, CannotServe):
            return
        if _ADDRESS.sub("", repr(got.error)) != _ADDRESS.sub("", repr(want.error)):
            raise Wrong(f"{got.error!r}, the reference has {want.error!r}")
        return
    if len(got.tensors) != len(want.tensors):
        raise Wrong(f"{len(got.tensors)} results, the reference has {len(want.tensors)}")
    for i, (a, b) in enumerate(zip(got.tensors, want.tensors, strict=True)):
        if a is None and b is None:
            continue
        why = difference(call, a, b, gradient=i >= got.results)
        if why:
            raise Wrong(f"result {i} is not that of the reference: {why}")


_ADDRESS = re.compile(r"0x[0-9a-f]+")


def difference(call: Call, a: Any, b: Any, gradient: bool = False) -> str | None:
    """gradient: sums of many terms, which the reference rounds to a half one by one."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        if isinstance(a, float) and isinstance(b, float):
            return difference(call, torch.tensor(a), torch.tensor(b))
        same = _ADDRESS.sub("", a) == _ADDRESS.sub("", b) if isinstance(a, str) and isinstance(b, str) else a == b
        return None if same else f"{a!r}, want {b!r}"
    if a.is_nested or b.is_nested or a.is_quantized:
        return None
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.requires_grad != b.requires_grad:
        of_a, of_b = ((tuple(t.shape), t.dtype, t.device, t.requires_grad) for t in (a, b))
        return f"{of_a}, want {of_b}"
    if a.device.type == "meta" or a.layout is not torch.strided or a.numel() == 0:
        return None
    a, b = a.detach(), b.detach()
    if not a.is_floating_point():
        return None if torch.equal(a, b) else f"{a}, want {b}"
    tolerance = TOLERANCE.get(a.dtype, 0.3) * (5 if gradient and a.dtype.itemsize == 2 else 1)
    if a.dtype == torch.float64 and not all("float64" in line or "randint" in line for line in call.arguments):
        tolerance = TOLERANCE[torch.float32]  # some of it was computed there
    a, b = a.double(), b.double()
    finite = b.isfinite()
    # What becomes of numbers that are not finite is promised by what copies pixels; elsewhere rows of them are lost.
    if (not call.wild or call.name in COPIES) and not (
            torch.equal(finite, a.isfinite()) and torch.equal(a.isnan(), b.isnan())):
        return f"{a}, want {b}"
    finite &= a.isfinite()
    a, b = torch.where(finite, a, 0.0), torch.where(finite, b, 0.0)
    scale = max(1.0, float(b.abs().max()))
    error = float((a - b).abs().max())
    return None if error <= tolerance * scale else f"off by {error:.3g} of {scale:.3g}: {a}, want {b}"


def check(call: Call, variant: str, seed: int, serving: Callable[[str], Any], gradients: bool = True) -> str:
    """Runs a call on a variant and on the reference. Returns: "returned" or "raised". Raises: Wrong, Impossible."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = arguments(call, seed)
        before = snapshot(names)
        with serving(variant):
            seeded(seed)
            got = run(call, names, gradients)
        judge_arguments(before, call.changed if got.error is None or len(call.steps) > 1 else set())
        if got.error is not None:
            if not got.theirs:
                judge_error(call, got.error)
        else:
            judge_result(call, got)
        if variant != "reference":
            names = arguments(call, seed)
            with serving("reference"):
                seeded(seed)
                want = run(call, names, gradients)
            judge_same(call, got, want, rows_may_be_nan=variant in ("simt", "triton"))
        return "returned" if got.error is None else "raised"


def source(call: Call, variant: str, seed: int) -> str:
    """The call as a person can paste it into Python."""
    before = {"reference": "", "simt": "from fuzz import variants; variants.use('simt')  # PYTHONPATH=.:tests\n"}.get(
        variant, f"fastmix.backend({variant.partition('-')[0]!r}).__enter__()"
        + ("  # TRITON_INTERPRET=1" if variant == "triton" else "") + "\n")
    arguments = "\n".join(call.arguments)
    *steps, last = call.steps
    lines = "\n".join([*steps, f"print({last})"])
    return f"{IMPORTS}\n{before}torch.manual_seed({seed})\n{arguments}\n{lines}"
