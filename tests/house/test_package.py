"""What users install: the source archive and the wheel built from it, each in its own environment, without a network.

The C++ library is compiled once, without optimisation: what its code computes is tested elsewhere.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes

import pytest
from helpers import ROOT
from helpers.packages import Environment, build_script

COMPILER = shutil.which(os.environ.get("CXX", "c++"))
QUICK = {"CXXFLAGS": "-O0", "FASTMIX_CUDA": "0"}
USE = """
import torch, fastmix
x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
with fastmix.backend("cpu"):
    images, target = fastmix.DCutMix()(x, y)
    assert images.shape == x.shape and fastmix.SoftCrossEntropy()(torch.randn(4, 4), target).isfinite()
print(fastmix.__file__)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source archive of a copy: building writes beside its sources."""
    folder = tmp_path_factory.mktemp("source")
    copy = folder / "fastmix"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "*.so", "__pycache__", "build", "dist", "runs",
                                                              "*.egg-info"))
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    found, = folder.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """(an environment with the source archive installed, the wheel that pip has built for it)."""
    folder = tmp_path_factory.mktemp("built")
    environment = Environment(folder / "env", "torch", "numpy", "triton", "setuptools", "ninja")
    environment.pip("install", "--no-index", "--no-build-isolation", "--cache-dir", folder / "cache", source, **QUICK)
    wheel, = (folder / "cache").rglob("fastmix-*.whl")
    return environment, wheel


def names(archive):
    with tarfile.open(archive) as files:
        return {member.name.partition("/")[2] for member in files if member.isfile()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_the_source_archive_holds_what_git_tracks(source):
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout.splitlines()
    tracked = {file for file in listed if (ROOT / file).is_file() and not file.startswith(".")}
    made = {file for file in names(source) if file.startswith("fastmix.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names(source) - made == tracked


def built_in_place(root, **variables):
    """The build, as an editable install runs it, of a tree that holds these files and what was put there before."""
    shutil.copytree(ROOT / "fastmix", root / "fastmix", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, root)
    return subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=root, capture_output=True,
                          text=True, env=os.environ | variables)


def test_a_build_without_sources_fails(tmp_path):
    done = built_in_place(tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path / 'csrc' / 'cpu'} holds no sources: the archive or checkout is incomplete" in done.stderr


def test_a_build_without_a_compiler_is_one_without_kernels(tmp_path):
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "csrc" / "cpu" / "blend.cpp").write_text("")
    done = built_in_place(tmp_path, CXX="no-such-compiler", FASTMIX_CUDA="0")
    assert done.returncode == 0 and "no C++ compiler (set CXX)" in done.stderr
    assert not list((tmp_path / "fastmix").glob("*.so"))


@pytest.mark.slow
def test_the_wheel_holds_every_package_and_nothing_else(built):
    wheel = built[1]
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {"fastmix/ops/schemas.def", "fastmix/ops/gpu_backends.json", "fastmix/py.typed"}
    for folder, package in (("fastmix", "fastmix"), ("kernels", "fastmix/kernels"), ("bench", "fastmix/bench")):
        wanted |= {f"{package}/{file.relative_to(ROOT / folder)}" for file in (ROOT / folder).rglob("*.py")}
    assert held == wanted | ({"fastmix/_C.abi3.so"} if COMPILER else set())


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_the_source_archive_and_the_wheel_install_in_clean_environments(built, tmp_path):
    """With what the metadata asks for and no more: pip takes nothing from an index."""
    from_source, wheel = built
    from_wheel = Environment(tmp_path / "env", "torch", "numpy", "triton")
    from_wheel.pip("install", "--no-index", "--no-cache-dir", wheel)
    said = from_source.run("python", "-c", USE, cwd=tmp_path).stdout
    assert said.startswith(str(from_source.site))
    versions = [from_source.run("fastmix", "--version"), from_wheel.run("python", "-m", "fastmix", "--version")]
    assert {done.stdout for done in versions} == {f"fastmix {build_script().version()}\n"}
    from_source.pip("check")
    the_script_times_an_operator(from_wheel, tmp_path)


def the_script_times_an_operator(environment, folder):
    """By the command that a user types, beside no checkout; the result goes to the working directory."""
    done = environment.run("fastmix", "bench", "--op", "soft_target", "--quick", "--seconds", "0", "--providers", "cpu",
                           "--machine", "here", "--no-plots", cwd=folder)
    result, = (folder / "bench-results" / "here").glob("*.json")
    found = json.loads(result.read_text())
    assert found["machine"]["commit"] is None and f"wrote {result.relative_to(folder)}" in done.stdout
    assert {case["op"] for case in found["cases"]} == {"soft_target"}
    assert all("median_us" in case["providers"]["cpu"] for case in found["cases"])


def test_the_index_page_links_to_the_repository(source):
    """Every link of the readme in the metadata is absolute, and of this version's files."""
    script = build_script()
    with tarfile.open(source) as files:
        member = next(name for name in files.getnames() if name.count("/") == 1 and name.endswith("/PKG-INFO"))
        about = message_from_bytes(files.extractfile(member).read())
    page = about.get_payload(decode=True).decode()
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", page)
    assert len(links) > 10 and {"!", ""} == {mark for mark, _ in links}
    for mark, link in links:
        base = f"{script.REPOSITORY}/{'raw' if mark else 'blob'}/v{script.version()}/"
        assert link.startswith("https://") and (not link.startswith(script.REPOSITORY) or link.startswith(base)), link
        if link.startswith(base):
            assert (ROOT / link.removeprefix(base).partition("#")[0]).is_file(), link
    assert re.sub(rf"\({re.escape(script.REPOSITORY)}/\w+/[^/]+/", "(", page).split() == (
        ROOT / "README.md").read_text().split()
    assert about["Version"] == script.version() and about["Keywords"] and about["License-Expression"] == "Apache-2.0"
    assert {line.partition(",")[0] for line in about.get_all("Project-URL")} == {"Source", "Documentation", "Changelog",
                                                                              "Issues"}


