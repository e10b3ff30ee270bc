"""Work whose size is a number that a person types: refused before it begins where it cannot end well."""

from __future__ import annotations

import functools
import os

import torch

PART = 2  # at most one part in so many of a device's memory


@functools.cache
def total(device: torch.device) -> int:
    """Bytes of memory of a device; 2**36 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**36


def check(op: str, name: str, value: int, each: int, what: str, device: torch.device) -> None:
    """ValueError if an argument asks for more than half of a device's memory. each: bytes for every one of its units;
    what: they are."""
    if torch.compiler.is_compiling():  # sizes are symbols, and what is compared becomes a guard
        return
    most = total(device) // PART
    if value * each > most:
        raise ValueError(f"{op}: {name} is {value}, which comes to about {value * each / 2**30:,.1f} GiB of {what}; "
                         f"want at most {most // each} ({most / 2**30:,.1f} GiB, half of the {device.type}'s memory)")


def check_size(op: str, name: str, value: object, size: int, what: str, device: torch.device) -> None:
    """The same of an argument that is more than one number. size: bytes."""
    if torch.compiler.is_compiling():
        return
    most = total(device) // PART
    if size > most:
        raise ValueError(f"{op}: {name} is {value}, which comes to about {size / 2**30:,.1f} GiB of {what}; want at "
                         f"most {most / 2**30:,.1f} GiB, half of the {device.type}'s memory")
