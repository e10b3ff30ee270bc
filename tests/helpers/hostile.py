"""Files that lie, and the one line that each of them ends in."""

import struct
import zlib

import pytest

from fastmix.app.console import CommandError


def wrong(call, *arguments, match=None, kind=CommandError):
    """The line of an error."""
    with pytest.raises(kind, match=match) as caught:
        call(*arguments)
    line, = str(caught.value).splitlines()
    assert len(line) < 1500
    return line


def npy(header, content=b"", version=b"\x01\x00"):
    text = header.encode("latin1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + content


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, content=b"", kind=2):
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
            + chunk(b"IDAT", content) + chunk(b"IEND", b""))
