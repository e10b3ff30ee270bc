"""Builds fastmix: `_C`, a torch stable-ABI library (every Python >= 3.10, every torch >= 2.10), with ninja, and
`_C_cuda` beside it where nvcc and a CUDA build of torch are found.

torch's headers are all the build needs, so a torch in the target environment is found even from pip's isolated
build environment, and only where there is none does the build ask for one. Without a C++ compiler the package
installs pure: the reference serves, and `python -m fastmix info` says why.

FASTMIX_CUDA=auto|1|0: auto builds the CUDA library where nvcc is found and the installed torch is a CUDA build (read
from its version file: a build machine need not have a GPU); 1 builds it for any torch or fails; 0 never.
TORCH_CUDA_ARCH_LIST chooses the architectures (default 8.0;9.0;10.0+PTX), CUDA_HOME the toolkit. CXXFLAGS come after
the build's own flags of C++.

FASTMIX_SANITIZE=address,undefined|undefined|thread: the CPU library under those sanitizers, for tests
(tests/helpers/sanitizers.py builds it beside the package and runs them). FASTMIX_INSTRUCTION_SET=portable|avx2|avx512:
a library of that one alone, which takes a third of the time.
"""

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup

if int(setuptools.__version__.split(".")[0]) < 77:  # pip checks this itself, but not with --no-build-isolation
    raise SystemExit(f"fastmix: the build needs setuptools 77 or newer, here is {setuptools.__version__}: "
                     "pip install -U setuptools")

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# Where the sources are published: what the index page links to. No such place is known yet, and this one never will be.
REPOSITORY = (os.environ.get("FASTMIX_REPOSITORY") or "https://repository.invalid/fastmix").rstrip("/")
TORCH_MINIMUM = "0x020a000000000000"  # 2.10

# No -march=native: kernels (*.simd.cpp) are compiled once for each instruction set and chosen at run time.
X86_LEVELS = {"portable": [], "avx2": ["-march=x86-64-v3"],
              "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}
# -O3: with -O2 a build takes 60 % of the time, and bfloat16 losses 2.7, saliency maps 2.1, R-Mix 1.9 times theirs.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast", "-fopenmp-simd", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
         "-Wno-maybe-uninitialized", "-DNDEBUG"]

ONE_LEVEL = os.environ.get("FASTMIX_INSTRUCTION_SET", "")
if ONE_LEVEL:
    if ONE_LEVEL not in X86_LEVELS:
        raise SystemExit(f"fastmix: FASTMIX_INSTRUCTION_SET is {ONE_LEVEL!r}, want one of {', '.join(X86_LEVELS)}")
    X86_LEVELS = {ONE_LEVEL: X86_LEVELS[ONE_LEVEL]}
    FLAGS.append(f"-DFASTMIX_ONE_INSTRUCTION_SET={ONE_LEVEL}")
SANITIZE = os.environ.get("FASTMIX_SANITIZE", "")  # what g++ and clang++ take after -fsanitize=
if SANITIZE:
    # One error ends the process; faults planted for the tests of the tests come with it. -O0 compiles in a third of the
    # time of -O1, and runs as much longer: what a few tests want, and not all of them.
    FLAGS += ["-O0" if ONE_LEVEL else "-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}",
              "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS"]

NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wno-attributes",
              "-DNDEBUG", "-DUSE_CUDA"]


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


def sources(folder, *suffixes):
    """The files of a library. An archive that was packed without them must not install as a package without kernels."""
    found = sorted(path for path in (ROOT / "csrc" / folder).rglob("*.*") if path.suffix in suffixes)
    if not found:
        raise SystemExit(f"fastmix: {ROOT / 'csrc' / folder} holds no sources: the archive or checkout is incomplete")
    return found


def compiler():
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(name.split()[0])), None)


@functools.cache
def cuda_home():
    """The CUDA toolkit that has an nvcc, or None."""
    for folder in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if folder:
            return Path(folder) if (Path(folder) / "bin" / "nvcc").is_file() else None
    found = shutil.which("nvcc")
    if found is None:
        return Path("/usr/local/cuda") if Path("/usr/local/cuda/bin/nvcc").is_file() else None
    # nvcc on the PATH may be a link or a script: it knows its toolkit itself.
    said = subprocess.run([found, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull], capture_output=True,
                          text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", said, re.M)
    return Path(top[1].strip()).resolve() if top else Path(found).resolve().parent.parent


def cudart_static(home):
    for folder in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib"):
        if (home / folder / "libcudart_static.a").is_file():
            return home / folder / "libcudart_static.a"
    raise SystemExit(f"fastmix: no libcudart_static.a in {home}")


def torch_has_cuda(torch):
    """Whether torch in this folder is a CUDA build, read from its version file without importing it."""
    found = re.search(r"^cuda(?::[^=]*)? = '?([^'\n]+)", (torch / "version.py").read_text(), re.M)
    return found is not None and found[1] != "None"


def wants_cuda(torch):
    """Whether to build the CUDA library; SystemExit where it is asked for and cannot be."""
    choice = os.environ.get("FASTMIX_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"fastmix: FASTMIX_CUDA is {choice!r}, want auto, 1 or 0")
    if choice == "1" and cuda_home() is None:
        raise SystemExit("fastmix: FASTMIX_CUDA=1 and no nvcc (set CUDA_HOME)")
    return choice == "1" or (choice == "auto" and cuda_home() is not None and torch is not None
                             and torch_has_cuda(torch))


def gencode():
    """-gencode flags of TORCH_CUDA_ARCH_LIST; +PTX adds code that later architectures can compile."""
    flags = []
    for arch in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX").replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        if not number:
            continue
        codes = [f"sm_{number}"] + ([f"compute_{number}"] if arch.endswith("+PTX") else [])
        flags.append(f"-gencode=arch=compute_{number},code=[{','.join(codes)}]")
    return flags


class NinjaBuild(build_ext):
    """One ninja file for the whole library; a missing compiler skips it, a failing one fails the build."""

    def build_extension(self, ext):
        sources("cpu", ".cpp")
        cxx, torch = compiler(), torch_folder()
        if cxx is None or torch is None:
            missing = "no C++ compiler (set CXX)" if cxx is None else "no torch headers"
            print(f"fastmix: {missing}: installing without the C++ kernels, the reference serves", file=sys.stderr)
            ext.optional = True  # --inplace and editable installs copy what is not
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        lines = self.cuda_ninja_file if ext.name.endswith("_cuda") else self.ninja_file
        build = build / ext.name.split(".")[-1]
        build.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(lines(cxx, torch, target))
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
    def cuda_ninja_file(cxx, torch, target):
        home = cuda_home()
        defines = (f"-DTORCH_TARGET_VERSION={TORCH_MINIMUM} -DPy_LIMITED_API=0x030a0000 -DUSE_CUDA "
                   f"{word('-I', ROOT / 'csrc')} -isystem {word(torch / 'include')} -isystem {word(home / 'include')}")
        # CPU builds of torch have no libtorch_cuda: its symbols are then resolved when a CUDA torch loads the library.
        torch_cuda = "-ltorch_cuda" if (torch / "lib" / "libtorch_cuda.so").is_file() else ""
        lines = [
            f"nvcc_flags = {' '.join([*NVCC_FLAGS, *gencode()])} -ccbin {cxx} {defines}",
            f"flags = {' '.join(FLAGS)} {defines} {extra_flags()}",
            "rule nvcc",
            f"  command = {word(home / 'bin' / 'nvcc')} $nvcc_flags -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule cxx",
            f"  command = {cxx} $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {cxx} -shared $in -o $out {word('-L', torch / 'lib')} -ltorch -ltorch_cpu {torch_cuda} "
            f"{word(cudart_static(home))} -lrt -ldl -lpthread -Wl,--as-needed -s",
        ]
        objects = []
        for source in sources("cuda", ".cu", ".cpp"):
            objects.append(source.name + ".o")
            lines.append(f"build {objects[-1]}: {'nvcc' if source.suffix == '.cu' else 'cxx'} {esc(source)}")
        lines.append(f"build {esc(target)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"

    @staticmethod
    def ninja_file(cxx, torch, target):
        include = f"{word('-I', ROOT / 'csrc')} -isystem {word(torch / 'include')}"
        lines = [
            f"flags = {' '.join(FLAGS)} -DTORCH_TARGET_VERSION={TORCH_MINIMUM} -DPy_LIMITED_API=0x030a0000 {include} "
            f"{extra_flags()}",
            "rule cxx",
            f"  command = {cxx} $flags $instructions -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {cxx} -shared $in -o $out {word('-L', torch / 'lib')} -ltorch -ltorch_cpu -Wl,--as-needed "
            f"{f'-fsanitize={SANITIZE}' if SANITIZE else '-s'}",
        ]
        objects = []
        x86 = platform.machine() in ("x86_64", "AMD64")
        for source in [ROOT / "csrc" / "ops.cpp", *sources("cpu", ".cpp"),
                       *([ROOT / "tests" / "backends" / "sanitizers" / "faults.cpp"] if SANITIZE else [])]:
            levels = {"": []}
            if source.name.endswith(".simd.cpp"):
                levels = X86_LEVELS if x86 else {"portable": []}
            for level, instructions in levels.items():
                name = source.stem + (f".{level}" if level else "") + ".o"
                objects.append(name)
                lines.append(f"build {name}: cxx {esc(source)}")
                if level:
                    lines.append(f"  instructions = {' '.join(instructions)} -DFASTMIX_INSTRUCTION_SET={level}")
        lines.append(f"build {esc(target)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"


def extra_flags():
    return os.environ.get("CXXFLAGS", "").replace("$", "$$")


def word(*parts):
    """One word of a command, which ninja hands to a shell: a path may have blanks, quotes and dollars."""
    return shlex.quote("".join(map(str, parts))).replace("$", "$$")


def esc(path):
    """A path of a build statement."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class StableWheel(bdist_wheel):
    """cp310-abi3: the library uses no Python API at all."""

    def finalize_options(self):
        self.py_limited_api = "cp310"
        super().finalize_options()


def version():
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "fastmix" / "__init__.py").read_text(), re.M)[1]


def readme():
    """README.md for the index page, where links that are relative to the repository lead nowhere: to this version."""
    def absolute(found):
        kind = "raw" if found[1] else "blob"  # the file itself for a picture, its page for a link
        return f"{found[1]}[{found[2]}]({REPOSITORY}/{kind}/v{version()}/{found[3]})"

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)", absolute, text)


if __name__ == "__main__":
    setup(
        version=version(),
        long_description=readme(),
        long_description_content_type="text/markdown",
        project_urls={"Source": REPOSITORY, "Documentation": f"{REPOSITORY}/tree/v{version()}/docs",
                      "Changelog": f"{REPOSITORY}/blob/v{version()}/CHANGELOG.md", "Issues": f"{REPOSITORY}/issues"},
        ext_modules=[Extension(f"fastmix.{name}", sources=[], py_limited_api=True)
                 for name in (["_C", "_C_cuda"] if wants_cuda(torch_folder()) and not SANITIZE else ["_C"])],
        cmdclass={"build_ext": NinjaBuild, "bdist_wheel": StableWheel},
        setup_requires=[] if torch_folder() is not None else ["torch>=2.10"],
        packages=[*find_packages(include=["fastmix*"]),
                  *(f"fastmix.{name}" for name in find_packages(include=["kernels*", "bench*"]))],
        package_dir={"fastmix.kernels": "kernels", "fastmix.bench": "bench"},
    )
