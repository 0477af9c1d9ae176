"""Several processes train one network: real ones, connected by gloo on this machine."""

import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from helpers.commands import CONFIGS, SMALL, TEST, TRAIN, names
from helpers.faults import at_epoch, evaluate_in_small_batches, meet
from helpers.processes import FULL, finish, launch, send_signal, start, wait_until
from helpers.runs import curves, differences, only, state
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from mnist_lit.checkpoints.io import load
from mnist_lit.run import components

pytestmark = pytest.mark.slow

REFERENCE = CONFIGS.parent / "lightning_logs/reference/ds_cnn_v2"
FIT = ["fit", "--config", str(CONFIGS / "ds_cnn_v1.yaml"), *SMALL, "--data.batch_size=10"]
FIT += ["--model.backbone.dropout=0.2", "--model.augment=RandomAffineBatch"]
EVALUATE = ["--ckpt_path=last", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
LAST = "lightning_logs/*/*/checkpoints/last.ckpt"
"""Pattern of a checkpoint that exists as soon as a run has started."""


def set_rank(environment: dict[str, str]) -> None:
    """Set the environment variables by which Lightning knows a process's rank."""
    os.environ |= environment
    rank = environment.get("LOCAL_RANK", environment.get("SLURM_PROCID", 0))
    vars(rank_zero_only)["rank"] = int(rank)  # Lightning sets it when it is imported


def new_address() -> dict[str, str]:
    """The environment variables that name a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}


def start_all(folder: Path, args: list[str], count: int, *setup: Callable[[], None]) -> list[ForkServerProcess]:
    """Start a command in `count` processes, which print into `out0`, `err0`, `out1`, ..."""
    address = new_address() | {"WORLD_SIZE": str(count), "NODE_RANK": "0"}
    environments = [address | {"LOCAL_RANK": str(rank)} for rank in range(count)] if count > 1 else [{}]
    args = [*args, f"--trainer.devices={count}"]
    return [
        start(folder, args, partial(set_rank, environment), *setup, name=str(rank))
        for rank, environment in enumerate(environments)
    ]


def run_all(folder: Path, args: list[str], count: int, *setup: Callable[[], None]) -> str:
    """Run a command in `count` processes, and return what the first one prints; the others must not report."""
    codes = [finish(process, 120) for process in start_all(folder, args, count, *setup)]
    printed = [(folder / f"{kind}{rank}").read_text() for rank in range(count) for kind in ("out", "err")]
    assert codes == [0] * count, printed
    assert all("Next" not in text and "lightning_logs" not in text for text in printed[2:]), printed
    return printed[0]


def metrics(printed: str) -> list[str]:
    """The lines with metrics that test or validate prints."""
    return [line for line in printed.splitlines() if line.startswith(("accuracy/", "loss/"))]


def test_fit_in_three_processes_is_one_run(tiny_mnist: Path, tmp_path: Path) -> None:
    data = f"--data.data_dir={tiny_mnist}"
    printed = run_all(tmp_path, [*FIT, data], 3, evaluate_in_small_batches)  # 3 divides the size of no split
    assert printed.count("mnist-lit test") == 1
    (run,) = tmp_path.glob("lightning_logs/*/*")
    assert len(list(run.glob("events.*"))) == 1
    checkpoint = load(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 2 * -(-(TRAIN - 50) // (10 * 3))  # each process takes batches of 10
    logged = curves(run)

    def tables(command: str) -> list[list[str]]:
        args = [command, data, *EVALUATE]
        return [metrics(run_all(tmp_path, args, number, evaluate_in_small_batches)) for number in (1, 3)]

    # one process and several measure the same of the checkpoint, and the same was logged during training
    validated = tables("validate")
    assert validated[0] == validated[1] != []
    accuracy, loss = (float(line.split()[1]) for line in validated[0])
    assert accuracy == pytest.approx(100 * logged["accuracy/val"][-1][1], abs=0.006)
    assert loss == pytest.approx(logged["loss/val"][-1][1], abs=6e-5)
    tested = tables("test")
    assert tested[0] == tested[1] != []
    predictions = []
    for number in (1, 3):
        run_all(tmp_path, ["predict", data, *EVALUATE], number, evaluate_in_small_batches)
        predictions.append((run / "predictions.csv").read_text())
    assert predictions[0] == predictions[1]
    assert len(predictions[0].splitlines()) == 1 + TEST


def die() -> None:
    os.kill(0, signal.SIGKILL)


def test_killed_processes_resume_as_if_uninterrupted(tiny_mnist: Path, tmp_path: Path) -> None:
    args = [*FIT, f"--data.data_dir={tiny_mnist}", "--trainer.max_epochs=4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run_all(whole, args, 2)
    codes = [finish(process) for process in start_all(killed, args, 2, partial(at_epoch, 2, die))]
    assert codes == [-signal.SIGKILL] * 2
    run_all(killed, ["fit", "--ckpt_path=last"], 2)
    assert differences(state(killed), state(whole)) == []
    callbacks = load(only(whole, "last.ckpt"))["callbacks"].values()
    (generators,) = [saved["processes"] for saved in callbacks if "processes" in saved]
    assert not torch.equal(*(own["cpu"] for own in generators))  # each process draws other random numbers


def test_divergence_stops_all_processes(tiny_mnist: Path, tmp_path: Path) -> None:
    processes = start_all(tmp_path, [*FIT, f"--data.data_dir={tiny_mnist}", "--model.lr=1e30"], 2)
    assert [finish(process) for process in processes] == [1, 1]
    assert "became infinite or NaN" in (tmp_path / "err0").read_text()
    assert "error" not in (tmp_path / "err1").read_text()


def wait_a_minute() -> None:
    components.PEER_TIMEOUT = timedelta(minutes=1)


def test_death_of_one_process_stops_the_other(tiny_mnist: Path, tmp_path: Path) -> None:
    args = [*FIT, f"--data.data_dir={tiny_mnist}", "--trainer.max_epochs=9999"]
    processes = start_all(tmp_path, args, 2, wait_a_minute)
    wait_until(lambda: list(tmp_path.glob(LAST)), "the run starts", process=processes[0])
    processes[1].kill()
    assert finish(processes[0], timeout_s=180) == 1  # rarely, it waits until its timeout
    printed = (tmp_path / "err0").read_text()
    assert "mnist-lit: error: Another process has ended" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_process_that_waits_for_others(number: signal.Signals, tiny_mnist: Path, tmp_path: Path) -> None:
    args = [*FIT, f"--data.data_dir={tiny_mnist}", "--trainer.num_nodes=2"]
    alone = start(tmp_path, args, partial(set_rank, new_address() | {"NODE_RANK": "0"}))
    printed = tmp_path / "err"
    wait_until(
        lambda: printed.exists() and "Initializing distributed" in printed.read_text(), "it waits", process=alone
    )
    send_signal(alone, number)
    assert finish(alone) == 128 + number  # it would wait for ten minutes


@pytest.mark.skipif(not FULL, reason="imports torch twice more")
def test_sigterm_ends_the_processes_that_lightning_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mnist_lit", *FIT, "--data.source=sample", "--trainer.max_epochs=9999"]
    run = launch([*command, "--trainer.devices=2"], tmp_path)
    wait_until(lambda: list(tmp_path.glob(LAST)), "the run starts", 300, process=run)
    (other,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.terminate()
    assert finish(run) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{other}").exists()
    assert "python -m mnist_lit fit --ckpt_path lightning_logs/" in (tmp_path / "out").read_text()


@pytest.mark.skipif(not FULL, reason="imports torch twice more")
def test_two_nodes_train_one_network(tiny_mnist: Path, tmp_path: Path) -> None:
    args, address = [*FIT, f"--data.data_dir={tiny_mnist}", "--trainer.num_nodes=2"], new_address()
    nodes = [
        start(tmp_path, args, partial(set_rank, address | {"NODE_RANK": str(node)}), name=str(node))
        for node in range(2)
    ]
    assert [finish(node) for node in nodes] == [0, 0]
    assert load(only(tmp_path, "last.ckpt"))["global_step"] == 2 * -(-(TRAIN - 50) // 20)
    assert [(tmp_path / f"out{node}").read_text().count("mnist-lit test") for node in range(2)] == [1, 0]


@pytest.fixture
def scontrol(tmp_path: Path) -> Path:
    """A file that lists the calls of a stand-in for SLURM's scontrol, which tests must put on the PATH."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    return tmp_path / "calls"


def job_environment(count: int, scontrol: Path) -> dict[str, str]:
    """The environment variables of a SLURM job of `count` tasks."""
    job = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "digits", "SLURM_NODEID": "0", "SLURM_NTASKS": str(count)}
    return job | {"SLURM_NTASKS_PER_NODE": str(count), "PATH": f"{scontrol.parent}/bin:{os.environ['PATH']}"}


