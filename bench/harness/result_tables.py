"""Blocks of docs/results.md, each made of a JSON file beside the page.

The file is a report of `python -m fastmix report`, a compare.json, an evaluation's JSON or that of `bench rl-reward`.
claims.json, beside it, holds what the papers report, for a column of the first two kinds unless "without claims"
follows its name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from fastmix.app.results import render

from .entries import Entry

NAME = re.compile(r"(\S+\.json)( without claims)?")
CLAIMS = "claims.json"


def claimed(claims: Entry, row: render.Row) -> str | None:
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


def _commands(results: Entry) -> str:
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


def runs(results: Entry, claims: Entry | None, name: str, picture: str | None) -> str:
    """The block of a report or of a comparison. name: of the JSON, as the page links it."""
    more = {} if claims is None else {"the papers, with their own models and data": lambda row: claimed(claims, row)}
    lines = render.table(results, more)
    machine = f" on {results['machine']}" if "machine" in results else ""
    parts = [render.markdown(lines, named=True), f"From [{Path(name).name}]({name}){machine}. "
             + ". ".join(note[0].upper() + note[1:] for note in render.notes(results)) + "."]
    if picture is not None:
        parts.append(f"![Test accuracy, ECE and accuracy under FGSM of every row]({picture})")
    risks = render.risks(results)
    if risks:
        parts += ["Cross-entropy of the training images x 1000, before and after the refinement "
                  "(refined data augmentation, Table 2):", render.markdown(risks, named=True)]
    return "\n\n".join(filter(None, [*parts, _commands(results)]))


def evaluation(results: Entry, name: str, picture: str | None) -> str:
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


def reward_rows(found: Entry) -> list[list[str]]:
    """A row per percentile of what `bench rl-reward` measured."""
    return [[f"{q:.2f}", *(f"{value:.3f}" for value in values)] for q, *values in
            zip(found["levels"], found["together"], found["alone"], found["alone_for_itself"], strict=True)]


def reward(results: Entry, name: str, picture: str | None) -> str:
    """The block of what `python -m fastmix bench rl-reward` wrote."""
    found = results["reward"]
    gain = found["policy_minus_random"]
    lines = [["percentile", "all together", "one alone", "one alone, for itself"], *reward_rows(found)]
    parts = [f"All at random {found['random']:.3f}, all by the policy {found['policy']:.3f}: {gain['mean']:+.3f} ± "
             f"{gain['standard_error']:.3f} (standard error over {results['draws']} draws of partners and lambda; a "
             f"single reward has a deviation of {found['std_of_a_reward']:.3f}). The best level of every image, found "
             f"on half of the draws and judged on the others: {found['oracle']:.3f}. From [{Path(name).name}]({name}).",
             render.markdown(lines)]
    return "\n\n".join([*parts, *([f"![Learning curves]({picture})"] if picture is not None else [])])


def is_block(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def block(name: str, folder: Path) -> str:
    """The text of a block: NAME.json, or "NAME.json without claims". folder: of the page, from which it is named."""
    file, without_claims = NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    path = folder / file
    results = json.loads(path.read_text())
    picture = Path(file).with_suffix(".png").as_posix() if path.with_suffix(".png").exists() else None
    if "parts" in results:
        return evaluation(results, file, picture)
    if "reward" in results:
        return reward(results, file, picture)
    claims = None if without_claims else json.loads((path.parent / CLAIMS).read_text())
    return runs(results, claims, file, picture)
