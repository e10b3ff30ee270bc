"""The CPU library built with AddressSanitizer and UBSan, or with ThreadSanitizer, and tests run with it.

    python -m helpers.sanitizers address|thread [arguments of pytest]

The build lies in build/sanitizers, never in the package: FASTMIX_LIBRARY names it to the processes that are to load
it. torch and Python are not instrumented. AddressSanitizer still knows the bounds of their tensors, because its
allocator is loaded before theirs; ThreadSanitizer looks at our own reads and writes alone, and `parallel_items`
(csrc/cpu/lib/binding.h) tells it where torch's parallel loops begin and end.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from . import ROOT
from .simt_build import _alone

BUILD = ROOT / "build" / "sanitizers"


class Sanitizer(NamedTuple):
    flag: str  # what g++ takes after -fsanitize=
    libraries: tuple[str, ...]  # its runtimes
    first: tuple[str, ...]  # libraries to load before everything else
    options: dict[str, str]


# float-cast-overflow: undefined too, and in neither g++'s nor clang's group of that name.
_UNDEFINED = "undefined,float-cast-overflow"
FOUND = 66  # how a process ends in which a sanitizer found something
_END = f"exitcode={FOUND}:"
# The runtimes wrap __cxa_throw, which they find only where it is there already.
_CPP = "libstdc++.so.6"
_UBSAN = {"UBSAN_OPTIONS": f"{_END}print_stacktrace=1"}
SANITIZERS = {
    # With UBSan, as is usual: a build that serves both. Leaks: Python has its own at exit. Errors of allocation are
    # tested.
    "address": Sanitizer(f"address,{_UNDEFINED}", ("libasan.so", "libubsan.so"), ("libasan.so", _CPP), _UBSAN | {
        "ASAN_OPTIONS": f"{_END}detect_leaks=0:allocator_may_return_null=1:strict_init_order=1"}),
    "thread": Sanitizer("thread", ("libtsan.so",), ("libtsan.so", _CPP), {
        "TSAN_OPTIONS": f"{_END}halt_on_error=1:ignore_noninstrumented_modules=1:report_signal_unsafe=0"}),
}

# The runtimes write to the stderr of the process, which pytest else keeps and, when they end it, loses.
PYTEST = ("--capture=sys", "-p", "no:cacheprovider", "--backend", "cpu")


def runtime(name: str) -> Path | None:
    """A sanitizer's library, of the g++ that is here."""
    if shutil.which("g++") is None:
        return None
    path = Path(subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip())
    return path if path.is_absolute() and path.exists() else None


@functools.cache
def missing(kind: str) -> str | None:
    """Why tests cannot run under this sanitizer here, or None."""
    if not sys.platform.startswith("linux"):
        return "the runtimes are loaded as on Linux"
    if shutil.which("g++") is None:
        return "no g++"
    absent = [name for name in SANITIZERS[kind].libraries if runtime(name) is None]
    if absent:
        return f"g++ has no {absent[0]}"
    found = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True, cwd=ROOT,
                           env=environment(kind))
    return None if found.returncode == 0 else (
        f"{SANITIZERS[kind].libraries[0]} does not run here: {(found.stderr.strip() or 'killed').splitlines()[0]}")


def environment(kind: str, library: Path | None = None) -> dict[str, str]:
    """Of a process that is to run under the sanitizer, with this library."""
    which = SANITIZERS[kind]
    own = {**which.options, "LD_PRELOAD": " ".join(str(runtime(name)) for name in which.first)}
    if library is not None:
        own["FASTMIX_LIBRARY"] = str(library)
    return {**os.environ, **own}


def build(kind: str, instruction_set: str | None = None) -> Path:
    """The library under the sanitizer, brought up to date. instruction_set: of that one alone, in a third of the time.
    """
    folder = BUILD / "-".join(filter(None, (kind, instruction_set)))
    with _alone(folder):
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder, "--build-temp", folder / "objects"],
            cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "CXX": "g++", "FASTMIX_CUDA": "0", "FASTMIX_SANITIZE": SANITIZERS[kind].flag,
                 "FASTMIX_INSTRUCTION_SET": instruction_set or ""})
        if done.returncode != 0:
            raise RuntimeError(f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return folder / "fastmix" / "_C.abi3.so"


def python(kind: str, library: Path, *arguments: object) -> subprocess.CompletedProcess:
    """A Python process under the sanitizer."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          timeout=1800, env=environment(kind, library))


def main(kind: str, *arguments: str) -> int:
    if (reason := missing(kind)) is not None:
        raise SystemExit(f"{kind}: {reason}")
    print(f"{kind}: building in {BUILD}", file=sys.stderr)
    library = build(kind)
    tests = arguments or ("tests/ops", "tests/mixers")
    return subprocess.run([sys.executable, "-m", "pytest", *PYTEST, *tests], cwd=ROOT,
                          env=environment(kind, library)).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
