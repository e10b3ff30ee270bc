"""Builds the CUDA kernels for the CPU: a library of operators (fastmix_simt), and programs under a sanitizer."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from . import ROOT

HERE = ROOT / "tests" / "backends" / "simt"
BUILD = ROOT / "build" / "simt"
FLAGS = ["-std=c++20", "-DFASTMIX_SIMT", f"-I{HERE}", f"-I{ROOT / 'csrc'}", "-Wall", "-Wextra",
         "-Wno-unknown-pragmas", "-Wno-attributes", "-fvisibility=hidden"]
SANITIZERS = {"thread": ["-fsanitize=thread"], "address": ["-fsanitize=address"]}


def missing() -> str | None:
    """Why kernels cannot be built here, or None."""
    return None if shutil.which("g++") else "no g++"


def _stamp(sources: list[Path], command: list[str]) -> str:
    """Hash of everything that the result depends on."""
    text = hashlib.sha256(" ".join(command).encode() + torch.__version__.encode())
    headers = [*HERE.glob("*.h"), *(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc" / "cuda").rglob("*.c*"),
               ROOT / "fastmix" / "ops" / "schemas.def"]
    for path in sorted({*headers, *sources}):
        text.update(path.read_bytes())
    return text.hexdigest()[:16]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


def _fresh(target: Path, stamp: str) -> bool:
    mark = target.with_suffix(".stamp")
    return target.exists() and mark.exists() and mark.read_text() == stamp


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two test processes may want the same build."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def library() -> Path:
    """The shared library with every CUDA registration in the namespace fastmix_simt."""
    with _alone(BUILD):
        return _library()


def _library() -> Path:
    include = Path(torch.__file__).parent / "include"
    flags = [*FLAGS, "-O1", "-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(include)]
    sources = [HERE / "operators.cpp", *sorted((ROOT / "csrc" / "cuda").glob("*.cu")),
               *sorted((ROOT / "csrc" / "cuda" / "lib").glob("*.cpp"))]
    target = BUILD / "fastmix_simt.so"
    stamp = _stamp(sources, flags)
    if _fresh(target, stamp):
        return target
    objects = [BUILD / f"{source.name}.o" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: _run(["g++", *flags, "-x", "c++", "-c", str(pair[0]), "-o", str(pair[1])]),
                      zip(sources, objects, strict=True)))
    lib = Path(torch.__file__).parent / "lib"
    _run(["g++", "-shared", *map(str, objects), "-o", str(target), f"-L{lib}", "-ltorch", "-ltorch_cpu"])
    target.with_suffix(".stamp").write_text(stamp)
    return target


def program(sanitizer: str, source: Path = HERE / "cases.cpp", extra: tuple[str, ...] = (),
            directory: Path = BUILD) -> Path:
    """source as a program under ThreadSanitizer ("thread") or AddressSanitizer ("address")."""
    flags = [*extra, *FLAGS, "-O1", "-g1", *SANITIZERS[sanitizer]]
    stamp = _stamp([source], flags)
    target = directory / f"{source.stem}_{sanitizer}"
    with _alone(directory):
        if not _fresh(target, stamp):
            _run(["g++", *flags, str(source), "-o", str(target)])
            target.with_suffix(".stamp").write_text(stamp)
    return target
