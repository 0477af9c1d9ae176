"""How fast `mnist-lit fit` trains: beside a plain loop, the usual loader and the published training."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from mnist_lit import UserError, files
from mnist_lit.benchmark.clock import Clock
from mnist_lit.benchmark.loops import Rounds, Widths, published_rate, tutorial_rate
from mnist_lit.benchmark.report import Spread, figure, table
from mnist_lit.checkpoints.io import LOGS, project_path
from mnist_lit.data.batches import DigitDataset
from mnist_lit.experiments.report import describe_environment
from mnist_lit.run.lightning_cli import DigitCLI, run

BATCH_SIZES = (32, 64, 128, 512, 2048)
IMAGE_COUNTS = (10_000, 30_000, 60_000, 120_000, 240_000)
SHARED_BATCH_SIZES = (128, 512)
RECIPES = ("ds_cnn_v1", "ds_cnn_v2", "ds_cnn_v3")
TUTORIAL_BATCHES = 60
"""Batches of the loader that hands out sample by sample: it is slow, and steady."""

PROMISED = 0.9749
"""The accuracy that the specification promises of DS_CNN_V1."""


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit benchmark` with its options.

    Raises:
        UserError: What was asked for cannot be done.
    """
    if any(flag.partition("=")[0] == "--ckpt_path" for flag in options.flags):
        raise UserError("A benchmark trains anew: leave out --ckpt_path.")
    if any(flag.partition("=")[0] in ("--trainer.devices", "--trainer.num_nodes") for flag in options.flags):
        raise UserError("A benchmark chooses the processes itself: leave out --trainer.devices and num_nodes.")
    parts: dict[str, Callable[[list[str], int], Any]] = {
        "overhead": overhead, "others": others, "growth": growth, "processes": processes, "recipes": recipes
    }  # fmt: skip
    for part in options.names:
        if part not in parts:
            raise UserError(f"There is no part {part!r}; choose from {', '.join(parts)}.")
    flags = ["--config", options.config or str(project_path("configs/ds_cnn_v1.yaml")), *options.flags]
    folder = Path(LOGS) / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = folder / "benchmark.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result["environment"] = describe_environment(device)
    for part in options.names or parts:
        result[part] = parts[part](flags, options.rounds)
        files.write(path, (json.dumps(result, indent=2) + "\n").encode())
    text = table(result)
    files.write(folder / "benchmark.md", text.encode())
    figure(result).savefig(folder / "benchmark.png", dpi=120)
    print(f"\n{text}\n{folder}: benchmark.md, benchmark.json, benchmark.png")


def overhead(flags: list[str], rounds: int) -> list[dict[str, Any]]:
    """Images a second of the fit and of the plain loop, and their ratio, by batch size."""
    rows = []
    for batch_size in BATCH_SIZES:
        fit, timed = _rounds([*flags, f"--data.batch_size={batch_size}"], rounds + 1)
        images = _images_of_an_epoch(fit)
        ratios = [plain / ours for plain, ours in zip(timed.plain_s, timed.fit_s, strict=True)]
        rows.append(
            {
                "model": type(fit.model.backbone).__name__,
                "image_size": fit.model.preprocess.image_size,
                "batch_size": batch_size,
                "fit_images_per_s": spread([images / seconds for seconds in timed.fit_s[1:]]),
                "plain_images_per_s": spread([images / seconds for seconds in timed.plain_s[1:]]),
                "ratio": spread(ratios[1:]),
                "validation_s": spread(timed.validation_s[1:]),
            }
        )
    return rows


def others(flags: list[str], rounds: int) -> dict[str, Any]:
    """Images a second of the fit, at the recipe's input size and at 28 px as published, and of the usual ways."""
    plain = ["--model.image_size=28", "--model.deskew=false", "--model.center=false", "--model.rescale=false"]
    ways: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, changes in (("fit, recipe", []), ("fit, 28 px", [*plain, "--model.backbone.dilation=1"])):
            fit, timed = _rounds([*flags, *changes], 2)
            widths: Widths = getattr(fit.model.backbone, "widths", (0, 0))
            if not any(widths):
                raise UserError("The part `others` takes one of the three networks of the specification.")
            images = _images_of_an_epoch(fit)
            ways.setdefault(name, []).append(images / timed.fit_s[1])
            ways.setdefault(name.replace("fit", "plain loop"), []).append(images / timed.plain_s[1])
        data: DigitDataset = fit.datamodule.splits["train"]
        with tempfile.TemporaryDirectory() as folder:
            tutorial = tutorial_rate(data, widths, fit.datamodule.batch_size, TUTORIAL_BATCHES, folder)
        ways.setdefault("per-sample loader", []).append(tutorial)
        ways.setdefault("published", []).append(published_rate(data, widths, 2 * TUTORIAL_BATCHES))
    return {
        "model": type(fit.model.backbone).__name__,
        "batch_size": fit.datamodule.batch_size,
        "images_per_s": {name: spread(rates) for name, rates in ways.items()},
        "ratios": {
            f"{ours} / {theirs}": spread([a / b for a, b in zip(ways[ours], ways[theirs], strict=True)])
            for ours in ("fit, recipe", "fit, 28 px")
            for theirs in ("per-sample loader", "published")
        },
    }


