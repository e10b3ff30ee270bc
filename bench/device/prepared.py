"""make device-package: what a borrowed card need not build itself, made here into build/device.

`package/fastmix`: the two libraries of the package, of the stable ABI (abi3: any CPython from 3.10), for sm_90, against
the headers of the Python that runs this: its torch should be the machine's (2.11 with CUDA 13), or older.
`cases`, `far`: the CUDA kernels' cases (tests/backends/simt) without torch, by nvcc, for compute-sanitizer.
`stamp.json`: of which sources. The folder is ignored by git: it has to be named to travel with the working tree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "device"
LIBRARIES = ("_C.abi3.so", "_C_cuda.abi3.so")
PROGRAMS = ("cases", "far")
ARCH = "9.0"


def sources(root: Path = ROOT) -> str:
    """Hash of all that the prepared files are made of."""
    text = hashlib.sha256()
    paths = [*(root / "csrc").rglob("*"), *(root / "tests" / "backends" / "simt").glob("*"),
             root / "fastmix" / "ops" / "schemas.def", root / "setup.py"]
    for path in sorted(path for path in paths if path.is_file()):
        text.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return text.hexdigest()[:16]


def why_not(root: Path = ROOT, folder: Path | None = None) -> str | None:
    """Why the prepared files do not serve this tree, or None."""
    folder = folder or root / "build" / "device"
    stamp = folder / "stamp.json"
    if not stamp.exists():
        return f"there is no {stamp.relative_to(root) if stamp.is_relative_to(root) else stamp} (make device-package)"
    found = json.loads(stamp.read_text())
    if found["sources"] != sources(root):
        return "the prepared files are of other sources (make device-package)"
    missing = [path for path in (*(folder / "package" / "fastmix" / name for name in LIBRARIES),
                                 *(folder / name for name in PROGRAMS)) if not path.exists()]
    return f"not there: {', '.join(path.name for path in missing)}" if missing else None


def programs(nvcc: str, folder: Path) -> None:
    """The cases, without torch; runtime linked in."""
    arch = ARCH.replace(".", "")
    for name in PROGRAMS:
        subprocess.run([nvcc, "-std=c++20", "-O2", "-lineinfo", "-w", "--expt-relaxed-constexpr", "-x", "cu",
                        f"-gencode=arch=compute_{arch},code=sm_{arch}", f"-I{ROOT / 'csrc'}",
                        f"-I{ROOT / 'tests' / 'backends' / 'simt'}", "-o", str(folder / name),
                        str(ROOT / "tests" / "backends" / "simt" / f"{name}.cpp")], check=True)


def torch_version() -> str:
    """Of the Python that runs this; SystemExit where it has none."""
    code = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"device-package: {sys.executable} has no torch (set TORCH_PYTHON, or PYTHONPATH to a folder "
                         "made by pip install --no-deps --target FOLDER torch==2.11.0)")
    text = (Path(done.stdout.strip()) / "version.py").read_text()
    return re.search(r"__version__ = '([^']+)'", text)[1]  # type: ignore[index]


def build() -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("device-package: no nvcc on the PATH")
    torch = torch_version()
    (FOLDER / "stamp.json").unlink(missing_ok=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    before = sources()
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(FOLDER / "package"),
                    "--build-temp", str(ROOT / "build" / "device-objects")], cwd=ROOT, check=True,
                   env={**os.environ, "FASTMIX_CUDA": "1", "TORCH_CUDA_ARCH_LIST": ARCH})
    programs(nvcc, FOLDER)
    about = {"sources": before, "torch": torch, "arch": f"sm_{ARCH.replace('.', '')}",
             "python": "abi3: CPython 3.10 or newer"}
    (FOLDER / "stamp.json").write_text(json.dumps(about, indent=1) + "\n")
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    print(f"device-package: {FOLDER.relative_to(ROOT)}, {size / 2**20:.1f} MiB, against torch {torch}")


def make_site(site: Path, libraries: Path) -> None:
    """The package of this tree with compiled libraries from a folder, and the tests beside it."""
    shutil.rmtree(site, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    package = site / "fastmix"
    shutil.copytree(ROOT / "fastmix", package, ignore=ignored)
    for name in ("kernels", "bench"):
        shutil.copytree(ROOT / name, package / name, ignore=ignored)
    for path in libraries.glob("_C*.so"):
        shutil.copy2(path, package)
    shutil.rmtree(site.parent / "tests", ignore_errors=True)
    shutil.copytree(ROOT / "tests", site.parent / "tests", ignore=ignored)
    shutil.copy2(ROOT / "pyproject.toml", site.parent)


def load(site: Path, detail: Path, cpu: bool) -> int:
    """In the device check: the prepared package, or one that is built here; says what serves. The exit code."""
    notes, reason = [], None if cpu else why_not()
    if reason is not None:
        notes.append(f"{reason}: building here")
        try:
            build()
        except (SystemExit, subprocess.CalledProcessError) as error:
            notes.append(f"no CUDA library: {error}")
    make_site(site, ROOT / "fastmix" if cpu else FOLDER / "package" / "fastmix")
    done = subprocess.run([sys.executable, "-m", "fastmix", "info"], capture_output=True, text=True, cwd=site,
                          env={**os.environ, "PYTHONPATH": str(site)})
    print(done.stdout + done.stderr)
    served = [line.strip() for line in done.stdout.splitlines() if re.match(r"(torch|triton|CUDA|python) ", line)]
    blind = not cpu and not re.search(r"sm_\d", done.stdout)
    if blind:
        notes.append("torch sees no GPU")
    found = {"summary": [*notes, *served], "info": done.stdout, "prepared": reason is None,
             "card": _said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
             "nvcc": _said("nvcc", "--version")}
    detail.write_text(json.dumps(found) + "\n")
    return done.returncode or int(blind)


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()[-1]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return None


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--site", type=Path, help="make a folder with the package in it, instead of building")
    p.add_argument("--detail", type=Path, help="where that says how it went")
    p.add_argument("--cpu", action="store_true", help="with the libraries that are in the tree")
    args = p.parse_args()
    sys.exit(load(args.site, args.detail, args.cpu) if args.site else build())
