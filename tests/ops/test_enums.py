"""The enumerations that Python and C++ share say the same in both."""

import re

import pytest
from helpers import ROOT

from fastmix.ops import enums

HEADER = (ROOT / "csrc" / "core" / "enums.h").read_text()
IN_HEADER = {name: {key: int(value) for key, value in re.findall(r"k(\w+) = (\d+)", body)}
             for name, body in re.findall(r"enum (\w+) : int64_t \{([^}]*)\}", HEADER)}
IN_PYTHON = {name: {member.name: member.value for member in found} for name, found in vars(enums).items()
             if isinstance(found, type) and issubclass(found, enums.IntEnum) and found is not enums.IntEnum}
IN_PYTHON["FloatType"] = {str(dtype).removeprefix("torch."): code for code, dtype in enumerate(enums.FLOAT_TYPES)}


def spelling(name: str) -> str:
    """CROSS_ENTROPY and CrossEntropy alike."""
    return name.replace("_", "").lower()


@pytest.mark.parametrize("name", sorted({*IN_HEADER, *IN_PYTHON}))
def test_an_enumeration_is_the_same_in_python_and_in_cpp(name):
    python, header = ({spelling(key): value for key, value in table[name].items()} for table in (IN_PYTHON, IN_HEADER))
    assert python == header


def test_constants_are_the_same_in_python_and_in_cpp():
    assert float(re.search(r"kLastPercentile = ([\d.]+);", HEADER)[1]) == enums.LAST_PERCENTILE
