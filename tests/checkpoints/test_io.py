"""A checkpoint's file is always whole, and a damaged one is detected."""

import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.bare import fit, loader
from helpers.commands import LAST, REFERENCE, Main, error_line
from helpers.processes import FULL, begin, kill, wait_until
from helpers.runs import differences

from mnist_lit import UserError
from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.checkpoints.io import AtomicCheckpointIO, load
from mnist_lit.checkpoints.publish import pack_safetensors
from mnist_lit.classifier import DigitClassifier

SAVES = 200 if FULL else 20


def save_for_ever(path: Path) -> None:
    """Save checkpoints of a megabyte, each with weights that are all the same number."""
    number = 0
    while True:
        number += 1
        AtomicCheckpointIO().save_checkpoint(
            {"state_dict": {"w": torch.full((2**18,), number)}, "global_step": number}, path
        )


@pytest.mark.slow
def test_killed_save_leaves_a_whole_checkpoint(tmp_path: Path, report: Callable[[str], None]) -> None:
    path, moments, partial_files = tmp_path / "last.ckpt", random.Random(0), 0
    for _ in range(SAVES):
        earlier = path.stat().st_mtime_ns if path.exists() else 0
        process = begin(save_for_ever, path)
        wait_until(lambda: path.exists() and path.stat().st_mtime_ns != earlier, "the first save", process=process)  # noqa: B023
        time.sleep(moments.uniform(0, 0.05))
        kill(process)
        partial_files += len(list(tmp_path.iterdir())) - 1
        checkpoint = load(path)
        assert (checkpoint["state_dict"]["w"] == checkpoint["global_step"]).all()
    assert partial_files  # some kills hit a file that was being written
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]  # partial files are replaced
    report(f"killed while saving, {partial_files} of {SAVES} times with a part written: {SAVES} whole checkpoints")


@pytest.mark.slow
def test_checkpoint_is_whole_while_another_process_saves(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    process = begin(save_for_ever, path)
    wait_until(path.exists, "the first save", process=process)
    loaded, deadline = [0], time.monotonic() + 60
    while (len(loaded) < SAVES or loaded[-1] < 10) and time.monotonic() < deadline:
        checkpoint = load(path)
        assert (checkpoint["state_dict"]["w"] == checkpoint["global_step"]).all()
        loaded.append(checkpoint["global_step"])
    assert loaded == sorted(loaded)
    assert loaded[-1] >= 10


def corrupt(content: bytes, chance: random.Random, truncate: bool) -> bytes:
    """The content cut off at a random place, or with a random bit flipped."""
    damaged, place = bytearray(content), chance.randrange(len(content))
    if truncate:
        del damaged[place:]
    else:
        damaged[place] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def saved_file(source: str, folder: Path) -> Path:
    """A checkpoint of a tracked run, the published one of such a run, or one that a bare Trainer has saved."""
    if source == "published":
        path = folder / "a.safetensors"
        path.write_bytes(pack_safetensors(load(REFERENCE / "ds_cnn_v2/checkpoints/last.ckpt")))
    elif source == "bare Trainer":
        path = folder / "a.ckpt"
        images, labels = torch.zeros(20, 1, 28, 28, dtype=torch.uint8), torch.arange(20) % 10
        with warnings.catch_warnings(action="ignore"):  # Lightning's, of few batches
            fit(DigitClassifier(DS_CNN_V2()), loader(images, labels)).save_checkpoint(path)
    else:
        path = folder / "last.ckpt"
        path.write_bytes((REFERENCE / source / "checkpoints/last.ckpt").read_bytes())
    return path


@pytest.mark.parametrize(("flips", "cuts"), [(20, 10), pytest.param(1000, 300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", ["ds_cnn_v1", "ds_cnn_v2", "ds_cnn_v3", "published", "bare Trainer"])
def test_corruption_is_detected_or_harmless(source: str, flips: int, cuts: int, tmp_path: Path) -> None:
    path = saved_file(source, tmp_path)
    content, expected = path.read_bytes(), load(path)
    chance, detected = random.Random(flips), 0
    for number in range(flips + cuts):
        is_truncated = number < cuts
        path.write_bytes(corrupt(content, chance, is_truncated))
        try:
            loaded = load(path)
        except UserError as error:
            assert f"{path.name} is not a checkpoint" in str(error)  # noqa: PT017
            detected += 1
        else:
            assert not is_truncated
            assert differences(loaded, expected) == []
    assert detected > 0.8 * (flips + cuts)


def test_whole_checkpoint_replaces_a_corrupt_one(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --trainer.max_epochs=1")
    LAST.write_bytes(corrupt(LAST.read_bytes(), random.Random(0), truncate=True))
    best = LAST.with_name("best.ckpt")
    capsys.readouterr()
    main("test --ckpt_path last")
    printed = capsys.readouterr().out
    assert "damaged" in printed
    assert f"last: {best}" in printed
    assert "damaged" in error_line(main, f"test --ckpt_path {LAST}", capsys)
    assert "best.ckpt" in error_line(main, f"publish {LAST} a.safetensors", capsys)
    best.write_bytes(b"")
    assert f"All checkpoints in {LAST.parent} are damaged" in error_line(main, "fit --ckpt_path last", capsys)


@pytest.mark.slow
def test_save_is_quick(tmp_path: Path, report: Callable[[str], None]) -> None:
    checkpoint = load(REFERENCE / "ds_cnn_v3/checkpoints/last.ckpt")
    seconds = []
    for _ in range(100):
        started_at = time.perf_counter()
        AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
        seconds.append(time.perf_counter() - started_at)
    milliseconds = [1000 * at for at in sorted(seconds)]
    assert milliseconds[5] < 100  # the others may wait for other users of the disk
    report(f"a checkpoint is saved in {milliseconds[50]:.0f} ms ({milliseconds[5]:.0f} to {milliseconds[95]:.0f})")
