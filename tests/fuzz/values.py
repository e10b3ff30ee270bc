"""Arguments as Python source, drawn by hypothesis: good ones, and in every other call one or two that are not.

A strategy of a public name takes a `Drawing` and writes the call down line by line. What hypothesis shrinks are its
choices: the first of every list of options is the plainest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

FLOATS = ("torch.float32", "torch.float64", "torch.float16", "torch.bfloat16")

# ---------------------------------------------------------------- what an argument is replaced by

# No argument of ours takes one of these, but where a strategy says so.
ODD = ("object()", "[]", "{'a': 1}", "'text'", "b'bytes'", "1j", "[[0.5]]", "np.array([1, 2, 3])", "lambda: 0",
       "torch.float16")
ODD_NUMBERS = ("-1", "0", "2**31", "2**63", "-2**63 - 1", "10**400", "float('nan')", "float('inf')", "-float('inf')",
               "1e39", "-0.5", "1.5", "True", "None", "'0.5'", "[0.5]", "(1, 2, 3)", "np.float32(0.5)", "np.int64(3)",
               "torch.tensor(0.5)", "torch.rand(2, 2)", "5e-324", "-0.0")
ODD_INTEGERS = ("-1", "0", "2**31", "2**40", "2**63", "-2**63", "10**400", "1.0", "2.5", "True", "None", "'3'", "[3]",
                "(2, 2)", "np.int64(3)", "torch.tensor(3)", "float('nan')")
ODD_PAIRS = ("3", "(0, 1)", "(-1, 4)", "(2.0, 2.0)", "(1, 2, 3)", "(2,)", "()", "'23'", "(2**31, 2**31)", "(2**40, 1)",
             "(10**400, 1)", "(True, True)", "None", "torch.Size([2, 2])", "torch.tensor([2, 2])", "[None, None]")
ODD_CHOICES = ("'other'", "''", "None", "0", "['mean']", "True", "b'mean'")

# Other tensors for a tensor t: of another dtype, shape, layout, with other values.
OTHER_DTYPES = tuple(f"{{t}}.to(torch.{name})" for name in (
    "float64", "float16", "bfloat16", "int32", "int64", "int16", "uint8", "bool", "complex64", "float8_e4m3fn"))
OTHER_SHAPES = ("{t}[None]", "{t}[..., :-1]", "{t}[:0]", "{t}.flatten()", "torch.cat([{t}, {t}])", "{t}.sum()",
                "{t}[..., None]", "{t}.squeeze()", "{t}[..., :0]", "{t}.reshape(-1, 1)", "{t}.T")
OTHER_LAYOUTS = ("{t}.to_sparse()", "{t}.to('meta')", "{t}.to_mkldnn()", "{t}.numpy()", "{t}.tolist()",
                 "torch.nested.nested_tensor([{t}, {t}])",
                 "torch.quantize_per_tensor({t}.float(), 0.1, 0, torch.qint8)")
OTHER_FLOATS = ("{t} * float('nan')", "{t} / 0", "{t} * 1e30", "-{t}", "{t} * 1e-40", "{t} * 0",
                "{t}.where(torch.rand({t}.shape) < 0.7, float('nan'))",
                "{t}.where(torch.rand({t}.shape) < 0.7, float('inf'))")
OTHER_INTEGERS = ("{t} - 1", "{t} + 1", "{t} + 100", "{t} * 0 - 100", "{t} * 0 + torch.iinfo({t}.dtype).min",
                  "{t} * 0 + torch.iinfo({t}.dtype).max", "-{t}")
WITH_GRADIENT = ("{t}.requires_grad_()",)

# The same values elsewhere in memory.
PLACES = ("torch.stack([{t}, {t}], -1)[..., 0]", "torch.cat([{t}, {t}])[{n}:]", "{t}[:1].expand({shape})",
          "{t}.transpose(0, -1).contiguous().transpose(0, -1)")
CHANNELS_LAST = "{t}.contiguous(memory_format=torch.channels_last)"
NEGATED = "torch.complex({t}, -{t}).conj().imag"  # what lies in memory is its negative

# How a float tensor of moderate values looks.
FILLS = ("torch.randn{shape}", "torch.zeros{shape}", "torch.ones{shape}", "torch.rand{shape}",
         "torch.randn{shape} * 50")


@dataclass
class Call:
    """A call as source, and what is known of it.

    arguments: lines that make its tensors. steps: the calls of fastmix, the last one its result, an expression.
    """

    name: str
    arguments: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # what an error may speak of
    changed: set[str] = field(default_factory=set)  # variables that it may change
    wrong: str | None = None  # the argument of a type that it cannot take
    good: bool = True  # it has to return
    wild: bool = False  # not all its numbers are finite and of moderate size
    returns: list[tuple[tuple[int, ...], str]] | None = None  # shapes and dtypes of its tensors


class Drawing:
    """What a strategy draws from. Counts the arguments: the ones whose numbers were drawn for it get another value."""

    def __init__(self, draw: Callable[[Any], Any], name: str, large: bool = True) -> None:
        self._draw, self._large = draw, large
        self.call = Call(name)
        self._count, self._whole = 0, True
        self._bad = {draw(st.sampled_from((0, 1, 2, 3, 4, 5, 6, 7, 8))), *(
            [draw(st.integers(1, 8))] if draw(st.integers(0, 9)) == 9 else [])}

    # ------------------------------------------------------------ plain choices

    def pick(self, *options: Any) -> Any:
        return options[0] if len(options) == 1 else self._draw(st.sampled_from(options))

    def one_in(self, n: int) -> bool:
        return bool(self._draw(st.integers(0, n - 1)) == n - 1)

    def seed(self) -> int:
        return int(self._draw(st.integers(0, 2**20)))

    def rows(self) -> int:
        """N, 0 among it."""
        return int(self.pick(2, 1, 3, 0, 5, 4, 8, *((17, 33) if self._large else ())))

    def size(self, *sizes: int) -> int:
        """A size that is mostly one of these; 0 is an edge that may be refused."""
        found = int(self.pick(*sizes, 0) if self.one_in(12) else self.pick(*sizes))
        if found == 0:
            self.call.good, self._whole = False, False
        return found

    # ------------------------------------------------------------ arguments

    def _turn(self) -> bool:
        """Whether the argument that is drawn next is to be a bad one."""
        self._count += 1
        return self._count in self._bad

    def spoilt(self, name: str, options: Sequence[str]) -> str:
        found = str(self.pick(*options))
        # Of two bad arguments either may be found first.
        self.call.wrong = name if found in ODD and not self.call.wild else None
        self.call.good, self.call.wild, self.call.returns = False, True, None
        return found

    def option(self, name: str, good: Sequence[str], odd: Sequence[str] = ODD_NUMBERS) -> str:
        """Source of an argument that is no tensor: one of ``good``, or what may be wrong."""
        if self._turn():
            return self.spoilt(name, [each for each in (*odd, *ODD) if each not in good])
        return str(self.pick(*good))

    def options(self, **named: tuple[Sequence[str], Sequence[str]]) -> str:
        """Keyword arguments in source, each left out half the time: ``", fill=1.0"``. name=(good, odd)."""
        found = ""
        for name, (good, odd) in named.items():
            if self.one_in(2):
                found += f", {name}={self.option(name, good, odd)}"
        return found

    def tensor(self, name: str, source: str, shape: Sequence[int], *, kind: str = "float", gradient: bool = False,
               places: bool = True, variable: str | None = None) -> str:
        """A variable that holds a tensor, its line written down.

        kind: "float", "integer" or "bool", for what its values may be replaced by. gradient: it may require one.
        """
        shape = tuple(shape)
        variable = name.replace(".", "_") if variable is None else variable
        if places and shape and self.one_in(3):
            more = [CHANNELS_LAST] if len(shape) == 4 else []
            if kind == "float" and "float16" not in source:  # complex numbers have no bfloat16
                more.append(NEGATED)
            source = _put(self.pick(*PLACES, *more), f"({source})", shape)
        wants = gradient and self.one_in(2)
        if self._turn():
            values = {"float": OTHER_FLOATS, "integer": OTHER_INTEGERS, "bool": ("~{t}",), "count": ("{t} + 3",)}[kind]
            changes = self.pick(values, OTHER_SHAPES, OTHER_DTYPES, OTHER_LAYOUTS, ODD + ODD_NUMBERS,
                                () if gradient or kind != "float" else WITH_GRADIENT)
            if changes:
                wants = wants and changes is values
                source = _put(self.spoilt(name, changes), f"({source})", shape)
        self.call.arguments.append(f"{variable} = {f'({source}).requires_grad_()' if wants else source}")
        return variable

    def floats(self, name: str, shape: Sequence[int], dtypes: Sequence[str] = FLOATS, **how: Any) -> str:
        """A float tensor of moderate values."""
        shape = tuple(shape)
        dtype = self.pick(*dtypes)
        source = self.pick(*FILLS).replace("{shape}", str(shape) if shape else "(())")
        return self.tensor(name, source + ("" if dtype == "torch.float32" else f".to({dtype})"), shape, **how)

    def whole(self, name: str, high: int, shape: Sequence[int], dtype: str = "torch.int64", low: int = 0,
              **how: Any) -> str:
        """Integers in [low, high)."""
        source = f"torch.randint({low}, {max(high, low + 1)}, {tuple(shape)}"
        source += ")" if dtype == "torch.int64" else f", dtype={dtype})"
        return self.tensor(name, source, shape, kind="integer", **how)

    def bools(self, name: str, shape: Sequence[int], **how: Any) -> str:
        return self.tensor(name, f"torch.rand{tuple(shape) or '(())'} < 0.5", shape, kind="bool", **how)

    # ------------------------------------------------------------ lines

    def step(self, line: str) -> None:
        self.call.steps.append(line)

    def result(self, expression: str, returns: Sequence[tuple[Sequence[int], str]] | None = None) -> Call:
        """The last step, and of which shapes and dtypes its tensors are where all arguments are good."""
        self.call.steps.append(expression)
        if not self._whole:
            self.call.wrong = None
        if self.call.good and returns is not None:
            self.call.returns = [(tuple(shape), dtype.removeprefix("torch.")) for shape, dtype in returns]
        return self.call


def _put(template: str, tensor: str, shape: tuple[int, ...]) -> str:
    found = template.replace("{t}", tensor)
    if template in PLACES:
        found = found.replace("{n}", str(shape[0])).replace("{shape}", ", ".join(map(str, shape)))
    return found


def parameters(*functions: Callable[..., Any]) -> set[str]:
    """The names of what these take."""
    found: set[str] = set()
    for each in functions:
        found |= {name for name in inspect.signature(each).parameters if name != "self"}
    return found
