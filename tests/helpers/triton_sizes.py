"""What Triton makes of an integer argument: the kernels taken through its front end for sizes that change that.

An argument of value 1 becomes a constant, a Python number that has no methods of a tensor; a multiple of 16 is known as
one. The interpreter sees none of it. Faults of that kind are in the kernel's text, so the front end alone, a few
hundredths of a second, finds them; `single_cases` are compiled whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from triton import knobs
from triton._C.libtriton import ir
from triton.compiler.compiler import ASTSource, make_backend

from fastmix.ops import library
from fastmix.ops.covariance import KINDS
from fastmix.ops.enums import Loss, Weighting

from .triton_aot import MEAN, UNWEIGHTED, Case, _cov, as_target, empty, labels, launches

ODD, DIVISIBLE = 17, 16


@dataclass(frozen=True)
class Form:
    """A kernel as one of its launches calls it."""

    name: str
    kernel: object
    args: tuple
    options: dict

    @property
    def sizes(self) -> list[int]:
        """Places of the arguments that Triton specialises by their value."""
        params = [p for p in self.kernel.params if not p.is_constexpr]
        return [i for i, value in enumerate(self.args) if isinstance(value, int) and not params[i].do_not_specialize]

    def covering(self) -> Iterator[tuple[str, tuple]]:
        """(what is changed, arguments): every size 1 alone, then all of them 1, divisible by 16, and odd."""
        params = [p.name for p in self.kernel.params]
        for place in self.sizes:
            yield f"{params[place]} = 1", (*self.args[:place], 1, *self.args[place + 1:])
        for value in (1, DIVISIBLE, ODD):
            yield f"all {value}", tuple(value if i in self.sizes else arg for i, arg in enumerate(self.args))


def forms(operator: str) -> list[Form]:
    """One launch of every kernel and of every way through its text: by its options as compared with 0 and 1, and by
    which pointers there are."""
    found: dict[tuple, Form] = {}
    for name, (kernel, args, options) in launches(operator).items():
        ways = tuple(min(v, 2) if isinstance(v, int) else None for v in options.values())
        key = (kernel.fn.__name__, ways, tuple(arg is None for arg in args))
        found.setdefault(key, Form(name, kernel, args, options))
    return list(found.values())


class FrontEnd:
    """Takes a kernel as far as Triton's own intermediate representation."""

    def __init__(self, capability: int) -> None:
        self._capability = capability
        with as_target(capability) as target:
            self._backend = make_backend(target)
        self._context = ir.context()
        ir.load_dialects(self._context)
        self._backend.load_dialects(self._context)
        self.seen: set[str] = set()  # the specialisations that were checked

    def check(self, form: Form, args: tuple) -> None:
        """Raises triton's CompilationError."""
        with as_target(self._capability) as target:
            def compile_front(*, fn, compile, key, **_: object) -> bool:
                backend = self._backend
                options = backend.parse_options({"num_warps": compile["num_warps"]})
                source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
                source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(),
                               self._context)
                self.seen.add(str(key))
                return True  # nothing is left to compile

            knobs.runtime.jit_cache_hook = compile_front
            try:
                form.kernel.run(*args, grid=(1,), warmup=True, **form.options)
            finally:
                knobs.runtime.jit_cache_hook = None


def single_cases() -> Iterator[Case]:
    """Every launcher on sizes of 1 wherever it takes them."""
    def call(operator: str, name: str, *args: object) -> tuple[str, Callable[..., object], tuple]:
        return f"{operator}/{name}", getattr(library.kernels(operator), name), args

    x, one, active = empty(1, 1, 1, 1), labels(1), empty(dtype=torch.bool)
    boxes, mask = empty(1, 0, 4, dtype=torch.int32), empty(1, 1, 1, dtype=torch.bool)
    bits, peaks, window = labels(20), labels(1, 2), empty(1, 4, dtype=torch.float64)
    for name in ("blend", "blend_backward"):
        yield call("blend", name, x, labels(1, 1), empty(1, 1))
    for name in ("paste", "paste_backward"):
        yield call("paste", name, x, labels(1, 1), boxes)
    for name in ("patch_mix", "patch_mix_backward"):
        yield call("patch_mix", name, x, one, mask, empty(1))
    pixels = x.to(torch.uint8)
    tail = (empty(1), empty(1), empty(1, dtype=torch.bool), labels(1, 2), 0, False)
    yield call("view", "view", pixels, *tail)
    yield call("view", "view_blend", pixels, labels(1, 1), empty(1, 1), *tail)
    yield call("view", "view_paste", pixels, labels(1, 1), boxes, *tail)
    yield call("view", "view_patch_mix", pixels, one, mask, empty(1), *tail)
    yield call("saliency", "saliency_map", x, 1, 1)
    yield call("saliency", "saliency_mask", x, 1, 1, empty(1))
    yield call("saliency", "saliency_peak", x)
    yield call("saliency", "percentile_mask", empty(1, 1, 1), empty(1))
    yield call("crop", "crop", x, labels(1, 2), None, 0.0)
    yield call("crop", "crop", x, labels(1, 2), None, 1e-45)  # whose bits are the integer 1
    yield call("crop", "crop", x, labels(1, 2), empty(1, 1), 0.0)
    yield call("crop", "resized_crop", x, window, 1, 1, None, 0.0)
    yield call("crop", "resized_crop_backward", x, window, 1, 1)
    for k in (1, 2):
        for shares in (None, empty(1, k)):
            yield call("plan", "plan_blend", bits, shares, active, 1, 1, k, 0.2, 0.5, True)
            for where, centred in ((None, False), (peaks, False), (None, True)):
                yield call("plan", "plan_paste", bits, shares, active, where, 1, 1, k, 1, 1, 0.2, 1.0, False, centred)
    yield call("plan", "plan_cutout", bits, active, 1, 1, 1, 1, 1, 1.0, False)
    for shares in (None, empty(1, 2)):
        yield call("plan", "plan_patch", bits, shares, active, 1, 1, 1, 1.0, 1.0, False)
    yield call("plan", "write_bits", bits, 1)
    yield call("plan", "plan_crop", bits, empty(), active, 1, 1, 1, 1, 2.0, 0.01, 0.5)
    for code in Loss:
        yield call("soft_target", "soft_target", empty(1, 1), labels(1, 1), empty(1, 1), empty(1), None, empty(1),
                   empty(1), empty(), 0.1, -100, code.value, UNWEIGHTED, MEAN, True)
        yield call("soft_target", "soft_target", empty(1, 1, 2), labels(2, 1), None, None, empty(2), empty(2), None,
                   empty(2), 0.0, -100, code.value, Weighting.BY_BATCH_MEAN.value, MEAN, True)
        yield call("soft_target", "soft_target_dense", empty(1, 1), empty(1, 1), None, None, None, 0.0, code.value,
                   MEAN, True)
    yield call("soft_target", "scale_gradient_", empty(1, 1), empty())
    for kind, code in KINDS.items():
        cov = _cov(kind, 1, 1)
        yield call("covariance", "covariance_update_", one, empty(1, 1), cov, empty(1, 1, 1), labels(1, 1), None, code)
        for name in ("isda_logits", "isda_logits_backward"):
            yield call("isda", name, empty(1, 1), empty(1, 1), cov, one, empty(), 1.0, -100, code)
        yield call("isda_consistency", "isda_consistency", empty(1, 1), empty(1, 1), cov, empty(), None, 1.0, MEAN,
                   code, True)
