"""Writes and locks on file systems that lack a function."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mnist_lit import files


def fail(number: int) -> Any:
    def function(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return function


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_file_systems_without_sync_and_locks_work(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail(number))
    monkeypatch.setattr("fcntl.flock", fail(number))
    with files.lock_folder(tmp_path):
        files.write_atomically(tmp_path / "file", b"content")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"content")]


def test_disk_error_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_atomically(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())
