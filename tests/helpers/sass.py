"""Reads the machine code (SASS) of compiled kernels: which way a kernel goes where all is well, how many instructions
that takes, how many loads are under way before one is waited for, and what an SM then has in flight.

`cuobjdump -sass` of a library or a cubin -> `listings` -> `instructions` -> `Code`. Nothing here runs; divergence of a
warp, stalls and caches are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
PREDICATE = re.compile(r"^@(!?U?P\w+)\s+")
REGISTER = re.compile(r"(?<![A-Za-z0-9_.])R(\d+)(?![\dA-Za-z])")
TARGET = re.compile(r"0x([0-9a-f]+)")
# Registers and warps of an SM (sm_90; sm_80 and sm_100 alike), shared memory of its blocks in bytes.
REGISTERS, THREADS, BLOCKS, SHARED = 65536, 2048, 32, 227 * 1024


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "" where it is always executed
    text: str

    @cached_property
    def opcode(self) -> str:
        return self.text.split(maxsplit=1)[0]

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @cached_property
    def operands(self) -> str:
        return self.text.partition(" ")[2]

    @property
    def width(self) -> int:
        """Bytes that a memory instruction moves for a thread."""
        parts = self.opcode.split(".")[1:]
        for part, size in (("128", 16), ("64", 8), ("U8", 1), ("S8", 1), ("U16", 2), ("S16", 2)):
            if part in parts:
                return size
        return 4

    @property
    def target(self) -> int:
        return int(TARGET.findall(self.operands)[-1], 16)

    @cached_property
    def loaded(self) -> frozenset[int]:
        """Registers that a load from device memory writes."""
        if self.name not in ("LDG", "LD"):
            return frozenset()
        first = REGISTER.search(self.operands.split("[")[0])
        return frozenset(range(int(first[1]), int(first[1]) + max(1, self.width // 4))) if first else frozenset()

    @cached_property
    def touched(self) -> frozenset[int]:
        """Registers that it names, and for stores those beside them that it reads."""
        found = {int(n) for n in REGISTER.findall(self.operands)}
        if self.name in ("STG", "ST", "STS"):
            data = REGISTER.findall(self.operands.rpartition(",")[2])
            found |= {int(n) + i for n in data for i in range(max(1, self.width // 4))}
        return frozenset(found)

    @property
    def wide(self) -> bool:
        """Moves 16 bytes between registers and device memory."""
        return self.name in ("LDG", "LD", "STG", "ST") and self.width == 16

    @property
    def moves_data(self) -> bool:
        """A wide access, or a load of words that the kernel does not write (ld.global.nc)."""
        return self.wide or (bool(self.loaded) and "CONSTANT" in self.opcode and self.width >= 4)

    @cached_property
    def multiply_adds(self) -> int:
        """Of a tensor core's instruction: of the warp, of the four warps of a group (HGMMA), else 0."""
        if self.name == "HGMMA":
            m, n, k = map(int, re.search(r"\.(\d+)x(\d+)x(\d+)", self.opcode).groups())
            return m * n * k
        if self.name == "HMMA":  # .1688: 16 x 8 x 8
            m, n, k = re.search(r"\.(16)(8)(\d+)", self.opcode).groups()
            return int(m) * int(n) * int(k)
        return 0

    @property
    def ends(self) -> bool:
        return self.name in ("EXIT", "RET", "KILL") or self.opcode.startswith("BPT")


