"""python -m fastmix.bench.device.join FOLDER OUT.json: the results of several runs of one machine as one."""

from __future__ import annotations

import sys
from pathlib import Path

from ..harness import plots, report


def main(folder: Path, out: Path) -> int:
    """Exit code 1: there is no result in the folder, or one that cannot be read."""
    joined, code = None, 0
    for path in sorted(folder.glob("*.json")):
        try:
            results = report.load(path)
        except ValueError as error:
            print(error)
            code = 1
            continue
        if joined is None:
            joined = results
        else:
            joined["cases"] += results["cases"]
    if joined is None:
        print(f"no results in {folder}")
        return 1
    report.save(joined, out)
    print("\n".join([report.summary(joined), *plots.draw(joined, out)]))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
