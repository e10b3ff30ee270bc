"""Text for a terminal of any width: tables that fold and never cut a cell, and paragraphs."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence

UNLIMITED = 2**20
BLOCKS = 4  # so often a table is folded before its rows become blocks


def terminal_width() -> int:
    """Columns of the terminal: COLUMNS, what stdout is connected to, or 80."""
    return shutil.get_terminal_size().columns


def output_width() -> int:
    """Columns that a line of results may take: those of the terminal, or COLUMNS; in a file or a pipe, which other
    programs read, any number."""
    given = os.environ.get("COLUMNS", "")
    if (given.isdecimal() and int(given)) or (sys.stdout is not None and sys.stdout.isatty()):
        return terminal_width()
    return UNLIMITED


def cells(text: str) -> int:
    """Columns that a text takes: two for a wide character, none for one that joins the one before it."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrapped(text: str, width: int | None = None, indent: str = "") -> str:
    """A paragraph in lines of whole words. width: None for `output_width`. indent: of all lines but the first."""
    return textwrap.fill(text, width or output_width(), subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None,
          parts: Sequence[int] = (), rule: bool = True) -> str:
    """A heading, a rule (if wanted) and a line for every row, the first column to the left and the others to the right.

    What is wider than the terminal is folded: several tables, one below the other, each with the first column. A first
    column that leaves no room is wrapped; where that does not do, every row is a block, a line for each of its cells.
    No cell is ever cut.

    Args: width: None for `output_width`. parts: columns at which a wide table is folded first.
    """
    width = width or output_width()
    lines = [list(columns), *map(list, rows)]
    widths = [max(cells(line[i]) for line in lines) for i in range(len(columns))]
    if _total(widths, range(1, len(columns))) <= width:
        return _drawn(lines, widths, range(1, len(columns)), rule=rule)
    names = [[line[0]] for line in lines]
    if widths[0] > width // 3:
        names = [_name_lines(line[0], width // 3) for line in lines]
        widths[0] = max(cells(text) for name in names for text in name)
    groups = [group for start, stop in zip((1, *parts), (*parts, len(columns)), strict=True)
              for group in _folded(widths, list(range(start, stop)), width)]
    if len(groups) > BLOCKS or any(_total(widths, group) > width for group in groups):
        return _rows_as_blocks(lines)
    return "\n\n".join(_drawn(lines, widths, group, names, rule) for group in groups)


def _name_lines(name: str, room: int) -> list[str]:
    """A name in lines, the first one outdented; a flag stays with its value."""
    found: list[str] = []
    for part in re.split(" (?=--)", name) if " --" in name else name.split():
        if found and cells(found[-1]) + 1 + cells(part) <= room:
            found[-1] += f" {part}"
        else:
            found.append(f"  {part}" if found else part)
    return found or [""]


def _total(widths: list[int], group: Sequence[int]) -> int:
    return widths[0] + sum(2 + widths[i] for i in group)


def _folded(widths: list[int], columns: list[int], width: int) -> list[list[int]]:
    """Columns in as few groups as fit, the widest of them as narrow as can be."""
    def greedy(limit: int) -> list[list[int]]:
        groups: list[list[int]] = []
        for i in columns:
            if groups and _total(widths, [*groups[-1], i]) <= limit:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    found = greedy(width)
    for limit in range(width - 1, 0, -1):
        narrower = greedy(limit)
        if len(narrower) > len(found) or any(_total(widths, group) > limit for group in narrower):
            return found
        found = narrower
    return found


def _drawn(lines: list[list[str]], widths: list[int], group: Sequence[int],
           names: list[list[str]] | None = None, rule: bool = True) -> str:
    drawn = []
    for line, name in zip(lines, names or [[line[0]] for line in lines], strict=True):
        *above, last = name
        drawn += [text + " " * (widths[0] - cells(text)) for text in above]
        drawn.append("  ".join([last + " " * (widths[0] - cells(last)),
                                *(" " * (widths[i] - cells(line[i])) + line[i] for i in group)]))
    drawn = [text.rstrip() for text in drawn]
    heading = len(names[0]) if names else 1
    return "\n".join([*drawn[:heading], *(["  ".join("-" * widths[i] for i in (0, *group))] if rule else []),
                      *drawn[heading:]])


def _rows_as_blocks(lines: list[list[str]]) -> str:
    heading, *rows = lines
    label = max((cells(text) for text in heading[1:]), default=0)
    return "\n".join("\n".join([row[0], *(f"  {text}{' ' * (label - cells(text))}  {cell}"
                                            for text, cell in zip(heading[1:], row[1:], strict=True))])
                     for row in rows)


def fitted(text: str, indent: str) -> str:
    """A line that people read on a terminal, there in lines of its width; elsewhere, as for grep, one line."""
    return wrapped(text, indent=indent) if sys.stdout is not None and sys.stdout.isatty() else text


def line_of(parts: Sequence[tuple[int, str]], width: int | None = None) -> str:
    """Parts of a line of progress; in a narrow terminal those of the lowest priority are left out. parts: (priority,
    text); 0 always stays."""
    width = width or output_width()
    kept = list(parts)
    while cells("  ".join(text for _, text in kept)) > width and any(priority for priority, _ in kept):
        kept.remove(max(kept, key=lambda part: part[0]))
    return "  ".join(text for _, text in kept)
