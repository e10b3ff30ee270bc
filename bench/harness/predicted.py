"""The table of docs/gpu.md: how long kernels should take on GPUs that are not here, from the committed budgets.

A kernel takes at least as long as its bytes take through the memory, and as its instructions take to be issued where
every scheduler issues one a cycle; the longer of the two is what is predicted. Neither latency, nor launches, nor what
a memory gives in practice (a copy gets about nine tenths) is in it, so shares are of a copy counted likewise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmix.app.results.render import markdown

from . import measured
from .entries import Entry

BUDGETS = "tests/backends"
CUDA, TRITON, TRAFFIC = (f"{BUDGETS}/{name}.json" for name in ("cuda_budget", "budget_triton", "traffic_budget"))
ELEMENTS = 256 * 3 * 224 * 224


@dataclass(frozen=True)
class Gpu:
    """bandwidth: bytes a second; clock in Hz, that of long kernels."""

    name: str
    bandwidth: float
    multiprocessors: int = 132
    clock: float = 1.755e9

    @property
    def issued(self) -> float:
        """Instructions a second, each of a thread: four schedulers issue one for 32 of them a cycle."""
        return self.multiprocessors * 4 * 32 * self.clock


GPUS = (Gpu("H100", 3.35e12), Gpu("H200", 4.8e12))


@dataclass(frozen=True)
class Prediction:
    """bytes: read from memory and written, of all elements; floor: with everything read once. goal: of a copy."""

    name: str
    backend: str
    bytes: float
    floor: float
    instructions: float | None  # an element; None: not read from machine code
    in_flight: float | None
    goal: float
    elements: int = ELEMENTS

    def seconds(self, gpu: Gpu) -> float:
        return max(self.bytes / gpu.bandwidth, (self.instructions or 0) * self.elements / gpu.issued)

    def bound(self, gpu: Gpu) -> str:
        return "memory" if self.seconds(gpu) == self.bytes / gpu.bandwidth else "instructions"

    def of_copy(self, gpu: Gpu) -> float:
        return self.floor / gpu.bandwidth / self.seconds(gpu)


DTYPES = {"fp32": ("float32", 4, "float", "unsigned int"), "bf16": ("bfloat16", 2, "bf16", "unsigned short")}


def _pieces(itemsize: int, last: bool, rows: int) -> str:
    """The CUDA kernels' second template argument for images of three channels."""
    pack = 16 // itemsize
    return f"RowPieces<{pack}, {rows}> >" if last else f"PlanePieces<{pack}, 3> >"


def _of_images(cuda: Entry, triton: Entry, traffic: Entry) -> Iterator[Prediction]:
    for op, title, case in (("paste", "paste K=5", "k=5"), ("blend", "blend K=2", "k=2"),
                            ("patch_mix", "patch_mix 4x4", "4x4")):
        for short, (dtype, size, scalar, word) in DTYPES.items():
            for last in (False, True):
                layout = " channels_last" if last else ""
                read = max(traffic[f"{title} {dtype}{layout}"].values())
                numbers = (ELEMENTS * size * (read + 1), ELEMENTS * size * 2)
                kernel = f"{op}_kernel<{word if op == 'paste' else scalar}, {_pieces(size, last, 2)}"
                found = {"cuda": cuda.get(kernel), "triton": triton[op]["sm_90"].get(
                    f"{case} 256x3x224x224{layout} {short}/_{op}_kernel")}
                for backend, entry in found.items():
                    if entry is not None:
                        yield Prediction(f"{title} {short}{layout}", backend, *numbers, entry["instructions"],
                                         entry["in_flight"], 0.88)


def _of_views(cuda: Entry, triton: Entry) -> Iterator[Prediction]:
    views = (("view", "alone", "paste"), ("view_blend K=2", "blend k=2", "blend"),
             ("view_patch_mix 4x4", "patch_mix 4x4", "patch_mix"))
    for number, (title, case, kernel) in enumerate(views):
        for last in (False, True):
            layout = " channels_last" if last else ""
            found = {"cuda": cuda[f"view_kernel<bf16, {_pieces(2, last, 4)[:-2]}, (ViewMix){number}>"],
                     "triton": triton["view"]["sm_90"][f"{case} 256x3x224x224 bf16{layout}/_view_{kernel}_kernel"]}
            for backend, entry in found.items():
                yield Prediction(f"{title} bf16{layout}", backend, ELEMENTS * 3, ELEMENTS * 3, entry["instructions"],
                                 entry["in_flight"], 0.80)


def predictions(root: Path) -> list[Prediction]:
    """root: of a checkout."""
    cuda, triton, traffic = (json.loads((root / path).read_text()) for path in (CUDA, TRITON, TRAFFIC))
    rows = [*_of_images(cuda["sm_90"], triton, traffic), *_of_views(cuda["sm_90"], triton)]
    for n, j, size, dtype, kernel in ((4096, 21841, 2, "bf16", "<bf16, (TargetKind)0, 256, -1, 256>"),
                                      (1024, 1000, 4, "fp32", "<float, (TargetKind)0, 32, 8, 128>")):
        moved, entry = 2 * n * j * size, cuda["sm_90"][f"soft_target_rows{kernel}"]
        name = f"soft_target {n}x{j} {dtype}"
        rows.append(Prediction(name, "cuda", moved, moved, entry["instructions"], entry["in_flight"], 0.85, n * j))
        rows.append(Prediction(name, "triton", moved, moved, None, None, 0.85, n * j))
    return rows


def of_gpu(results: Sequence[measured.Found], gpu: Gpu) -> list[Entry]:
    """The rows of the last result of a GPU that is called so."""
    found = [result for _, result in results if gpu.name in result["machine"]["name"]]
    return list(measured.rows(found[-1])) if found else []


def table(root: Path, results: Sequence[measured.Found] = ()) -> str:
    """results: of the device check's goals, each with its link; what they measured stands beside what is predicted."""
    found = {gpu.name: rows for gpu in GPUS if (rows := of_gpu(results, gpu))}
    head = ["kernel", "backend", "bytes", "instructions an element", "under way on an SM",
            *(f"{gpu.name}, predicted" for gpu in GPUS), "of a copy, predicted",
            *(f"{name}, measured" for name in found), "goal"]
    rows = []
    for p in predictions(root):
        missed = [gpu.name for gpu in GPUS if p.of_copy(gpu) < p.goal]
        rows.append([
            p.name, p.backend, f"{p.bytes / 1e6:.0f} MB", "-" if p.instructions is None else f"{p.instructions:g}",
            "-" if p.in_flight is None else f"{p.in_flight / 1024:.0f} KB",
            *(f"{p.seconds(gpu) * 1e6:.3g} us ({p.bound(gpu)})" for gpu in GPUS),
            " / ".join(f"{p.of_copy(gpu):.0%}" for gpu in GPUS),
            *(measured.cell(row for row in rows if row["name"] == p.name and row["backend"] in p.backend.split(", "))
              for rows in found.values()),
            f">= {p.goal:.0%}" + (f", MISSED on {' and '.join(missed)}" if missed else "")])
    return "\n\n".join([markdown([head, *rows]), *measured.sources(results)])
