"""Compiles the Triton kernels as their launchers would launch them, for GPUs that are not here.

A launcher runs on meta tensors with its launch recorded instead of run; Triton then specialises and compiles the
recorded arguments for a target. ``make budgets`` writes tests/backends/budget_triton.json: registers, spills, shared
memory and the widest global load and store of every kernel. Of those that move images it holds for sm_90 what the
machine code does as well, see `helpers.sass`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from fastmix.ops import library
from fastmix.ops.covariance import KINDS, cov_shape
from fastmix.ops.enums import FLOAT_TYPES, Loss, Reduction, Weighting, codes

from . import ROOT, sass

MEAN, UNWEIGHTED = Reduction.MEAN.value, Weighting.UNWEIGHTED.value
BUDGET = ROOT / "tests" / "backends" / "budget_triton.json"
TARGETS = (80, 90, 100)
# Whose machine code is read, and of which operators.
READ = 90
MOVES_IMAGES = ("blend", "paste", "patch_mix", "view", "crop")
# Kernels whose products are read, and the multiply-adds of a program in a turn of their loop.
PRODUCTS: dict[str, Callable[[dict], int]] = {
    "_full_table_kernel": lambda o: o["ROWS"] * o["PANEL"] * o["DEPTH"],
    "_full_gradient_kernel": lambda o: o["ROWS"] * o["PANEL"] * o["DEPTH"],
    "_pair_table_kernel": lambda o: (2 if o["KIND"] == KINDS["diag"] else 1) * o["SLOTS"] * o["ROWS"] * o["DEPTH"],
    "_pair_gradient_kernel": lambda o: (2 if o["KIND"] == KINDS["diag"] else 1) * o["ROWS"] * o["COLUMNS"] * o["DEPTH"],
    "_pull_kernel": lambda o: o["SLOTS"] * o["COLUMNS"] * o["DEPTH"],
    "_tiles_kernel": lambda o: o["SIDE"] ** 2 * o["DEPTH"],
    "_share_tiles_kernel": lambda o: o["SIDE"] ** 2 * o["DEPTH"],
}
# Modules with launches of their own beside an operator's.
SHARED = ("_by_source", "_classes", "_counter", "_isda_table", "isda_kept", "saliency_grids")
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


class _Driver:
    """What Triton asks of a driver before it launches."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def empty(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> torch.Tensor:
    t = torch.empty(shape, dtype=dtype, device="meta")
    return t.contiguous(memory_format=torch.channels_last) if channels_last else t


def labels(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int64)


Case = tuple[str, Callable[..., object], tuple]
IMAGES = ((256, 3, 224, 224), (100, 3, 32, 32))


def soft_target_cases() -> Iterator[Case]:
    kernels = library.kernels("soft_target")
    for dtype in SHORT:
        name = SHORT[dtype]
        for n, j in ((1024, 1000), (4096, 21841), (128, 100), (64, 32768), (64, 50257)):
            if dtype in (torch.float16, torch.float64) and j != 1000:
                continue
            for loss, code in codes(Loss).items():
                z = empty(n, j, dtype=dtype)
                args = (z, labels(n, 2), empty(n, 2), empty(n), None, empty(n), None, None, 0.1, -100, code,
                        UNWEIGHTED, MEAN)
                yield f"{loss} {n}x{j} {name}", kernels.soft_target, (*args, True)
                if loss == "cross_entropy":
                    yield f"{loss} {n}x{j} {name} loss only", kernels.soft_target, (*args, False)
                if j in (1000, 50257) or (j == 21841 and loss == "cross_entropy"):
                    yield (f"{loss} dense {n}x{j} {name}", kernels.soft_target_dense,
                           (z, empty(n, j), None, None, None, 0.0, code, MEAN, True))
        z, y = empty(1024, 1000, dtype=dtype), labels(1024, 1)
        labelled = (-100, Loss.CROSS_ENTROPY.value, UNWEIGHTED, MEAN, True)
        yield (f"labels 1024x1000 {name}", kernels.soft_target, (z, y, *[None] * 6, 0.0, *labelled))
        yield (f"class weights 1024x1000 {name}", kernels.soft_target,
               (z, y, *[None] * 4, empty(1000), empty(), 0.1, *labelled))
        yield (f"confidence 1024x1000 {name}", kernels.soft_target,
               (z, y, None, None, empty(1024), None, None, None, 0.0, -100, Loss.KL.value, Weighting.BY_SAMPLE.value,
                MEAN, True))
        maps, y = empty(8, 19, 128 * 128, dtype=dtype), labels(8 * 128 * 128, 1)
        yield f"pixels 8x19x16384 {name}", kernels.soft_target, (maps, y, *[None] * 6, 0.0, *labelled)
        yield (f"bce pixels 8x19x16384 {name}", kernels.soft_target,
               (maps, y, *[None] * 6, 0.0, -100, Loss.BCE.value, UNWEIGHTED, MEAN, True))
        yield f"scale 1024x1000 {name}", kernels.scale_gradient_, (empty(1024, 1000, dtype=dtype), empty())


