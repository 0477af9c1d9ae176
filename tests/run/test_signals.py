"""SIGTERM and Ctrl-C end every command after the batch, and a second one at once, with the code of the signal."""

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import LAST, SMALL, Main, names
from helpers.faults import stall
from helpers.processes import FULL, Process, duration_s, exit_code, finish, send_signal, start, wait_until
from helpers.runs import differences, state
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mnist_lit import cli
from mnist_lit.callbacks.figures import FitFigures
from mnist_lit.callbacks.record import RunRecord
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.run import messages

SIGNALS = 500 if FULL else 8


@pytest.fixture(scope="module")
def uninterrupted(tiny_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The last checkpoint of a run without a signal, and the state at its end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", *SMALL, f"--data.data_dir={tiny_mnist}"])
    return folder / LAST, state(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "compare"])
def test_second_signal_ends_a_command_in_the_middle_of_a_batch(
    command: str, number: signal.Signals, fit_args: list[str], uninterrupted: tuple[Path, Any], tmp_path: Path
) -> None:
    args = [command, *fit_args[1:]]
    if command in ("validate", "test", "predict"):
        args = [command, f"--ckpt_path={uninterrupted[0]}", fit_args[-1]]
    process = start(tmp_path, args, stall)  # the second batch would take an hour
    wait_until((tmp_path / "stalled").exists, "the second batch starts", process=process)
    send_signal(process, number)
    printed = tmp_path / "err"
    wait_until(lambda: "Stopping after this batch." in printed.read_text(), "it reports the signal", process=process)
    send_signal(process, number)
    assert finish(process) == 128 + number
    assert "Traceback" not in printed.read_text()


def test_terminated_fit_exits_with_143(main: Main) -> None:
    with pytest.raises(SystemExit) as end:
        main("fit --trainer.callbacks=helpers.user_code.Terminate")
    assert end.value.code == 143
    assert names() == ["data", "lightning_logs"]


PLACES: list[tuple[Any, str]] = [
    (MNISTDataModule, "setup"),
    (RunRecord, "on_fit_start"),
    (DigitClassifier, "training_step"),
    (DigitClassifier, "validation_step"),
    (FitFigures, "on_train_epoch_end"),
    (EventFileWriter, "add_event"),
    (EventFileWriter, "flush"),
    (os, "fsync"),
    (messages, "print_next"),
]
"""Functions during which a signal arrives."""


@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
def test_signal_within_a_function_leaves_a_run_that_resumes(
    owner: Any, name: str, uninterrupted: tuple[Path, Any], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = uninterrupted[1]
    function, calls = getattr(owner, name), []

    def signaled(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2 or name in ("setup", "on_fit_start", "print_next"):
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **options)

    monkeypatch.setattr(owner, name, signaled)
    with pytest.raises(SystemExit, match="143"):
        main("fit")
    monkeypatch.setattr(owner, name, function)
    if not Path(LAST).exists():
        main("fit")
    elif torch.load(LAST, weights_only=True)["global_step"] < expected[0]["global_step"]:
        cli.main(["fit", "--ckpt_path=last"])
    assert differences(state(Path("lightning_logs")), expected) == []


def job(folder: Path, restarts: int) -> None:
    """Set the environment variables of a SLURM job, and put a stand-in for scontrol on the PATH."""
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\ntouch {folder}/requeued\n")
    program.chmod(0o755)
    tasks = {"SLURM_JOB_NAME": "digits", "SLURM_NODEID": "0", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    tasks |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7", "PATH": f"{folder}:{os.environ['PATH']}"}
    os.environ |= tasks | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})


def has_ended(process: Process, file: Path) -> bool:
    return exit_code(process) is not None or file.exists()


@pytest.mark.slow
@pytest.mark.timeout(7200 if FULL else 600)
@pytest.mark.parametrize(
    "is_job",  # test_processes.py requeues jobs at chosen moments
    [False, pytest.param(True, marks=pytest.mark.skipif(not FULL, reason="takes long"))],
    ids=["process", "SLURM job"],
)
def test_signals_at_random_moments_leave_runs_that_resume(
    is_job: bool, fit_args: list[str], tmp_path: Path, report: Callable[[str], None]
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    whole_s = duration_s(whole, fit_args)
    expected = state(whole)
    moments, sent, runs, codes = random.Random(int(is_job)), 0, 0, set[int]()
    kinds = [signal.SIGTERM, signal.SIGINT, *[signal.SIGUSR1] * is_job]
    while sent < SIGNALS // 2:  # each run is signaled and resumed until it has finished
        folder, runs, restarts, code = tmp_path / str(runs), runs + 1, 0, -1
        folder.mkdir()
        while code != 0:
            number = moments.choice(kinds)
            saved = not is_job and bool(list(folder.rglob("last.ckpt")))
            args = ["fit", "--ckpt_path=last"] if saved else fit_args
            (folder / "ready").unlink(missing_ok=True)
            setup = [partial(job, folder, restarts)] if is_job else []
            process = start(folder, args, *setup, (folder / "ready").touch)
            wait_until((folder / "ready").exists, "the command begins", process=process)
            time.sleep(moments.uniform(0, whole_s))
            if exit_code(process) is None:
                sent += 1
                send_signal(process, number)
            if number == signal.SIGUSR1:
                wait_until(partial(has_ended, process, folder / "requeued"), "the job is queued again")
                if exit_code(process) is None:
                    send_signal(process, number := signal.SIGTERM)  # as SLURM does next
            code = finish(process)
            restarts += 1
            (folder / "requeued").unlink(missing_ok=True)
            errors = (folder / "err").read_text()
            assert "Traceback" not in errors, errors
            if "epochs of this run are done" in errors:  # the signal arrived after the last checkpoint
                break
            assert code in (0, 128 + number, -number), errors
            codes.add(code)
        assert differences(state(folder), expected) == []
    report(f"{sent} signals in {runs} runs{' of a SLURM job' * is_job}: exit codes {sorted(codes)}, all bitwise equal")
