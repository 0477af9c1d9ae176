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
from helpers.commands import LAST, Main, names
from helpers.faults import stall
from helpers.processes import FULL, Process, exit_code, finish, send_signal, start, wait_until
from helpers.runs import differences, state
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mnist_lit import cli
from mnist_lit.callbacks.figures import FitFigures
from mnist_lit.callbacks.record import RunRecord
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.run import messages

SIGNALS = 500 if FULL else 8


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "compare"])
def test_second_signal_ends_a_command_in_the_middle_of_a_batch(
    command: str, number: signal.Signals, fit_args: list[str], tmp_path: Path
) -> None:
    args = [command, *fit_args[1:]]
    if command in ("validate", "test", "predict"):
        assert finish(start(tmp_path, fit_args)) == 0
        args = [command, "--ckpt_path=last", fit_args[-1]]
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


UNINTERRUPTED: list[Any] = []
"""The state at the end of a run without a signal, for all tests of this module."""


@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
def test_signal_within_a_function_leaves_a_run_that_resumes(
    owner: Any, name: str, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not UNINTERRUPTED:
        main("fit")
        UNINTERRUPTED.append(state(Path("lightning_logs")))
        Path("lightning_logs").rename("whole")
    (expected,) = UNINTERRUPTED
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
    for _ in range(2):  # the first process waits for the server's imports
        started_at = time.monotonic()
        assert finish(start(whole, [*fit_args, f"--trainer.default_root_dir={whole}/{started_at}"])) == 0
        duration_s = time.monotonic() - started_at
    expected = state(whole / str(started_at))
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
            time.sleep(moments.uniform(0, duration_s))
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
