"""Failing disks and missing permissions end a run with one line, and leave the earlier checkpoints."""

import contextlib
import re
import shutil
from collections.abc import Callable
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import pytest
from helpers.faults import FORBIDDEN, at_epoch, call, drop_capabilities, mount
from helpers.processes import finish, start
from helpers.runs import only

from mnist_lit.checkpoints.io import load


def error_line(folder: Path) -> str:
    """The error message of the command that was started in a folder."""
    printed = (folder / "err").read_text()
    assert "Traceback" not in printed, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("mnist-lit: error: ")]
    return line


def fill(disk: Path) -> None:
    """Fill the disk, as another process may."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024)):
            pass


def protect(disk: Path) -> None:
    """Make the file system read-only, as the kernel does after an error of the disk."""
    call("mount", None, bytes(disk), None, 32 | 1, None)  # MS_REMOUNT, MS_RDONLY


def copy_at_exit(disk: Path, found: Path) -> None:
    """Copy the disk's files, when the process exits, to a folder that other processes see."""
    Finalize(None, shutil.copytree, args=(disk, found), exitpriority=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "fault", "message", "steps"),
    [
        ("64k", None, "room for|No space left on device", None),
        ("1m", fill, "No space left on device", 50),
        ("1m", protect, "Read-only file system", 50),
    ],
    ids=["no room", "full", "read-only"],
)
def test_failing_disk_leaves_the_last_checkpoint(
    size: str,
    fault: Any,
    message: str,
    steps: int | None,
    fit_args: list[str],
    tmp_path: Path,
    report: Callable[[str], None],
) -> None:
    disk, found = tmp_path / "disk", tmp_path / "found"
    disk.mkdir()
    setup = [partial(mount, disk, size), partial(copy_at_exit, disk, found)]
    setup += [partial(at_epoch, 2, partial(fault, disk))] if fault else []
    code = finish(start(tmp_path, [*fit_args, f"--trainer.default_root_dir={disk}"], *setup))
    if code == FORBIDDEN:
        pytest.skip(f"the kernel forbids it: {(tmp_path / 'err').read_text()}")
    assert code == 1
    line = error_line(tmp_path)
    assert re.search(message, line)
    checkpoints = list(found.rglob("*.ckpt*"))
    assert sorted(path.name for path in checkpoints) == (["best.ckpt", "last.ckpt"] if steps else [])
    if steps:
        assert load(only(found, "last.ckpt"))["global_step"] == steps
    report(line)


@pytest.mark.slow
def test_folder_without_write_permission_is_reported(
    fit_args: list[str], tmp_path: Path, report: Callable[[str], None]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o555)
    assert finish(start(tmp_path, [*fit_args, f"--trainer.default_root_dir={folder}"], drop_capabilities)) == 1
    line = error_line(tmp_path)
    assert "Permission denied" in line
    report(line)
