"""Builds fastmix: `_C`, a torch stable-ABI library (every Python >= 3.10, every torch >= 2.10), with ninja.

torch's headers are all the build needs, so a torch in the target environment is found even from pip's isolated
build environment, and only where there is none does the build ask for one. Without a C++ compiler the package
installs pure: the reference serves, and `python -m fastmix info` says why.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TORCH_MINIMUM = "0x020a000000000000"  # 2.10

# No -march=native: kernels (*.simd.cpp) are compiled once for each instruction set and chosen at run time.
X86_LEVELS = {"portable": [], "avx2": ["-march=x86-64-v3"],
              "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast", "-fopenmp-simd", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
         "-Wno-maybe-uninitialized", "-DNDEBUG"]


def torch_folder():
    """The folder of a torch whose headers can be used, or None."""
    spec = find_spec("torch")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    for key in ("platlib", "purelib"):
        folder = Path(sysconfig.get_paths()[key]) / "torch"
        if (folder / "include" / "torch" / "csrc" / "stable").is_dir():
            return folder
    return None


def compiler():
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(name.split()[0])), None)


class NinjaBuild(build_ext):
    """One ninja file for the whole library; a missing compiler skips it, a failing one fails the build."""

    def build_extension(self, ext):
        cxx, torch = compiler(), torch_folder()
        if cxx is None or torch is None:
            missing = "no C++ compiler (set CXX)" if cxx is None else "no torch headers"
            print(f"fastmix: {missing}: installing without the C++ kernels, the reference serves", file=sys.stderr)
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(self.ninja_file(cxx, torch, target))
        ninja = self.ninja()
        subprocess.check_call([*ninja, "-C", str(build)])

    @staticmethod
    def ninja():
        if find_spec("ninja") is not None:
            return [sys.executable, "-m", "ninja"]
        if shutil.which("ninja"):
            return ["ninja"]
        raise RuntimeError("fastmix: the build needs ninja (pip install ninja)")

    @staticmethod
    def ninja_file(cxx, torch, target):
        def esc(path):
            return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        include = f"-I{ROOT / 'csrc'} -isystem {torch / 'include'}"
        lines = [
            f"flags = {' '.join(FLAGS)} -DTORCH_TARGET_VERSION={TORCH_MINIMUM} -DPy_LIMITED_API=0x030a0000 {include}",
            "rule cxx",
            f"  command = {cxx} $flags $isa -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {cxx} -shared $in -o $out -L{torch / 'lib'} -ltorch -ltorch_cpu -Wl,--as-needed -s",
        ]
        objects = []
        x86 = platform.machine() in ("x86_64", "AMD64")
        for source in sorted((ROOT / "csrc").glob("*.cpp")) + sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
            levels = {"": []}
            if source.name.endswith(".simd.cpp"):
                levels = X86_LEVELS if x86 else {"portable": []}
            for level, isa in levels.items():
                name = source.stem + (f".{level}" if level else "") + ".o"
                objects.append(name)
                lines.append(f"build {name}: cxx {esc(source)}")
                if level:
                    lines.append(f"  isa = {' '.join(isa)} -DFASTMIX_ISA={level}")
        lines.append(f"build {esc(target)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"


class StableWheel(bdist_wheel):
    """cp310-abi3: the library uses no Python API at all."""

    def finalize_options(self):
        self.py_limited_api = "cp310"
        super().finalize_options()


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("fastmix._C", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": NinjaBuild, "bdist_wheel": StableWheel},
        setup_requires=[] if torch_folder() is not None else ["torch>=2.10"],
        packages=[*find_packages(include=["fastmix*"]), "fastmix.kernels"],
        package_dir={"fastmix.kernels": "kernels"},
    )
