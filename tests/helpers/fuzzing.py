"""Fuzz a function in a process of its own, and watch that nothing hangs, nothing runs and memory stays small."""

import contextlib
import faulthandler
import io
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from helpers.processes import FULL, begin, exit_code, finish, printed
from mnist_lit import cli

SECONDS = float(os.environ.get("FUZZ_S", 600 if FULL else 6))
"""Duration of each fuzz; FUZZ_S overrides it."""

MAX_MEMORY = 2 * 2**30
"""Bytes that a process may occupy; it can map as many more than at its start, so a larger request fails at once."""

MAX_EXAMPLE_S = 20
"""CPU seconds that one example may take."""

CANARY = "canary"
"""A word in all hostile code and in the names of all files that it would write."""

FORBIDDEN_EVENTS = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.kill", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "webbrowser.open"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile"),
)

UNTRUSTED_MODULES = ("evil", "antigravity", "this", "turtledemo", "idlelib")
"""Modules that hostile files name, and that no library imports by itself."""


class Fuzz(NamedTuple):
    """One kind of input."""

    examples: SearchStrategy[Any]
    write: Callable[[Any], object]
    """Writes the files of an example."""
    read: Callable[[], bool]
    """Reads them, and returns whether they were accepted; any exception is a finding."""
    first: Sequence[Any] = ()
    """Examples that are always checked."""


class TooSlowError(BaseException):
    """An example takes too long; no `except Exception` catches it."""


def fuzz(prepare: Callable[[Path], Fuzz], folder: Path) -> str:
    """Fuzz in a process of its own, fail with the smallest example that is a finding, and return a line of figures.

    Args:
        prepare: Makes the strategy and the check; called in that process, in the folder.
        folder: An empty folder.
    """
    __tracebackhide__ = True
    files = [folder.with_suffix(f".{name}") for name in ("out", "err", "json")]
    process = begin(_fuzz, prepare, folder, *files, files=files[:2])
    finish(process, timeout_s=SECONDS + 500)  # shrinking a finding takes up to 5 minutes
    assert exit_code(process) == 0, printed()
    figures: dict[str, Any] = json.loads(files[2].read_text())
    return "{examples:,} examples, {accepted:,} accepted, {seconds:.0f} s, {memory_mb:,} MB".format(**figures)


def check_line(message: str) -> None:
    """Check that a message is one line, without control characters."""
    assert message.strip()
    assert message.isprintable(), ascii(message)


def run_command(args: list[str]) -> bool:
    """Whether a command line succeeds; if it does not, it must print one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(args)
        except SystemExit as end:
            if end.code in (0, None):
                return True
            message = end.code if isinstance(end.code, str) else err.getvalue()
            check_line(message.removesuffix("\n"))
            assert message.startswith("mnist-lit: error: ")
            return False
    return True


def _fuzz(prepare: Callable[[Path], Fuzz], folder: Path, out: Path, err: Path, figures: Path) -> None:
    for descriptor, file in zip((1, 2), (out, err), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    folder.mkdir()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    kind = prepare(folder)
    _limit_memory()
    sys.addaudithook(_record)
    signal.signal(signal.SIGPROF, _raise_too_slow)
    counts, peaks = {True: 0, False: 0}, [0]

    def check(example: Any) -> None:
        kind.write(example)
        with _watch():
            accepted = kind.read()
        peaks.append(_peak_memory())
        counts[accepted] += 1

    started_at = time.monotonic()
    for number, example in enumerate(kind.first):
        try:
            check(example)
        except BaseException as error:
            error.add_note(f"The first examples: number {number}")
            raise
    quiet = settings(
        max_examples=50,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    deadline = time.monotonic() + SECONDS
    for number in itertools.count():  # hypothesis has no limit of time
        if time.monotonic() > deadline:
            break
        seed(number)(quiet(given(kind.examples)(check)))()
    assert counts[True] or SECONDS < 60, "every example was refused"
    figures.write_text(
        json.dumps(
            {
                "examples": sum(counts.values()),
                "accepted": counts[True],
                "seconds": time.monotonic() - started_at,
                "memory_mb": max(peaks) // 2**20,
            }
        )
    )


def _limit_memory() -> None:
    status = Path("/proc/self/status")
    if status.exists():
        (mapped,) = (int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmData" in line)
        resource.setrlimit(resource.RLIMIT_DATA, (mapped + MAX_MEMORY, mapped + MAX_MEMORY))


_events: list[str] | None = None
"""Forbidden events of the example that is being checked; None between examples."""


def _record(event: str, args: tuple[Any, ...]) -> None:
    if _events is None:
        return
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    has_run = event in ("compile", "exec") and CANARY in _source(args[0])
    if event in FORBIDDEN_EVENTS or has_run or (writes and args[0] != os.devnull):
        _events.append(f"{event} {args!r}"[:500])


def _source(code: Any) -> str:
    if hasattr(code, "co_names"):
        return f"{code.co_filename} {code.co_names} {code.co_consts}"
    return code.decode(errors="replace") if isinstance(code, bytes) else str(code)


def _raise_too_slow(*_: object) -> None:
    raise TooSlowError(f"The example takes more than {MAX_EXAMPLE_S} s.")


@contextlib.contextmanager
def _watch() -> Iterator[None]:
    """Check what the context does, how long it takes and how much memory it needs."""
    global _events
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of memory
    faulthandler.dump_traceback_later(10 * MAX_EXAMPLE_S, exit=True)  # where SIGPROF cannot interrupt C code
    signal.setitimer(signal.ITIMER_PROF, MAX_EXAMPLE_S)
    events: list[str] = []
    _events = events
    try:
        yield
    finally:
        _events = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    assert not events, events
    assert not sys.modules.keys() & set(UNTRUSTED_MODULES)
    assert _peak_memory() < MAX_MEMORY


def _peak_memory() -> int:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
