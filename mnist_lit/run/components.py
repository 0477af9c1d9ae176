"""The parts that the project adds to a Trainer: folder and logger of the run, callbacks, and strategy."""

import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from mnist_lit.callbacks.checkpointing import RunCheckpoint
from mnist_lit.callbacks.divergence import DivergenceStop
from mnist_lit.callbacks.figures import FitFigures, TestFigures
from mnist_lit.callbacks.limits import Limits
from mnist_lit.callbacks.predictions import PredictionWriter
from mnist_lit.callbacks.prepared import PreparedImages
from mnist_lit.callbacks.processes import SyncProcesses
from mnist_lit.callbacks.progress import ProgressBar
from mnist_lit.callbacks.record import RunLogger, RunRecord, log_folders
from mnist_lit.callbacks.resume import PlateauStep, RandomState, ResumeGuard
from mnist_lit.callbacks.stopping import SlurmRequeue, StopAfterBatch
from mnist_lit.callbacks.tuning import Tuning
from mnist_lit.callbacks.watch_test import WatchTest
from mnist_lit.checkpoints.io import AtomicCheckpointIO
from mnist_lit.files import new_version
from mnist_lit.run.overhead import NoProfiler
from mnist_lit.run.slurm import can_resume, check_job_states, new_job_folder

PEER_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others of its run; Lightning's default is 30 minutes.

The death of another process usually shows at once. Rarely, if it dies just before this process sends to it, gloo
(torch 2.15) waits until the timeout. The first process may need minutes, too: the others wait while it downloads MNIST.
"""


def new_run_folder(options: Namespace, logs: Path, folder: Path | None, resumes: bool, draws_seed: bool) -> Path | None:
    """Create the folder of a new run, in its first process; None if it already has one, or writes nothing.

    Args:
        options: The options of fit.
        logs: Folder of all runs.
        folder: Folder of a resumed run, or of a part of a comparison or search.
        resumes: Whether the run continues from a checkpoint.
        draws_seed: Whether the run has drawn a random seed.

    Raises:
        OSError: The folder cannot be created.
        UserError: The root folder contains the state of another SLURM job.
    """
    if not resumes:
        check_job_states(logs.parent)
    if folder or options.trainer.fast_dev_run:
        return None
    runs = runs_folder(options, logs)
    if getattr(rank_zero_only, "rank", 0):
        return runs / "version_0"  # only the first process writes
    job_folder = None if resumes else new_job_folder(runs, draws_seed)
    return job_folder or runs / f"version_{new_version(runs)}"


def runs_folder(options: Namespace, logs: Path) -> Path:
    """The folder of all runs of a network."""
    return logs / str(options.model.backbone.class_path).rpartition(".")[2].lower()


def run_logger(
    command: str, options: Namespace, folder: Path | None, step: int | None, is_changed: bool
) -> RunLogger | Literal[False]:
    """TensorBoard's log in the run's folder: of a fit, or of a test of the whole test set with the run's options.

    Args:
        command: "fit", "validate", "test" or "predict".
        options: The options of the command.
        folder: Folder of the run, or None.
        step: Training steps of the checkpoint that the command starts from, or None for a new run.
        is_changed: Whether options differ from those of the checkpoint.
    """
    trainer = options.trainer
    if folder is None or trainer.fast_dev_run:
        return False
    if command == "fit":
        return RunLogger(folder, purge_step=step)  # what a killed run has logged after its checkpoint is logged again
    if command == "test" and measures_run(command, options, is_changed):
        return RunLogger(folder, step=max((step or 0) - 1, 0))  # the step of the last epoch's metrics
    return False


def measures_run(command: str, options: Namespace, is_changed: bool) -> bool:
    """Whether "test" or "predict" takes all test images and the run's options: only then its folder gets the result."""
    trainer = options.trainer
    limit = trainer[f"limit_{command}_batches"]
    return not (is_changed or trainer.fast_dev_run or trainer.overfit_batches or limit is not None)


def user_callbacks(command: str, options: Namespace) -> list[Callback]:
    """The user's callbacks. Lightning's finders become one callback in fit, and are left out elsewhere."""
    given: list[Callback] = as_list(options.trainer.callbacks)
    # not of a subclass, which may run at other times
    finders: list[Any] = [callback for callback in given if type(callback) in (BatchSizeFinder, LearningRateFinder)]
    callbacks = [callback for callback in given if callback not in finders]
    return [Tuning(finders), *callbacks] if finders and command == "fit" else callbacks


