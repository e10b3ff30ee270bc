"""python -m fastmix COMMAND: the commands load only what they need."""

from __future__ import annotations

import importlib
import sys

from .app.console import USAGE, run

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
    rows = "\n".join(f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items())
    return f"usage: python -m fastmix COMMAND [options]\n\ncommands:\n{rows}\n\npython -m fastmix COMMAND --help"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if not argv or argv[0] not in COMMANDS:
        if argv:
            print(f"fastmix: unknown command {argv[0]!r}", file=sys.stderr)
        print(usage(), file=sys.stderr)
        return USAGE
    return run(importlib.import_module(COMMANDS[argv[0]][0]).main, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
