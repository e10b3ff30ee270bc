"""Pickles read as data: dictionaries, lists, texts, numbers and arrays of bytes. Nothing that a pickle names is called.

A pickle is a program for a stack machine that may call whatever can be imported. Here the machine knows the
instructions that build plain values, and of calls only those by which numpy's arrays are written, by Python 2 and 3 and
all of their protocols; what they would make is put together here, from bytes whose number fits the shape.

Source: the documentation of Python's pickletools, which reads the instructions.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_MARK = object()
_NUMPY = ("numpy.core", "numpy._core")  # it has moved between numpy's versions


class Unreadable(ValueError):
    """A pickle that is damaged, or holds anything else than plain values and arrays of bytes."""


@dataclass(frozen=True)
class _Name:
    """What a pickle names."""

    name: str


@dataclass
class _Bytes:
    """numpy's dtype of unsigned bytes, the only one that there is."""


@dataclass
class _Array:
    """An array whose content comes by `build`."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Unreadable("an array has another state than numpy's")
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran is True or fortran == 1 else "C")


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Bytes):
        raise Unreadable("an array is of another type than uint8")
    if isinstance(content, str):  # of Python 2
        try:
            content = content.encode("latin1")
        except UnicodeEncodeError:
            raise Unreadable("an array holds a text") from None
    if not isinstance(content, (bytes, bytearray)):
        raise Unreadable("an array holds no bytes")
    if not isinstance(shape, tuple) or any(type(length) is not int or length < 0 for length in shape):
        raise Unreadable("an array has a shape that is none")
    if len(shape) > 8 or math.prod(shape) != len(content):
        raise Unreadable(f"an array of {len(content)} bytes has the shape {str(shape[:8])[:100]}")
    if order not in ("C", "F"):
        raise Unreadable("an array has an order that is none")
    return np.frombuffer(bytes(content), np.uint8).reshape(shape, order=order)


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise Unreadable("bytes are written in another way than Python's")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError:
        raise Unreadable("bytes are written in another way than Python's") from None


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind != _Name("numpy.ndarray") or shape != (0,) or code not in ("b", b"b"):
        raise Unreadable("an array is made in another way than numpy's")
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(_array(content, dtype, shape, order))


def _dtype(code: Any, *flags: Any) -> _Bytes:
    if code not in ("u1", "B", b"u1", b"B", "uint8") or len(flags) > 2:
        raise Unreadable("an array is of another type than uint8")
    return _Bytes()


_CALLS: dict[str, Callable[..., Any]] = {"_codecs.encode": _encode, "numpy.dtype": _dtype} | {
    f"{numpy}.multiarray._reconstruct": _reconstruct for numpy in _NUMPY} | {
    f"{numpy}.numeric._frombuffer": _frombuffer for numpy in _NUMPY}
_KNOWN = {"numpy.ndarray", *_CALLS}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
           "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
           "BINBYTES8", "BYTEARRAY8"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def _above_mark(self) -> list[Any]:
        """What lies above the last mark, which goes with it."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                found = self.stack[i + 1:]
                del self.stack[i:]
                return found
        raise Unreadable("an instruction wants a mark")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack) or any(value is _MARK for value in self.stack[len(self.stack) - count:]):
            raise Unreadable("an instruction wants more than there is")
        found = self.stack[len(self.stack) - count:]
        del self.stack[len(self.stack) - count:]
        return found

    def _last(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise Unreadable("an instruction fills what is not there")
        return self.stack[-1]

    def _fill(self, items: list[Any]) -> None:
        target = self._last(dict)
        if len(items) % 2:
            raise Unreadable("a dictionary has a name without a value")
        for name, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(name, (str, bytes, int)):
                raise Unreadable("a dictionary has a name that is no text")
            target[name] = value

    def _named(self, name: str) -> _Name:
        if name not in _KNOWN:
            raise Unreadable(f"it asks for {name[:80]!r}")
        return _Name(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        make = _CALLS.get(function.name) if isinstance(function, _Name) else None
        if make is None or not isinstance(arguments, tuple):
            raise Unreadable("it calls what is no function")
        try:
            return make(*arguments)
        except TypeError:  # too few or too many
            raise Unreadable(f"it calls {function.name} in another way than numpy does") from None

    def step(self, name: str, argument: Any) -> None:
        """One instruction, but the last."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in ("TUPLE", "LIST", "DICT"):
            found = self._above_mark()
            stack.append(tuple(found) if name == "TUPLE" else found if name == "LIST" else {})
            if name == "DICT":
                self._fill(found)
        elif name in ("APPEND", "APPENDS"):
            found = self._pop(1) if name == "APPEND" else self._above_mark()
            self._last(list).extend(found)
        elif name in ("SETITEM", "SETITEMS"):
            found = self._pop(2) if name == "SETITEM" else self._above_mark()
            self._fill(found)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._last(object)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if argument not in self._memo:
                raise Unreadable("it takes up what it has not kept")
            stack.append(self._memo[argument])
        elif name == "GLOBAL":
            stack.append(self._named(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = self._pop(2)
            stack.append(self._named(f"{module}.{attribute}" if isinstance(module, str) else ""))
        elif name == "REDUCE":
            stack.append(self._call(*self._pop(2)))
        elif name == "BUILD":
            state, = self._pop(1)
            target = self._last(object)
            if isinstance(target, _Array):
                target.build(state)
            elif not isinstance(target, _Bytes):
                raise Unreadable("it gives a state to what has none")
        elif name not in ("PROTO", "FRAME"):
            raise Unreadable(f"it has the instruction {name}, which no plain value needs")


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise Unreadable("an array is empty")
        return value.value
    return value


def load(content: bytes) -> dict[str, Any]:
    """The dictionary that a pickle holds, its names as text and its arrays, (any shape) uint8, as arrays.

    Raises: Unreadable.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in texts
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name == "STOP":
                    break
                machine.step(opcode.name, argument)
    except Unreadable:
        raise
    except (ValueError, TypeError, IndexError, OverflowError, UnicodeError) as error:  # of pickletools
        raise Unreadable(str(error)[:200]) from None
    if len(machine.stack) != 1 or not isinstance(machine.stack[0], dict):
        raise Unreadable("it holds no dictionary")
    return {name.decode("latin1") if isinstance(name, bytes) else str(name): _plain(value)
            for name, value in machine.stack[0].items()}