@pytest.mark.parametrize("count", [1, 2])
def test_requeued_slurm_job_resumes_as_if_uninterrupted(
    count: int, scontrol: Path, tiny_mnist: Path, tmp_path: Path
) -> None:
    args = [*FIT, f"--data.data_dir={tiny_mnist}", f"--trainer.devices={count}", "--trainer.max_epochs=20"]

    def start_job(name: str, **variables: str) -> list[ForkServerProcess]:
        shared = job_environment(count, scontrol) | new_address() | variables
        ranks = [shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(count)]
        return [start(tmp_path, args, partial(set_rank, own), name=f"{rank}{name}") for rank, own in enumerate(ranks)]

    whole = tmp_path / "whole"
    whole.mkdir()
    run_all(whole, args[:-2] + args[-1:], count)
    tasks = start_job("")
    wait_until(lambda: len(list(tmp_path.glob(LAST.replace("last", "best")))), "the first epoch ends", process=tasks[0])
    for task in tasks:
        send_signal(task, signal.SIGUSR1)
    wait_until(scontrol.exists, "the job is queued again", process=tasks[0])
    for task in tasks:
        send_signal(task, signal.SIGTERM)  # as SLURM does next
    assert [finish(task) for task in tasks] == [128 + signal.SIGTERM] * count
    assert scontrol.read_text() == "requeue 1234\n"
    for again in ("_again", "_finished"):
        assert [finish(task) for task in start_job(again, SLURM_RESTART_COUNT="1")] == [0] * count
    assert "Resuming" in (tmp_path / "out0_again").read_text()
    assert "This run has finished." in (tmp_path / "out0_finished").read_text()
    assert only(tmp_path / "lightning_logs", "last.ckpt").parent.parent.name == "job_1234"
    assert differences(state(tmp_path / "lightning_logs"), state(whole)) == []


