"""What runs leave behind, and whether two have left the same."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from mnist_lit.checkpoints.io import load


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.rglob(pattern)
    return found


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two values are not the same, bit for bit."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [where]
    if isinstance(ours, list | tuple):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict):
        kept = [name for key in ours if key in theirs for name in differences(ours[key], theirs[key], f"{where}/{key}")]
        return kept + [f"{where}/{key}" for key in ours.keys() ^ theirs.keys()]
    return [] if type(ours) is type(theirs) and ours == theirs else [f"{where}: {ours} {theirs}"]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def state(folder: Path) -> tuple[dict[str, Any], dict[str, list[tuple[int, float]]]]:
    """All that a run ends with: its last checkpoint and its curves."""
    last = only(folder, "last.ckpt")
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    checkpoint = load(last)
    # how often Lightning has called the schedule's step, which for "plateau" is after the checkpoint, to no effect
    del checkpoint["loops"]["fit_loop"]["epoch_loop.scheduler_progress"]
    return checkpoint, curves(last.parent.parent)


def untimed(report: Path) -> list[dict[str, Any]]:
    """A comparison's results, without what the clock tells: the seconds, and the day at the environment's end."""
    runs: list[dict[str, Any]] = json.loads(report.read_text())
    for run in runs:
        del run["seconds"]
        run["environment"], day = run["environment"].rsplit("; ", 1)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d\.", day)
    return runs
