"""python -m fastmix presets: the papers' hyper-parameters."""

from __future__ import annotations

from ..console import Parser, UsageError
from ..methods import METHODS
from ..tables import fitted
from ..training import presets
from ..training.recipes import PRESETS

EPILOG = """\
A preset fills the flags of train that are not given; given ones win. With another --method, or for the other methods of
--compare, it fills data, model and training, not the method's own flags. With other --epochs its milestones and
refinement are scaled.

examples:
  python -m fastmix presets dcutmix
  python -m fastmix train --preset paper/dcutmix-pn110-c100 --root DIR
  python -m fastmix train --preset paper/refined-mixup-parn18-c100 \\
      --data digits --model cnn --epochs 9
"""


def parser() -> Parser:
    p = Parser(prog="python -m fastmix presets", description="List the papers' hyper-parameters for train --preset.",
               epilog=EPILOG)
    p.add_argument("words", nargs="*", metavar="WORD", help="only presets with all these words in name or source")
    p.add_argument("--flags", action="store_true", help="also print the flags that each stands for")
    return p


def main(argv: list[str]) -> int:
    given = parser().parse_args(argv)
    shown = [preset for name, preset in sorted(PRESETS.items())
             if all(word.lower() in f"{name} {preset.source}".lower() for word in given.words)]
    if not shown:
        raise UsageError(f"no preset has {' and '.join(given.words)} in its name or source")
    width = max(len(preset.name) for preset in shown)
    claims = max(len(preset.claim) for preset in shown)
    for preset in shown:
        missing = "" if preset.options["method"] in METHODS else f" [no method {preset.options['method']} here]"
        note = f" ({preset.note})" if preset.note else ""
        print(fitted(f"{preset.name:<{width}}  {preset.claim:<{claims}}  {preset.source}{note}{missing}", "    "))
        if given.flags:
            print(fitted(f"    {presets.flags(preset)}", "    "))
    return 0
