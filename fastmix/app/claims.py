"""Folders and files that a command holds: while it lives, no other one writes there.

A claim is a file beside what it protects (``.lock`` in a folder), locked with flock. The kernel releases the lock when
the process ends, however it ends, so a killed run can be continued at once; over NFS, Linux passes flock on to the
server. Where a file system has no locks, a file that only one can make is the claim, void when the process it names has
ended, and a line says that this is less safe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..files import DamagedFile, WriteError, make_folder, read_json, sweep
from .console import UsageError, note
from .names import printable

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # what a link leads to is not to be emptied
PATIENCE = 1.0  # seconds for the holder to write who it is


class Held(UsageError):
    """Another process, which lives, holds it."""


_held: set[Claim] = set()


class Claim:
    """A folder, or a file in one that exists, held until `release` or the end of the process.

    what: its name in messages. flag: which asks for it. Raises: Held where a living process holds it, naming that one,
    and WriteError.
    """

    def __init__(self, lock: Path, what: Path, made: Iterable[Path] = (), flag: str = "--out") -> None:
        self._made = list(made)
        try:
            taken = _take(lock)
        except OSError as error:
            self._remove_made()
            if isinstance(error, FileNotFoundError):
                raise
            raise WriteError(what, error) from error
        if isinstance(taken, str):
            self._remove_made()
            raise Held(f"{printable(what)} is in use by {taken}: wait for it, stop it, or take another {flag}")
        self._descriptor: int | None = taken[0]
        self._files = taken[1:]
        _held.add(self)
        with contextlib.suppress(OSError):  # who it is, for those who ask; the lock holds without it
            os.ftruncate(taken[0], 0)
            os.pwrite(taken[0], json.dumps(_self()).encode(), 0)

    @classmethod
    def of_folder(cls, folder: Path) -> Claim:
        """The folder, which is made where it is missing."""
        while True:
            try:
                return cls(folder / LOCK, folder, make_folder(folder))
            except FileNotFoundError:  # who had made it has removed it meanwhile
                continue

    @classmethod
    def of_file(cls, file: Path, flag: str = "--out") -> Claim:
        """A file of a folder that exists."""
        try:
            claim = cls(file.with_name(f"{LOCK}-{file.name}"), file, flag=flag)
        except FileNotFoundError as error:
            raise WriteError(file, error) from error
        sweep(file)
        return claim

    def release(self) -> None:
        """Leaves nothing behind: neither the lock, nor a folder that was made for it and is empty."""
        if self._descriptor is None:
            return
        for file in self._files:
            with contextlib.suppress(OSError):
                file.unlink()  # while it is held: who has opened the old file sees that it is gone
        self.forget()
        self._remove_made()

    def forget(self) -> None:
        """In a forked child, which must not hold on to the lock of its parent."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = None
        _held.discard(self)

    def _remove_made(self) -> None:
        with contextlib.suppress(OSError):
            for folder in reversed(self._made):
                folder.rmdir()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()


def _forget_all() -> None:
    for claim in list(_held):
        claim.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _self() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": shlex.join(["fastmix", *sys.argv[1:]])[:200]}


def _read(lock: Path) -> dict[str, Any]:
    """Who wrote the file; {} if it does not say."""
    try:
        found = read_json(lock)
    except (OSError, DamagedFile):
        return {}
    return found if isinstance(found, dict) and "pid" in found else {}


def _holder(lock: Path) -> str:
    """Who holds it, in words."""
    until = time.monotonic() + PATIENCE
    while not (found := _read(lock)) and time.monotonic() < until:
        time.sleep(0.02)
    if not found:
        return "another process"
    host = "" if found.get("host") == socket.gethostname() else f" on {found.get('host')}"
    return f"process {found['pid']}{host} ({found.get('command')}, since {found.get('since')})"


def _open(lock: Path) -> int:
    """A descriptor of the file, which is made where it is missing; OSError where something else has its name."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | NO_LINK, 0o666)
    except OSError as error:
        if os.path.islink(lock):
            raise OSError(error.errno, f"{lock.name} in it is a link, remove it") from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EEXIST, f"{lock.name} in it is no regular file, remove it")


def _take(lock: Path) -> tuple[int, Path] | tuple[int, Path, Path] | str:
    """A descriptor of the file, locked, and the file; or who holds it."""
    while True:
        descriptor = _open(lock)
        try:
            if fcntl is None:
                raise OSError(errno.ENOLCK, "no flock")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    return descriptor, lock
            os.close(descriptor)  # its holder has removed it meanwhile
        except BlockingIOError:
            os.close(descriptor)
            return _holder(lock)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NO_LOCKS:
                raise
            return _take_by_name(lock)


def _take_by_name(lock: Path) -> tuple[int, Path, Path] | str:
    """The same without locks: who makes a second file holds it, as long as that process lives."""
    name = lock.with_name(f"{lock.name}-owner")
    note(f"{lock.parent}: this file system has no locks; if a run on another machine was killed here, remove {name}")
    while True:
        try:
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), lock, name
        except FileExistsError:
            who, found = _holder(name), _read(name)
            if found and (found.get("host") != socket.gethostname() or _lives(found["pid"])):
                return who
            aside = name.with_name(f"{name.name}-{os.getpid()}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(name, aside)  # of several that find it dead, one moves it
                if _read(aside) != found:  # and this one has moved the file of a process that was faster
                    os.link(aside, name)
                aside.unlink()


def _lives(pid: Any) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, TypeError):
        return True
    return True


@contextlib.contextmanager
def held(share: Callable[[Callable[[], Any]], Any], take: Callable[[contextlib.ExitStack], Any]) -> Iterator[Any]:
    """What ``take(stack)`` gives in the first process, which enters its claims into the stack; an error is that of all.

    share: `Processes.share`. The claims are released at the end of the block, and with the death of the first process.
    """
    with contextlib.ExitStack() as stack:
        yield share(lambda: take(stack))