def own_callbacks(
    command: str,
    options: Namespace,
    logger: Logger | list[Logger] | Literal[False],
    new_folder: Path | None,
    run_folder: Path | None,
    is_changed: bool,
) -> list[Callback]:
    """The project's callbacks for a command, in their order, after those of the user.

    Args:
        command: "fit", "validate", "test" or "predict".
        options: The options of the command.
        logger: Its loggers, or False.
        new_folder: The folder that was created for a new run, or None.
        run_folder: The folder of the checkpoint's run, or None.
        is_changed: Whether options differ from those of the checkpoint.
    """
    trainer, folder = options.trainer, new_folder or run_folder
    folders = log_folders(as_list(logger))
    record = RunRecord(one for one in folders if one == new_folder or not one.exists())
    # those that may refuse to train precede those that write
    callbacks: list[Callback] = [ResumeGuard(), Limits()] if command == "fit" else []
    callbacks += [record, SyncProcesses(), StopAfterBatch()]
    if trainer.enable_progress_bar is not False and not _has(AnyProgressBar, as_list(trainer.callbacks)):
        callbacks.append(ProgressBar())
    if command == "test":
        callbacks.append(TestFigures())
    if command == "predict":
        callbacks.append(PredictionWriter(folder if folder and measures_run(command, options, is_changed) else Path()))
    if command != "fit":
        return callbacks
    callbacks += [FitFigures(), PreparedImages(), RandomState(), PlateauStep(), DivergenceStop()]
    if options.watch_test:
        callbacks.append(WatchTest())
    if logger:
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    if (logger or trainer.enable_checkpointing) and trainer.enable_checkpointing is not False:
        callbacks += [RunCheckpoint("best", monitor="accuracy/val"), RunCheckpoint("last")]
    if SLURMEnvironment.detect():
        callbacks.append(SlurmRequeue(can_resume(folder, callbacks)))
    return callbacks


def trainer_options(options: Namespace, logger: Any, callbacks: list[Callback]) -> dict[str, Any]:
    """Options of the Trainer that follow from the user's, the logger and the callbacks."""
    trainer, plugins = options.trainer, as_list(options.trainer.plugins)
    changed = {
        "logger": logger,
        "plugins": plugins if _has(CheckpointIO, plugins) else [*plugins, AtomicCheckpointIO()],
        "profiler": trainer.profiler or NoProfiler(),
        "strategy": strategy(options),
    }
    if not logger and trainer.enable_checkpointing is None and not _has(ModelCheckpoint, callbacks):
        changed["enable_checkpointing"] = False  # there is no folder for them
    if _has(AnyProgressBar, callbacks):
        changed["enable_progress_bar"] = True
    return changed


def _has(kind: type, objects: list[Any]) -> bool:
    return any(isinstance(item, kind) for item in objects)


def strategy(options: Namespace) -> Any:
    """The strategy of the Trainer: for several devices, DDP that does not send BatchNorm statistics in each step.

    Only evaluation uses them; SyncProcesses sends them before it.
    """
    trainer = options.trainer
    if trainer.strategy not in ("auto", "ddp") or _device_count(trainer) == 1:
        return trainer.strategy
    has_own_option = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # since torch 2.15
    sync: dict[str, Any] = {"forward_sync_buffers" if has_own_option else "broadcast_buffers": False}
    return DDPStrategy(gradient_as_bucket_view=True, timeout=PEER_TIMEOUT, **sync)


def _device_count(trainer: Namespace) -> int:
    """Number of devices, on all nodes, that the options of the Trainer ask for."""
    devices: Any = trainer.devices
    if isinstance(devices, str) and devices.lstrip("-").isdecimal():
        devices = int(devices)
    if devices in ("auto", -1):
        devices = torch.cuda.device_count() if trainer.accelerator in ("auto", "gpu", "cuda") else 1
    if isinstance(devices, str):  # such as "0,1"
        devices = [device for device in devices.split(",") if device]
    return max(len(devices) if isinstance(devices, list) else int(devices), 1) * int(trainer.num_nodes)


def as_list(value: Any) -> list[Any]:
    """An option for which a user may give one object, several or none."""
    return value if isinstance(value, list) else [] if value is None else [value]
