"""python -m fastmix bench, as a person types it, and the two folders that lie beside the package in a checkout."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
from importlib import import_module

import pytest
from helpers import ROOT

from fastmix import __main__ as program
from fastmix.bench import command
from fastmix.bench.harness import command_line, memory
from fastmix.ops import checkout


def run(*arguments, cwd=ROOT, **env):
    variables = {name: value for name, value in os.environ.items() if name != memory.VARIABLE}
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
                          env={**variables, "OMP_NUM_THREADS": "1", **env})


@pytest.mark.parametrize("name", [None, *command.COMMANDS])
def test_the_help_fits_a_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    try:
        assert program.main(["bench", *filter(None, [name]), "--help"]) == 0
    except SystemExit as ended:  # argparse's own help
        assert ended.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert f"usage: python -m fastmix bench{' ' + name if name not in (None, command.DEFAULT) else ''} " in text
    if name is None:
        assert all(f"\n  {each} " in text for each in command.COMMANDS)


def test_a_run_from_a_checkout(tmp_path):
    path = tmp_path / "r.json"
    done = run("-m", "fastmix", "bench", "--op", "soft_target", "--quick", "--seconds", 0, "--providers", "eager",
               "--no-plots", "--json", path)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert {case["op"] for case in result["cases"]} == {"soft_target"} and len(result["cases"]) == 3
    assert all("median_us" in case["providers"]["eager"] for case in result["cases"])
    assert result["settings"]["keeps_memory"] is (platform.libc_ver()[0] == "glibc")  # it has started itself again
    assert "profiler" not in done.stderr


@pytest.mark.parametrize("arguments,text", [(["nothing"], "unrecognized arguments: nothing"),
                                            (["--quik"], "unrecognized arguments: --quik"),
                                            (["step", "--size", "x"], "argument --size"),
                                            (["compare", "old.json"], "arguments are required: NEW.json")])
def test_bad_arguments_end_in_one_line(arguments, text, capsys):
    assert program.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("fastmix: ") and error.count("\n") == 1 and "--help)" in error


def test_results_have_a_place_with_and_without_a_checkout(monkeypatch):
    result = {"date": "2026-01-02T03:04:05+00:00", "machine": {"name": "A machine"}}
    assert command_line.result_path(result, "-scale") == (
        ROOT / "bench" / "results" / "a-machine" / "2026-01-02-0304-scale.json")


# ---------------------------------------------------------------- folders beside the package

@pytest.mark.parametrize("module", ["fastmix.bench.step", "fastmix.kernels._common", "fastmix.bench.device.goals"])
def test_the_folders_are_found_from_anywhere(module, tmp_path):
    if "kernels" in module:
        pytest.importorskip("triton")
    code = f"""
import fastmix, sys
assert not [name for name in sys.modules if name.startswith(("fastmix.bench", "fastmix.kernels", "triton"))]
import {module}
print({module}.__file__)
"""
    done = run("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.stdout.strip() == str(ROOT / f"{module.removeprefix('fastmix.').replace('.', '/')}.py"), done.stderr


def test_only_the_two_folders_are_found():
    assert checkout.CHECKOUT == ROOT and all(import_module(f"fastmix.{name}") for name in checkout.FOLDERS)
    with pytest.raises(ModuleNotFoundError):
        import_module("fastmix.tests")


@pytest.mark.parametrize("project", ['[project]\nname = "other"\n', '[project]\nname = "fastmix"\n', None])
@pytest.mark.parametrize("installed", [True, False])
def test_what_lies_beside_an_installed_package_is_not_its(tmp_path, project, installed):
    """A site with folders named kernels and bench, and a pyproject.toml that somebody left there."""
    for folder in ("kernels", "bench", "fastmix/ops", *(["fastmix/kernels", "fastmix/bench"] if installed else [])):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "__init__.py").write_text("raise SystemExit('foreign')")
    file = tmp_path / "fastmix" / "ops" / "checkout.py"
    file.write_text((ROOT / "fastmix" / "ops" / "checkout.py").read_text())
    if project is not None:
        (tmp_path / "pyproject.toml").write_text(project)
    spec = importlib.util.spec_from_file_location("checkout_under_test", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = project is not None and '"fastmix"' in project and not installed
    assert (tmp_path if own else None) == module.CHECKOUT
    assert (module._Beside.find_spec("fastmix.kernels") is None) == (not own)
