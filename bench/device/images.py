"""python -m fastmix.bench.device.images FOLDER: four classes of coloured squares, to train on without a data set."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "grey": (120, 120, 120)}


def main(folder: Path, images: int = 64, side: int = 32) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(images):
                picture = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
                top, left = random.integers(0, side // 2, 2)
                picture[top:top + side // 2, left:left + side // 2] = colour
                Image.fromarray(picture).save(folder / part / name / f"{i}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
