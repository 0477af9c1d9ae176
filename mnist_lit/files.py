"""Files and folders that are whole or not there, whenever the process or the machine ends."""

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
"""What is added to the name of a file that is being written; one that was left is written over by the next."""


def write(path: Path, content: bytes) -> None:
    """Write a file so that its name always stands for the whole of what it held before, or of what it holds now.

    Raises:
        OSError: It cannot be written, or reads back otherwise than it was written; it is then as before.
    """
    partial = path.with_name(path.name + PARTIAL)  # beside it: only within a file system is a move atomic
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if partial.read_bytes() != content:
            raise OSError(errno.EIO, "what was written reads back otherwise", str(path))
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def new_version(parent: Path) -> int:
    """The number N of a new folder version_N, made for this process alone.

    Raises:
        OSError: It cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    names = [path.name.removeprefix("version_") for path in parent.glob("version_*")]
    for number in itertools.count(max((int(name) for name in names if name.isdecimal()), default=-1) + 1):
        with contextlib.suppress(FileExistsError):  # another process was quicker
            (parent / f"version_{number}").mkdir()
            break
    return number


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process has locked the folder, and lock it; the lock ends with the process.

    Raises:
        OSError: The folder cannot be opened.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that works in {folder}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
