"""How a command ends when it is told to: at once, with the exit code that says so, and in order."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


class Stopped(SystemExit):
    """The process was told to end, by SIGTERM (its exit code is 143) or Ctrl-C (130)."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end what runs within, wherever it is, by raising Stopped.

    Lightning (2.6.6) lets SIGTERM wait for the end of a training batch, or in other commands for ever, and exits with
    0; Ctrl-C with 1. To be deleted when it exits at once with 143 and 130.
    """
    told_at = -1.0
    stopped: Stopped | None = None

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal told_at, stopped
        if time.monotonic() > told_at + 1:  # twice within a second is once: a shell and its child may both pass it on
            told_at = time.monotonic()
            stopped = Stopped(128 + number)
            raise stopped

    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit:
        if stopped:
            raise stopped from None  # Ray (2.60) makes an exit with 1 of what is raised while it waits
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
