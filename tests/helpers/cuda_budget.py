"""What each compiled CUDA kernel uses: registers, stack (spills), shared memory, 16-byte loads. For sm_90, of kernels
that `kernel_work` knows, what their machine code does as well: instructions an element where all is well, 16-byte loads
issued before the first is used, bytes under way on an SM; and the narrowest asynchronous copy (cp.async).

``make budgets`` builds the CUDA library and writes tests/backends/cuda_budget.json, which test_cuda_build.py holds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import ROOT, sass
from .kernel_work import work_of

BUDGET = ROOT / "tests" / "backends" / "cuda_budget.json"
BUILD = ROOT / "build" / "cuda_test"
# Whose machine code is read.
READ = "sm_90"
# A load of 16 bytes from device memory, and of the generic addresses that rows staged in shared memory have.
ENUMERATOR = re.compile(r"\((PixelLoad|TargetKind|ViewMix)\)")
Numbers = dict[str, int | float]
WIDE_LOAD = re.compile(r"\bLDG?\.E\.128")


def tool(name: str) -> str | None:
    """A CUDA tool on the PATH, or the one that Triton carries."""
    found = shutil.which(name)
    spec = None if found else importlib.util.find_spec("triton")
    if found or spec is None or spec.origin is None:
        return found
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
    return str(path) if path.is_file() else None


def static_shared(architecture: str, numbers: Numbers) -> int:
    """Static shared memory of a kernel's own, in bytes: from sm_90 on 1 KB of the reported number is the system's."""
    return int(numbers["shared"]) - (1024 if numbers["shared"] >= 1024 and architecture != "sm_80" else 0)


def build(architectures: str | None = None) -> Path:
    """The CUDA library, built for any torch; ninja rebuilds only what changed. architectures: as TORCH_CUDA_ARCH_LIST,
    None for all that a release has."""
    chosen = {} if architectures is None else {"TORCH_CUDA_ARCH_LIST": architectures}
    done = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(BUILD / "lib"),
                           "--build-temp", str(BUILD / "tmp")], cwd=ROOT,
                          env={**os.environ, "FASTMIX_CUDA": "1", **chosen}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the CUDA library does not build:\n{done.stdout[-4000:]}{done.stderr[-1000:]}")
    return next((BUILD / "lib" / "fastmix").glob("_C_cuda*.so"))


def nvcc_version() -> str:
    return re.search(r"release (\S+),", subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout)[1]


def _demangled(names: list[str]) -> list[str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    lines = text.replace("fastmix::", "").splitlines()
    # Parameters go; a template argument that is an enumerator stands in parentheses as well.
    return [re.sub(r"\([A-Z]\w*Params\)$", "", line.removeprefix("void ")) if ENUMERATOR.search(line)
            else line.removeprefix("void ").split("(", 1)[0] for line in lines]


def read(kernel: str, listing: list[str], numbers: Numbers) -> Numbers:
    """What the machine code of a kernel does."""
    instructions = sass.instructions(listing)
    found: Numbers = {}
    copies = [i.width for i in instructions if i.name == "LDGSTS"]
    if copies:
        found["cp_async"] = min(copies)
    work = work_of(kernel)
    if work is not None:
        code = sass.Code(tuple(instructions))
        found["instructions"] = round(work.instructions(code), 3 if work.products else 1)
        found["loads_first"] = work.flight(code).wide
        found["in_flight"] = work.per_sm(code, int(numbers["registers"]), int(numbers["shared"]))
    return found


def measure(library: Path) -> dict[str, dict[str, Numbers]]:
    """architecture -> kernel -> numbers."""
    usage = subprocess.run([tool("cuobjdump"), "--dump-resource-usage", str(library)], capture_output=True, text=True,
                           check=True).stdout
    found: dict[tuple[str, str], Numbers] = {}
    arch = name = ""
    for line in usage.splitlines():
        if line.startswith("arch ="):
            arch = line.split("=")[1].strip()
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found[arch, name] = {"registers": registers, "stack": stack + local, "shared": shared, "wide_loads": 0}
    names = dict(zip(found, _demangled([name for _, name in found]), strict=True))
    nvdisasm = Path(tool("cuobjdump")).parent
    with subprocess.Popen([tool("cuobjdump"), "-sass", str(library)], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PATH": f"{os.environ['PATH']}:{nvdisasm}"}) as process:
        for arch, name, text in sass.listings(process.stdout):
            numbers = found[arch, name]
            numbers["wide_loads"] = sum(bool(WIDE_LOAD.search(line)) for line in text)
            if arch == READ:
                numbers |= read(names[arch, name], text, numbers)
    result: dict[str, dict[str, Numbers]] = {}
    for key in sorted(found, key=lambda key: (key[0], names[key])):
        result.setdefault(key[0], {})[names[key]] = found[key]
    return result


if __name__ == "__main__":
    kernels = measure(build())
    lines = []
    for arch, rows in kernels.items():
        text = ",\n".join(f"    {json.dumps(kernel)}: {json.dumps(numbers)}" for kernel, numbers in rows.items())
        lines.append(f'  "{arch}": {{\n{text}\n  }}')
    BUDGET.write_text(f'{{\n  "nvcc": "{nvcc_version()}",\n' + ",\n".join(lines) + "\n}\n")
    print(f"{BUDGET}: {sum(map(len, kernels.values()))} kernels")