def _images() -> Iterator[tuple[str, torch.Tensor]]:
    for dtype in (torch.float32, torch.bfloat16):
        for shape in IMAGES:
            for last in (False, True):
                name = "x".join(map(str, shape)) + (" channels_last " if last else " ") + SHORT[dtype]
                yield name, empty(*shape, dtype=dtype, channels_last=last)
    for dtype in (torch.float16, torch.float64):
        yield f"256x3x224x224 {SHORT[dtype]}", empty(256, 3, 224, 224, dtype=dtype)


def blend_cases() -> Iterator[Case]:
    kernels = library.kernels("blend")
    for dtype in SHORT:
        x = empty(256, 3, 224, 224, dtype=dtype)
        for k in (2, 5, 12):
            yield f"k={k} 256x3x224x224 {SHORT[dtype]}", kernels.blend, (x, labels(256, k), empty(256, k))
        yield f"k=2 256x3x224x224 {SHORT[dtype]} backward", kernels.blend_backward, (x, labels(256, 2), empty(256, 2))


def paste_cases() -> Iterator[Case]:
    kernels = library.kernels("paste")
    for name, x in _images():
        n = x.shape[0]
        for k in (2, 5, 12):
            boxes = empty(n, k - 1, 4, dtype=torch.int32)
            yield f"k={k} {name}", kernels.paste, (x, labels(n, k), boxes)
            if k == 5:
                yield f"k={k} {name} backward", kernels.paste_backward, (x, labels(n, k), boxes)


def patch_mix_cases() -> Iterator[Case]:
    kernels = library.kernels("patch_mix")
    for name, x in _images():
        n = x.shape[0]
        args = (x, labels(n), empty(n, 4, 4, dtype=torch.bool), empty(n))
        yield f"4x4 {name}", kernels.patch_mix, args
        yield f"4x4 {name} backward", kernels.patch_mix_backward, args


def view_cases() -> Iterator[Case]:
    kernels = library.kernels("view")
    for n, c, height, width in IMAGES:
        for code, dtype in enumerate(FLOAT_TYPES):
            for last in (False, True):
                if (dtype in (torch.float16, torch.float64) or n == 100) and last:
                    continue
                if dtype in (torch.float16, torch.float64) and n == 100:
                    continue
                x = empty(n, c, height, width, dtype=torch.uint8, channels_last=last)
                tail = (empty(c), empty(c), empty(n, dtype=torch.bool), labels(n, 2), code, last)
                name = f"{n}x{c}x{height}x{width} {SHORT[dtype]}" + (" channels_last" if last else "")
                yield f"alone {name}", kernels.view, (x, *tail)
                yield f"blend k=2 {name}", kernels.view_blend, (x, labels(n, 2), empty(n, 2), *tail)
                boxes = empty(n, 2, 4, dtype=torch.int32)
                yield f"paste k=3 {name}", kernels.view_paste, (x, labels(n, 3), boxes, *tail)
                mask = empty(n, 4, 4, dtype=torch.bool)
                yield f"patch_mix 4x4 {name}", kernels.view_patch_mix, (x, labels(n), mask, empty(n), *tail)
                if dtype == torch.bfloat16 and last:
                    still = (*tail[:2], None, None, code, last)
                    yield f"normalise {name}", kernels.view, (x, *still)
                    turned = empty(n, c, height, width, dtype=torch.uint8)
                    yield f"blend k=5 from contiguous {name}", kernels.view_blend, (
                        turned, labels(n, 5), empty(n, 5), *tail)


