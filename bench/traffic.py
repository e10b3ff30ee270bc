"""python -m fastmix bench traffic: what the GPU's image kernels read from memory, simulated (`harness.traffic`)."""

from __future__ import annotations

import json
from pathlib import Path

from fastmix.app.console import Parser, UsageError

from .harness import report
from .harness.tiles import Images
from .harness.traffic import IMAGE_BY_IMAGE, IMAGES_INNERMOST, Sources, blend, paste, patch_mix, simulate

# An H100 and an H200 have 50 MB, of which each half of the chip sees the half next to it without a detour.
SIZES = (30, 50)
SHAPE = (256, 3, 224, 224)
OPERATORS = {"blend K=2": lambda images: blend(images), "paste K=5": lambda images: paste(images),
             "patch_mix 4x4": lambda images: patch_mix(images)}


def parser() -> Parser:
    p = Parser(prog="python -m fastmix bench traffic", description="What the image kernels read from a GPU's memory, "
               "in batches (the bytes of\nall images): the kernels' own order of blocks through a cache that keeps "
               "what\nwas used last. A simulation, no GPU.")
    p.add_argument("--op", action="append", help="only operators that begin so")
    p.add_argument("--l2", type=float, action="append", metavar="MB", help="size of the cache (default: 30 and 50)")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    p.add_argument("--channels-last", action="store_true")
    p.add_argument("--budget", type=Path, metavar="JSON",
                   help="instead write what every operator, dtype and layout reads, for the tests")
    return p


def _images(dtype: str, channels_last: bool) -> Images:
    return Images(*SHAPE, itemsize=4 if dtype == "float32" else 2, channels_last=channels_last)


def budget() -> dict[str, dict[str, float]]:
    """Operator, dtype and layout -> size of the cache in MB -> batches read from memory, images innermost."""
    found: dict[str, dict[str, float]] = {}
    for dtype in ("float32", "bfloat16"):
        for last in (False, True):
            images = _images(dtype, last)
            for name, make in OPERATORS.items():
                sources = make(images)
                found[f"{name} {dtype}" + (" channels_last" if last else "")] = {
                    f"{size:g}": round(simulate(images, sources, size * 1e6).read, 3) for size in SIZES}
    return found


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.budget:
        args.budget.write_text(json.dumps(budget(), indent=1) + "\n")
        print(f"wrote {args.budget}")
        return 0
    chosen = {name: make for name, make in OPERATORS.items() if not args.op or name.startswith(tuple(args.op))}
    if not chosen:
        raise UsageError(f"--op {', '.join(args.op)}: no operator begins so; there are {', '.join(OPERATORS)}")
    if any(size <= 0 for size in args.l2 or ()):
        raise UsageError("--l2: want a size above 0")
    images = _images(args.dtype, args.channels_last)
    rows = [("operator", "order of blocks", "cache", "read", "from memory")]
    for name, make in chosen.items():
        sources: Sources = make(images)
        for order in (IMAGES_INNERMOST, IMAGE_BY_IMAGE):
            for size in args.l2 or SIZES:
                found = simulate(images, sources, size * 1e6, order)
                rows.append((f"{name} {images.name} {args.dtype}", order, f"{size:g} MB", f"{found.issued:.2f}",
                             f"{found.read:.2f}"))
    print("\n".join(report.aligned(rows)))
    print("reads in batches; every kernel writes one more. The kernels run with the images innermost.")
    return 0
