"""The generated blocks of a page, each between `<!-- NAME:begin -->` and `<!-- NAME:end -->` on lines of their own."""

from __future__ import annotations

import re
from collections.abc import Callable

MARKER = re.compile(r"^<!-- (.+?):(begin|end) -->(?:\n|\Z)", re.M)


def rewritten(page: str, render: Callable[[str, str], str]) -> str:
    """The page with the text of every block made anew by render(name, its present text).

    ValueError unless there are blocks and every one that begins ends before the next begins.
    """
    marks = list(MARKER.finditer(page))
    if not marks:
        raise ValueError("the page has no <!-- NAME:begin --> with a <!-- NAME:end -->")
    expected = [(name, word) for name, _ in (mark.groups() for mark in marks[::2]) for word in ("begin", "end")]
    if [mark.groups() for mark in marks] != expected:
        raise ValueError("a block of the page does not end, or ends with another name than it begins with: "
                         + ", ".join(":".join(mark.groups()) for mark in marks))
    parts, position = [], 0
    for begin, end in zip(marks[::2], marks[1::2], strict=True):
        parts += [page[position:begin.end()], render(begin[1], page[begin.end():end.start()]) + "\n"]
        position = end.start()
    return "".join([*parts, page[position:]])
