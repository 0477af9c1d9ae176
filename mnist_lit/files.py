"""Atomic writes, new folders and locks: safe against crashes and against other processes."""

import contextlib
import errno
import io
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mnist_lit import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNSUPPORTED = {getattr(errno, name, errno.EINVAL) for name in ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK")}
"""Errors of file systems, such as some network folders, that cannot sync a folder or lock it."""

LOCK = ".lock"
"""Name of the file that locks its folder."""

LOCK_TIMEOUT_S = 60.0
"""Seconds that a run waits for an earlier process in its folder, which may be about to end."""

LOGS = "lightning_logs"
"""Folder of all runs."""


def project_path(path: str) -> Path:
    """A file that is part of the project: inside the installed package, or in the checkout."""
    package = Path(__file__).parent
    return package / path if (package / path).exists() else package.parent / path


def expand(path: str) -> Path:
    """A path with the home folder in place of `~`, which a shell does not replace within an option or a recipe."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's raises on an unknown user


def logs_folder(root: str | Path | None) -> Path:
    """Folder of all runs below a value of `--trainer.default_root_dir`."""
    return expand(str(root or ".")) / LOGS


@contextlib.contextmanager
def where_supported() -> Iterator[None]:
    """Ignore that the file system does not support the operation."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its path always holds either the complete old content or the complete new content.

    The content is written to `<name>.partial` in the same folder, synced to the disk, read back and then renamed.

    Raises:
        OSError: The file cannot be written, or the disk returns other content; an existing file is unchanged.
    """
    partial = path.with_name(path.name + ".partial")  # in the same folder: a move between file systems is not atomic
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            with where_supported():
                os.fsync(file.fileno())
        if partial.read_bytes() != content:
            raise OSError(errno.EIO, "the disk returned other content than was written", str(path))
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    if os.name == "posix":  # other systems cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with where_supported():
                os.fsync(folder)  # saves the new name, too
        finally:
            os.close(folder)


def save_figure(figure: "Figure", path: Path, dpi: int) -> None:
    """Save a figure as PNG, as `write_atomically` does.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    png = io.BytesIO()
    figure.savefig(png, dpi=dpi)
    write_atomically(path, png.getvalue())


def new_version(parent: Path) -> int:
    """Create the next folder `version_N` and return N; processes that start together get different ones.

    Raises:
        OSError: The folder cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    names = [path.name.removeprefix("version_") for path in parent.glob("version_*")]
    for number in itertools.count(max((int(name) for name in names if name.isdecimal()), default=-1) + 1):
        with contextlib.suppress(FileExistsError):  # another process was faster
            (parent / f"version_{number}").mkdir(parents=True)  # another process may have removed an empty parent
            break
    return number


def remove_if_empty(folder: Path) -> None:
    """Remove a folder of runs, and those that contain it up to `lightning_logs`, if nothing is in them."""
    with contextlib.suppress(OSError):
        for empty in (folder, *folder.parents):
            empty.rmdir()
            if empty.name == LOGS or LOGS not in empty.parent.parts:
                break


@contextlib.contextmanager
def lock_folder(folder: Path, timeout_s: float = -1) -> Iterator[None]:
    """Lock a folder for one process. The lock ends with the context or with the process, however it ends.

    Args:
        folder: The folder, in which a file `.lock` names the process.
        timeout_s: Seconds to wait for another process; by default, until a signal stops this one.

    Raises:
        UserError: Another process holds the lock.
        OSError: The folder does not exist, or nothing can be written to it.
    """
    path = folder / LOCK
    lock = FileLock(path, fallback_to_soft=False)
    try:
        with where_supported():
            lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for {_owner(path)}, which uses {folder}", flush=True)
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise UserError(
                f"{_owner(path)} still uses {folder} after {timeout_s:.0f} s: let it end, or stop it, and run again."
            ) from error
    try:
        with contextlib.suppress(OSError):  # Windows lets nobody write to a locked file
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove an open file; the next process reuses it
            path.unlink()  # before the release: a process that waits checks that the file still exists
        lock.release()


def _owner(lock: Path) -> str:
    """The process that holds a lock."""
    try:
        return lock.read_text() or "another process"
    except OSError:
        return "another process"
