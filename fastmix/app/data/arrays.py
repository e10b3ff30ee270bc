"""Arrays of numpy's files: what their header says is checked before anything of them is made.

Source of the format: numpy.lib.format.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np

from ...files import DamagedFile, read_bytes

HEADER = 2**16  # bytes, at most


def content(path: Path, most: int) -> bytes:
    """Of a .npy file whose array has at most so many bytes. Raises: as `read_bytes`."""
    return read_bytes(path, most + HEADER)


def read(content: bytes, kinds: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array of a .npy file, copied.

    Args: kinds: letters of numpy's kinds of dtypes. shape: None for any length.
    Raises: DamagedFile for a header that is none, other dtypes and shapes, and more or fewer bytes than it says.
    """
    file = io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 has written
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"its version is {version}")
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found, fortran, dtype = header(file)
    except Exception as error:  # the header is a text that numpy parses as Python: it may raise almost anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DamagedFile(f"its header is none of numpy's: {reason[:100]}") from None
    fits = len(found) == len(shape) and all(type(a) is int and a >= 0 and b in (None, a)
                                            for a, b in zip(found, shape, strict=True))
    if not fits or dtype.kind not in kinds or dtype.hasobject:
        raise DamagedFile(f"it holds {str(dtype)[:40]} {str(found)[:60]}")
    there = len(content) - file.tell()
    if math.prod(found) * dtype.itemsize != there:
        raise DamagedFile(f"it has {there} bytes of data, its header says {str(found)[:60]} of {dtype.itemsize} each")
    data = np.frombuffer(content, dtype, offset=file.tell())
    return data.reshape(found, order="F" if fortran else "C").copy()