def saliency_cases() -> Iterator[Case]:
    kernels = library.kernels("saliency")
    for name, g in _images():
        n, _, height, width = g.shape
        yield f"map 4x4 {name}", kernels.saliency_map, (g, 4, 4)
        yield f"mask 4x4 {name}", kernels.saliency_mask, (g, 4, 4, empty(n))
        yield f"mask of pixels {name}", kernels.saliency_mask, (g, height, width, empty(n))
        yield f"peak {name}", kernels.saliency_peak, (g,)
        yield (f"mask of grids {name}", library.kernels("saliency_grids").saliency_mask_of_grid,
               (g, [2, 4], labels(), empty(n)))
    yield "map 4x4 256x12x224x224 bf16", kernels.saliency_map, (empty(256, 12, 224, 224, dtype=torch.bfloat16), 4, 4)
    yield "mask 112x112", kernels.percentile_mask, (empty(256, 112, 112), empty(256))


def crop_cases() -> Iterator[Case]:
    kernels = library.kernels("crop")
    for name, x in _images():
        n, channels, height, width = x.shape
        fill, box = empty(n, channels, dtype=x.dtype), empty(n, 4, dtype=torch.float64)
        yield f"crop {name}", kernels.crop, (x, labels(n, 2), None, 0.0)
        yield f"crop colours {name}", kernels.crop, (x, labels(n, 2), fill, 0.0)
        yield f"resized {name}", kernels.resized_crop, (x, box, height, width, fill, 0.0)
        yield f"resized {name} backward", kernels.resized_crop_backward, (x, box, height, width)


def plan_cases() -> Iterator[Case]:
    kernels = library.kernels("plan")
    active = empty(dtype=torch.bool)
    seed = labels(1)
    for n in (100, 1024):
        bits = labels(20 * n)
        for k in (2, 5):
            yield f"blend k={k} {n}", kernels.plan_blend, (seed, None, active, n, n, k, 0.2, 0.5, True)
            yield (f"nested k={k} {n}", kernels.plan_paste,
                   (seed, None, active, None, n, n, k, 32, 32, 0.2, 0.5, False, False))
        yield (f"peaks {n}", kernels.plan_paste,
               (seed, None, active, labels(n, 2), n, n, 3, 32, 32, 0.2, 1.0, False, False))
        yield f"centred {n}", kernels.plan_paste, (seed, None, active, None, n, 1, 2, 32, 32, 1.0, 1.0, False, True)
        yield (f"nested, given shares {n}", kernels.plan_paste,
               (bits, empty(n, 3), active, None, n, n, 3, 32, 32, 0.2, 0.5, False, False))
        yield f"cutout {n}", kernels.plan_cutout, (bits, active, n, n, 32, 32, 16, 1.0, False)
        yield f"crop {n}", kernels.plan_crop, (bits, empty(), active, n, 32, 32, 100, 2.0, 0.01, 0.5)
        yield f"patch {n}", kernels.plan_patch, (seed, None, active, n, 10, 2, 1.0, 1.0, False)
    yield "keys 20000", kernels.write_bits, (seed, 20000)


