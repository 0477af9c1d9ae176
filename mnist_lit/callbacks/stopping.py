"""Stop and requeue a run between two batches, where nothing is half done."""

import os
import subprocess
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lit.signals import defer_signals, stop_if_signaled, wants_requeue

SCONTROL_TIMEOUT_S = 60


class StopAfterBatch(Callback):
    """Stop on SIGTERM or Ctrl-C at the end of a batch."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        defer_signals()  # from here on; earlier, a command may download data or wait for other processes

    def on_train_batch_end(self, *args: Any) -> None:
        stop_if_signaled()

    def on_validation_batch_end(self, *args: Any) -> None:
        stop_if_signaled()

    def on_test_batch_end(self, *args: Any) -> None:
        stop_if_signaled()

    def on_predict_batch_end(self, *args: Any) -> None:
        stop_if_signaled()


class SlurmRequeue(Callback):
    """Requeue a SLURM job when SLURM sends SIGUSR1 before the time limit; the job then resumes from `last.ckpt`.

    Lightning (2.6.6) saves the state of this step instead, inside the signal handler, which may wait for ever. A run
    resumed in the middle of an epoch would also see some images twice and others not at all.

    Args:
        can_resume: Whether a requeued job would find this run.
    """

    def __init__(self, can_resume: bool) -> None:
        self.can_resume = can_resume

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not wants_requeue() or not trainer.is_global_zero:
            return
        if not self.can_resume:
            print("The SLURM job is not requeued: only a fit with the default logger and checkpoints could resume.")
            return
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
        command = ["scontrol", "requeue", job]
        try:
            subprocess.run(command, check=True, timeout=SCONTROL_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"SLURM job {job} was not requeued: {error}. The run continues.")
