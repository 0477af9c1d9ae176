"""The runs of a comparison side by side, as tasks of Ray: on the cores of this machine, or on a cluster."""

import contextlib
import logging
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mnist_lit import UserError
from mnist_lit.experiments.compare import Outcome, Run, finished, tell, train_and_test
from mnist_lit.run.signals import Stopped, stoppable

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else under `uv run` workers get a copy of this folder
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a run on the CPU sees no GPU, as it does alone

try:
    import ray
    from ray.util.queue import Queue
except ModuleNotFoundError as error:
    raise UserError("mnist-lit compare --ray needs Ray: uv run --extra ray mnist-lit compare --ray ...") from error

WAITING = "waiting"

RETRIES = 3
"""How often a run is begun anew whose process has died."""


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Have Ray on this machine, for as long as this takes, or the cluster at RAY_ADDRESS.

    Raises:
        UserError: Ray cannot be started, or is not found where RAY_ADDRESS says.
        Stopped: The process was told to end.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"  # said outright: else Ray takes what runs here already
    store = 2**27 if address == "local" else None  # bytes for what tasks hand on; by default a third of the memory
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # where nobody answers, Ray (2.60) asks for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        with _hidden():
            ray.init(
                address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=store,
            )
    except SystemExit as end:
        raise Stopped(128 + signal.SIGTERM) if end.code == signal.SIGTERM else end from None  # by Ray's own handler
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:  # a ConnectionError is an OSError
        raise UserError(f"Ray ({address}): {' '.join(str(error).split())}") from error
    try:
        yield
    finally:
        ray.shutdown()


def in_parallel(folder: Path, runs: list[Run]) -> list[Outcome]:
    """What became of each run, of which as many are made at a time as there is room for.

    A run has as many threads as OMP_NUM_THREADS says, one by default, and as many cores; on a GPU, one for itself.

    Raises:
        Stopped: The process was told to end.
    """
    board = Board(runs)
    try:
        with _hidden(), stoppable():  # anew, for Ray (2.60) has set a handler of its own
            return _share_out(folder, runs, board)
    except Stopped:
        print("The finished runs are kept; to go on: the same command with --resume")
        raise


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    """Print nothing of what is printed within, such as Ray's word (2.60) on a worker that has died."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _share_out(folder: Path, runs: list[Run], board: "Board") -> list[Outcome]:
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1
    cores = min(threads, max(machine.get("CPU", 0) for machine in machines))  # of more, Ray would wait for ever
    has_gpu = any("GPU" in machine for machine in machines)
    news = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})
    task = ray.remote(_train_and_test)
    outcomes: dict[int, Outcome] = {}
    pending = {}
    for number, run in enumerate(runs):
        done = finished(folder, run)
        if done:
            outcomes[number] = done
            board.finish(number, done)
            continue
        on_gpu = has_gpu and run.options["trainer"]["accelerator"] in ("auto", "gpu", "cuda")
        options = {"num_cpus": cores, "num_gpus": int(on_gpu), "max_retries": RETRIES, "name": str(run)}
        reference = task.options(**options).remote(folder, run, threads, Path.cwd(), news, number)
        pending[reference] = number
    with board:
        while pending:
            ready, _ = ray.wait(list(pending), timeout=0.5)
            for number, state in news.get_nowait_batch(news.qsize()):
                board.states[number] = state
            for reference in ready:
                number = pending.pop(reference)
                outcomes[number] = _outcome(reference)
                board.finish(number, outcomes[number])
            board.draw()
    return [outcomes[number] for number in range(len(runs))]


def _outcome(reference: Any) -> Outcome:
    """What a task has handed back.

    Raises:
        Exception: What it has raised, and no user can mend.
    """
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # which has the lines of code that led to it
    except ray.exceptions.RayError as error:  # the worker has died, each time
        return UserError(f"its process has died {RETRIES + 1} times ({' '.join(str(error).split())[:200]})")
    return outcome


def _train_and_test(folder: Path, run: Run, threads: int, place: Path, news: Queue, number: int) -> Outcome:
    """The task: what `compare` does in sequence, in another process and perhaps on another machine."""
    try:
        os.chdir(place)
    except OSError:
        return UserError(f"{place} is not there on {platform.node()}: all machines must share that folder.")
    if not (folder / "plan.json").exists():
        return UserError(f"{folder} is not there on {platform.node()}: all machines must share that folder.")
    torch.set_num_threads(threads)
    with _hidden():
        try:
            return train_and_test(folder, run, [Reporter(news, number)])
        except UserError as error:
            return UserError(str(error))  # its class may take other arguments than the pickled one's


class Reporter(Callback):
    """Tells how far a run is, at each epoch's start and before its test."""

    def __init__(self, news: Queue, number: int) -> None:
        self.news = news
        self.number = number

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the epoch, and the accuracy after the one before."""
        last = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        accuracy = trainer.callback_metrics.get("val/accuracy")
        told = f", validation {100 * accuracy:.2f} %" if accuracy is not None else ""
        self._tell(f"epoch {trainer.current_epoch + 1}{last}{told}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell that it is tested."""
        self._tell("testing")

    def _tell(self, state: str) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # training goes on without
            self.news.put_nowait((self.number, state))


class Board:
    """A live table with a row a run; where the output is no terminal, a line for each run that is finished."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.states = dict.fromkeys(range(len(runs)), WAITING)
        self.finished: list[int] = []
        self.failed = 0
        self.begun = time.monotonic()
        self.console = Console(file=sys.stdout)  # as it is now
        # an error goes above the table, unless it goes to a file
        goes_above = sys.stderr.isatty()
        self.live = Live(console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=goes_above)

    def __enter__(self) -> "Board":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def finish(self, number: int, outcome: Outcome) -> None:
        """Note, and tell, what became of a run."""
        self.finished.append(number)
        if isinstance(outcome, UserError):
            self.failed += 1
            self.states[number] = "failed"
        else:
            self.states[number] = f"test {100 * outcome['test_accuracy']:.2f} %"
        if isinstance(outcome, UserError) or not self.console.is_terminal:
            tell(self.runs[number], outcome, self.console.file)

    def draw(self) -> None:
        """Draw the table as it is now."""
        if self.live.is_started:
            self.live.update(self.table(self.console.height - 7), refresh=True)

    def table(self, rows: int) -> Table:
        """The table with so many rows at most: those that train first, then the last finished, then the next."""
        waiting = [number for number, state in self.states.items() if state == WAITING]
        training = [number for number in self.states if number not in {*waiting, *self.finished}]
        failed = f", {self.failed} failed" if self.failed else ""
        passed = timedelta(seconds=int(time.monotonic() - self.begun))
        counts = f"{len(self.finished)} of {len(self.runs)} runs finished{failed}, {len(training)} under way; {passed}"
        table = Table("recipe", "seed", "state", caption=counts)
        for number in sorted([*training, *reversed(self.finished), *waiting][: max(rows, 1)]):
            table.add_row(self.runs[number].recipe, str(self.runs[number].seed), self.states[number])
        return table