def test_two_runs_of_a_slurm_job_have_a_folder_each(scontrol: Path, tiny_mnist: Path, tmp_path: Path) -> None:
    environment = job_environment(1, scontrol) | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    setup = [partial(set_rank, environment), partial(meet, 3, tmp_path)]
    seeds = [[*FIT, f"--data.data_dir={tiny_mnist}", f"--seed_everything={seed}"] for seed in ("7", "8", "true")]
    runs = [start(tmp_path, args, *setup, name=str(number)) for number, args in enumerate(seeds)]
    assert [finish(run) for run in runs] == [0, 0, 0]
    assert names(tmp_path / "lightning_logs/ds_cnn_v1") == ["job_1234", "job_1234_2", "job_1234_random_seed"]
    # each resumes its own run
    again = partial(set_rank, environment | {"SLURM_RESTART_COUNT": "1"})
    assert [finish(start(tmp_path, args, again, name=str(number))) for number, args in enumerate(seeds)] == [0] * 3
    for number, seed in enumerate(("7", "8", "")):
        resumed = re.search(r"job_1234\w*", (tmp_path / f"out{number}").read_text())
        assert resumed
        assert (resumed[0] == "job_1234_random_seed") == (not seed)
        config = tmp_path / "lightning_logs/ds_cnn_v1" / resumed[0] / "config.yaml"
        assert f"seed_everything: {seed}" in config.read_text()


def test_state_of_another_slurm_job_is_not_resumed(scontrol: Path, tmp_path: Path) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    environment = job_environment(1, scontrol) | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert finish(start(tmp_path, FIT, partial(set_rank, environment))) == 1
    assert "is the state of a SLURM job: delete it" in (tmp_path / "err").read_text()


def test_several_processes_test_each_image_once(official_mnist: str, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")}
    args = ["test", f"--data.data_dir={official_mnist}", *EVALUATE, f"--ckpt_path={REFERENCE}/checkpoints/last.ckpt"]
    tables = [metrics(run_all(tmp_path, args, count)) for count in (1, 2, 3)]
    assert tables[0] == tables[1] == tables[2] != []
    assert {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")} == before