def listings(lines: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    """(architecture, mangled name, lines) of every function that `cuobjdump -sass` lists."""
    arch = name = ""
    found: list[str] = []
    for line in lines:
        starts = "Function :" in line
        if name and (starts or line.startswith("arch =")):
            yield arch, name, found
            name = ""
        if starts:
            name, found = line.split(":", 1)[1].strip(), []
        elif line.startswith("arch ="):
            arch = line.split("=")[1].strip()
        else:
            found.append(line)
    if name:
        yield arch, name, found


def instructions(listing: Iterable[str]) -> list[Instruction]:
    """Those of a function, without the padding."""
    found = []
    for line in listing:
        if match := LINE.match(line):
            predicate = PREDICATE.match(match[2])
            text = match[2][predicate.end():] if predicate else match[2]
            if text != "NOP":
                found.append(Instruction(int(match[1], 16), predicate[1] if predicate else "", text))
    return found


@dataclass
class Block:
    instructions: list[Instruction]
    following: list[int] = field(default_factory=list)  # addresses of blocks; none: the kernel ends here


@dataclass(frozen=True)
class Loop:
    header: int
    body: frozenset[int]  # addresses of blocks
    latches: frozenset[int]


@dataclass(frozen=True)
class Code:
    """The control flow of a kernel."""

    instructions: tuple[Instruction, ...]

    @cached_property
    def blocks(self) -> dict[int, Block]:
        code = self.instructions
        place = {instruction.address: i for i, instruction in enumerate(code)}
        synced: dict[str, int] = {}  # barrier -> where the threads that wait at it go on
        starts = {code[0].address}
        jumps: dict[int, list[int]] = {}

        def after(address: int) -> int | None:
            """The first instruction kept at an address or behind it."""
            return next((i.address for i in code if i.address >= address), None) if address not in place else address

        for i, instruction in enumerate(code):
            following = code[i + 1].address if i + 1 < len(code) else None
            if instruction.name == "BSSY":
                synced[instruction.operands.split(",")[0]] = instruction.target
            if instruction.ends:
                to = []
            elif instruction.name == "BRA":
                to = [after(instruction.target)]
            elif instruction.name == "BSYNC":
                to = [after(synced[instruction.operands.strip()])] if instruction.operands.strip() in synced else [
                    following]
            else:
                continue
            conditional = instruction.predicate or re.match(r"(!?U?P\d|UR\d+|\.DIV)", instruction.operands) or (
                ".DIV" in instruction.opcode)
            if conditional and following is not None:
                to.append(following)
            jumps[instruction.address] = [t for t in dict.fromkeys(to) if t is not None]
            starts.update(jumps[instruction.address])
            if following is not None:
                starts.add(following)
        blocks: dict[int, Block] = {}
        current = Block([])
        for instruction in code:
            if instruction.address in starts:
                if blocks and not current.following and current.instructions[-1].address not in jumps:
                    current.following = [instruction.address]
                current = blocks[instruction.address] = Block([])
            current.instructions.append(instruction)
            if instruction.address in jumps:
                current.following = jumps[instruction.address]
        return blocks

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops by the address of their header; those that share one are one."""
        colour: dict[int, int] = {}
        back: dict[int, set[int]] = {}
        stack = [(next(iter(self.blocks)), iter(self.blocks[next(iter(self.blocks))].following))]
        colour[stack[0][0]] = 1
        while stack:
            block, following = stack[-1]
            for to in following:
                if colour.get(to) == 1:
                    back.setdefault(to, set()).add(block)
                elif to not in colour:
                    colour[to] = 1
                    stack.append((to, iter(self.blocks[to].following)))
                    break
            else:
                colour[block] = 2
                stack.pop()
        before: dict[int, set[int]] = {}
        for address, block in self.blocks.items():
            for to in block.following:
                before.setdefault(to, set()).add(address)
        found = []
        for header, latches in sorted(back.items()):
            body, todo = {header}, [latch for latch in latches if latch != header]
            while todo:
                address = todo.pop()
                if address not in body:
                    body.add(address)
                    todo.extend(before.get(address, ()))
            found.append(Loop(header, frozenset(body), frozenset(latches)))
        return found

    def _best(self, start: int, goals: frozenset[int] | None, inside: frozenset[int] | None,
              wanted: Callable[[Instruction], bool] = lambda i: False) -> list[int]:
        """The way from a block to a goal (default: the kernel's end) with the most stores of data and instructions
        that are wanted, then loads of data, then the fewest instructions; no way goes back, and what lies in a loop is
        no reason to enter it."""
        headers = {loop.header: loop.latches for loop in self.loops}
        looped = set().union(*(loop.body for loop in self.loops if inside is None or loop.body < inside))
        best: dict[int, tuple[tuple[int, int, int], list[int]] | None] = {}

        def forward(address: int) -> list[int]:
            return [to for to in self.blocks[address].following
                    if address not in headers.get(to, ()) and (inside is None or to in inside)]

        order, seen, stack = [], set(), [(start, False)]
        while stack:
            address, done = stack.pop()
            if done:
                order.append(address)
            elif address not in seen:
                seen.add(address)
                stack.append((address, True))
                stack.extend((to, False) for to in forward(address))
        for address in order:
            block = self.blocks[address]
            moves = [i.name.startswith("ST") for i in block.instructions if i.moves_data and address not in looped]
            own = (sum(moves) + sum(map(wanted, block.instructions)), len(moves), -len(block.instructions))
            ways = [best[to] for to in forward(address) if best.get(to)]
            ends = (not block.following if goals is None else address in goals) or (
                goals is None and any(i.name == "EXIT" for i in block.instructions))
            choices = [((own[0] + score[0], own[1] + score[1], own[2] + score[2]), [address, *path])
                       for score, path in ways]
            if ends:
                choices.append((own, [address]))
            best[address] = max(choices, key=lambda choice: choice[0]) if choices else None
        return best[start][1] if best[start] else []

    @cached_property
    def steady(self) -> list[Instruction]:
        """The instructions of a thread where all is well: the way that moves the most packs, and the shortest of those.
        Loops that can be passed by are."""
        return [i for address in self._best(next(iter(self.blocks)), None, None)
                for i in self.blocks[address].instructions]

    def turn(self, loop: Loop, wanted: Callable[[Instruction], bool] = lambda i: False) -> list[Instruction]:
        """One turn of a loop, likewise."""
        path = self._best(loop.header, loop.latches, loop.body, wanted)
        return [i for address in path for i in self.blocks[address].instructions]

    @cached_property
    def data_loops(self) -> list[Loop]:
        """The innermost loops that move data: over sources, or over pieces of a row."""
        moving = [loop for loop in self.loops
                  if any(i.moves_data for address in loop.body for i in self.blocks[address].instructions)]
        return [loop for loop in moving if not any(other.body < loop.body for other in moving)]

    @cached_property
    def product_loops(self) -> list[Loop]:
        """The innermost loops that use tensor cores."""
        using = [loop for loop in self.loops
                 if any(i.multiply_adds for address in loop.body for i in self.blocks[address].instructions)]
        return [loop for loop in using if not any(other.body < loop.body for other in using)]

    def products(self, multiply_adds: int, threads: int) -> dict[str, float]:
        """Of the product loop that takes most for multiply_adds of a block in a turn: instructions of a thread for each
        of them, and multiply-adds of tensor cores for each; asynchronous copies of 16 bytes in a turn, and narrower."""
        def measured(loop: Loop) -> dict[str, float]:
            turn = self.turn(loop)
            cores = sum(i.multiply_adds * (threads // (128 if i.name == "HGMMA" else 32)) for i in turn)
            copies = [i.width for i in turn if i.name == "LDGSTS"]
            return {"instructions": round(len(turn) * threads / multiply_adds, 3),
                    "cores": round(cores / multiply_adds, 2),
                    "copies_16": sum(width == 16 for width in copies), "copies_4": sum(width < 16 for width in copies)}

        return max(map(measured, self.product_loops), key=lambda numbers: numbers["instructions"])

    def executed(self, turns: int = 0) -> int:
        """Instructions of the steady way with so many turns of each loop that moves data."""
        return len(self.steady) + turns * sum(len(self.turn(loop)) for loop in self.data_loops)


@dataclass(frozen=True)
class Flight:
    """What a thread has under way when it first waits: loads of 16 bytes, and bytes."""

    wide: int = 0
    bytes: int = 0


def in_flight(way: list[Instruction]) -> Flight:
    """The most that a thread loads from device memory before it touches a register that one of these loads writes."""
    best, under_way, registers = Flight(), Flight(), set()
    for instruction in way:
        if registers & (instruction.touched - (instruction.loaded if not instruction.loaded & registers else set())):
            under_way, registers = Flight(), set()
        if instruction.loaded:
            under_way = Flight(under_way.wide + (instruction.width == 16), under_way.bytes + instruction.width)
            registers |= instruction.loaded
            best = max(best, under_way, key=lambda flight: (flight.bytes, flight.wide))
    return best


def resident_threads(registers: int, threads: int, shared: int) -> int:
    """Threads of an SM at once: registers go to warps in units of 256, shared memory to blocks with 1 KB for each."""
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // of_warp // (threads // 32)
    return threads * min(by_registers, THREADS // threads, BLOCKS, SHARED // (shared + 1024))
