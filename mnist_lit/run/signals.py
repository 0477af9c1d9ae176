"""End a command on SIGTERM or Ctrl-C: immediately, cleanly, and with the exit code of the signal.

This module needs only the standard library, so that help and errors do not wait for torch.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from subprocess import Popen
from types import FrameType


class Stopped(SystemExit):
    """SIGTERM (exit code 143) or Ctrl-C (130) has ended the command."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise Stopped in the main thread on SIGTERM and Ctrl-C.

    Lightning (2.6.6) reacts to SIGTERM at the end of a training batch, or never in other commands, and exits with 0.
    """
    received_at = -1.0
    stopped: Stopped | None = None

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal received_at, stopped
        if time.monotonic() > received_at + 1:  # a shell and its child may both forward the same signal
            received_at = time.monotonic()
            stopped = Stopped(128 + number)
            raise stopped

    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit:
        if stopped:
            raise stopped from None  # Ray (2.60) replaces what is raised while it waits by an exit code of 1
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_while_waiting(children: Callable[[], Iterable[Popen[bytes]]]) -> Callable[[], None]:
    """Exit on SIGTERM or Ctrl-C also while this process waits for others in C code, where no Python handler runs.

    Args:
        children: Returns the child processes to kill.

    Returns:
        A function that ends this behavior, to call once all processes are connected.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)

    def watch() -> None:
        for number in iter(lambda: os.read(reader, 1), b""):
            if number[0] in (signal.SIGTERM, signal.SIGINT):
                time.sleep(0.5)  # a Python handler may run after all
                for child in children():
                    child.kill()
                os._exit(128 + number[0])
        os.close(reader)

    def end() -> None:
        signal.set_wakeup_fd(before)
        os.close(writer)

    threading.Thread(target=watch, daemon=True).start()
    return end
