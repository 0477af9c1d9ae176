"""What can go wrong is done to the real commands. FAULTS=full does each as often as the README tells."""

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import SMALL, error
from helpers.processes import (
    FORBIDDEN,
    FULL,
    at_epoch,
    begin,
    call,
    drop_capabilities,
    finish,
    kill,
    load_in_workers,
    mount,
    slow_down,
    start,
)
from helpers.runs import curves, differences, only, state, untimed

from mnist_lit import UserError
from mnist_lit.checkpoints.io import CheckpointIO, load

KILLS, SAVES, CORRUPTIONS = (10, 200, 100) if FULL else (1, 20, 100)
CONFIGS = Path(__file__).parents[2] / "configs"
MORE = "--model.augment=RandomAffineBatch --model.backbone.dropout=0.2 --trainer.callbacks=EMAWeightAveraging"
RECIPES: dict[str, tuple[list[str], tuple[Callable[[], None], ...]]] = {
    "ds_cnn_v1": ([], (load_in_workers,)),
    "ds_cnn_v2": ([], ()),
    "ds_cnn_v3": (MORE.split(), ()),
    "published": ([], ()),
    "ds_cnn_v1 ": (MORE.split(), (load_in_workers,)),
}

Main = Callable[[str], None]
Tell = Callable[[str], None]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Prints a line past pytest."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}")

    return line


@pytest.fixture
def fit(tiny_mnist: Path) -> list[str]:
    return ["fit", *SMALL, "--data.batch_size=10", "--trainer.max_epochs=4", f"--data.data_dir={tiny_mnist}"]


