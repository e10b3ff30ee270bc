"""The parser of the commands: a usage of one line, help in groups, and what a misspelt word may have meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from .errors import UsageError
from .tables import terminal_width, wrapped

ALL = "--help-all"
_COMMAND = re.compile(r" +(python |torchrun |--|\()")


def meant(word: str, known: Collection[str]) -> str:
    """``, did you mean a or b?`` for a word that is near a known one; "" for any other."""
    likeness = {name: difflib.SequenceMatcher(None, name, word).ratio()
                for name in difflib.get_close_matches(word, list(known), 3, 0.6)}
    near = [name for name, ratio in likeness.items() if ratio > max(likeness.values()) - 0.1]
    return f", did you mean {' or '.join(near)}?" if near else ""


class _Format(argparse.RawDescriptionHelpFormatter):
    """Paragraphs fill the terminal; lines that begin with a blank stay apart, and commands as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=max(20, terminal_width() - 2))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(" ".join(text.split()), width).splitlines()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.strip("\n").split("\n\n"):
            flowing: list[str] = []
            for line in paragraph.splitlines():
                if line.startswith(" ") or not flowing or flowing[-1].startswith(" ") or flowing[-1].endswith(":"):
                    flowing.append(line)
                else:
                    flowing[-1] += f" {line}"
            lines = (line if _COMMAND.match(line) else wrapped(line, width, "    " if line.startswith(" ") else "")
                     for line in flowing)
            paragraphs.append("\n".join(lines))
        return "\n\n".join(paragraphs)


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of exiting, so that there is one way out; no abbreviated flags."""

    def __init__(self, **kwargs: Any) -> None:
        self._rare: list[argparse._ArgumentGroup] = []
        super().__init__(allow_abbrev=False, formatter_class=_Format, **kwargs)

    def rare_group(self, title: str, description: str | None = None) -> argparse._ArgumentGroup:
        """A group of flags that --help leaves to --help-all."""
        if not self._rare:
            self.add_argument(ALL, action=_HelpAll, help="list every flag")
        group = self.add_argument_group(title, description)
        self._rare.append(group)
        return group

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            unknown = next((word for word in rest if word.startswith("-")), "")
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant(unknown.partition('=')[0], flags)}")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{meant(str(value), names)} (choose from "
                                                 f"{', '.join(names)})")

    def format_usage(self) -> str:
        """One line: what must be given."""
        words = []
        for action in self._actions:
            name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
            if action.option_strings and action.required:
                words.append(f"{action.option_strings[0]} {name}")
        words.append("[options]")
        for action in self._actions:
            name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
            if not action.option_strings:
                words.append({"*": f"[{name} ...]", "+": f"{name} ...", "?": f"[{name}]"}.get(str(action.nargs), name))
        return " ".join([f"usage: {self.prog}", *words]) + "\n"

    def format_help(self) -> str:
        return self._help(False)

    def format_help_all(self) -> str:
        return self._help(True)

    def _help(self, everything: bool) -> str:
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        own = [group for group in self._action_groups if group not in (self._positionals, self._optionals)]
        plain = [action for action in self._optionals._group_actions if not isinstance(action, _HELP)]
        groups = [self._positionals, *([self._optionals, *own] if plain else [*own, self._optionals])]
        for group in groups:
            if everything or group not in self._rare:
                formatter.start_section("arguments" if group is self._positionals else group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        if self._rare and not everything:
            titles = [str(group.title) for group in self._rare]
            formatter.add_text(f"{ALL} lists the flags of {', '.join(titles)} as well.")
        formatter.add_text(self.epilog)
        return f"{self.format_usage()}\n{formatter.format_help()}"


class _HelpAll(argparse.Action):
    """Prints the help with all groups."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        sys.stdout.write(parser.format_help_all())  # type: ignore[attr-defined]
        parser.exit()


_HELP = (_HelpAll, argparse._HelpAction)
