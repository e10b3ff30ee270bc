"""python -m fastmix bench: times the operators, or runs the command named first. Loads only what that needs."""

from __future__ import annotations

import sys
from importlib import import_module

from fastmix.app.command_line import meant
from fastmix.app.errors import UsageError

from .harness import memory

COMMANDS = {
    "operators": ("fastmix.bench.operators", "every operator against torch.compile, eager and other libraries"),
    "step": ("fastmix.bench.step", "what each method adds to a training step"),
    "scale": ("fastmix.bench.scale", "how the operators' costs grow with their sizes"),
    "host": ("fastmix.bench.host", "what the host does around a kernel, for small batches"),
    "traffic": ("fastmix.bench.traffic", "what the GPU image kernels read from memory, simulated"),
    "compare": ("fastmix.bench.compare", "whether a result of operators is slower than an older one"),
    "rl-reward": ("fastmix.bench.rl_reward", "how much reward there is for RL-Mix's policy to find"),
    "pages": ("fastmix.bench.pages", "write the tables of the README and docs/ from committed results"),
}
DEFAULT = "operators"
TIMED = ("operators", "step", "scale", "host")


def listing() -> str:
    rows = "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
    return f"commands, each with its own --help (default: {DEFAULT}):\n{rows}"


def _is_program() -> bool:
    """Whether this process is `python -m fastmix`, and so may start itself again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.parent == "fastmix"


def main(argv: list[str]) -> int:
    named = bool(argv) and argv[0] in COMMANDS
    near = meant(argv[0], COMMANDS) if argv and not named and not argv[0].startswith("-") else ""
    if near:
        raise UsageError(f"unrecognized arguments: {argv[0]}{near} (see python -m fastmix bench --help)")
    name, rest = (argv[0], argv[1:]) if named else (DEFAULT, argv)
    wants_help = any(flag in rest for flag in ("-h", "--help"))
    if name in TIMED and not wants_help and _is_program():
        memory.restart_to_keep_memory("fastmix")
    command = import_module(COMMANDS[name][0])
    if wants_help and not named:
        p = command.parser()
        p.epilog = f"{p.epilog}\n\n{listing()}"
        p.parse_args(["--help"])
    return command.main(rest)
