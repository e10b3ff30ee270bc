"""The methods of ``python -m fastmix train``, a file each: see `base.Method` for what one is."""

from .base import Method, Shape
from .objective import Objective
from .option import Option
from .registry import METHODS, OPTIONS, PLAIN, check_flags, help_of, is_own, of, plain, readers

__all__ = ["METHODS", "OPTIONS", "PLAIN", "Method", "Objective", "Option", "Shape", "check_flags", "help_of", "is_own",
           "of", "plain", "readers"]
