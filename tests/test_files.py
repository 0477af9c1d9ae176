"""Writes and locks on file systems that lack a function."""

import errno
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import names
from helpers.processes import begin, kill, wait_until

from mnist_lit import UserError, files


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


def hold(folder: Path) -> None:
    with files.lock_folder(folder):
        (folder / "held").touch()
        time.sleep(3600)


@pytest.mark.slow
def test_lock_names_its_process_and_ends_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = begin(hold, tmp_path)
    wait_until((tmp_path / "held").exists, "the other process holds the lock", process=holder)
    owner = f"process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(UserError, match=f"{owner} still uses"), files.lock_folder(tmp_path, 0.1):
        pass
    assert capsys.readouterr().out == f"Waiting for {owner}, which uses {tmp_path}\n"
    kill(holder)
    with files.lock_folder(tmp_path, 60):
        assert names(tmp_path) == [".lock", "held"]
    assert names(tmp_path) == ["held"]


def test_disk_error_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_atomically(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())
