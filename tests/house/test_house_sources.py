"""The house: what computes something of the five papers says where it stands there, and every number exists there."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator

import pytest
from helpers import ROOT

from fastmix.app.training.recipes import PRESETS
from fastmix.ops.dispatch import OPERATORS

SA, KM, ISDA, RDA, RM = PAPERS = ("Soft Augmentation", "K-image mixing", "ISDA", "refined data augmentation", "R-Mix")
# The last number of each kind. K-image mixing's supplement counts anew and stays below.
LAST = {SA: {"Eq": 18, "Table": 9, "Fig": 7, "Listing": 2}, KM: {"Eq": 8, "Table": 5, "Fig": 4, "Algorithm": 1},
        ISDA: {"Eq": 21, "Table": 12, "Fig": 14, "Algorithm": 1}, RDA: {"Eq": 9, "Table": 5, "Fig": 3, "Algorithm": 1},
        RM: {"Eq": 7, "Table": 9, "Fig": 2}}
# Numbered sections by their subsections: {chapter: last subsection}; the other two papers have none.
SECTIONS = {SA: {1: 0, 2: 4, 3: 0, 4: 4, 5: 0, 6: 0}, ISDA: {1: 0, 2: 0, 3: 0, 4: 3, 5: 0, 6: 5, 7: 0},
            RM: {1: 0, 2: 2, 3: 0, 4: 5, 5: 2, 6: 3, 7: 0}}
SUBSECTIONS = {(SA, "4.3"): 4, (ISDA, "6.2"): 3, (ISDA, "6.5"): 5}
APPENDICES = {SA: ("A", "B", "B.1", "B.2", "B.3", "B.4", "C"), ISDA: tuple("ABCDE")}
# Equations that nothing here computes, and why.
NOT_COMPUTED = {
    SA: {1: "notation", 2: "hard augmentation, the loader's", 11: "future work", 16: "in no experiment of the paper"},
    KM: {7: "the predictive mean of Eq. 6 with positions; only its losses, Eq. 8, are used"},
    ISDA: {6: "bounded by Eq. 7", **dict.fromkeys(range(8, 12), "proof of Eq. 7"),
           **dict.fromkeys(range(16, 19), "proof of Eq. 15"), 20: "pictures by a GAN", 21: "pictures by a GAN"},
    RDA: {3: "a bound with unknown constants", 4: "as 3", 6: "as 3", 7: "argument", 8: "argument", 9: "argument"},
    RM: {}}
# Public names that are no paper's, and why.
OWN = {
    "fastmix": {"Compose": "mixers in a row", "RandomChoice": "timm's switch_prob", "View": "the loader's bytes",
                "Mixer": "what mixers share", "ComposePlan": "plans in a row", "Labels": "a type", "Plan": "a type",
                "Target": "a type", "patch": "drop-ins", "unpatch": "drop-ins",
                "backend": "which kernel", "set_debug": "checks", "functional": "a module"},
    "fastmix.functional": {},
    "fastmix.app.evaluation": {"WeightLoss": "a function to probe", "filter_normalised": "Li et al. 2018",
                         "iou": "of boxes", "largest_box": "of a heat map"},
    "fastmix.app.selfsupervised": {}, "fastmix.app.policy": {"acting": "how many images have a policy"}}
# One equation or section that each file of an operator names; view is no paper's.
OPS = {"soft_target": (SA, "Eq", "12"), "blend": (KM, "Eq", "2"), "paste": (KM, "Eq", "4"),
       "patch_mix": (RM, "Eq", "5"), "saliency": (RM, "Eq", "2"), "crop": (SA, "Sec", "4.1"), "plan": (KM, "Eq", "3"),
       "covariance": (ISDA, "Eq", "1"), "isda": (ISDA, "Eq", "7")}

NUMBER = r"(?:\d+(?:\.\d+)*|[A-E](?:\.\d+)?\b)(?:[a-e]\b)?"
TOKEN = re.compile(
    rf"(?P<paper>\b(?i:{'|'.join(PAPERS)})\b)|(?P<other>\bet al\.|\bSimSiam\b)|(?P<end>\n\s*(?://|#)?\s*\n)"
    rf"|\b(?P<kind>Eq|Table|Fig|Sec|Algorithm|Listing|Appendix)(?:s|ure|ures|tion|tions)?\.? "
    rf"(?P<numbers>{NUMBER}(?:(?:-|,\s+| and\s+){NUMBER})*)|\b(?P<appendix>[A-E]\.\d)\b")


def joined(text: str) -> str:
    """Comment marks away and lines of a paragraph joined, so that a break inside a reference does not hide it."""
    text = re.sub(r"\n[ \t]*(?://|#)[ \t]+(?=\S)", " ", text)
    return re.sub(r"\n[ \t]*(?=\S)", " ", text)


def references(text: str) -> Iterator[tuple[str | None, str, str]]:
    """(paper, kind, number) of every reference to a paper's text; "12-15" is four of them.

    A reference belongs to the paper named last. Those to other works (after "et al.", to the end of the paragraph or
    the next paper) are left out; None where no paper was named before.
    """
    named, other = None, False
    names = {name.lower(): name for name in PAPERS}
    for found in TOKEN.finditer(text):
        if found["paper"]:
            named, other = names[found["paper"].lower()], False
        elif found["other"] or found["end"]:
            other = bool(found["other"])
        elif not other and found["appendix"]:
            yield named, "Appendix", found["appendix"]
        elif not other:
            kind = found["kind"]
            for part in re.split(r",\s+| and\s+", found["numbers"]):
                first, _, last = (re.sub(r"[a-e]$", "", number) for number in part.partition("-"))
                numbers = range(int(first), int(last) + 1) if last else [first]
                yield from ((named, "Appendix" if first[0].isalpha() else kind, str(number)) for number in numbers)


def exists(paper: str | None, kind: str, number: str) -> bool:
    if paper is None:
        return False
    if kind == "Appendix":
        return number in APPENDICES.get(paper, ())
    if kind == "Sec":
        chapter, *rest = number.split(".")
        if int(chapter) not in SECTIONS.get(paper, {}):
            return False
        if len(rest) == 2:
            return 1 <= int(rest[1]) <= SUBSECTIONS.get((paper, f"{chapter}.{rest[0]}"), 0)
        return not rest or 1 <= int(rest[0]) <= SECTIONS[paper][int(chapter)]
    return number.isdigit() and 1 <= int(number) <= LAST[paper].get(kind, 0)


TEXTS = [*sorted(path for folder in ("fastmix", "kernels", "bench", "csrc") for path in (ROOT / folder).rglob("*.*")
                 if path.suffix in (".py", ".cpp", ".h", ".cuh")), ROOT / "README.md",
         *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_number_stands_in_its_paper(path):
    if path.name == "recipes.py":
        text = "\n\n".join(f"{preset.source}; {preset.note}" for preset in PRESETS.values())
        assert len(set(references(text))) > 20
    else:
        text = joined(path.read_text())
    wrong = sorted({found for found in references(text) if not exists(*found)}, key=str)
    assert not wrong, f"no such place, or of no paper (paper, kind, number): {wrong}"


def docstrings() -> Iterator[str]:
    """Of every module, class and function of the package."""
    for path in (ROOT / "fastmix").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield joined(ast.get_docstring(node) or "")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_equation_is_in_the_docstring_of_what_computes_it(paper):
    named = {int(number) for text in docstrings() for whose, kind, number in references(text)
             if whose == paper and kind == "Eq"}
    every = set(range(1, LAST[paper]["Eq"] + 1))
    assert every - named - NOT_COMPUTED[paper].keys() == set(), "named nowhere"
    assert named & NOT_COMPUTED[paper].keys() == set(), "named, and listed as not computed"


@pytest.mark.parametrize("module", OWN)
def test_every_public_name_has_its_source(module):
    if module == "fastmix.app.policy":
        pytest.importorskip("stable_baselines3")
    found = importlib.import_module(module)
    for name in found.__all__:
        text = inspect.getdoc(getattr(found, name)) or ""
        source = joined(text[text.find("Source:"):]) if "Source:" in text else ""
        numbered = [each for each in references(source) if exists(*each)]
        if name in OWN[module]:
            assert not numbered, f"{name} has a source in a paper: no longer the package's own"
        else:
            assert numbered, f"{module}.{name}: no `Source:` with a paper and a number: {source!r}"
    assert OWN[module].keys() <= set(found.__all__)


@pytest.mark.parametrize("op", OPERATORS)
def test_every_file_of_an_operator_names_its_equation(op):
    if op == "view":
        assert op not in OPS
        return
    files = [f"fastmix/ops/{op}.py", f"fastmix/reference/{op}.py", f"kernels/{op}.py", f"csrc/cpu/{op}.cpp",
             f"csrc/cuda/{op}.cuh"]
    for file in files:
        if (ROOT / file).exists():
            start = joined((ROOT / file).read_text()[:1500])
            assert OPS[op] in set(references(start)), f"{file} does not name {OPS[op]} at its top"


@pytest.mark.parametrize("text,found", [
    ("Source: R-Mix, Eq. 5-7.", [(RM, "Eq", "5"), (RM, "Eq", "6"), (RM, "Eq", "7")]),
    ("K-image mixing Eq. 1, 3-5 and its Algorithm 1", [(KM, "Eq", n) for n in "1345"] + [(KM, "Algorithm", "1")]),
    ("Refined data augmentation Tables 1 and 5, Fig. 3a",
     [(RDA, "Table", "1"), (RDA, "Table", "5"), (RDA, "Fig", "3")]),
    ("ISDA Sec. 6.1 and 6.5.3; Lin et al. 2017, Eq. 4", [(ISDA, "Sec", "6.1"), (ISDA, "Sec", "6.5.3")]),
    ("Soft Augmentation\n// Eq. 12", [(SA, "Eq", "12")]), ("Eq. 2", [(None, "Eq", "2")]),
    ("SimSiam Eq. 1-4; Soft Augmentation Appendix C, B.3", [(SA, "Appendix", "C"), (SA, "Appendix", "B.3")])])
def test_references_are_found(text, found):
    assert list(references(joined(text))) == found


@pytest.mark.parametrize("place", [(SA, "Eq", "19"), (KM, "Sec", "3"), (ISDA, "Sec", "6.6"), (ISDA, "Sec", "6.5.6"),
                                   (RM, "Table", "10"), (SA, "Appendix", "B.5"), (RM, "Listing", "1"),
                                   (None, "Eq", "1")])
def test_a_place_that_is_not_there_is_seen(place):
    assert not exists(*place)
