"""Runs of a comparison in parallel, as Ray tasks: on the cores and GPUs of this machine or of a cluster."""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from mnist_lit import UserError
from mnist_lit.experiments.plans import PLAN
from mnist_lit.experiments.runs import Outcome, Run, load_result, report_outcome, train_and_measure
from mnist_lit.signals import Stopped, stop_on_signals

# Ray (2.60) reads these when it is imported
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers use this environment and folder, not copies
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.util.queue import Queue

ALL = "all runs"
"""Name of the table's row of totals."""

MAX_RETRIES = 3
"""Number of times that a run restarts after its process has died."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the Ray cluster at RAY_ADDRESS, or start Ray on this machine; disconnect or stop it at the end.

    Raises:
        UserError: Ray cannot start, or does not answer at RAY_ADDRESS.
        Stopped: SIGTERM arrived while Ray started.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"  # without "local", Ray joins any cluster on this machine
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # Ray (2.60) retries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        with _silent_stdout():
            session = ray.init(
                address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=2**27 if address == "local" else None,  # bytes; default: a third of the memory
            )
    except SystemExit as end:  # Ray's own signal handler exits with the signal's number
        raise Stopped(128 + signal.SIGTERM) if end.code == signal.SIGTERM else end from None
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"Ray ({address}): {' '.join(str(error).split())}") from error
    with session:
        yield


def run_in_parallel(folder: Path, runs: list[Run]) -> list[Outcome]:
    """Train and measure the runs, as many at a time as the cores or GPUs allow.

    Each run takes OMP_NUM_THREADS threads (1 by default) and as many cores, or a whole GPU.

    Raises:
        Stopped: SIGTERM or SIGINT arrived.
    """
    console = Console(file=sys.stdout, highlight=False)
    # again: Ray (2.60) has replaced the signal handlers
    with _silent_stdout(), stop_on_signals(), ProgressTable(len(runs), console) as table:
        return _run_tasks(folder, runs, table)


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard stdout, where Ray (2.60) reports dead workers whatever its logging level."""
    with Path(os.devnull).open("w") as devnull, contextlib.redirect_stdout(devnull):
        yield


def _run_tasks(folder: Path, runs: list[Run], table: "ProgressTable") -> list[Outcome]:
    """Start a task for each unfinished run, and show the states of all until they have finished."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    has_gpu = any("GPU" in machine for machine in machines)
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1
    # a task that needs more cores than any machine has would wait forever
    cores = min(threads, max(machine.get("CPU", 0) for machine in machines))
    task = ray.remote(num_cpus=cores, max_retries=MAX_RETRIES)(_run_task)
    queue = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})
    outcomes: dict[int, Outcome] = {}
    pending = {}
    for index, run in enumerate(runs):
        if result := load_result(folder, run):
            outcomes[index] = result
            table.finish(run, result)
            continue
        on_gpu = has_gpu and run.recipe.options["trainer"]["accelerator"] in ("auto", "gpu", "cuda")
        arguments = (Path.cwd(), folder, run, threads, RunProgress(queue, str(run)))
        pending[task.options(num_gpus=int(on_gpu), name=str(run)).remote(*arguments)] = index
    while pending:
        finished, _ = ray.wait(list(pending), timeout=0.5)
        for name, state in queue.get_nowait_batch(queue.qsize()):
            table.show(name, state)
        for reference in finished:
            index = pending.pop(reference)
            outcomes[index] = _outcome(reference)
            table.finish(runs[index], outcomes[index])
    return [outcomes[index] for index in range(len(runs))]


def _outcome(reference: Any) -> Outcome:
    """Get the outcome of a finished task, or raise the unexpected error of the task."""
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # chained, to show the task's traceback
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:200]
        return UserError(f"its process has died {MAX_RETRIES + 1} times ({reason})")
    return outcome


def _run_task(cwd: Path, folder: Path, run: Run, threads: int, progress: "RunProgress") -> Outcome:
    """Ray task: train and measure a run in a worker process, perhaps on another machine."""
    for path in (cwd, cwd / folder / PLAN):
        if not path.exists():
            return UserError(f"{path} does not exist on {socket.gethostname()}: all machines must share that folder.")
    os.chdir(cwd)
    torch.set_num_threads(threads)
    try:
        return train_and_measure(folder, run, [progress])
    except UserError as error:
        return UserError(str(error))  # a subclass may not survive pickling


class RunProgress(Callback):
    """Puts the name and the state of a run into a queue, at the start of each epoch and of its test."""

    def __init__(self, queue: Queue, name: str) -> None:
        self.queue = queue
        self.name = name

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        accuracy = trainer.callback_metrics.get("accuracy/val")
        validation = f", validation {100 * accuracy:.2f} %" if accuracy is not None else ""
        self._report(f"epoch {trainer.current_epoch + 1}{total}{validation}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report("testing")

    def _report(self, state: str) -> None:
        # without waiting: a waiting task gives its core away, and Ray (2.60) starts another run on it
        self.queue.actor.put_nowait.remote((self.name, state))  # type: ignore[attr-defined]


class ProgressTable(Progress):
    """Live table of the active runs, below a line per finished run; without a terminal, lines as runs begin and end."""

    def __init__(self, total: int, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=2,
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),  # errors appear above the table, unless stderr is a file
            disable=not console.is_terminal,
        )
        self.rows: dict[str, TaskID] = {}
        self.total, self.succeeded, self.failed = total, 0, 0
        self._show_counts()

    def show(self, name: str, state: str) -> None:
        """Show the state of a run."""
        if name not in self.rows:
            self.rows[name] = self.add_task(name, state=state)
            if self.disable and name != ALL:
                self.console.out(f"{name}: {state}")
        self.update(self.rows[name], state=state)

    def finish(self, run: Run, outcome: Outcome) -> None:
        """Replace the row of a run by a line with its outcome."""
        if str(run) in self.rows:
            self.remove_task(self.rows.pop(str(run)))
        report_outcome(run, outcome, self.console.out)
        self.failed += isinstance(outcome, UserError)
        self.succeeded += not isinstance(outcome, UserError)
        self._show_counts()

    def _show_counts(self) -> None:
        self.show(ALL, f"{self.succeeded} of {self.total} succeeded, {self.failed} failed")
