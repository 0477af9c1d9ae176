"""Several processes train one network: real ones, joined by gloo on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import SMALL, TRAIN
from helpers.processes import at_epoch, finish, kill, start
from helpers.runs import curves, differences, only, state
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from mnist_lit import UserError
from mnist_lit.callbacks.checkpointing import DivergenceStop
from mnist_lit.callbacks.processes import ASKED_EVERY
from mnist_lit.checkpoints.io import load
from mnist_lit.data import datamodule
from mnist_lit.data.batches import DistributedBatchSampler

FIT = ["fit", "--config", str(Path(__file__).parents[2] / "configs" / "ds_cnn_v1.yaml"), *SMALL]
FIT += ["--data.batch_size=10", "--model.backbone.dropout=0.2", "--model.augment=RandomAffineBatch"]


@pytest.mark.parametrize(("images", "batch_size"), [(10_000, 500), (55_000, 128), (1_001, 500), (7, 1), (6, 4)])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_image_is_in_one_share_and_no_process_waits(images: int, batch_size: int, processes: int) -> None:
    for seed in (0, None):
        for rank in range(processes):
            sampler = DistributedBatchSampler(images, batch_size, processes, rank, seed)
            assert len(sampler) == len(list(sampler))
    shares = [list(DistributedBatchSampler(images, batch_size, processes, rank, seed=0)) for rank in range(processes)]
    assert sorted(image for share in shares for batch in share for image in batch) == list(range(images))
    evaluated = [list(DistributedBatchSampler(images, batch_size, processes, rank)) for rank in range(processes)]
    whole = [range(images)[first : first + batch_size] for first in range(0, images, batch_size)]
    if len(whole) >= processes:
        assert sorted(batch for share in evaluated for batch in share) == [list(batch) for batch in whole]
    assert sorted(image for share in evaluated for batch in share for image in batch) == list(range(images))
    assert all(evaluated)
    sizes = [len(batch) for share in shares for batch in share]
    assert len({len(share) for share in shares}) == 1
    assert max(sizes) <= max(batch_size, 2)
    assert max(sizes) - min(sizes) <= 1


def test_an_epoch_has_an_order_of_its_own_and_always_the_same() -> None:
    def order(seed: int | None, epoch: int) -> list[list[int]]:
        share = DistributedBatchSampler(100, 10, 2, 1, seed)
        share.set_epoch(epoch)
        return list(share)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(9, 1)
    assert order(None, 1) == order(None, 2)
    with pytest.raises(UserError, match="3 processes cannot share 2 images"):
        DistributedBatchSampler(2, 10, 3, 0)


def be_rank(environment: dict[str, str], name: str) -> None:
    """Be one of several processes, and print into files of one's own."""
    os.environ |= environment
    vars(rank_zero_only)["rank"] = int(environment.get("LOCAL_RANK", 0))  # as when Lightning is imported
    for stream, kind in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(f"{kind}{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def start_all(folder: Path, args: list[str], count: int, *setup: Callable[[], None]) -> list[ForkServerProcess]:
    """A command in as many processes, as Lightning starts them."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    environments = [address | {"LOCAL_RANK": str(rank)} for rank in range(count)] if count > 1 else [{}]
    return [
        start(folder, [*args, f"--trainer.devices={count}"], partial(be_rank, environment, str(rank)), *setup)
        for rank, environment in enumerate(environments)
    ]


def run_all(folder: Path, args: list[str], count: int, *setup: Callable[[], None]) -> str:
    """What the first of as many processes prints; the others print nothing."""
    ended = [finish(process, 90) for process in start_all(folder, args, count, *setup)]
    told = [(folder / f"{kind}{rank}").read_text() for rank in range(count) for kind in ("out", "err")]
    assert ended == [0] * count, told
    assert all("Next" not in text and "lightning_logs" not in text for text in told[2:]), told
    return told[0]


def evaluate_in_small_batches() -> None:
    datamodule.EVAL_BATCH_SIZE = 5


def figures(told: str) -> list[str]:
    """The table of metrics that a test or a validation prints."""
    return [line for line in told.splitlines() if "/" in line and "│" in line]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_a_fit_in_several_processes_is_one_run(count: int, tiny_mnist: Path, tmp_path: Path) -> None:
    read = f"--data.data_dir={tiny_mnist}"
    told = run_all(
        tmp_path, [*FIT, read, "--data.val_size=51", "--model.scale_lr=true"], count, evaluate_in_small_batches
    )
    assert told.count("Next:") == 1
    (run,) = tmp_path.glob("lightning_logs/*/*")  # the first process alone writes
    assert len(list(run.glob("events.*"))) == 1
    checkpoint = load(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 2 * -(-(TRAIN - 51) // (10 * count))  # batches of 10 for each process
    drawn = curves(run)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert group["max_lr"] == pytest.approx(0.02 * (10 * count / 128) ** 0.5)
    # what the processes measured together while they trained is what one measures of the checkpoint
    ask = [read, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--ckpt_path=last"]
    validated = [
        figures(run_all(tmp_path, ["validate", *ask], number, evaluate_in_small_batches)) for number in (1, count)
    ]
    assert validated[0] == validated[1] != []
    told_of = [float(line.split("│")[2]) for line in validated[0]]
    assert told_of == [drawn[tag][-1][1] for tag in ("val/accuracy", "val/loss")]
    tested = [figures(run_all(tmp_path, ["test", *ask], number, evaluate_in_small_batches)) for number in (1, count)]
    assert tested[0] == tested[1] != []
    predicted = []
    for number in (1, count):
        run_all(tmp_path, ["predict", *ask], number, evaluate_in_small_batches)
        predicted.append((run / "predictions.csv").read_text())
    assert predicted[0] == predicted[1]
    assert len(predicted[0].splitlines()) == 101


def die() -> None:
    os.kill(0, signal.SIGKILL)


@pytest.mark.slow
def test_processes_that_are_killed_go_on_exactly(tiny_mnist: Path, tmp_path: Path) -> None:
    args = [*FIT, f"--data.data_dir={tiny_mnist}", "--trainer.max_epochs=4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run_all(whole, args, 2)
    ended = [finish(process) for process in start_all(killed, args, 2, partial(at_epoch, 2, die))]
    assert ended == [-signal.SIGKILL] * 2
    run_all(killed, ["fit", "--ckpt_path=last"], 2)
    ours, theirs = (state(only(folder, "last.ckpt").parent.parent) for folder in (killed, whole))
    assert differences(ours, theirs) == []
    generators = load(only(whole, "last.ckpt"))["callbacks"]["RandomState"]["processes"]
    assert not torch.equal(*(own["cpu"] for own in generators))  # each draws numbers of its own


def wait_for(path: Path, pattern: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, pattern
        time.sleep(0.05)


LAST = "lightning_logs/*/*/checkpoints/last.ckpt"
"""Is there when a run has begun."""


@pytest.mark.slow
def test_what_ends_one_process_ends_all(tiny_mnist: Path, tmp_path: Path) -> None:
    args = [*FIT, f"--data.data_dir={tiny_mnist}"]
    assert [finish(process) for process in start_all(tmp_path, [*args, "--model.lr=1e30"], 2)] == [1, 1]
    told = [(tmp_path / f"err{rank}").read_text() for rank in (0, 1)]
    assert "became infinite or NaN" in told[0]
    assert "error" not in told[1]
    shutil.rmtree(tmp_path / "lightning_logs")
    processes = start_all(tmp_path, [*args, "--trainer.max_epochs=9999"], 2)
    wait_for(tmp_path, LAST)
    processes[1].kill()
    assert finish(processes[0]) == 1
    assert "mnist-lit: error: Another process has ended, or cannot be reached: " in (tmp_path / "err0").read_text()
    assert "Traceback" not in (tmp_path / "err0").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_the_others_can_be_ended(
    number: signal.Signals, tiny_mnist: Path, tmp_path: Path
) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NODE_RANK": "0"}
    args = [*FIT, f"--data.data_dir={tiny_mnist}", "--trainer.num_nodes=2"]
    alone = start(tmp_path, args, partial(be_rank, address, "0"))
    wait_for(tmp_path, "err0")
    while "Initializing distributed" not in (tmp_path / "err0").read_text():
        assert alone.is_alive()
        time.sleep(0.05)
    time.sleep(0.2)
    tell([alone], number)
    assert finish(alone, 10) == 128 + number


@pytest.mark.slow
def test_sigterm_ends_the_processes_that_lightning_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mnist_lit", *FIT, "--data.source=sample", "--trainer.max_epochs=9999"]
    with (tmp_path / "out").open("w") as out:
        run = subprocess.Popen([*command, "--trainer.devices=2"], cwd=tmp_path, stdout=out, stderr=out)
    wait_for(tmp_path, LAST)
    (other,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.terminate()
    assert run.wait(20) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{other}").exists()
    assert "python -m mnist_lit fit --ckpt_path lightning_logs/" in (tmp_path / "out").read_text()


@pytest.mark.slow
def test_two_nodes_train_one_network(tiny_mnist: Path, tmp_path: Path) -> None:
    args = [*FIT, f"--data.data_dir={tiny_mnist}", "--trainer.num_nodes=2"]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    nodes = [
        start(tmp_path, args, partial(be_rank, address | {"NODE_RANK": str(node)}, str(node))) for node in range(2)
    ]
    assert [finish(node) for node in nodes] == [0, 0], [(tmp_path / f"err{node}").read_text() for node in range(2)]
    (last,) = tmp_path.glob(LAST)
    assert load(last)["global_step"] == 2 * -(-(TRAIN - 50) // 20)
    assert [(tmp_path / f"out{node}").read_text().count("Next:") for node in range(2)] == [1, 0]


def tell(processes: list[ForkServerProcess], number: signal.Signals) -> None:
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, number)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_slurm_job_that_is_queued_again_goes_on(count: int, tiny_mnist: Path, tmp_path: Path) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/queued\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "digits", "SLURM_NODEID": "0", "SLURM_NTASKS": str(count)}
    job |= {"SLURM_NTASKS_PER_NODE": str(count), "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    args = [*FIT, f"--data.data_dir={tiny_mnist}", f"--trainer.devices={count}", "--trainer.max_epochs=50"]

    def begin(name: str) -> list[ForkServerProcess]:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        ranks = [job | address | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(count)]
        return [start(tmp_path, args, partial(be_rank, own, f"{rank}{name}")) for rank, own in enumerate(ranks)]

    tasks = begin("")
    wait_for(tmp_path, LAST)
    time.sleep(0.2)  # into the epochs
    tell(tasks, signal.SIGUSR1)
    wait_for(tmp_path, "queued")
    tell(tasks, signal.SIGTERM)  # as SLURM does next
    assert (tmp_path / "queued").read_text() == "requeue 1234\n"
    assert finish(tasks[0]) == 128 + signal.SIGTERM
    for task in tasks:
        kill(task)
    (state,) = tmp_path.glob("hpc_ckpt_*.ckpt")
    assert load(state)["global_step"] > 0
    job["SLURM_RESTART_COUNT"] = "1"
    again = begin(" again")
    assert [finish(task) for task in again] == [0] * count, (tmp_path / "err0 again").read_text()
    assert "Restored all states" in (tmp_path / "err0 again").read_text()
    (last,) = tmp_path.glob(LAST)
    assert last.parent.parent.name == "job_1234"
    assert load(last)["epoch"] == 49
    del job["SLURM_RESTART_COUNT"]  # another job, in the same folder
    (other,) = [finish(task) for task in begin(" other")[:1]]
    assert other == 1
    assert "is the state of a SLURM job: delete it" in (tmp_path / "err0 other").read_text()


@pytest.mark.slow
def test_ten_thousand_images_over_three_processes_are_ten_thousand(official_mnist: str, tmp_path: Path) -> None:
    checkpoint = Path(__file__).parents[2] / "lightning_logs/reference/ds_cnn_v2/checkpoints/last.ckpt"
    ask = ["test", f"--ckpt_path={checkpoint}", f"--data.data_dir={official_mnist}", "--trainer.accelerator=cpu"]
    before = {path: path.stat().st_mtime_ns for path in checkpoint.parent.parent.rglob("*")}
    told = [figures(run_all(tmp_path, [*ask, "--trainer.enable_progress_bar=false"], count)) for count in (1, 2, 3)]
    assert told[0] == told[1] == told[2] != []
    assert {path: path.stat().st_mtime_ns for path in checkpoint.parent.parent.rglob("*")} == before  # from elsewhere


def test_of_several_processes_each_waits_for_the_others_losses_at_some_steps_alone() -> None:
    asked: list[bool] = []

    def ask(is_finite: bool) -> bool:
        asked.append(is_finite)
        return is_finite

    strategy = SimpleNamespace(reduce_boolean_decision=ask)
    trainer: Any = SimpleNamespace(world_size=2, strategy=strategy)
    model: Any = SimpleNamespace(device=torch.device("cpu"))
    stop = DivergenceStop()
    stop.on_train_start(trainer, model)
    for batch_idx in range(ASKED_EVERY + 1):
        stop.on_train_batch_end(trainer, model, {"loss": torch.tensor(1.0)}, None, batch_idx)
    assert asked == [True, True]
