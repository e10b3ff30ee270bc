"""python -m fastmix COMMAND: the commands load only what they need."""

from __future__ import annotations

import importlib
import sys

from . import __version__
from .app.command_line import meant
from .app.console import USAGE, UsageError, run
from .app.tables import terminal_width, wrapped

COMMANDS = {
    "train": ("fastmix.app.cli.train", "train a classifier with a mixing method, compare methods, resume"),
    "train-ssl": ("fastmix.app.cli.train_ssl", "train a backbone without labels, evaluate it with a linear layer"),
    "evaluate": ("fastmix.app.cli.evaluate", "a model's calibration, occlusion, attacks and loss surface"),
    "report": ("fastmix.app.cli.report", "collect finished runs of several comparisons into one table"),
    "subsample": ("fastmix.app.cli.subsample", "choose the images to train on by the spread of their loss"),
    "preview": ("fastmix.app.cli.preview", "draw images before and after a mixing method"),
    "presets": ("fastmix.app.cli.presets", "list the papers' hyper-parameters for train --preset"),
    "bench": ("fastmix.bench.command", "time operators and training steps, beside PyTorch and others"),
    "info": ("fastmix.app.cli.info", "which backend serves which operator here, and why not another"),
}


def usage() -> str:
    width = terminal_width()
    rows = "\n".join(wrapped(f"  {name:<9} {text}", width, " " * 12) for name, (_, text) in COMMANDS.items())
    return (f"usage: python -m fastmix COMMAND [options]\n\ncommands:\n{rows}\n\n"
            + wrapped("python -m fastmix COMMAND --help; --version; FASTMIX_DEBUG=1 shows the traceback of an error",
                      width))


def _command(argv: list[str]) -> int:
    name, *rest = argv or [""]
    if name in ("", "-h", "--help", "help"):
        print(usage())
        return 0 if name else USAGE
    if name in ("-V", "--version"):
        print(f"fastmix {__version__}")
        return 0
    if name not in COMMANDS:
        near = meant(name, COMMANDS) or f", want {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {name!r}{near}")
    return importlib.import_module(COMMANDS[name][0]).main(rest)


def main(argv: list[str] | None = None) -> int:
    return run(_command, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
