"""React to SIGTERM, Ctrl-C and SLURM's SIGUSR1 where it is safe, and exit with the code of the signal.

A signal handler may run between any two instructions, also while its thread holds a lock. A handler that logs or saves
can therefore wait for ever. These handlers only record the signal; training and evaluation react after each batch.
Elsewhere, the handler raises `Stopped`, as Python's own handler of Ctrl-C raises KeyboardInterrupt. A second signal
ends the process at once.

This module needs only the standard library, so that help and errors do not wait for torch.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from subprocess import Popen
from types import FrameType

REPEAT_S = 1.0
"""Earlier repetitions are not a second signal: a shell and its child may both forward the same Ctrl-C."""

REACTION_S = 2.0
"""Seconds after the first signal when a process that has not reacted says why, or exits."""

SLOW = b"\nStopping after this batch. Ctrl-C or SIGTERM again stops at once.\n"


class Stopped(SystemExit):
    """SIGTERM (exit code 143) or Ctrl-C (130) has ended the command."""

    code: int


class _Signals:
    """The signals received so far, and how to react."""

    def __init__(self) -> None:
        self.first = 0
        """SIGTERM or SIGINT; 0 if there was none."""
        self.is_deferred = False
        self.wants_requeue = False
        self.children: Callable[[], Iterable[Popen[bytes]]] = list

    def handle(self, number: int, _: FrameType | None) -> None:
        if number not in (signal.SIGTERM, signal.SIGINT):
            self.wants_requeue = True
        elif not self.first:
            self.first = number
            if not self.is_deferred:
                self.stop()

    def stop(self) -> None:
        if self.first:
            raise Stopped(128 + self.first)

    def watch(self, reader: socket.socket) -> None:
        """Read the numbers of signals, which also arrive while the main thread runs no Python code."""
        first, first_at = 0, 0.0
        while True:
            try:
                number = int.from_bytes(reader.recv(1))
            except TimeoutError:
                reader.settimeout(None)
                if self.is_deferred:
                    with contextlib.suppress(OSError):  # nobody reads it
                        os.write(2, SLOW)
                elif not self.first:  # the main thread waits in C code, such as for the other processes of a run
                    self.exit(first)
                continue
            if not number:
                return
            if not first and number in (signal.SIGTERM, signal.SIGINT):
                first, first_at = number, time.monotonic()
                reader.settimeout(REACTION_S)
            elif number in (signal.SIGTERM, signal.SIGINT) and time.monotonic() > first_at + REPEAT_S:
                self.exit(number)

    def exit(self, number: int) -> None:
        try:
            for child in self.children():
                child.kill()
        finally:
            os._exit(128 + number)


_IDLE = _signals = _Signals()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise Stopped on SIGTERM and Ctrl-C: at once, or where `stop_if_signaled` is called after `defer_signals`.

    Lightning (2.6.6) reacts to SIGTERM at the end of a training batch, or never in other commands, and exits with 0.

    Raises:
        Stopped: A signal has arrived.
    """
    global _signals
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before, own = _signals, _Signals()
    numbers = [signal.SIGTERM, signal.SIGINT]
    if "SLURM_JOB_ID" in os.environ:
        numbers.append(signal.SIGUSR1)  # with a handler, so that Lightning installs none
    handlers = {number: signal.getsignal(number) for number in numbers}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    thread = threading.Thread(target=own.watch, args=[reader], daemon=True)
    thread.start()
    earlier = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _signals = own
    try:
        for number in numbers:
            signal.signal(number, own.handle)
        yield
    except SystemExit:
        own.stop()  # Ray (2.60) replaces what is raised while it waits by an exit code of 1
        raise
    finally:
        own.is_deferred = True  # until the end of this block
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)
        writer.shutdown(socket.SHUT_RDWR)  # wakes the thread, also if a forked process has inherited the socket
        thread.join()
        reader.close()
        writer.close()
        _signals = before
    own.stop()  # also if a library has caught Stopped


@contextlib.contextmanager
def stop_after_batches() -> Iterator[None]:
    """End what `defer_signals` has begun, and raise Stopped if a signal has been recorded.

    Also in place of an error: another process that has received the same signal may have caused it.

    Raises:
        Stopped: A signal has been recorded.
    """
    try:
        yield
    except Exception:
        _signals.stop()
        raise
    finally:
        _signals.is_deferred = False
        _signals.children = list
    _signals.stop()


def defer_signals() -> None:
    """From now on, only record SIGTERM and Ctrl-C."""
    _signals.is_deferred = True


def stop_if_signaled() -> None:
    """React to a recorded signal.

    Raises:
        Stopped: SIGTERM or Ctrl-C has arrived.
    """
    _signals.stop()


def wants_requeue() -> bool:
    """Whether SIGUSR1, by which SLURM announces the end of a job, has arrived since the last call."""
    wanted, _signals.wants_requeue = _signals.wants_requeue, False
    return wanted


def kill_at_exit(children: Callable[[], Iterable[Popen[bytes]]]) -> None:
    """Let a second signal also kill child processes."""
    _signals.children = children


def _reset_in_child() -> None:
    """Let a forked process, such as a worker of a DataLoader, end on SIGTERM, and leave Ctrl-C to its parent."""
    if _signals is not _IDLE:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
