"""What the tests share. Test files import it as ``helpers``: the folder tests/ is on pytest's path."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
