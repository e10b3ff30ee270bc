"""Names of classes, files and folders are data: how they are printed, drawn, put into Markdown and into a shell.

Python holds the bytes of a file name that are not UTF-8 as lone surrogates, which no stream can encode; and a name may
hold line breaks, escape sequences of a terminal, or the markup of whatever it is written into.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

# They turn the order of all that follows, outside of the name too.
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|~$&]")


def _text(name: str | os.PathLike[str]) -> str:
    """With the bytes decoded that are UTF-8 after all, as under LANG=C; those that are not as ``\\xff``."""
    text = os.fspath(name)
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that no file name gives
        return text.encode("utf-8", "backslashreplace").decode()


def printable(name: str | os.PathLike[str]) -> str:
    """The name on one line, as it is but for what cannot be shown: line breaks, control characters, changes of the
    direction of writing and bytes that are not UTF-8 become escapes, as in Python."""
    text = _text(name)
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN or c in _DIRECTION else c
                   for c in text)


def listed(names: Iterable[str | os.PathLike[str]], most: int = 10) -> str:
    """``a, b, c and 4 more``."""
    shown = [printable(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def shortened(name: str, most: int) -> str:
    """At most so many characters: the beginning and the end, by which long names differ."""
    if len(name) <= most:
        return name
    head = most // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head):]}"


def wrapped(name: str, width: int, rows: int = 3) -> list[str]:
    """A printable name in lines of at most so many characters, where it can be broken behind its words, shortened if it
    needs more rows than these."""
    text = printable(name)
    lines = [""]
    for word in re.findall(r"[^\W_]+|[\W_]", text):
        if len(lines[-1] + word) > width:
            lines.append("")
        lines[-1] += word
    if len(lines) <= rows and max(map(len, lines)) <= width:
        return lines
    text = shortened(text, width * rows)
    return [text[start:start + width] for start in range(0, len(text), width)]


def quoted(word: str | os.PathLike[str]) -> str:
    """The word for a shell. What cannot be shown is written in the form ``$'...'``, which bash, zsh, ksh and POSIX 2024
    read."""
    text = os.fspath(word)
    if text == printable(text):
        return shlex.quote(text)
    parts = []
    for c in text:
        if c in "\\'":
            parts.append(f"\\{c}")
        elif c == printable(c):
            parts.append(c)
        else:
            parts += [f"\\{byte:03o}" for byte in c.encode("utf-8", "surrogateescape")]
    return f"$'{''.join(parts)}'"


def flag(name: str, value: Any) -> str:
    """A flag with its value as it is typed into a shell."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    return f"{name}{'=' if text.startswith('-') else ' '}{quoted(text)}"


def print_anything() -> None:
    """What the encoding of stdout or stderr lacks is printed as an escape: no name, and no locale, ends a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def file_name(name: str) -> str:
    """The name as part of a file's name, as that of a model is: ``timm:org/model`` is no folder."""
    return re.sub(r"[^\w.+-]+", "-", name)


def markdown(name: str) -> str:
    """The name as text in Markdown, in a cell of a table too."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(name))
