"""State files: tensors and plain values, whole or not read at all.

A state is what ``torch.save`` writes of a dictionary, so ``torch.load(path, weights_only=True)`` reads it too. It holds
the number of its format and a digest of all that is in it. `read_state` looks at the archive before torch does: members
are stored as they are, none reaches beyond the file, and the CRC of each is right. What torch makes of it (nothing but
tensors and plain values: weights_only) has to have the digest that was written.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import DamagedFile, read_bytes, write_atomically

FORMAT = 2
UNDIGESTED = 1  # the format before: no digest
_BUFFER = 2**20


def digest(state: dict[str, Any]) -> str:
    """A name (SHA-256) for everything in a state but its "digest": names, numbers by their bits, dtypes, shapes and
    bytes of tensors. TypeError for what is neither a tensor nor a plain value."""
    found = hashlib.sha256()
    for part in _parts({key: value for key, value in state.items() if key != "digest"}, 0):
        found.update(part)
    return found.hexdigest()


def _parts(value: Any, depth: int) -> Iterator[Any]:
    """Bytes of which no two values have the same."""
    if depth > 100:
        raise TypeError("a state is nested too deeply")
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise TypeError(f"a state holds tensors that are dense, not {value.layout}")
        shape = tuple(value.shape)
        yield f"T{value.dtype}{shape};".encode()
        if value.numel():
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, dict):
        yield f"D{len(value)};".encode()
        for key, inner in value.items():
            yield from _parts(key, depth + 1)
            yield from _parts(inner, depth + 1)
    elif isinstance(value, (list, tuple)):
        yield f"{'L' if isinstance(value, list) else 'P'}{len(value)};".encode()
        for inner in value:
            yield from _parts(inner, depth + 1)
    elif value is None or isinstance(value, bool):
        yield f"{value};".encode()
    elif isinstance(value, int):
        yield f"I{value:x};".encode()
    elif isinstance(value, float):
        yield b"F" + struct.pack("<d", value)
    elif isinstance(value, (str, bytes)):
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        yield f"{'S' if isinstance(value, str) else 'B'}{len(content)};".encode() + content
    else:
        raise TypeError(f"a state holds tensors and plain values, not {type(value).__name__}")


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A state of tensors and plain values, atomically. Raises: WriteError, TypeError for other values."""
    whole = {"format": FORMAT, **state}
    buffer = io.BytesIO()
    torch.save(whole | {"digest": digest(whole)}, buffer)
    write_atomically(path, buffer.getvalue())


def _check_archive(content: bytes) -> None:
    """ValueError or what zipfile raises, where the archive is not what was written."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("a member is compressed")
        if sum(member.file_size for member in members) > len(content):
            raise ValueError("its members are larger than it is")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two members have one name")
        for member in members:
            with archive.open(member) as file:  # its end checks the CRC
                while file.read(_BUFFER):
                    pass


def _check_tensors(value: Any) -> None:
    """ValueError for a tensor that is larger than its memory, as an expanded one is: copies would have no bound."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor is larger than what is stored of it")
    elif isinstance(value, dict):
        for inner in value.values():
            _check_tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_tensors(inner)


def read_state(path: Path) -> dict[str, Any] | None:
    """What `write_state` has written, on the CPU; None if there is no such file.

    Raises: DamagedFile, one line naming the file, for anything else; MemoryError.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror})") from None
    try:
        _check_archive(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        _check_tensors(state)
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and torch raise almost anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DamagedFile(f"{path} is damaged or no checkpoint ({reason})") from None
    found = state.get("format") if isinstance(state, dict) else None
    if type(found) is not int:
        raise DamagedFile(f"{path} is no checkpoint of fastmix")
    if found not in (UNDIGESTED, FORMAT):
        raise DamagedFile(f"{path} has format {found}, this fastmix reads {UNDIGESTED} and {FORMAT}: it was written by "
                          f"another version")
    if found != UNDIGESTED:
        try:
            same = state.pop("digest", None) == digest(state)
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            raise DamagedFile(f"{path} is damaged (what it holds has another digest than the one that it names)")
    return state  # type: ignore[no-any-return]


def misfit(state: Any, like: Any, where: str = "") -> str | None:
    """In words, the first place where a state differs from another in more than its values: in keys, lengths, types,
    shapes or dtypes. None: there is none, and `load_state_dict` takes it."""
    if isinstance(like, Tensor) or isinstance(state, Tensor):
        given, want = (f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                       for x in (state, like))
        return None if given == want else f"{where} is {given}, want {want}"
    if isinstance(like, dict):
        if not isinstance(state, dict) or state.keys() != like.keys():
            keys = state.keys() ^ like.keys() if isinstance(state, dict) else set()
            return f"{where} has other entries" + (f" ({sorted(map(str, keys))[0]})" if keys else "")
        pairs = [(key, state[key], like[key]) for key in like]
    elif isinstance(like, (list, tuple)):
        if not isinstance(state, (list, tuple)) or len(state) != len(like):
            return f"{where} has another length"
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(state, like, strict=True))]
    else:
        numbers = type(like) in (int, float) and type(state) in (int, float)
        same = numbers or type(state) is type(like)
        return None if same else f"{where} is {type(state).__name__}, want {type(like).__name__}"
    found = (misfit(a, b, f"{where}.{key}" if where else str(key)) for key, a, b in pairs)
    return next(filter(None, found), None)


def optimizer_misfit(state: Any, optimizer: torch.optim.Optimizer) -> str | None:
    """The same for an optimiser, which keeps for each of its parameters tensors of that shape, or nothing."""
    like = optimizer.state_dict()
    if not isinstance(state, dict) or state.keys() != like.keys() or not isinstance(state["state"], dict):
        return "the optimiser has other entries"
    found = misfit(state["param_groups"], like["param_groups"], "optimizer")
    if found:
        return found
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    for index, kept in state["state"].items():
        if type(index) is not int or not 0 <= index < len(shapes) or not isinstance(kept, dict):
            return f"the optimiser has no parameter {index}"
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != shapes[index]:
                return f"optimizer.{index}.{name} is {tuple(value.shape)}, want {tuple(shapes[index])}"
    return None
