"""What a thread of a CUDA kernel does in one go, by the kernel's name: what machine code is measured against."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .sass import Code, Flight, in_flight, resident_threads

# Bytes that an SM wants under way at 3 to 4 TB/s: latency times bandwidth (Little's law), over 132 SMs.
WANTED = 32 * 1024


@dataclass(frozen=True)
class Work:
    """elements: of a thread, on the steady way with so many turns of the loops that move data; with `streams` of one
    turn of such a loop alone; with `products` multiply-adds instead, of one turn of the loop that uses tensor cores.
    threads: of a block."""

    elements: int
    threads: int
    turns: int = 0
    streams: bool = False
    products: bool = False

    def instructions(self, code: Code) -> float:
        """Per element."""
        if self.products:
            return code.products(self.elements * self.threads, self.threads)["instructions"]
        if self.streams:
            return min(len(code.turn(loop)) / max(1, sum(i.wide and bool(i.loaded) for i in code.turn(loop)))
                       for loop in code.data_loops) / self.elements
        return code.executed(self.turns) / self.elements

    def flight(self, code: Code) -> Flight:
        """Where most is under way: on the steady way, or in a turn."""
        ways = [code.steady, *(code.turn(loop) for loop in code.data_loops)]
        return max(map(in_flight, ways), key=lambda flight: (flight.bytes, flight.wide))

    def per_sm(self, code: Code, registers: int, shared: int) -> int:
        """Bytes under way on an SM, as if every lane loaded all that its predicates allow."""
        return self.flight(code).bytes * resident_threads(registers, self.threads, shared)


def _pieces(turns: int) -> Callable[[re.Match[str]], Work]:
    return lambda m: Work(int(m["n"]) * int(m["count"]), 128, turns)


PIECES = r"(Plane|Row)Pieces<(?P<n>\d+), (?P<count>\d+)>"
# The K of blend; every image has one reader, on average.
KERNELS: tuple[tuple[str, Callable[[re.Match[str]], Work]], ...] = (
    (rf"(paste|patch_mix)_kernel<[\w ]+, {PIECES}", _pieces(0)),
    (rf"(paste|patch_mix)_backward_kernel<[\w ]+, {PIECES}", _pieces(1)),
    (rf"view_kernel<[\w ]+, {PIECES}, \(ViewMix\)0", _pieces(1)),
    (rf"view_kernel<[\w ]+, {PIECES}, \(ViewMix\)1", _pieces(2)),
    (rf"view_kernel<[\w ]+, {PIECES}, \(ViewMix\)2", _pieces(0)),
    # Two products of 64 x 64 x 16 by 128 threads, or one.
    (r"isda_(table|gradient)_kernel<float>", lambda m: Work(1024, 128, products=True)),
    (r"isda_pull_kernel<float>", lambda m: Work(512, 128, products=True)),
    (r"isda_add_kernel<(?P<type>float|bf16|f16), ", lambda m: Work(4 if m["type"] == "float" else 8, 256, 1, True)),
    (r"scale_gradient_kernel<\w+, (?P<n>[248])>", lambda m: Work(int(m["n"]), 256, 1, True)),
)


def work_of(kernel: str) -> Work | None:
    for pattern, make in KERNELS:
        if match := re.match(pattern, kernel):
            return make(match)
    return None


# Kernels that have less than WANTED under way, by pattern: how much they have at least, and why that is right.
EXCEPTIONS = {
    r".*Pieces<1, ": (0, "one element at a time, of images whose planes are no whole packs"),
    r"isda_(table|pull|gradient)_kernel": (8 * 1024, "bound by products; what they read lies in the L2 cache"),
    r"isda_add_kernel": (8 * 1024, "a pack a thread: logits are a megabyte, which takes less than a launch"),
    r"view_kernel<double": (0, "bytes one by one, and eight written for each: writes need no waiting"),
    r"view_kernel<": (20 * 1024, "bytes are read and two or four times as many written, which need no waiting"),
}


def wanted_in_flight(kernel: str) -> int:
    return next((least for pattern, (least, _) in EXCEPTIONS.items() if re.match(pattern, kernel)), WANTED)
