"""Commands repeated for hours in one process leave nothing behind, and killed runs resume bit for bit meanwhile."""

import faulthandler
import gc
import os
import random
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import CONFIGS, SMALL
from helpers.paper import seven
from helpers.processes import CONTEXT, FULL, Files, begin, finish, kill, start
from helpers.runs import differences, state

from mnist_lit import cli
from mnist_lit.data import official

SOAK_S = float(os.environ.get("SOAK_S", 7200 if FULL else 20))

FIT = shlex.join(["fit", f"--config={CONFIGS}/ds_cnn_v2.yaml", *SMALL])
COMMANDS = [
    *("test --ckpt_path last", "validate --ckpt_path last", "predict --ckpt_path best --trainer.accelerator cpu"),
    shlex.join(["compare", f"{CONFIGS}/ds_cnn_v1.yaml", *SMALL, "--trainer.max_epochs=1"]),
    "read pictures --show",
]
EXPORTS = ["export --ckpt_path last", "export --ckpt_path last --format torch"]
"""In processes of their own, because a cache of torch (2.15) keeps a megabyte of each export."""
ERRORS = ["fit --trainer.max_epochs=0", "test --ckpt_path nowhere", "read nowhere"]

OUTPUTS = ("events.", "predictions.", "digits.")
"""Beginnings of the names of files that commands write."""

Usage = dict[str, float]
"""Memory in MB, and numbers of open files, threads, child processes, and files in the temporary folder."""

LIMITS: Usage = {"memory": 30 if FULL else 150, "files": 0, "threads": 0, "processes": 0, "temporary": 0}
"""Growth that is allowed, from the second quarter of the time to the last one."""


def usage() -> Usage:
    """Resources of this process."""
    gc.collect()
    process = Path("/proc/self")
    pages = int((process / "statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "files": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "processes": sum(len(path.read_text().split()) for path in process.glob("task/*/children")),
        "temporary": len(list(Path(os.environ["TMPDIR"]).iterdir())),
    }


def serve(folder: Path, official_files: Files, connection: Connection) -> None:
    """Run the command lines that arrive, each in this process, and answer with its exit code and the resources."""
    os.chdir(folder)
    os.environ["TMPDIR"] = str(folder / "tmp")
    torch.set_num_threads(1)
    official.OFFICIAL = official_files
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    while line := connection.recv():
        os.truncate("log", 0)
        code: Any = 0
        try:
            cli.main(shlex.split(line))
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        connection.send((code, usage()))


def kill_and_resume(folder: Path, args: list[str], expected: Any, delay_s: float) -> None:
    """Kill a fit after a delay, resume it, and compare it with the uninterrupted one."""
    folder.mkdir()
    process = start(folder, args)
    time.sleep(delay_s)
    kill(process)
    saved = list(folder.rglob("last.ckpt"))
    code = finish(start(folder, ["fit", "--ckpt_path=last"] if saved else args))
    found = state(max(folder.rglob("checkpoints")).parent)
    assert code == 0 or found[0]["global_step"] == expected[0]["global_step"]  # killed after its last epoch
    assert differences(found, expected) == []
    shutil.rmtree(folder)


def growth(history: list[Usage]) -> Usage:
    """By how much the medians have grown from the second quarter of a history to the last one."""
    quarter = len(history) // 4
    early, late = history[quarter : 2 * quarter], history[-quarter:]
    return {
        name: statistics.median(usage[name] for usage in late) - statistics.median(usage[name] for usage in early)
        for name in LIMITS
    }


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resources of processes from /proc")
def test_hours_of_commands_leave_nothing_behind(
    tiny_mnist: Path, tmp_path: Path, report: Callable[[str], None]
) -> None:
    faulthandler.cancel_dump_traceback_later()  # pytest's, after half an hour
    for name in ("tmp", "pictures"):
        (tmp_path / name).mkdir()
    seven().save(tmp_path / "pictures/seven.png")
    (tmp_path / "data").symlink_to(tiny_mnist)
    connection, other_end = CONTEXT.Pipe()
    server = begin(serve, tmp_path, official.OFFICIAL, other_end)
    history: list[Usage] = []

    def run(line: str) -> None:
        connection.send(line)
        assert connection.poll(300), f"{line} has not ended after five minutes"
        code, resources = connection.recv()
        assert bool(code) == (line in ERRORS), f"{line}: {code}\n{(tmp_path / 'log').read_text()}"
        history.append(resources)

    started_at, chance, kills = time.monotonic(), random.Random(0), 0
    run(FIT)
    expected = state(tmp_path)
    left: set[str] = set()
    while time.monotonic() < started_at + SOAK_S or kills < 3:
        for line in chance.sample([FIT, *COMMANDS, *ERRORS], 1 + len(COMMANDS) + len(ERRORS)):
            run(line)
        args = [*shlex.split(FIT), f"--data.data_dir={tiny_mnist}"]
        kill_and_resume(tmp_path / "killed", args, expected, chance.uniform(0, 2))
        assert finish(start(tmp_path, shlex.split(EXPORTS[kills % 2])), 300) == 0
        kills += 1
        for folder in [*tmp_path.glob("lightning_logs/*/version_*")][1:]:
            shutil.rmtree(folder)
        found = {str(path) for path in tmp_path.rglob("*") if not path.name.startswith(OUTPUTS)}
        left = left or found
        assert found == left
    connection.send("")
    finish(server)
    connection.close()
    other_end.close()
    grown = growth(history)
    figures = ", ".join(f"{name} {history[-1][name]:.0f} ({grown[name]:+.0f})" for name in LIMITS)
    report(f"{len(history)} commands in a process, {kills} killed runs resumed bitwise, {SOAK_S:.0f} s: {figures}")
    assert all(grown[name] <= LIMITS[name] for name in LIMITS), grown
