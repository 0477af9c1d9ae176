"""Runs within a SLURM job: each has a folder, in which it resumes when the job is requeued."""

import contextlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]

from mnist_lit import UserError
from mnist_lit.callbacks.checkpointing import RunCheckpoint
from mnist_lit.run.recipe import read_recipe


def _folder_name(draws_seed: bool) -> str:
    """The name of a run's folder. It ends in `_random_seed` for a drawn seed; config.yaml shows it like a given one."""
    return f"job_{SLURMEnvironment.job_id()}" + "_random_seed" * draws_seed


def new_job_folder(runs: Path, draws_seed: bool) -> Path | None:
    """Within a SLURM job, create a folder for a run, `job_ID`, or `job_ID_2` for the second run of the job; else None.

    Args:
        runs: Folder of the runs of a network.
        draws_seed: Whether the run draws a random seed.

    Raises:
        OSError: The folder cannot be created.
    """
    if not SLURMEnvironment.detect():
        return None
    for number in itertools.count(1):
        folder = runs / (_folder_name(draws_seed) + f"_{number}" * (number > 1))
        with contextlib.suppress(FileExistsError):  # another run of this job
            folder.mkdir(parents=True)
            break
    return folder


def can_resume(folder: Path | None, callbacks: Iterable[Callback]) -> bool:
    """Whether a requeued job would find the run in a folder."""
    saves = any(isinstance(callback, RunCheckpoint) for callback in callbacks)
    return saves and folder is not None and folder.name.startswith("job_")


def is_requeued() -> bool:
    """Whether this is a SLURM job that has run before."""
    return SLURMEnvironment.detect() and "SLURM_RESTART_COUNT" in os.environ


def requeued_checkpoint(runs: Path, config: dict[str, Any]) -> Path | None:
    """The checkpoint of the run with the same options that this requeued SLURM job has begun, if any.

    Args:
        runs: Folder of the runs of a network.
        config: All options of this run.

    Raises:
        UserError: The options of an earlier run of the job cannot be read.
        OSError: The same.
    """
    draws_seed = config["seed_everything"] is True
    name = _folder_name(draws_seed)
    for folder in sorted([*runs.glob(name), *runs.glob(f"{name}_[0-9]*")]):
        file, last = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
        if last.exists() and file.exists():
            begun = read_recipe(file)
            if draws_seed:
                begun["seed_everything"] = True
            if begun == config:
                return last
    return None


def check_job_states(root: Path) -> None:
    """Check that Lightning (2.6.6) will not resume from the state of another SLURM job.

    Args:
        root: Folder in which Lightning stores and searches such states.

    Raises:
        UserError: It would.
    """
    states = sorted(root.glob("hpc_ckpt_*.ckpt"))
    if states and SLURMEnvironment.detect():
        raise UserError(
            f"{states[-1]} is the state of a SLURM job: delete it, or give this job its own folder with "
            "--trainer.default_root_dir."
        )
