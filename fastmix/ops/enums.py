"""The enumerations and constants that Python, C++ (csrc/core/enums.h) and Triton share: values of operator arguments.

`csrc/core/enums.h` repeats them for C++, and a test holds the two equal. Triton kernels take them from here.
"""

from __future__ import annotations

from enum import IntEnum

import torch


class Loss(IntEnum):
    """What `soft_target` computes of a row."""

    CROSS_ENTROPY = 0
    KL = 1
    BCE = 2


class Reduction(IntEnum):
    """What becomes of the rows' losses."""

    NONE = 0
    MEAN = 1
    SUM = 2


class Weighting(IntEnum):
    """What `soft_target` multiplies a row's loss by, of the confidence p in its target."""

    UNWEIGHTED = 0
    BY_SAMPLE = 1
    BY_BATCH_MEAN = 2
    BY_WEIGHT = 3


class CovarianceKind(IntEnum):
    """The shape of ISDA's covariances: (J, A, A), (J, A), (A, A), or none stored."""

    FULL = 0
    DIAG = 1
    SHARED = 2
    IDENTITY = 3


class InstructionSet(IntEnum):
    """Which build of the CPU kernels runs."""

    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2


# The code of a dtype, as an operator argument, is its place here.
FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# The largest percentile that R-Mix draws: q is one of ``linspace(0, LAST_PERCENTILE, levels)``. Source: R-Mix Sec. 3.
LAST_PERCENTILE = 0.99


def codes(enum: type[IntEnum]) -> dict[str, int]:
    """Option name, as users write it -> operator argument: ``{"none": 0, "mean": 1, "sum": 2}``."""
    return {member.name.lower(): member.value for member in enum}