def err(folder: Path) -> str:
    """The one line that a command was answered with."""
    told = (folder / "err").read_text()
    assert "Traceback" not in told, told
    (line,) = [line for line in told.splitlines() if line.startswith("mnist-lit: error: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_goes_on_exactly(recipe: str, fit: list[str], tmp_path: Path, tell: Tell) -> None:
    more, setup = RECIPES[recipe]
    args = [
        "fit",
        f"--config={CONFIGS / recipe.strip()}.yaml",
        *fit[1:],
        f"--trainer.max_epochs={8 if FULL else 4}",
        *more,
    ]
    whole = tmp_path / "whole"
    whole.mkdir()
    assert finish(start(whole, ["fit", "--print_config"])) == 0  # the first process takes as long as the imports
    begun = time.monotonic()
    assert finish(start(whole, args, *setup)) == 0, err(whole)
    takes = time.monotonic() - begun
    moments = random.Random(recipe)
    steps: list[int | None] = []
    for number in range(KILLS):
        killed = tmp_path / str(number)
        killed.mkdir()
        process = start(killed, args, *setup)
        time.sleep(moments.uniform(0.3, 1.0) * takes)
        kill(process)
        kept = list(killed.rglob("last.ckpt"))
        steps.append(load(kept[0])["global_step"] if kept else None)
        code = finish(start(killed, ["fit", "--ckpt_path=last"] if kept else args, *setup))
        assert code == 0 or "this run has made all its" in err(killed), err(killed)
        run = only(killed, "last.ckpt").parent.parent if kept else max(killed.rglob("version_*"))
        assert differences(state(run), state(whole)) == [], steps
    tell(f"{recipe}: killed {KILLS} times, resumed from steps {steps}: all {KILLS} bitwise equal, curves too")


@pytest.mark.slow
def test_a_killed_comparison_goes_on_exactly(tiny_mnist: Path, tmp_path: Path, tell: Tell) -> None:
    args = ["compare", *SMALL, f"--data.data_dir={tiny_mnist}"]
    count = 5 if FULL else 1
    folders = [tmp_path / str(number) for number in range(count + 1)]
    for folder in folders:
        folder.mkdir()
    assert finish(start(folders[0], ["fit", "--print_config"])) == 0  # the first process takes as long as the imports
    begun = time.monotonic()
    assert finish(start(folders[0], args)) == 0
    takes, moments, results = time.monotonic() - begun, random.Random(0), []
    for folder in folders[1:]:
        process = start(folder, args)
        time.sleep(moments.uniform(0.3, 0.9) * takes)
        assert process.is_alive()
        kill(process)
        assert finish(start(folder, [*args, *(["--resume"] if list(folder.rglob("plan.json")) else [])])) == 0
    for folder in folders:
        results.append(untimed(only(folder, "results.json")))
        assert results[-1] == results[0]
        for path in folders[0].rglob("last.ckpt"):
            other = folder / path.relative_to(folders[0])
            assert differences(state(other.parent.parent), state(path.parent.parent)) == []
    tell(f"compare: killed {count} times, then resumed: tables, checkpoints and curves bitwise equal")


def save_for_ever(path: Path) -> None:
    """Save checkpoints of a megabyte, each with weights that are all one number."""
    number = 0
    while True:
        number += 1
        CheckpointIO().save_checkpoint({"state_dict": {"w": torch.full((2**18,), number)}, "global_step": number}, path)


@pytest.mark.slow
def test_a_save_that_is_killed_leaves_a_whole_checkpoint(tmp_path: Path, tell: Tell) -> None:
    path, moments, partial_files = tmp_path / "last.ckpt", random.Random(0), 0
    for _ in range(SAVES):
        process = begin(save_for_ever, path)
        changed = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == changed:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        kill(process)
        partial_files += len(list(tmp_path.iterdir())) - 1
        checkpoint = load(path)
        assert (checkpoint["state_dict"]["w"] == checkpoint["global_step"]).all()
    assert partial_files  # kills have come while a file was being written
    CheckpointIO().save_checkpoint(checkpoint, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]  # and what they left is gone
    tell(f"killed while saving, {partial_files} of {SAVES} times with a part written: {SAVES} whole checkpoints")


def fill(folder: Path) -> None:
    """Fill the disk, as another process may."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024)):
            pass


def protect(folder: Path) -> None:
    """Have the folder's file system become read-only, as after an error of the disk."""
    call("mount", None, bytes(folder), None, 32 | 1, None)  # MS_REMOUNT, MS_RDONLY


def look(folder: Path, found: Path) -> None:
    """Copy what is in the folder, when the process ends, to where others see it."""
    Finalize(None, shutil.copytree, args=(folder, found), exitpriority=0)


@pytest.mark.parametrize(
    ("size", "fault", "told", "steps"),
    [
        ("64k", None, "room for|No space left on device", None),
        ("1m", fill, "No space left on device", 50),
        ("1m", protect, "Read-only file system", 50),
    ],
    ids=["no room", "full", "read-only"],
)
def test_a_disk_that_fails_takes_nothing_along(
    size: str, fault: Any, told: str, steps: int | None, fit: list[str], tmp_path: Path, tell: Tell
) -> None:
    disk, found = tmp_path / "disk", tmp_path / "found"
    disk.mkdir()
    args = [*fit, f"--trainer.default_root_dir={disk}"]
    setup = [
        partial(mount, disk, size),
        partial(look, disk, found),
        *([partial(at_epoch, 2, partial(fault, disk))] if fault else []),
    ]
    code = finish(start(tmp_path, args, *setup))
    if code == FORBIDDEN:
        pytest.skip(f"the kernel forbids it: {(tmp_path / 'err').read_text()}")
    assert code == 1
    line = err(tmp_path)
    assert re.search(told, line)
    kept = list(found.rglob("*.ckpt*"))
    assert sorted(path.name for path in kept) == (["best.ckpt", "last.ckpt"] if steps else [])
    if steps:
        assert load(only(found, "last.ckpt"))["global_step"] == steps
    tell(line)


def test_a_folder_that_may_not_be_written_to_is_told_before_training(
    fit: list[str], tmp_path: Path, tell: Tell
) -> None:
    (tmp_path / "mine").mkdir(mode=0o555)
    assert finish(start(tmp_path, [*fit, f"--trainer.default_root_dir={tmp_path / 'mine'}"], drop_capabilities)) == 1
    assert "Permission denied" in err(tmp_path)
    tell(err(tmp_path))


def test_a_corruption_is_told(main: Main, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit")
    last = only(Path(), "last.ckpt")
    content, chance = last.read_bytes(), random.Random(0)
    for number in range(CORRUPTIONS):
        damaged = bytearray(content)
        if number % 2:
            damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(content)) :]
        last.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last\.ckpt is (damaged|not a checkpoint)"):
            load(last)
    capsys.readouterr()
    main("test --ckpt_path last")
    printed = capsys.readouterr().out
    assert "last.ckpt is not a checkpoint: damaged" in printed or "last.ckpt is damaged" in printed
    assert "last: lightning_logs/ds_cnn_v1/version_0/checkpoints/best.ckpt" in printed
    assert "damaged" in error(main, f"test --ckpt_path {last}", capsys)
    assert error(main, f"publish {last} a.safetensors", capsys).endswith(" best.ckpt beside it is whole.")
    only(Path(), "best.ckpt").write_bytes(b"")
    assert "No checkpoint in lightning_logs/ds_cnn_v1/version_0/checkpoints is whole" in error(
        main, "fit --ckpt_path last", capsys
    )
    tell(f"{CORRUPTIONS // 2} bits flipped and {CORRUPTIONS // 2} ends cut off: all told, and best.ckpt used instead")


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (command, number)
        for place, command in enumerate(("fit", "validate", "test", "predict", "compare"))
        for number in (signal.SIGTERM, signal.SIGINT)
        if FULL or (place + number) % 2  # the one or the other
    ],
)
def test_a_command_ends_when_it_is_told_to(
    command: str, number: signal.Signals, fit: list[str], tmp_path: Path, tell: Tell
) -> None:
    if command == "compare":
        args = ["compare", *fit[1:]]
    elif command == "fit":
        args = fit
    else:
        assert finish(start(tmp_path, fit)) == 0
        args = [command, "--ckpt_path=last", fit[-1]]
    process = start(tmp_path, args, slow_down)
    while not (tmp_path / "begun").exists():
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    told_at = time.monotonic()
    assert finish(process) == 128 + number
    took_s = time.monotonic() - told_at
    assert took_s < 2  # where the batches that are left take ten and more
    assert "Traceback" not in (tmp_path / "err").read_text()
    tell(f"{command}: {number.name} ends it with {128 + number} after {took_s:.2f} s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] if FULL else [signal.SIGTERM])
def test_a_run_that_was_told_to_end_goes_on_exactly(number: signal.Signals, fit: list[str], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        folder.mkdir()
    assert finish(start(folders[0], fit)) == 0
    process = start(folders[1], fit)
    while not list(folders[1].rglob("best.ckpt")):
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    assert finish(process) == 128 + number
    (run,) = folders[1].rglob("version_0")
    step = load(only(folders[1], "last.ckpt"))["global_step"]
    assert [at for at, _ in curves(run)["val/accuracy"]][: step // 25] == [*range(24, step, 25)]
    assert "to go on: " in (folders[1] / "out").read_text()
    assert "Received" not in (folders[1] / "err").read_text()  # Lightning's line
    assert finish(start(folders[1], ["fit", "--ckpt_path=last"])) == 0
    assert differences(state(folders[1]), state(folders[0])) == []


@pytest.mark.parametrize("change", ["--model.lr=1e30", "--trainer.gradient_clip_val=1e-45 --model.lr=1e38"])
def test_a_diverging_run_ends_at_once(change: str, main: Main, capsys: pytest.CaptureFixture[str], tell: Tell) -> None:
    told = error(main, f"fit {change} --trainer.max_epochs=9", capsys)
    assert re.search(r"at step \d+ \(epoch 0\), at a learning rate of .*: try a smaller --model.lr", told)
    for path in Path().rglob("*.ckpt"):
        assert all(weights.isfinite().all() for weights in load(path)["state_dict"].values())
    tell(told)


def test_runs_that_begin_together_get_a_folder_each(fit: list[str], tmp_path: Path, tell: Tell) -> None:
    count = 20 if FULL else 4
    for process in [start(tmp_path, fit, partial(wait_until, time.time() + 3)) for _ in range(count)]:
        assert finish(process) == 0
    folders = {path.parent.parent.name for path in tmp_path.rglob("last.ckpt")}
    assert folders == {f"version_{number}" for number in range(count)}
    tell(f"{count} runs that began together: {len(folders)} folders")


def wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


@pytest.mark.slow
def test_a_save_is_quick(tmp_path: Path, tell: Tell) -> None:
    checkpoint, seconds = load(CONFIGS.parent / "lightning_logs/reference/ds_cnn_v3/checkpoints/last.ckpt"), []
    for _ in range(100):
        begun = time.perf_counter()
        CheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
        seconds.append(time.perf_counter() - begun)
    milliseconds = [1000 * at for at in sorted(seconds)]
    assert milliseconds[50] < 100  # of a disk that others use too
    tell(f"a checkpoint is saved in {milliseconds[50]:.0f} ms ({milliseconds[5]:.0f} to {milliseconds[95]:.0f})")
