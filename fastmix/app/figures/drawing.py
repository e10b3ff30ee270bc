"""Figures: their size, colours and axes, how names are drawn in them, and how they are written.

A name is drawn as it is: no mathematics between dollar signs, no TeX. Characters that matplotlib's own font lacks come
from another font of the machine, or are drawn as escapes, so that two such names still look different.
"""

from __future__ import annotations

import functools
import io
import logging
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ...files import write_atomically
from ..console import CommandError, first_line, require
from ..names import printable, wrapped

Draw = TypeVar("Draw", bound=Callable[..., None])

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # fonts that are not found, caches that are built

# Okabe and Ito's palette: distinguishable in grey and by the colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 120


class NotDrawn(CommandError):
    """A picture that cannot be drawn or written; the message names its file."""


def picture(draw: Draw) -> Draw:
    """A function that draws a picture into ``path``, its last argument: names in it are data, other packages' warnings
    stay in it, and whatever fails is a CommandError that names the file."""
    @functools.wraps(draw)
    def drawn(*arguments: Any, **named: Any) -> None:
        path = named["path"] if "path" in named else arguments[-1]
        plots = require("matplotlib", "matplotlib", "drawing")
        with plots.rc_context({"text.usetex": False}), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                draw(*arguments, **named)
            except CommandError:
                raise
            except Exception as error:
                raise NotDrawn(f"{printable(path)} cannot be drawn ({_reason(error)})") from error
    return drawn  # type: ignore[return-value]


@contextmanager
def optional(path: Path) -> Iterator[None]:
    """A block that makes a picture, without which the command goes on: its failure is one line on stderr."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, NotDrawn) else f"{printable(path)} is missing ({_reason(error)})"
        print(f"fastmix: warning: {reason}", file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    return printable(first_line(error))


@functools.cache
def _glyphs(font: str) -> frozenset[int]:
    """The characters of a font file that matplotlib can draw."""
    fonts = require("matplotlib.ft2font", "matplotlib", "drawing")
    try:
        face = fonts.FT2Font(font)
        flags = getattr(face.face_flags, "value", face.face_flags)
        return frozenset(face.get_charmap()) if flags & 1 else frozenset()  # 1: outlines, not bitmaps
    except (RuntimeError, OSError):
        return frozenset()


def _missing(text: str) -> set[int]:
    """The characters of a text that matplotlib's own font lacks."""
    manager = require("matplotlib.font_manager", "matplotlib", "drawing")
    wide = {ord(c) for c in text if not c.isascii()}
    return wide - _glyphs(manager.findfont(manager.FontProperties())) if wide else wide


def _fallback(missing: set[int]) -> list[str]:
    """Families of this machine's fonts that have characters which are missing, and takes these out of the set."""
    families: list[str] = []
    manager = require("matplotlib.font_manager", "matplotlib", "drawing").fontManager
    for font in sorted(manager.ttflist, key=lambda font: (font.weight != 400, font.name)) if missing else []:
        if font.style == "normal" and font.name not in families and missing & _glyphs(font.fname):
            families.append(font.name)
            missing -= _glyphs(font.fname)
    return families


def _literal(figure: Any) -> None:
    """Makes every text of a figure data: no mathematics but in the numbers that matplotlib writes along axes, and no
    character that its fonts cannot draw."""
    ticker = require("matplotlib.ticker", "matplotlib", "drawing")
    kind = require("matplotlib.text", "matplotlib", "drawing").Text
    numbers: set[Any] = set()
    named = []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), (ticker.ScalarFormatter, ticker.LogFormatter)):
            numbers.update(text for text in axis.findobj(kind) if text is not axis.label)
        else:
            named.append(axis)
    texts = [text for text in figure.findobj(kind) if text not in numbers]
    missing = _missing("".join(text.get_text() for text in texts))
    families = _fallback(missing)
    for text in texts:
        text.set_parse_math(False)
        if not text.get_text().isascii() and families:
            text.set_fontfamily([*text.get_fontfamily(), *families])
        text.set_text(_drawable(text.get_text(), missing))
    for axis in named:  # drawing asks for the texts of ticks again
        label = axis.get_major_formatter()
        axis.set_major_formatter(ticker.FuncFormatter(lambda v, i, label=label: _drawable(label(v, i), missing)))


def _drawable(text: str, missing: set[int]) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "\n".join("".join(_escaped(c) if ord(c) in missing else c for c in printable(line))
                     for line in text.split("\n"))


def _escaped(character: str) -> str:
    # Joiners and selectors of variants have no glyph of their own.
    unseen = unicodedata.category(character) in ("Cf", "Mn")
    return "" if unseen else character.encode("unicode_escape").decode()


def lines(name: str, width: int = 20, rows: int = 3) -> str:
    """A name beside a picture, in lines of at most so many characters."""
    missing = _missing(name)
    _fallback(missing)
    return "\n".join(wrapped(_drawable(printable(name), missing), width, rows))


def new(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[Any, Any]:
    """A figure of size inches with rows x columns axes."""
    figures = require("matplotlib.figure", "matplotlib", "drawing")
    figure = figures.Figure(figsize=size, dpi=DPI, layout="constrained")  # no pyplot: no display, no global state
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def save(figure: Any, path: Path) -> None:
    _literal(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def grid(axis: Any, title: str, xlabel: str | None = "epoch", ylabel: str | None = None) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", labelsize=8)
    if xlabel == "epoch":
        axis.xaxis.get_major_locator().set_params(integer=True)
    if xlabel is not None:
        axis.set_xlabel(xlabel, fontsize=9)
    if ylabel is not None:
        axis.set_ylabel(ylabel, fontsize=9)
