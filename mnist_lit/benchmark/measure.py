"""`mnist-lit benchmark`: the speed of `mnist-lit fit` beside other ways to train."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mnist_lit import UserError, files
from mnist_lit.benchmark.baselines import plain_loop, published_speed, tutorial_speed
from mnist_lit.benchmark.report import spread, table
from mnist_lit.benchmark.timing import CopyCheckpoint, EpochTimer, FitClock
from mnist_lit.callbacks.cuda_graphs import CUDAGraphs
from mnist_lit.command_parser import command_line
from mnist_lit.describe import describe_environment
from mnist_lit.files import LOGS
from mnist_lit.run.lightning_cli import DigitCLI, run

BATCH_SIZES = (32, 64, 128, 512, 2048)

RECIPES = (("ds_cnn_v1",), ("ds_cnn_v2",), ("ds_cnn_v3",), ("fast",), ("published",))
"""Configurations of the fits that the part `recipes` times."""

GPU_RECIPES = (("ds_cnn_v1", "gpu"), ("ds_cnn_v2", "gpu"), ("ds_cnn_v3", "gpu"))
"""Additional ones on a GPU."""

GRAPHS = [f"--trainer.callbacks+={CUDAGraphs.__module__}.CUDAGraphs"]
"""Options of `mnist-lit fit` that add CUDA graphs to a recipe."""

PLAIN = ["--model.image_size=28", "--model.contrast=false", "--model.threshold=0", "--model.deskew=false"]
PLAIN += ["--model.center=false", "--model.rescale=false", "--model.backbone.dilation=1"]
"""Options of `mnist-lit fit` with which a recipe trains on plain images of 28 px."""

UNSUITABLE = ("--ckpt_path", "--trainer.devices", "--trainer.num_nodes")
"""Options of `mnist-lit fit` that a benchmark cannot use, because it makes new runs in one process."""


def overhead(flags: list[str], rounds: int, batch_sizes: Sequence[int] = BATCH_SIZES) -> list[dict[str, Any]]:
    """Compare the fit with the plain loop, by batch size."""
    rows = []
    for batch_size in batch_sizes:
        fit, epochs = _fit_in_turns([*flags, f"--data.batch_size={batch_size}"], rounds)
        model = {"model": type(fit.model.backbone).__name__, "image_size": fit.model.preprocess.image_size}
        figures = {key: spread([epoch[key] for epoch in epochs]) for key in epochs[0]}
        rows.append(model | {"batch_size": batch_size} | figures)
    return rows


def others(flags: list[str], rounds: int, batches: int = 60) -> dict[str, Any]:
    """Compare the fit, with the recipe's input and with plain images of 28 px, with the usual ways to train.

    Raises:
        UserError: The recipe's network is not one of the three.
    """
    speeds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, changes in (("recipe", []), ("28 px", PLAIN)):
            fit, (epoch,) = _fit_in_turns([*flags, *changes], 1)
            widths: Any = getattr(fit.model.backbone, "widths", None)
            if widths is None:
                raise UserError("The part `others` needs one of the three networks of this project.")
            speeds[f"fit, {name}"].append(epoch["fit_images_per_s"])
            speeds[f"plain loop, {name}"].append(epoch["plain_images_per_s"])
        data, batch_size = fit.datamodule.splits["train"], fit.datamodule.batch_size
        speeds["per-sample loader"].append(tutorial_speed(data, widths, batch_size, batches))
        speeds["published"].append(published_speed(data, widths, 2 * batches))
    return {
        "model": type(fit.model.backbone).__name__,
        "batch_size": batch_size,
        "images_per_s": {name: spread(values) for name, values in speeds.items()},
        "ratios": {
            f"{ours} / {theirs}": spread([a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True)])
            for ours in ("fit, recipe", "fit, 28 px")
            for theirs in ("per-sample loader", "published")
        },
    }


def recipes(flags: list[str], _: int, configs: Sequence[tuple[str, ...]] = RECIPES) -> list[dict[str, Any]]:
    """Time a whole fit of each recipe, in its own process; on a GPU also with gpu.yaml.

    Raises:
        UserError: A fit fails.
    """
    options = [flag for flag in flags if not flag.startswith("--config=")]
    rows = []
    for names in (*configs, *(GPU_RECIPES if torch.cuda.is_available() else ())):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "times.json"
            recipe = [*(f"--config={config}" for config in names), *options]
            clock = [f"--trainer.callbacks+={FitClock.__module__}.FitClock", f"--trainer.callbacks.path={path}"]
            clock.append(f"--trainer.callbacks.start={time.time()}")
            command = [sys.executable, "-m", "mnist_lit", *_fit(folder, [*recipe, *clock])]
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                raise UserError(f"{command_line(command)} failed.")
            rows.append({"recipe": " ".join(names)} | json.loads(path.read_text()))
    return rows


def graphs(flags: list[str], rounds: int, batch_sizes: Sequence[int] = BATCH_SIZES[1:]) -> dict[str, Any]:
    """Compare the fit with and without CUDA graphs, and check whether a fit with them can be repeated and resumed."""
    rows = []
    for batch_size in batch_sizes:
        speeds: dict[str, list[float]] = defaultdict(list)
        options = [*flags, f"--data.batch_size={batch_size}"]
        for _ in range(rounds):
            (without,), (graphed,) = (_fit_in_turns([*options, *more], 1)[1] for more in ([], GRAPHS))
            speeds["fit"].append(without["fit_images_per_s"])
            speeds["with graphs"].append(graphed["fit_images_per_s"])
            speeds["plain loop"].append(without["plain_images_per_s"])
        rows.append({"batch_size": batch_size} | {name: spread(values) for name, values in speeds.items()})
    return {"speeds": rows, "equal": equal_weights([*flags, *GRAPHS], flags)}


def equal_weights(flags: list[str], without_graphs: list[str]) -> dict[str, bool]:
    """Whether the weights after two epochs are bitwise equal to those of the fit repeated, resumed, and without graphs.

    Args:
        flags: Options of `mnist-lit fit`.
        without_graphs: The same without CUDA graphs.
    """
    with tempfile.TemporaryDirectory() as folder:
        first_epoch = CopyCheckpoint(Path(folder) / "first_epoch.ckpt")
        whole, *rest = (
            run(_fit(folder, [*options, "--trainer.max_epochs=2"]), callbacks=callbacks).model.cpu().state_dict()
            for options, callbacks in (
                (flags, [first_epoch]),
                (flags, []),
                ([*flags, f"--ckpt_path={first_epoch.path}"], []),
                (without_graphs, []),
            )
        )
    return {
        name: all(torch.equal(tensor, weights[key]) for key, tensor in whole.items())
        for name, weights in zip(("repeated", "resumed", "without graphs"), rest, strict=True)
    }


Part = Callable[[list[str], int], Any]
"""A function of the options of `mnist-lit fit` and the number of rounds."""

PARTS: dict[str, Part] = {"overhead": overhead, "others": others, "recipes": recipes, "graphs": graphs}


def main(options: argparse.Namespace, parts: Mapping[str, Part] = PARTS) -> None:
    """Run `mnist-lit benchmark`."""
    for option in (flag.partition("=")[0] for flag in options.flags):
        if option in UNSUITABLE:
            raise UserError(f"A benchmark makes new runs in one process: leave out {option}.")
    for name in options.names:
        if name not in parts:
            raise UserError(f"There is no part {name!r}; choose from {', '.join(parts)}.")
        if name == "graphs" and not torch.cuda.is_available():
            raise UserError("The part `graphs` needs a GPU.")
    flags = [*(f"--config={config}" for config in options.config or ["ds_cnn_v1"]), *options.flags]
    folder = Path(LOGS) / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "benchmark.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    environment = describe_environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    available = [name for name in parts if name != "graphs" or torch.cuda.is_available()]
    for name in options.names or available:
        result[name] = parts[name](flags, options.rounds)
        result.setdefault("environments", {})[name] = environment
        files.write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
    files.write_atomically(folder / "benchmark.md", table(result).encode())
    print(f"\n{table(result)}\n{folder}: benchmark.md, benchmark.json")


def _fit(folder: str, flags: list[str]) -> list[str]:
    return ["fit", *flags, "--trainer.enable_model_summary=false", f"--trainer.default_root_dir={folder}"]


def _fit_in_turns(flags: list[str], rounds: int) -> tuple[DigitCLI, list[dict[str, float]]]:
    """Run a fit in turn with the plain loop, and return the speeds of its epochs after a first one to warm up."""
    timer = EpochTimer(plain_loop)
    with tempfile.TemporaryDirectory() as folder:
        fit = run(_fit(folder, [*flags, f"--trainer.max_epochs={rounds + 1}"]), callbacks=[timer])
    batches, data = int(fit.trainer.num_training_batches), fit.datamodule
    images = min(batches * data.batch_size, len(data.splits["train"]))
    return fit, [
        {
            "fit_images_per_s": images / epoch["fit"],
            "plain_images_per_s": images / epoch["plain"],
            "ratio": epoch["plain"] / epoch["fit"],
            "validation_s": epoch["validation"],
        }
        for epoch in timer.epochs[1:]
    ]
