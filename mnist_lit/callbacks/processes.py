"""What several processes that train one network need beside Lightning's DDP: one end."""

import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from mnist_lit import UserError

T = TypeVar("T")


def world_size() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gathered(part: T) -> list[T]:
    """The parts of all processes, by their ranks, in each of them: all must ask for it at once."""
    if world_size() == 1:
        return [part]
    parts: list[T] = [part] * world_size()
    distributed.all_gather_object(parts, part)
    return parts


ASKED_EVERY = 20
"""Training steps, or batches, of which one waits for what another process, or a GPU, has to say."""


class Together(Callback):
    """Has the processes of a run end together, heed SLURM at the same step, and evaluate the first one's network.

    Lightning (2.6.6) waits for the others within the handlers of SIGTERM and of SLURM's signal, where these may wait
    for this one already, and before each batch for news of a SIGTERM; and leaves those that it has started alone when
    this one fails. DDP sends the first process's BatchNorm statistics to the others at each step, though they count in
    evaluation alone. To be deleted when neither does.
    """

    def __init__(self) -> None:
        self.all_are_there: Callable[[], None] = _do_nothing

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take out what waits for other processes, before it begins.

        Raises:
            UserError: `--ckpt_path last` is another file to another process.
        """
        self.all_are_there()
        self.all_are_there = _do_nothing
        if len(set(gathered(str(trainer.ckpt_path)))) > 1:
            raise UserError("Another run has just kept a checkpoint, so that `last` is not clear: name the file.")
        # neither has a public switch; without the first, SIGTERM does what it did before
        trainer._signal_connector._sigterm_notifier_fn = _do_nothing  # type: ignore[method-assign, assignment]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing  # type: ignore[method-assign]
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy._ddp_kwargs |= {"forward_sync_buffers": False, "gradient_as_bucket_view": True}
        self.is_told = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put a handler that takes note in the place of the one that saves and queues the job again."""
        theirs = signal.getsignal(signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else None
        asks = None
        if trainer.world_size > 1 and callable(theirs):  # within a SLURM job
            signal.signal(signal.SIGUSR1, self._be_told)
            asks = functools.partial(self._queue_if_told, theirs)
        self.on_train_batch_end = asks  # type: ignore[method-assign, assignment]

    def _be_told(self, *_: Any) -> None:
        self.is_told = True

    def _queue_if_told(self, queue_again: Callable[[int, None], Any], trainer: Trainer, *_: Any) -> None:
        is_asked = trainer.global_step % ASKED_EVERY == 0
        if is_asked and trainer.strategy.reduce_boolean_decision(self.is_told, all=False):
            self.is_told = False
            queue_again(signal.SIGUSR1, None)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the first process's BatchNorm statistics to the others."""
        if world_size() > 1:
            for buffer in pl_module.buffers():
                distributed.broadcast(buffer, src=0)

    on_train_epoch_end = on_validation_epoch_start  # before the checkpoint, which holds the first process's

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Kill the processes that this one has started: they write nothing, and may wait for this one."""
        started = [*_started(trainer)]
        _started(trainer).clear()  # or Lightning's thread that looks after them kills this one too
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def folder_of_job(root: Path, runs: Path | None) -> str | None:
    """Within a SLURM job, the name of a run's folder, in which it goes on when the job is queued again; else None.

    Args:
        root: Folder where Lightning keeps and looks for the state of a job.
        runs: Folder of the network's runs; None for a run of a comparison or a search.

    Raises:
        UserError: Lightning would go on from the state of another job, or of another run of this one.
    """
    if not SLURMEnvironment.detect():
        return None
    is_again = "SLURM_RESTART_COUNT" in os.environ
    states = sorted(root.glob("hpc_ckpt_*.ckpt"))  # Lightning's (2.6.6) name; it takes the newest
    if states and (runs is None or not is_again):
        raise UserError(
            f"{states[-1]} is the state of a SLURM job: delete it, or give this one a folder of its own with "
            "--trainer.default_root_dir."
        )
    folder = f"job_{SLURMEnvironment.job_id()}"
    return None if runs is None or ((runs / folder).exists() and not is_again) else folder


def heed_signals(trainer: Trainer) -> Callable[[], None]:
    """Let SIGTERM and Ctrl-C end this process while it waits for others, which it does where no handler runs.

    Returns:
        What ends that, once they are all there.
    """
    if trainer.world_size == 1 or threading.current_thread() is not threading.main_thread():
        return _do_nothing
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    before = signal.set_wakeup_fd(tells)

    def watch() -> None:
        for number in iter(lambda: os.read(told, 1), b""):
            if number[0] in (signal.SIGTERM, signal.SIGINT):
                time.sleep(0.5)  # for a handler that runs after all
                for process in _started(trainer):
                    process.kill()
                os._exit(128 + number[0])
        os.close(told)

    def end() -> None:
        signal.set_wakeup_fd(before)
        os.close(tells)

    threading.Thread(target=watch, daemon=True).start()
    return end


def _do_nothing(*_: Any) -> None:
    pass


def join(trainer: Trainer) -> None:
    """Wait for the processes that this one has started."""
    for process in _started(trainer):
        process.wait()


def _started(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    return getattr(trainer.strategy.launcher, "procs", [])
