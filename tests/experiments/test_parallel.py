"""Runs that Ray makes at the same time are the same as those made in sequence, whatever dies."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import SMALL, error
from helpers.processes import FULL, finish, start
from helpers.runs import curves, differences, untimed
from rich.console import Console

from mnist_lit import UserError
from mnist_lit.checkpoints.io import load
from mnist_lit.experiments.compare import Run
from mnist_lit.experiments.parallel import Board

Main = Callable[[str], None]
FOLDER = Path("lightning_logs/compare/version_0")
COMPARE = ["compare", "good.yaml", "bad.yaml", "--seeds=3", *SMALL, "--trainer.max_epochs=30"]
COMPARE += ["--trainer.limit_train_batches=10", "--data.source=sample"]  # workers know of no tiny MNIST


def prepare(folder: Path) -> None:
    folder.mkdir()
    recipe = "model: {backbone: {class_path: mnist_lit.backbones.DS_CNN_V2}, image_size: 16, lr: %s}\n"
    for name, lr in {"good": 0.01, "bad": 1e30}.items():
        (folder / f"{name}.yaml").write_text(recipe % lr)


def wait_for(what: Callable[[], Any], timeout_s: float = 120) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def workers(folder: Path) -> list[int]:
    """The processes that have locked the folder of a run."""
    locks = re.findall(r"FLOCK +ADVISORY +WRITE (\d+) \w+:\w+:(\d+) ", Path("/proc/locks").read_text())
    return [int(process) for process, inode in locks if int(inode) == folder.stat().st_ino]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux tells who has locked a folder")
def test_what_ray_makes_is_bitwise_what_is_made_in_sequence_whatever_dies(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    prepare(alone)
    prepare(shared)
    assert finish(start(alone, COMPARE)) == 1
    good = [shared / FOLDER / f"good/seed_{seed}" for seed in (42, 43, 44)]

    driver = start(shared, [*COMPARE, "--ray"])
    kept = wait_for(lambda: [run for run in good if (run / "result.json").exists()])
    assert driver.is_alive()
    driver.kill()
    driver.join()
    made_at = [(run / "result.json").stat().st_mtime_ns for run in kept]
    wait_for(lambda: not any(workers(run) for run in good if run.exists()), 10)

    driver = start(shared, [*COMPARE, "--ray", "--resume"])
    (worker,) = wait_for(lambda: (good[2] / "checkpoints/last.ckpt").exists() and workers(good[2]))
    os.kill(worker, signal.SIGKILL)
    assert finish(driver, 120) == 1
    assert [(run / "result.json").stat().st_mtime_ns for run in kept] == made_at

    assert len(untimed(alone / FOLDER / "results.json")) == 3
    assert untimed(shared / FOLDER / "results.json") == untimed(alone / FOLDER / "results.json")
    for ours in good:
        theirs = alone / ours.relative_to(shared)
        for name in ("best", "last"):
            path = f"checkpoints/{name}.ckpt"
            assert differences(load(ours / path), load(theirs / path)) == []
        assert len(curves(ours)["val/accuracy"]) == 30
        assert differences(curves(ours), curves(theirs)) == []
        assert (ours / "config.yaml").read_bytes() == (theirs / "config.yaml").read_bytes()
    for folder in (alone, shared):  # the runs that diverge are told in a line each, and end no other
        told = [line for line in (folder / "err").read_text().splitlines() if "error" in line]
        assert len(told) == 3
        for line in told:
            assert re.match(r"mnist-lit: error: bad, seed 4[234]: The loss became ", line)
        assert "3 of 6 runs failed; to try again: the same command with --resume" in (folder / "out").read_text()
    # of Ray itself nothing is seen, nor of the workers, and where there is no terminal no table
    assert (shared / "err").read_text().count("\n") == 3
    printed = (shared / "out").read_text().partition("\n\n")[0].splitlines()
    assert len(printed) == 3
    for line in printed:
        assert re.fullmatch(r"good, seed 4[234]: [\d.]+ % of the test images", line)


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="starts Ray twice more")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ray_ends_when_it_is_told_to(number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    prepare(folder)
    driver = start(folder, [*COMPARE, "--ray"])
    run = folder / FOLDER / "good/seed_42"
    wait_for((run / "checkpoints/last.ckpt").exists)
    assert driver.pid is not None
    os.kill(driver.pid, number)
    assert finish(driver, 10) == 128 + number
    wait_for(lambda: not workers(run), 1)
    assert "The finished runs are kept; to go on: the same command with --resume" in (folder / "out").read_text()
    assert (folder / "err").read_text() == ""


def test_without_the_extra_ray_is_asked_for(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "mnist_lit.experiments.parallel")
    monkeypatch.setitem(sys.modules, "ray", None)
    told = error(main, "compare --ray", capsys)
    assert told.endswith("mnist-lit compare --ray needs Ray: uv run --extra ray mnist-lit compare --ray ...")
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("address", "line", "told"),
    [
        ("127.0.0.1:9", "compare --ray", "Ray (127.0.0.1:9): [Errno 111] Connection refused"),
        ("", "compare --ray --trainer.devices=2", "cannot work with --trainer.devices 2"),
    ],
)
def test_what_ray_cannot_do_is_told_and_leaves_nothing(
    address: str, line: str, told: str, main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert told in error(main, line, capsys)
    assert not Path("lightning_logs").exists()


def test_the_table_shows_what_trains_first() -> None:
    board = Board([Run("good", seed, [], {}) for seed in range(42, 62)])
    board.states |= {2: "epoch 3 of 15, validation 98.76 %", 4: "testing"}
    board.finish(0, UserError("The loss became nan"))
    console = Console(width=80)
    with console.capture() as capture:
        console.print(board.table(4))
    shown = capture.get()
    assert re.findall(r"good +│ (\d+) +│ (.*?) +│", shown) == [
        ("42", "failed"),
        ("43", "waiting"),
        ("44", "epoch 3 of 15, validation 98.76 %"),
        ("46", "testing"),
    ]
    assert "1 of 20 runs finished, 1 failed, 2 under way; 0:00:00" in " ".join(shown.split())