def _cov(kind: str, j: int, a: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return empty(*cov_shape(kind, j, a), dtype=dtype)


# N, J, A: CIFAR-100 on a WideResNet-28-10, ImageNet on a ResNet-50.
FEATURES = ((128, 100, 640), (256, 1000, 2048))


def covariance_cases() -> Iterator[Case]:
    kernels = library.kernels("covariance")
    for n, j, a in FEATURES:
        for kind, code in KINDS.items():
            for dtype in (torch.float32, torch.bfloat16)[:2 if kind == "full" else 1]:
                state = (labels(j), empty(j, a), _cov(kind, j, a))
                yield (f"{kind} {n}x{j}x{a} {SHORT[dtype]}", kernels.covariance_update_,
                       (*state, empty(n, a, 1, dtype=dtype), labels(n, 1), None, code))
    for kind in ("full", "diag"):
        state = (labels(19), empty(19, 512), _cov(kind, 19, 512))
        yield (f"{kind} pixels 2x19x97x97", kernels.covariance_update_,
               (*state, empty(2, 512, 97 * 97), labels(2, 97 * 97), 255, KINDS[kind]))
        double = (labels(10), empty(10, 64, dtype=torch.float64), _cov(kind, 10, 64, torch.float64))
        yield (f"{kind} 64x10x64 fp64", kernels.covariance_update_,
               (*double, empty(64, 64, 1, dtype=torch.float64), labels(64, 1), None, KINDS[kind]))


def isda_cases() -> Iterator[Case]:
    kernels, kept = library.kernels("isda"), library.kernels("isda_kept")
    for name, call in (("", kernels.isda_logits), (" backward", kernels.isda_logits_backward)):
        for kind, code in KINDS.items():
            for n, j, a in FEATURES:
                for dtype in (torch.float32, torch.bfloat16)[:2 if kind == "diag" else 1]:
                    yield (f"{kind} {n}x{j}x{a} {SHORT[dtype]}{name}", call,
                           (empty(n, j, dtype=dtype), empty(j, a), _cov(kind, j, a), labels(n), None, 0.5, -100, code))
            if kind in ("full", "diag"):
                double = torch.float64
                yield (f"{kind} 64x10x64 fp64{name}", call,
                       (empty(64, 10, dtype=double), empty(10, 64, dtype=double), _cov(kind, 10, 64, double),
                        labels(64), None, 0.5, -100, code))
        for n, j, a in FEATURES if not name else ():
            yield (f"full kept {n}x{j}x{a} fp32", kept.isda_logits_kept,
                   (empty(n, j), empty(j, a), _cov("full", j, a), labels(n), None, 0.5, -100, KINDS["full"]))
            yield (f"full kept {n}x{j}x{a} fp32 backward", kept.isda_logits_kept_backward,
                   (empty(n, j), empty(min(n, j), j, a), labels(n), None, 0.5, -100))
        for n, j in ((2, 19), (4, 150)):
            yield (f"diag pixels {n}x{j}x97x97{name}", call,
                   (empty(n, j, 97 * 97), empty(j, 512), _cov("diag", j, 512), labels(n, 97 * 97), empty(), 1.0, -100,
                    KINDS["diag"]))


def isda_consistency_cases() -> Iterator[Case]:
    kernels = library.kernels("isda_consistency")
    for kind in ("full", "identity"):
        for dtype in (torch.float32, torch.bfloat16):
            yield (f"{kind} 128x100x128 {SHORT[dtype]}", kernels.isda_consistency,
                   (empty(128, 100, dtype=dtype), empty(100, 128), _cov(kind, 100, 128), empty(), None, 1.0, MEAN,
                    KINDS[kind], True))


def in_tf32(cases: Callable[[], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
    """The cases' float32 products on tensor cores."""
    def rounded() -> Iterator[Case]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield from (case for case in cases() if "fp64" not in case[0] and "bf16" not in case[0])
        finally:
            torch.set_float32_matmul_precision(before)
    return rounded


OPERATORS = {"soft_target": soft_target_cases, "blend": blend_cases, "paste": paste_cases,
             "patch_mix": patch_mix_cases, "view": view_cases, "saliency": saliency_cases, "crop": crop_cases,
             "plan": plan_cases, "covariance": covariance_cases, "isda": isda_cases,
             "isda_consistency": isda_consistency_cases, "covariance in tf32": in_tf32(covariance_cases),
             "isda in tf32": in_tf32(isda_cases)}


def launches(operator: str) -> dict[str, tuple]:
    """case/kernel -> (kernel, arguments, options) of everything that an operator's cases launch."""
    return launched([operator.split()[0]], OPERATORS[operator]())


def launched(modules: Iterable[str], cases: Iterator[Case]) -> dict[str, tuple]:
    """The same of any cases of the operators in these modules of kernels."""
    found: dict[str, tuple] = {}
    places = [m for m in map(library.kernels, (*modules, *SHARED)) if hasattr(m, "launch")]
    before = [m.launch for m in places]
    try:
        for case, call, args in cases:
            def record(kernel, programs, device, *kernel_args, case=case, **options):
                assert programs > 0
                key = f"{case}/{kernel.fn.__name__}"
                key += f" {sum(k.startswith(key) for k in found) + 1}" if key in found else ""
                found[key] = (kernel, kernel_args, options)
            for m in places:
                m.launch = record
            call(*args)
    finally:
        for m, launch in zip(places, before, strict=True):
            m.launch = launch
    return found


def _width(ptx: str, instruction: str) -> int:
    """Bytes of the widest access."""
    widths = [int(count or 1) * int(bits) // 8 for count, bits in
              re.findall(rf"{instruction}\.global(?:\.[a-z_0-9:]+?)*?(?:\.v(\d))?\.b(\d+)", ptx)]
    return max(widths, default=0)


@contextmanager
def as_target(capability: int) -> Iterator[GPUTarget]:
    """Kernels are compiled for this GPU."""
    before = driver._active  # reading driver.active would ask for a GPU
    there = _Driver(capability)
    driver.set_active(there)
    try:
        yield there.get_current_target()
    finally:
        driver._active = before


def compile_for(capability: int, kernel, args: tuple, options: dict, reads: bool = False) -> dict[str, float]:
    """reads: its machine code too."""
    with as_target(capability):
        compiled = kernel.run(*args, grid=(1,), warmup=True, **options)
    report = _cuobjdump(compiled.asm["cubin"], "--dump-resource-usage")
    stack, registers = (int(re.search(rf"{word}:(\d+)", report).group(1)) for word in ("STACK", "REG"))
    numbers = {"registers": registers, "stack": stack, "shared": compiled.metadata.shared,
               "warps": compiled.metadata.num_warps, "load": _width(compiled.asm["ptx"], "ld"),
               "store": _width(compiled.asm["ptx"], "st")}
    if reads and capability == READ:
        elements = options.get("ROWS", 1) * options.get("COLUMNS", options.get("BLOCK"))
        threads = 32 * compiled.metadata.num_warps
        numbers |= _read(compiled.asm["cubin"], elements / threads, threads, registers, compiled.metadata.shared)
    products = PRODUCTS.get(kernel.fn.__name__)
    if products is not None and capability == READ:
        code = _code(compiled.asm["cubin"])
        if code.product_loops:  # not in float64
            numbers |= code.products(products(options), 32 * compiled.metadata.num_warps)
    return numbers


def _code(cubin: bytes) -> sass.Code:
    _, _, listing = next(iter(sass.listings(_cuobjdump(cubin, "-sass").splitlines())))
    return sass.Code(tuple(sass.instructions(listing)))


def _cuobjdump(cubin: bytes, option: str) -> str:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([folder / "cuobjdump", option, file.name], capture_output=True, text=True, check=True,
                              env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}).stdout


def _read(cubin: bytes, elements: float, threads: int, registers: int, shared: int) -> dict[str, float]:
    """What a kernel's machine code does: every loop that moves data one turn."""
    code = _code(cubin)
    ways = [code.steady, *(code.turn(loop) for loop in code.data_loops)]
    flight = max(map(sass.in_flight, ways), key=lambda flight: (flight.bytes, flight.wide))
    return {"instructions": round(code.executed(1) / elements, 1), "loads_first": flight.wide,
            "in_flight": flight.bytes * sass.resident_threads(registers, threads, shared)}


def measure(operator: str, capability: int) -> dict[str, dict[str, float]]:
    return {key: compile_for(capability, *launch, reads=operator in MOVES_IMAGES and "_by_source" not in key)
            for key, launch in launches(operator).items()}


def interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)


def version() -> str:
    """The registers and shared memory that the budget holds are those of one minor version."""
    return ".".join(triton.__version__.split(".")[:2])


def main() -> None:
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    if budget.get("triton") != version():
        budget = {"triton": version()}
    for operator in sys.argv[1:] or OPERATORS:
        budget[operator] = {f"sm_{capability}": measure(operator, capability) for capability in TARGETS}
    text = json.dumps(budget, indent=1)
    a_line_each = re.sub(r'\{\s+("registers"[^}]*?)\s+\}', lambda m: "{" + re.sub(r"\s+", " ", m[1]) + "}", text)
    BUDGET.write_text(a_line_each + "\n")


if __name__ == "__main__":
    main()
