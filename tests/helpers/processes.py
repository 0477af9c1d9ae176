"""Start commands in processes that a test can wait for, signal and kill.

Python processes are forked from a server that has imported torch and Lightning already: an import takes ten seconds.
Each process leads its own process group and prints into files. The fixture `kill_started_processes` of conftest.py
kills all that a test leaves running: multiprocessing would otherwise wait for them when pytest exits.
"""

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from mnist_lit import cli
from mnist_lit.data import official

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["helpers.preload"])

TESTS = Path(__file__).parents[1]

Process = ForkServerProcess | subprocess.Popen[bytes]
Files = dict[str, official.OfficialFile]
Result = TypeVar("Result")

STARTED: dict[Process, list[Path]] = {}
"""The processes that tests have started, and the files that they print into."""

FULL = os.environ.get("FAULTS") == "full"
"""Whether each fault is repeated as often as the README says."""

PR_SET_PDEATHSIG = 1


def start(folder: Path, args: list[str], *setup: Callable[[], None], name: str = "") -> ForkServerProcess:
    """Start a command of mnist-lit.

    Args:
        folder: Its working folder, where it prints into `out` and `err`.
        args: The command and its options.
        setup: Functions that it calls first, from modules that it can import.
        name: Suffix of `out` and `err`.
    """
    files = [folder / f"out{name}", folder / f"err{name}"]
    return begin(_run_command, folder, files, official.OFFICIAL, args, setup, files=files)


def begin(target: Callable[..., None], *args: Any, files: Iterable[Path] = ()) -> ForkServerProcess:
    """Start a function in a process that prints into `files`."""
    process = CONTEXT.Process(target=_lead_group, args=(target, *args))
    STARTED[process] = list(files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)  # the server (Python 3.11) ignores sys.path
        process.start()
    return process


def launch(command: list[str], folder: Path, name: str = "") -> subprocess.Popen[bytes]:
    """Start any program in a working folder, where it prints into `out` and `err` with the name as suffix."""
    files = [folder / f"out{name}", folder / f"err{name}"]
    with files[0].open("w") as out, files[1].open("w") as err:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, start_new_session=True)
    STARTED[process] = files
    return process


def exit_code(process: Process) -> int | None:
    """The exit code, minus the signal's number if a signal has killed the process, None while it runs."""
    return process.exitcode if isinstance(process, ForkServerProcess) else process.poll()


def finish(process: Process, timeout_s: float = 60) -> int:
    """Wait until a process exits, and return its exit code."""
    wait_until(lambda: exit_code(process) is not None, "the process exits", timeout_s)
    code = exit_code(process)
    assert code is not None
    return code


def duration_s(folder: Path, args: list[str], *setup: Callable[[], None]) -> float:
    """Run a command as `start` does, which must succeed, and return its seconds from the end of all imports."""
    ready = folder / "ready"
    process = start(folder, args, *setup, ready.touch)
    wait_until(ready.exists, "the command begins", process=process)
    started_at = time.monotonic()
    assert finish(process) == 0
    return time.monotonic() - started_at


def send_signal(process: Process, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


def kill(*processes: Process) -> None:
    """Kill processes and their process groups, and reap them."""
    for process in processes:
        if process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # before it leads a group
    for process in processes:
        if process.pid is not None:
            finish(process)
        STARTED.pop(process, None)


def kill_all() -> None:
    """Kill all processes that tests have started."""
    kill(*STARTED)


atexit.register(kill_all)  # runs before multiprocessing's own, which joins all children


def wait_until(
    condition: Callable[[], Result], what: str, timeout_s: float = 60, process: Process | None = None
) -> Result:
    """Wait until a condition is true, and return its value.

    Args:
        condition: Called again and again.
        what: A description for the error message.
        timeout_s: Seconds after which the test fails, with what its processes have printed.
        process: Fail earlier if this process exits.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + timeout_s
    while True:
        has_exited = process is not None and exit_code(process) is not None
        if result := condition():
            return result
        if has_exited:
            pytest.fail(f"The process has exited before {what}.\n{printed()}")
        if time.monotonic() > deadline:
            pytest.fail(f"{timeout_s} s are over before {what}.\n{printed()}")
        time.sleep(0.02)


def printed() -> str:
    """The ends of what all started processes have printed."""
    files = [file for files in STARTED.values() for file in files if file.exists()]
    return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-5000:]}" for file in files)


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends: pytest that of the server, the server that of the rest."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _lead_group(target: Callable[..., None], *args: Any) -> None:
    os.setsid()
    end_with_parent()
    target(*args)


def _run_command(
    folder: Path, files: list[Path], official_files: Files, args: list[str], setup: tuple[Callable[[], None]]
) -> None:
    os.chdir(folder)
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    torch.set_num_threads(1)
    official.OFFICIAL = official_files
    for function in setup:
        function()
    try:
        cli.main(args)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as `main` does for a program
