"""`python -m bench.results_page [docs/results.md] [--check]`: writes the page's tables from the JSON files beside it.

A line `<!-- table results/NAME.json -->` begins a block that ends with `<!-- end of table -->`; what is between them is
made of that file: of a report of `python -m fastmix report`, of compare.json, of an evaluation's JSON or of that of
bench.rl_reward. claims.json, beside it, holds what the papers report, for a column of the first two kinds unless
"without claims" follows NAME.json. --check writes nothing and exits 1 if the page says something else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from fastmix.app.console import CommandError
from fastmix.app.results import render

BLOCK = re.compile(r"^<!-- table (\S+)( without claims)? -->\n(.*?)^<!-- end of table -->$", re.M | re.S)
CLAIMS = "claims.json"


def claimed(claims: dict[str, Any], row: render.Row) -> str | None:
    """What the papers report for the method of a row, with and without a refinement, or None."""
    refined = any(flag.startswith("--refine-epochs") for flag in row["flags"])
    by_setting: dict[str, list[str]] = {}
    for claim in claims["claims"]:
        if claim["method"] == row["method"] and claim.get("refined", False) == refined:
            setting = ", ".join(filter(None, (claim["data"], claim["model"])))
            place = f"Table {claim['table']}" if "table" in claim else f"Sec. {claim['section']}"
            source = f"{claims['papers'][claim['paper']]}, {place}"
            by_setting.setdefault(setting, []).append(f"{claim['text']} ({source})")
    parts = [": ".join(filter(None, (setting, ", ".join(texts)))) for setting, texts in by_setting.items()]
    return "; ".join(parts) or None


def _commands(results: dict[str, Any]) -> str:
    """A shell block with the command of every row; what they share stands once."""
    every = [command for row in render.rows(results) for command in row.get("commands", [])]
    if not every:
        return f"`{results['command']}`" if "command" in results else ""
    words = [re.split(r" (?=--)", command) for command in every]
    shared = [word for word in words[0] if all(word in own for own in words)]
    if len(every) > 1 and words[0][0] in shared:
        every = [" ".join(["$TRAIN", *(word for word in own if word not in shared)]) for own in words]
        every.insert(0, f'TRAIN="{" ".join(shared)}"')
    return "\n".join(["```sh", *every, "```"])


def runs(results: dict[str, Any], claims: dict[str, Any] | None, name: str, picture: str | None) -> str:
    """The block of a report or of a comparison. name: of the JSON, as the page links it."""
    more = {} if claims is None else {"the papers, with their own models and data": lambda row: claimed(claims, row)}
    lines = render.table(results, more)
    machine = f" on {results['machine']}" if "machine" in results else ""
    parts = [render.markdown(lines), f"From [{Path(name).name}]({name}){machine}. "
             + ". ".join(note[0].upper() + note[1:] for note in render.notes(results)) + "."]
    if picture is not None:
        parts.append(f"![Test accuracy, ECE and accuracy under FGSM of every row]({picture})")
    risks = render.risks(results)
    if risks:
        parts += ["Cross-entropy of the training images x 1000, before and after the refinement "
                  "(refined data augmentation, Table 2):", render.markdown(risks)]
    return "\n\n".join(filter(None, [*parts, _commands(results)]))


def evaluation(results: dict[str, Any], name: str, picture: str | None) -> str:
    """The block of what `python -m fastmix evaluate` wrote."""
    parts, found = results["parts"], []
    if "calibration" in parts:
        found += [f"accuracy {100 * parts['calibration']['accuracy']:.1f} %",
                  f"ECE {100 * parts['calibration']['ece']:.1f} %"]
    if "attacks" in parts:
        found += [f"{attack.upper()} {100 * parts['attacks']['accuracy'][attack]:.1f} %" for attack in ("fgsm", "pgd")]
    lines = [f"{results['method']} on {results['data']}, {results['images']} test images: {', '.join(found)} "
             f"([{Path(name).name}]({name}))."]
    if picture is not None:
        lines.append(f"![Parts of the evaluation]({picture})")
    if "commands" in results:
        lines.append("\n".join(["```sh", *results["commands"], "```"]))
    return "\n\n".join(lines)


def reward(results: dict[str, Any], name: str, picture: str | None) -> str:
    """The block of what `python -m bench.rl_reward` wrote."""
    found = results["reward"]
    gain = found["policy_minus_random"]
    lines = [["percentile", "all together", "one alone", "one alone, for itself"]]
    lines += [[f"{q:.2f}", *(f"{value:.3f}" for value in values)] for q, *values in
              zip(found["levels"], found["together"], found["alone"], found["alone_for_itself"], strict=True)]
    parts = [f"All at random {found['random']:.3f}, all by the policy {found['policy']:.3f}: {gain['mean']:+.3f} ± "
             f"{gain['standard_error']:.3f} (standard error over {results['draws']} draws of partners and lambda; a "
             f"single reward has a deviation of {found['std_of_a_reward']:.3f}). The best level of every image, found "
             f"on half of the draws and judged on the others: {found['oracle']:.3f}. From [{Path(name).name}]({name}).",
             render.markdown(lines)]
    return "\n\n".join([*parts, *([f"![Learning curves]({picture})"] if picture is not None else [])])


def page(text: str, folder: Path) -> str:
    """The page with all its blocks made anew. folder: from which their files are named. ValueError if it has none."""
    claims = {}

    def block(match: re.Match[str]) -> str:
        name = match[1]
        path = folder / name
        results = json.loads(path.read_text())
        if path.parent not in claims:
            claims[path.parent] = json.loads((path.parent / CLAIMS).read_text())
        picture = Path(name).with_suffix(".png").as_posix() if path.with_suffix(".png").exists() else None
        if "parts" in results:
            made = evaluation(results, name, picture)
        elif "reward" in results:
            made = reward(results, name, picture)
        else:
            made = runs(results, None if match[2] else claims[path.parent], name, picture)
        return f"<!-- table {name}{match[2] or ''} -->\n{made}\n<!-- end of table -->"

    if not BLOCK.search(text):
        raise ValueError("results_page: the page has no <!-- table NAME.json --> with an <!-- end of table -->")
    return BLOCK.sub(block, text)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.results_page", description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/results.md"))
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    try:
        text = args.page.read_text()
        wanted = page(text, args.page.parent)
    except (ValueError, OSError, KeyError, CommandError) as error:
        print(f"results_page: {error}", file=sys.stderr)
        return 2
    if args.check:
        if text != wanted:
            print(f"results_page: {args.page} does not show its files; run python -m bench.results_page {args.page}",
                  file=sys.stderr)
            return 1
        return 0
    args.page.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
