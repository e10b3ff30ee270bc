"""The folders that are installed inside the package and lie beside it in a checkout: fastmix.kernels, fastmix.bench."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

FOLDERS = ("kernels", "bench")


def _root() -> Path | None:
    """None where the package has the folders inside, as an installed one does: what lies beside it is then another's,
    whatever its name is."""
    package = Path(__file__).resolve().parent.parent
    root = package.parent
    if any((package / folder).is_dir() for folder in FOLDERS):
        return None
    if not all((root / folder / "__init__.py").is_file() for folder in FOLDERS):
        return None
    try:
        project = (root / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return root if 'name = "fastmix"' in project.splitlines() else None


# The root of the checkout that this package belongs to; None where it is installed.
CHECKOUT = _root()
_NAMES = {f"fastmix.{folder}": folder for folder in FOLDERS}


class _Beside:
    """Finds the folders beside the package."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if CHECKOUT is None or name not in _NAMES:
            return None
        return spec_from_file_location(name, CHECKOUT / _NAMES[name] / "__init__.py")


def make_importable() -> None:
    """Lets fastmix.kernels and fastmix.bench be imported in a checkout. Imports neither, and so no Triton."""
    if CHECKOUT is not None:
        # First: the finder of an editable install would find the folders of the checkout that was installed.
        sys.meta_path.insert(0, _Beside())