def test_where_the_repository_is_can_be_said(monkeypatch):
    monkeypatch.setenv("FASTMIX_REPOSITORY", "https://code.test/us/fastmix/")
    script = build_script()
    assert f"](https://code.test/us/fastmix/blob/v{script.version()}/docs/labels.md)" in script.readme()


def test_the_version_stands_in_one_place():
    version = build_script().version()
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)
    for file in ("pyproject.toml", "CITATION.cff", "setup.py"):
        assert version not in (ROOT / file).read_text()


WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.mark.skipif(not WORKFLOW.exists(), reason="a source archive, which has no workflow")
def test_the_workflow_runs_what_is_there():
    text, makefile = WORKFLOW.read_text(), (ROOT / "Makefile").read_text()
    runs = re.findall(r"^ *- run: (.+)$", text, re.M)
    assert ".ci/run" in runs and os.access(ROOT / ".ci" / "run", os.X_OK)
    targets = [run.split()[1] for run in runs if run.startswith("make ")]
    assert targets == ["wheel", "try-wheel"] and all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    grep = re.search(r"grep -Fx \"(.+)\" (\S+)$", text, re.M)
    line = grep[1].replace("\\", "").replace("${GITHUB_REF_NAME#v}", build_script().version())
    assert line in (ROOT / grep[2]).read_text().splitlines()
    minimum = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert f'torch: "{minimum}.0"' in text and re.findall(r'python: (\[.+\])', text) == ['["3.10", "3.12", "3.13"]']


@pytest.mark.skipif(shutil.which("actionlint") is None or not WORKFLOW.exists(), reason="no actionlint")
def test_the_workflow_is_well_formed():
    done = subprocess.run(["actionlint", str(WORKFLOW)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
