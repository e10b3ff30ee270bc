"""What a thread of a CUDA kernel does in one go, by the kernel's name: what machine code is measured against."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .sass import Code, Flight, Instruction, in_flight, resident_threads

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


def _exponential(i: Instruction) -> bool:
    return i.opcode == "MUFU.EX2"


def _maximum(i: Instruction) -> bool:
    return i.name in ("FMNMX", "HMNMX2", "VHMNMX")


@dataclass(frozen=True)
class Row(Work):
    """A row that a thread's group keeps in registers: a turn of the loop over rows that leaves out none of its passes,
    all that a row costs beside them included. elements: of a thread."""

    def _turn(self, code: Code) -> list[Instruction]:
        over_rows = max(code.loops, key=lambda loop: sum(
            i.wide and bool(i.loaded) for address in loop.body for i in code.blocks[address].instructions))
        return code.turn(over_rows, lambda i: _exponential(i) or _maximum(i))

    def instructions(self, code: Code) -> float:
        return len(self._turn(code)) / self.elements

    def flight(self, code: Code) -> Flight:
        return in_flight(self._turn(code))


@dataclass(frozen=True)
class Passes(Work):
    """Loops over a row one after another, each once: a copy to shared memory, the maximum, the sum, the gradient. What
    a row costs beside them is not counted. elements: of a pack. staged: bytes of a row whose copy is under way as a
    whole, 0: rows are read by loads."""

    staged: int = 0

    def _turns(self, code: Code) -> dict[str, list[tuple[float, list[Instruction]]]]:
        """pass -> (instructions an element, a turn) of the loops that can be it."""
        found: dict[str, list[tuple[float, list[Instruction]]]] = {}
        for loop in code.loops:
            if any(other.body < loop.body for other in code.loops):
                continue
            turn = code.turn(loop)
            names = [i.name for i in turn]
            exponentials = sum(map(_exponential, turn))
            if copies := names.count("LDGSTS"):
                kind, elements = "copy", copies * self.elements
            elif exponentials:
                kind, elements = "gradient" if "STG" in names else "sum", exponentials
            elif any(map(_maximum, turn)):
                size = 16 // self.elements
                kind, elements = "maximum", sum(i.width for i in turn if i.name in ("LDG", "LDS", "LD")) // size
            else:
                continue
            if elements:
                found.setdefault(kind, []).append((len(turn) / elements, turn))
        return found

    def instructions(self, code: Code) -> float:
        turns = self._turns(code)
        if "maximum" not in turns:  # one pass alone, which finds the gradient as well
            turns = {"gradient": turns["gradient"]}
        return sum(min(each for each, _ in loops) for loops in turns.values())

    def flight(self, code: Code) -> Flight:
        turns = self._turns(code)
        if self.staged:
            turn = turns["copy"][0][1]
            waits = any("DEPBAR" in i.name for i in turn)
            return Flight(0 if waits else sum(i.name == "LDGSTS" for i in turn), 0)
        return max((in_flight(turn) for loops in turns.values() for _, turn in loops),
                   key=lambda flight: (flight.bytes, flight.wide))

    def per_sm(self, code: Code, registers: int, shared: int) -> int:
        if not self.staged:
            return super().per_sm(code, registers, shared)
        blocks = resident_threads(registers, self.threads, shared + self.staged) // self.threads
        return blocks * self.staged if self.flight(code).wide else 0


SIZES = {"float": 4, "bf16": 2, "f16": 2}
CLASSES = 21841  # of a row that is staged


def _row(m: re.Match[str]) -> Work:
    """Of a soft_target kernel over rows."""
    size, packs, block = SIZES[m["type"]], int(m["packs"]), int(m["block"])
    if packs > 0:
        return Row(packs * 16 // size, block)
    return Passes(16 // size, block, staged=CLASSES * size if packs < 0 else 0)


def _pack(m: re.Match[str]) -> int:
    return 16 // SIZES[m["type"]]


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
    (r"soft_target_rows<(?P<type>float|bf16|f16), \(TargetKind\)\d, \d+, (?P<packs>-?\d), (?P<block>\d+)>",
     _row),
    (r"soft_target_pixel_rows<(?P<type>float|bf16|f16), ", lambda m: Passes(_pack(m), 128)),
    (r"saliency_(cells|peak)_kernel<(?P<type>float|bf16|f16), \(PixelLoad\)[01]>",
     lambda m: Work(_pack(m), 256, streams=True)),
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
    r"soft_target_rows<.*\(TargetKind\)2": (24 * 1024, "sigmoids, bound by their instructions"),
    r"soft_target_pixel_rows<.*\(TargetKind\)2": (10 * 1024, "sigmoids, bound by their instructions"),
    r"soft_target_pixel_rows<(bf16|f16)": (20 * 1024, "two bytes a load, 16 loads at a time"),
    r"view_kernel<double": (0, "bytes one by one, and eight written for each: writes need no waiting"),
    r"view_kernel<": (20 * 1024, "bytes are read and two or four times as many written, which need no waiting"),
}


def wanted_in_flight(kernel: str) -> int:
    return next((least for pattern, (least, _) in EXCEPTIONS.items() if re.match(pattern, kernel)), WANTED)
