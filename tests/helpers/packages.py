"""setup.py as a module, and virtual environments that hold a package and what it asks for, made without a network."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from . import ROOT


def build_script():
    spec = importlib.util.spec_from_file_location("fastmix_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needed(*names):
    """The installed distributions of these names, and what they ask for."""
    found, waiting = {}, list(names)
    for name in waiting:
        distribution = metadata.distribution(name)
        key = distribution.metadata["Name"].lower()
        if key not in found:
            found[key] = distribution
            asked = [Requirement(line) for line in distribution.requires or []]
            waiting += [each.name for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]
    return list(found.values())


class Environment:
    """A new virtual environment into which distributions of this one are linked: no more than those."""

    def __init__(self, folder, *names):
        self.bin = folder / "bin"
        venv.create(folder, symlinks=True)
        self.site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
        for distribution in needed(*names):
            for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
                if not (self.site / top).exists():
                    (self.site / top).symlink_to(distribution.locate_file(top))

    def run(self, program, *arguments, check=True, **kwargs):
        """The completed process of one of the environment's programs."""
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        more = {"OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
        variables = {name: value for name, value in os.environ.items() if name not in hidden} | more
        done = subprocess.run([str(self.bin / program), *map(str, arguments)], capture_output=True, text=True,
                              env=variables, **kwargs)
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def pip(self, *arguments, **variables):
        """pip of the environment that runs the tests, on this one."""
        command = [sys.executable, "-m", "pip", "--python", self.bin / "python", "-q", *arguments]
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=own | variables)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout
