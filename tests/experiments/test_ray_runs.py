import io
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import SMALL, Main, error_line
from helpers.processes import FULL, finish, send_signal, start, wait_until
from helpers.runs import curves, differences, untimed
from rich.console import Console

from mnist_lit import UserError
from mnist_lit.checkpoints.io import load
from mnist_lit.experiments.ray_runs import ProgressTable
from mnist_lit.experiments.recipes import Recipe
from mnist_lit.experiments.runs import Run
from mnist_lit.files import LOCK

FOLDER = Path("lightning_logs/compare/version_0")
SEEDS = (42, 43, 44) if FULL else (42, 43)
COMPARE = ["compare", "good.yaml", "bad.yaml", f"--seeds={len(SEEDS)}", *SMALL, "--trainer.max_epochs=16"]
COMPARE += ["--trainer.limit_train_batches=10", "--data.source=sample"]  # Ray's workers do not know the tiny MNIST


def write_recipes(folder: Path) -> None:
    folder.mkdir()
    recipe = "model: {backbone: {class_path: mnist_lit.backbones.DS_CNN_V2}, image_size: 16, lr: %s}\n"
    for name, lr in {"good": 0.01, "bad": 1e30}.items():
        (folder / f"{name}.yaml").write_text(recipe % lr)


def workers(run: Path) -> list[int]:
    """The processes that have locked the folder of a run."""
    locks = re.findall(r"FLOCK +ADVISORY +WRITE (\d+) \w+:\w+:(\d+) ", Path("/proc/locks").read_text())
    try:
        locked = (run / LOCK).stat().st_ino
    except FileNotFoundError:
        return []
    return [int(process) for process, inode in locks if int(inode) == locked]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists the processes that lock a folder")
def test_results_equal_those_in_sequence_after_command_and_worker_are_killed(tmp_path: Path) -> None:
    sequence, parallel = tmp_path / "sequence", tmp_path / "parallel"
    write_recipes(sequence)
    write_recipes(parallel)
    assert finish(start(sequence, COMPARE), 300) == 1
    runs = [parallel / FOLDER / f"good/seed_{seed}" for seed in SEEDS]

    options, finished = [*COMPARE, "--ray"], list[Path]()
    if FULL:  # Ray starts once more
        command = start(parallel, options)
        finished = wait_until(
            lambda: [run for run in runs if (run / "result.json").exists()], "a run finishes", 300, command
        )
        command.kill()
        finish(command)
        wait_until(lambda: not any(map(workers, runs)), "the workers end")
        options.append("--resume")
    times = [(run / "result.json").stat().st_mtime_ns for run in finished]

    command = start(parallel, options)
    checkpoint = runs[-1] / "checkpoints/last.ckpt"
    (worker,) = wait_until(
        lambda: workers(runs[-1]) if checkpoint.exists() else [], "the last run trains", 300, command
    )
    os.kill(worker, signal.SIGKILL)
    assert finish(command, 300) == 1
    assert [(run / "result.json").stat().st_mtime_ns for run in finished] == times

    assert len(untimed(sequence / FOLDER / "results.json")) == len(SEEDS)
    assert untimed(parallel / FOLDER / "results.json") == untimed(sequence / FOLDER / "results.json")
    for ours in runs:
        theirs = sequence / ours.relative_to(parallel)
        for path in ("checkpoints/best.ckpt", "checkpoints/last.ckpt"):
            assert differences(load(ours / path), load(theirs / path)) == []
        assert len(curves(ours)["accuracy/val"]) == 16
        assert differences(curves(ours), curves(theirs)) == []
        assert (ours / "config.yaml").read_bytes() == (theirs / "config.yaml").read_bytes()

    for folder in (sequence, parallel):
        errors = [line for line in (folder / "err").read_text().splitlines() if "error" in line]
        assert [error.partition(": The loss became ")[0] for error in sorted(errors)] == [
            f"mnist-lit: error: bad, seed {seed}" for seed in SEEDS
        ]
        assert f"{len(SEEDS)} of {2 * len(SEEDS)} runs failed" in (folder / "out").read_text()
    # neither Ray nor the workers print anything, and there is no table without a terminal
    assert (parallel / "err").read_text().count("\n") == len(SEEDS)
    lines = (parallel / "out").read_text().partition("\n\n")[0].splitlines()
    ended = [line.partition(": ")[0] for line in sorted(lines) if line.endswith("% of the test images")]
    assert ended == [f"good, seed {seed}" for seed in SEEDS]


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="starts Ray twice more")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_command_and_workers_with_its_exit_code(number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "parallel"
    write_recipes(folder)
    command = start(folder, [*COMPARE, "--ray"])
    run = folder / FOLDER / "good/seed_42"
    wait_until((run / "checkpoints/last.ckpt").exists, "a run trains", 120, command)
    send_signal(command, number)
    assert finish(command, 60) == 128 + number
    wait_until(lambda: not workers(run), "the worker ends", 1)
    assert "Finished runs are saved. To resume, run the same command with --resume." in (folder / "out").read_text()
    assert (folder / "err").read_text() == ""


def test_missing_extra_is_reported_before_any_run(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    message = error_line(main, "compare --ray", capsys)
    assert "compare --ray needs ray: uv run --extra ray mnist-lit compare --ray ..." in message
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("127.0.0.1:9", "", "Ray (127.0.0.1:9): [Errno 111] Connection refused"),
        ("", "--trainer.devices=2", "--trainer.devices 2"),
    ],
)
def test_failed_start_creates_no_files(
    address: str,
    options: str,
    message: str,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert message in error_line(main, f"compare --ray {options}", capsys)
    assert not Path("lightning_logs").exists()


def test_progress_table_shows_totals_and_active_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [Run(Recipe("good", [], {}), seed) for seed in (42, 43, 44)]
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    table = ProgressTable(3, console)
    for run, state in zip(runs, ("testing", "epoch 1 of 15", "epoch 1 of 15"), strict=True):
        table.show(str(run), state)
    table.show("good, seed 44", "epoch 2 of 15, validation 98.76 %")
    table.finish(runs[0], UserError("The loss became nan"))
    with console.capture() as capture:
        console.print(table.get_renderable())
    rows = [re.sub(" +", " ", row) for row in re.sub(r"\x1b\[[\d;]*m", "", capture.get()).splitlines()]
    assert rows == [
        "all runs 0 of 3 succeeded, 1 failed 0:00:00",
        "good, seed 43 epoch 1 of 15 0:00:00",
        "good, seed 44 epoch 2 of 15, validation 98.76 % 0:00:00",
    ]
    assert capsys.readouterr().err == "mnist-lit: error: good, seed 42: The loss became nan\n"


def test_without_a_terminal_a_long_outcome_stays_one_line() -> None:
    file = io.StringIO()
    name = f"good, {'model.image_size=[16], ' * 10}"
    with ProgressTable(1, Console(file=file, width=80)) as table:
        table.show(f"{name}, seed 42", "testing")
        result: Any = {"test_accuracy": 0.9876}
        table.finish(Run(Recipe(name, [], {}), 42), result)
    lines = [f"{name}, seed 42: {state}" for state in ("testing", "98.76 % of the test images")]
    assert file.getvalue().rstrip().splitlines() == lines