def growth(flags: list[str], rounds: int) -> dict[str, Spread]:
    """Seconds of an epoch by the number of training images."""
    seconds: dict[str, list[float]] = {str(images): [] for images in IMAGE_COUNTS}
    _rounds(flags, 1, f"--trainer.callbacks.images={IMAGE_COUNTS[0]}", "--trainer.callbacks.plain=false")  # warms up
    for _ in range(rounds):
        for images, measured in seconds.items():
            _, timed = _rounds(flags, 1, f"--trainer.callbacks.images={images}", "--trainer.callbacks.plain=false")
            measured += timed.fit_s
    return {images: spread(measured) for images, measured in seconds.items()}


def processes(flags: list[str], rounds: int) -> list[dict[str, Any]]:
    """Images a second of epochs with their validation, of one process and of two, by batch size of each."""
    rows = []
    for batch_size in SHARED_BATCH_SIZES:
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for count, measured in rates.items():
                options = [f"--trainer.devices={count}", f"--data.batch_size={batch_size}", "--trainer.accelerator=cpu"]
                timed = _timed_fit([*flags, *options, "--trainer.max_epochs=4"], os.environ | {"OMP_NUM_THREADS": "1"})
                ends = [at for at, _ in timed["validations"]]
                epochs_s = [end - start for start, end in pairwise(ends)]
                measured.append(timed["train_images"] / statistics.median(epochs_s))
        ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
        row = {"one_images_per_s": spread(rates[1]), "two_images_per_s": spread(rates[2]), "ratio": spread(ratios)}
        rows.append({"batch_size": batch_size} | row)
    return rows


def recipes(flags: list[str], _: int) -> list[dict[str, Any]]:
    """A whole fit of each of the three recipes, and how long a bare import of LightningCLI takes before each."""
    rows = []
    for name in RECIPES:
        start = time.time()
        subprocess.run([sys.executable, "-c", "import lightning.pytorch.cli"], check=True)
        bare_s = time.time() - start
        start = time.time()
        clock = _timed_fit(["--config", str(project_path(f"configs/{name}.yaml")), *flags[2:]])
        passed = [at for at, accuracy in clock["validations"] if accuracy > PROMISED]
        rows.append(
            {
                "model": name.upper(),
                "bare_import_s": bare_s,
                "first_step_s": clock["first_step"] - start,
                "fit_s": clock["end"] - clock["first_step"],
                "epochs": clock["epochs"],
                "promised_s": passed[0] - clock["first_step"] if passed else None,
                "peak_memory_gb": clock["peak_memory_gb"],
            }
        )
    return rows


def _timed_fit(flags: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What the clock of a fit in a process of its own has written down.

    Raises:
        UserError: It failed, and told why.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_lit", *_fit(folder, flags, Clock)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, env=environment).returncode:
            raise UserError(f"{' '.join(command)} failed.")
        clock: dict[str, Any] = json.loads(next(Path(folder).glob("**/clock.json")).read_text())
    return clock


def _fit(folder: str, flags: list[str], callback: type[Callback], *settings: str) -> list[str]:
    """The arguments of a fit in the folder, with the callback and its settings."""
    timer = f"--trainer.callbacks+={callback.__module__}.{callback.__name__}"
    options = ["--trainer.enable_model_summary=false", f"--trainer.default_root_dir={folder}"]
    return ["fit", *flags, *options, timer, *settings]


def _rounds(flags: list[str], epochs: int, *settings: str) -> tuple[DigitCLI, Rounds]:
    """A fit of so many epochs, which are timed."""
    with tempfile.TemporaryDirectory() as folder:
        fit = run(_fit(folder, [*flags, f"--trainer.max_epochs={epochs}"], Rounds, *settings))
    callbacks: list[Callback] = fit.trainer.callbacks  # type: ignore[attr-defined]
    return fit, next(callback for callback in callbacks if isinstance(callback, Rounds))


def _images_of_an_epoch(fit: DigitCLI) -> int:
    batches, data = int(fit.trainer.num_training_batches), fit.datamodule
    return min(batches * int(data.batch_size), len(data.splits["train"]))


def spread(values: list[float]) -> Spread:
    """The median, the least and the most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
