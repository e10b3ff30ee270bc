"""Predicted times of what is bound by products or launches: ISDA and R-Mix, from the machine code and bytes on paper.

A step's kernels one after the other; each takes the longest of its bytes through the memory, its instructions, and its
multiply-adds on tensor cores. Nothing here was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from fastmix.app.results.render import markdown

from .entries import Entry
from .predicted import CUDA, GPUS, TRITON, Gpu

# Multiply-adds of TF32 that an SM's tensor cores take a cycle: by a group of four warps, and by one warp alone, which
# reaches about five eighths of them on an H100.
OF_GROUP, OF_WARP = 1024, 640


@dataclass(frozen=True)
class Kernel:
    """bytes through the memory; instructions of a thread, of all threads; multiply_adds of tensor cores."""

    bytes: float = 0
    instructions: float = 0
    multiply_adds: float = 0
    rate: int = OF_GROUP

    def seconds(self, gpu: Gpu) -> float:
        return max(self.bytes / gpu.bandwidth, self.instructions / gpu.issued,
                   self.multiply_adds / (self.rate * gpu.multiprocessors * gpu.clock))


@dataclass(frozen=True)
class Step:
    """launches: of our kernels; those not in `kernels` take a launch's time."""

    name: str
    backend: str
    kernels: tuple[Kernel, ...]
    launches: int
    goal: float | None  # seconds

    def seconds(self, gpu: Gpu) -> float:
        return sum(kernel.seconds(gpu) for kernel in self.kernels)

    @property
    def multiply_adds(self) -> float:
        return sum(kernel.multiply_adds for kernel in self.kernels)


def present(rows: int, classes: int) -> int:
    """Classes that a batch of uniform labels holds, on average."""
    return round(classes * (1 - (1 - 1 / classes) ** rows))


def whole(length: int, tile: int) -> int:
    return ceil(length / tile) * tile


def diagonal(cuda: Entry, n: int, j: int, a: int) -> tuple[Kernel, ...]:
    """isda_logits and its backward in CUDA, float32."""
    u = present(n, j)
    slots, rows, features = whole(u, 64), whole(j, 64), whole(a, 64)

    def products(name: str, count: int, multiply_adds: int, moved: float) -> Kernel:
        entry = cuda[f"isda_{name}_kernel<float>"]
        return Kernel(moved, entry["instructions"] * count * multiply_adds, 3 * count * multiply_adds, OF_WARP)

    return (products("table", 2, slots * rows * whole(a, 16), 4 * (u * a + j * a + u * j)),
            Kernel(4 * (2 * n * j)),
            Kernel(4 * (n * j + u * j)),
            products("pull", 1, slots * whole(j, 16) * features, 4 * (u * j + j * a + u * a)),
            products("gradient", 2, whole(u, 16) * rows * features, 4 * (u * j + u * a + 2 * j * a)))


def full(triton: dict[str, Entry], n: int, j: int, a: int, tf32: bool, update: bool) -> tuple[Kernel, ...]:
    """covariance_update_ where asked for, isda_logits with its products kept, and its backward, on Triton."""
    u, suffix = present(n, j), " in tf32" if tf32 else ""
    times = 1 if tf32 else 3
    table = triton[f"isda{suffix}"]["sm_90"][f"full kept {n}x{j}x{a} fp32/_full_table_kernel"]
    tiles = triton[f"covariance{suffix}"]["sm_90"][f"full {n}x{j}x{a} fp32/_tiles_kernel"]
    side = whole(a, 64)
    # Sixteen rows deep at least, tiles on and below the diagonal.
    depth = u * 16 * side * (side + 64) // 2
    multiply_adds = u * whole(j, 128) * whole(a, 128) * whole(a, 32)
    product = 4 * u * j * a
    return (*((Kernel(4 * u * a * a * 1.5, tiles["instructions"] * depth, times * depth),) if update else ()),
            Kernel(4 * u * a * a + product, table["instructions"] * multiply_adds, times * multiply_adds),
            Kernel(4 * 2 * n * j), Kernel(4 * (n * j + u * j)), Kernel(product + 4 * ceil(j / 64) * u * a),
            Kernel(4 * (ceil(j / 64) * u * a + 2 * j * a)))


def steps(root: Path) -> Iterator[Step]:
    cuda, triton = (json.loads((root / path).read_text()) for path in (CUDA, TRITON))
    yield Step("isda diag 256x1000x2048", "cuda", diagonal(cuda["sm_90"], 256, 1000, 2048), 7, 60e-6)
    yield Step("isda diag 128x100x640", "cuda", diagonal(cuda["sm_90"], 128, 100, 640), 7, None)
    for n, j, a, name, goals in ((128, 100, 640, "CIFAR-100", (120e-6, None)),
                                 (256, 1000, 2048, "ImageNet", (10e-3, 40e-3))):
        for tf32, goal in zip((True, False), goals, strict=True):
            update = name == "ImageNet"
            yield Step(f"isda full {n}x{j}x{a} {'TF32' if tf32 else 'float32'}{' + update' if update else ''}",
                       "triton", full(triton, n, j, a, tf32, update), 13 if update else 7, goal)
    images = 4 * 100 * 3 * 32 * 32
    # What the mask reads, what the mixing reads and writes; the plan and the mask of the drawn grid are small.
    yield Step("RMix 100x3x32x32 fp32", "cuda", (Kernel(images), Kernel(2 * images)), 3, 10e-6)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def table(root: Path) -> str:
    rows = [["step", "backend", "multiply-adds of tensor cores", "bytes", "launches",
             *(f"{gpu.name}, predicted" for gpu in GPUS), "goal"]]
    for step in steps(root):
        missed = [gpu.name for gpu in GPUS if step.goal is not None and step.seconds(gpu) > step.goal]
        goal = "-" if step.goal is None else f"<= {_time(step.goal)}" + (
            f", MISSED on {' and '.join(missed)}" if missed else "")
        rows.append([step.name, step.backend, f"{step.multiply_adds / 1e9:.3g} G" if step.multiply_adds else "-",
                     f"{sum(k.bytes for k in step.kernels) / 1e6:.3g} MB", str(step.launches),
                     *(_time(step.seconds(gpu)) for gpu in GPUS), goal])
    return markdown(rows)
