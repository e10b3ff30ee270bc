"""What has a goal on a GPU, and how it is measured: the goals of docs/gpu.md, one subject a row.

Shares of bandwidth are of a clone of the case's own batch in the same run, caches cold; "us in a graph" is the device's
time of a replay, "us a call" what the host takes to enqueue one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import fastmix
from fastmix import functional
from fastmix.reference import functional as reference

from ..cases.base import Case, dtype_name, generator, image_case_name, images, numel
from ..cases.blend import case as blend_case
from ..cases.mixers import case as mixer_case
from ..cases.paste import case as paste_case
from ..cases.patch_mix import GRID
from ..cases.patch_mix import case as mask_and_mix_case
from ..cases.soft_target import case as soft_target_case
from ..cases.view import case as view_case
from . import sequences

FP32, BF16 = torch.float32, torch.bfloat16
GROUPS = ("images", "loss", "calls", "isda", "compile")


@dataclass(frozen=True)
class Goal:
    """what: a key of `goals.MEASURES`."""

    what: str
    limit: float

    @property
    def at_least(self) -> bool:
        return self.what in ("share of copy", "x eager", "x compile")

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{self.what} {'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Subject:
    """name: as in the table of predictions, where it is there (else predicted: the row to compare with).

    make: a case of the bench, or a sequence of calls. precision: of float32 matrix products, torch's word.
    """

    name: str
    group: str
    shape: str
    dtype: str
    goals: tuple[Goal, ...]
    make: Callable[[torch.device], Case | sequences.Call]
    precision: str = "highest"
    predicted: str | None = None


def patch_mix_case(shape: tuple[int, ...], dtype: torch.dtype = FP32, channels_last: bool = False) -> Case:
    """patch_mix alone, its masks given."""
    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        x = images(shape, dtype, channels_last, device, g)
        mask = torch.rand(shape[0], *GRID, generator=g) < 0.5
        return x, torch.randperm(shape[0], generator=g).to(device), mask.to(device), torch.tensor(0.7, device=device)

    return Case(op="patch_mix", name=image_case_name(shape, dtype, channels_last), make=make,
                ours=functional.patch_mix, reference=reference.patch_mix, moved=2 * numel(shape) * dtype.itemsize,
                formula="2 N D s: x read, mixed written", operators=("patch_mix",), scratch=4096)


def _images(large: tuple[int, ...]) -> Iterator[Subject]:
    text = "x".join(map(str, large))
    share = (Goal("share of copy", 0.88),)

    def paste5(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Case:
        return paste_case(shape, 5, dtype, channels_last)

    for title, make in (("paste K=5", paste5), ("blend K=2", blend_case), ("patch_mix 4x4", patch_mix_case)):
        for dtype, last in ((FP32, False), (BF16, False), (FP32, True)):
            name = f"{title} {dtype_name(dtype)}{' channels_last' if last else ''}"
            yield Subject(name, "images", text, dtype_name(dtype), share,
                          lambda _, make=make, dtype=dtype, last=last: make(large, dtype=dtype, channels_last=last))
    yield Subject("mask + patch_mix 4x4 fp32", "images", text, "fp32", (Goal("x floor", 1.15),),
                  lambda _: mask_and_mix_case(large))
    yield Subject("DCutMix K=5 fp32", "images", text, "fp32", (Goal("x copy", 1.15),),
                  lambda _: mixer_case(fastmix.DCutMix(5, 1 / 3), large), predicted="paste K=5 fp32")
    for op, title in (("view", "view"), ("blend", "view_blend K=2"), ("paste", "view_paste K=2"),
                      ("patch_mix", "view_patch_mix 4x4")):
        yield Subject(f"{title} bf16 channels_last", "images", text, "bf16", (Goal("share of copy", 0.80),),
                      lambda _, op=op: view_case(op, large, BF16, True))


def _losses(small: bool) -> Iterator[Subject]:
    for n, j, dtype, goal in ((4096, 21841, BF16, Goal("share of copy", 0.85)),
                              (1024, 1000, FP32, Goal("us in a graph", 6))):
        name = f"soft_target {n}x{j} {dtype_name(dtype)}"
        n, j = (16, 100) if small else (n, j)
        yield Subject(name, "loss", f"{n}x{j}", dtype_name(dtype), (goal,),
                      lambda _, n=n, j=j, dtype=dtype: soft_target_case(n, j, dtype, backward=True, quick=False))


def _calls(small: bool) -> Iterator[Subject]:
    n, side = (8, 16) if small else (100, 32)
    yield Subject("rmix fp32", "calls", f"{n}x3x{side}x{side}", "fp32",
                  (Goal("us in a graph", 10), Goal("us a call", 30)),
                  lambda device: sequences.rmix(n, side, FP32, device.type))
    yield Subject("DCutMix K=5: plan, paste, targets, loss", "calls", f"{n}x3x{side}x{side}", "fp32",
                  (Goal("us in a graph", 25),), lambda device: sequences.dcutmix(n, side, 100, device.type))


def _isda(small: bool) -> Iterator[Subject]:
    full = (256, 50, 64) if small else (256, 1000, 2048)
    rows = (("diag", full, "fp32", 60.0), ("full", (128, 100, 64 if small else 640), "TF32", 120.0),
            ("full", full, "TF32", 10_000.0), ("full", full, "fp32", 40_000.0))
    for kind, (n, j, a), words, goal in rows:
        shape = f"N={n} J={j} A={a}"
        yield Subject(f"isda {kind} {shape} {words}", "isda", shape, words, (Goal("us in a graph", goal),),
                      lambda device, kind=kind, n=n, j=j, a=a: sequences.isda(kind, n, j, a, device.type),
                      "high" if words == "TF32" else "highest")


def _compiled(large: tuple[int, ...], small: bool) -> Iterator[Subject]:
    text = "x".join(map(str, large))
    yield Subject("mask + patch_mix 4x4 fp32, compiled", "compile", text, "fp32", (Goal("x compile", 2),),
                  lambda _: mask_and_mix_case(large))
    for subject in _losses(small):
        yield Subject(f"{subject.name}, compiled", "compile", subject.shape, subject.dtype, (Goal("x compile", 1.3),),
                      subject.make)


def subjects(small: bool = False) -> Iterator[Subject]:
    """All of them. small: shapes that a CPU gets through, to see that they run."""
    large = (8, 3, 32, 32) if small else (256, 3, 224, 224)
    yield from _images(large)
    yield from _losses(small)
    yield from _calls(small)
    yield from _isda(small)
    yield from _compiled(large, small)
