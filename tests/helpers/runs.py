"""Read what runs have saved, and compare it bit for bit."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from helpers.commands import names
from mnist_lit.checkpoints.io import load

Curves = dict[str, list[tuple[int, float]]]
"""Steps and values by tag."""


def only(folder: Path, pattern: str) -> Path:
    """The one file below a folder that matches a pattern."""
    (found,) = folder.rglob(pattern)
    return found


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """The places where two nested values differ, in type or in any bit."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [where]
    if isinstance(ours, list | tuple):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict):
        both = [name for key in ours if key in theirs for name in differences(ours[key], theirs[key], f"{where}/{key}")]
        return both + [f"{where}/{key}" for key in ours.keys() ^ theirs.keys()]
    return [] if type(ours) is type(theirs) and ours == theirs else [f"{where}: {ours} {theirs}"]


def curves(folder: Path) -> Curves:
    """The curves in a run's TensorBoard log."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def picture_steps(folder: Path, tag: str) -> list[int]:
    """The steps at which a picture is in a run's TensorBoard log."""
    return [event.step for event in EventAccumulator(str(folder)).Reload().Images(tag)]


def state(folder: Path) -> tuple[dict[str, Any], Curves]:
    """The last checkpoint and the curves of the one run below a folder."""
    last = only(folder, "last.ckpt")
    assert names(last.parent) == ["best.ckpt", "last.ckpt"]
    checkpoint = load(last)
    # Lightning counts calls of the schedule's step; with "plateau" it calls it without effect after the checkpoint
    del checkpoint["loops"]["fit_loop"]["epoch_loop.scheduler_progress"]
    return checkpoint, curves(last.parent.parent)


def untimed(report: Path) -> list[dict[str, Any]]:
    """The results of a comparison without seconds and date."""
    runs: list[dict[str, Any]] = json.loads(report.read_text())
    for run in runs:
        del run["seconds"]
        run["environment"], day = run["environment"].rsplit("; ", 1)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d\.", day)
    return runs
