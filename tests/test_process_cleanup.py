"""Tests that fail end, and so do the processes that they have started."""

import os
import signal
import sys
from pathlib import Path

import pytest
from helpers.processes import FULL, Process, finish, launch, wait_until

pytestmark = pytest.mark.slow

START = """
import os, signal, time
from pathlib import Path

import pytest
from helpers.processes import CONTEXT, begin, launch, wait_until

def start():
    forked = begin(time.sleep, 3600)
    shell = launch(["sh", "-c", "sleep 3600 & echo $!; wait"], Path(), "_shell")
    grandchild = wait_until(lambda: Path("out_shell").read_text().strip(), "the shell starts a child")
    with open("started", "a") as file:
        print(forked.pid, shell.pid, grandchild, file=file)
"""

FAILURES = """
CONTEXT.set_forkserver_preload([])  # the imports take ten seconds

def test_that_fails():
    start()
    raise AssertionError

@pytest.mark.timeout(1)
def test_that_takes_too_long():
    start()
    time.sleep(3600)

def test_that_waits_in_vain():
    launch(["echo", "the last words"], Path(), "_echo")
    wait_until(lambda: False, "it rains", 0.5)

def test_that_is_interrupted():
    start()
    os.kill(os.getpid(), signal.SIGINT)
"""

CRASH = """
def test_that_kills_pytest():
    Path("forked").write_text(str(begin(time.sleep, 3600).pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_pytest(folder: Path, tests: str) -> Process:
    """Start pytest, with this project's conftest.py, on a module of tests."""
    (folder / "test_inner.py").write_text(START + tests)
    path = f"PYTHONPATH={Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    options = ["-p", "conftest", "-p", "no:cacheprovider"]
    return launch(["env", path, sys.executable, "-m", "pytest", *options, "test_inner.py"], folder)


def is_running(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


@pytest.mark.skipif(not FULL, reason="imports torch once more")
@pytest.mark.skipif(sys.platform != "linux", reason="reads the states of processes from /proc")
def test_failed_tests_end_and_leave_no_process(tmp_path: Path) -> None:
    inner = run_pytest(tmp_path, FAILURES)
    assert finish(inner) == pytest.ExitCode.INTERRUPTED
    report = (tmp_path / "out").read_text()
    assert "3 failed" in report
    assert "Timeout (>1.0s)" in report
    assert "0.5 s are over before it rains." in report
    assert "the last words" in report
    pids = (tmp_path / "started").read_text().split()
    assert len(pids) == 9
    assert not any(map(is_running, pids))


@pytest.mark.skipif(not FULL, reason="imports torch twice more")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_forked_processes_end_with_pytest(tmp_path: Path) -> None:
    assert finish(run_pytest(tmp_path, CRASH)) == -signal.SIGKILL
    wait_until(lambda: not is_running((tmp_path / "forked").read_text()), "the forked process ends")
