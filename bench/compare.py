"""python -m fastmix bench compare OLD.json NEW.json: `harness.compare` of two results of operators."""

from __future__ import annotations

from pathlib import Path

from fastmix.app.console import Parser, UsageError

from .harness import report
from .harness.compare import compare


def parser() -> Parser:
    p = Parser(prog="python -m fastmix bench compare", description="Compares two results of operators. Exit code 1: a "
               "fastmix backend became\nslower or vanished; 2: they cannot be compared.")
    p.add_argument("old", type=Path, metavar="OLD.json")
    p.add_argument("new", type=Path, metavar="NEW.json")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    try:
        text, code = compare(report.load(args.old), report.load(args.new))
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(text)
    return code
