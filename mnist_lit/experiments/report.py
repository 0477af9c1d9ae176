"""The report of a comparison: a table, the same as data, and a plot of the curves."""

import copy
import json
import math
import os
import platform
import re
import statistics
from collections import Counter
from datetime import date
from pathlib import Path
from typing import TypedDict

import lightning
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode

from mnist_lit import files
from mnist_lit.classifier import EXAMPLE, DigitClassifier


class Result(TypedDict):
    """What one run of a comparison gave."""

    recipe: str  # its file's name, and what is changed in it
    model: str
    seed: int
    parameters: int
    multiply_adds: int  # of the backbone, an image
    epochs: int
    train_images: int
    val_accuracy: float  # 0 to 1, after the last epoch
    test_accuracy: float  # 0 to 1, with the weights of the last epoch
    test_images: int
    seconds: float  # of the fit, from its start to its end
    environment: str


COLOURS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}


def folder_of_run(folder: Path, recipe: str, seed: int) -> Path:
    """Where a comparison keeps one of its runs."""
    return folder / recipe.replace("/", "_") / f"seed_{seed}"


def multiply_adds(model: DigitClassifier) -> int:
    """Multiplications with additions that the backbone's convolutions and linear layers take for one image."""
    backbone = copy.deepcopy(model.backbone).eval()
    images = model.preprocess(EXAMPLE.to(model.device))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        backbone(images)
    return counter.get_total_flops() // 2


def write_report(folder: Path, results: list[Result]) -> None:
    """Print the table of the runs' results and write it, the results and the plot into the folder."""
    environments = "; ".join(dict.fromkeys(result["environment"] for result in results))
    text = table(results) + f"\n{results[0]['test_images']:,} test images. {environments}\n"
    files.write(folder / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    files.write(folder / "results.md", text.encode())
    print(f"\n{text}")
    _plot(folder, results)
    print(f"{folder}: results.md, results.json, accuracy.png")


def describe_environment(device: torch.device) -> str:
    """What figures measured on the device depend on: hardware, threads, versions, date."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux; elsewhere the platform knows
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    processor = names[0] if names else platform.processor() or platform.machine()
    if device.type == "cuda":
        processor = f"{torch.cuda.get_device_name(device)}; {processor}"
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"lightning {lightning.__version__}, Python {platform.python_version()}; {date.today()}."
    )


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """The 95 % interval, lower and upper end, of an accuracy from 0 to 1 measured on so many images (Wilson, 1927)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    middle = (accuracy + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(accuracy * (1 - accuracy) / images + (z / (2 * images)) ** 2)
    return middle - half, middle + half


def table(results: list[Result]) -> str:
    """The results as a Markdown table, a row a recipe: the mean of its runs, with the interval of one such accuracy."""
    counts = Counter((result["recipe"], result["model"]) for result in results)
    kinds, seeds = list(counts), max(counts.values())
    columns = ["model", "parameters", "multiply-adds", "epochs", "validation %", "test % (95 % interval)"]
    columns += [f"test, mean ± sd of {seeds} seeds"] if seeds > 1 else []
    rows = [[*columns, "seconds"]]
    for name, model in kinds:
        runs = [result for result in results if (result["recipe"], result["model"]) == (name, model)]
        accuracies = [100 * result["test_accuracy"] for result in runs]
        mean = statistics.mean(accuracies)
        low, high = wilson(mean / 100, runs[0]["test_images"])
        row = [_label(runs[0])]
        row += [f"{runs[0]['parameters']:,}", f"{runs[0]['multiply_adds']:,}", str(runs[0]["epochs"])]
        row += [f"{100 * statistics.mean(result['val_accuracy'] for result in runs):.2f}"]
        row += [f"{mean:.2f} ({100 * low:.2f} to {100 * high:.2f})"]
        if seeds > 1:
            deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
            row += [f"{mean:.2f}{deviation}" + f" ({len(runs)})" * (len(runs) < seeds)]  # as others have failed
        rows.append([*row, f"{statistics.mean(result['seconds'] for result in runs):.0f}"])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table, of which the first row is the head."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"


def _label(result: Result) -> str:
    """The model, and what its recipe has beside the model's own."""
    name, *changes = result["recipe"].split(", ")
    model = result["model"] if name == result["model"].lower() else f"{result['model']} ({name})"
    return ", ".join([model, *changes])


def _plot(folder: Path, results: list[Result]) -> None:
    """Draw the curves of `accuracy.png` from the runs' TensorBoard logs: a panel a recipe, a line a run."""
    names = list(dict.fromkeys(result["recipe"] for result in results))
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4 * columns + 0.5, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    lowest = 100.0
    for panel in panels[len(names) :]:
        panel.axis("off")
    for panel, name in zip(panels, names, strict=False):
        runs = [result for result in results if result["recipe"] == name]
        labels = {"train": "train", "val": "validation", "test": "test, to look at"}
        for result in runs:
            events = EventAccumulator(str(folder_of_run(folder, name, result["seed"])))
            events.Reload()
            epoch_of = {event.step: epoch for epoch, event in enumerate(events.Scalars("train/accuracy"), start=1)}
            for tag, colour in COLOURS.items():
                # by its epoch: the final test stands again at the last one, and has a star of its own
                curve = {epoch_of[event.step]: 100 * event.value for event in events.Scalars(f"{tag}/accuracy")}
                if len(curve) == 1 and tag == "test":
                    continue
                panel.plot(list(curve), list(curve.values()), color=colour, label=labels.pop(tag, None))
                later = [accuracy for epoch, accuracy in curve.items() if epoch > 1 or len(curve) < 3]
                lowest = min(lowest, *later)  # the first epoch's would leave no room for the others
        finals = [100 * result["test_accuracy"] for result in runs]
        label = f"test, final: {statistics.mean(finals):.2f} %"
        panel.plot([runs[0]["epochs"]] * len(finals), finals, "*", ms=11, color=COLOURS["test"], label=label)
        panel.set(xlabel="epoch")
        panel.set_title(f"{_label(runs[0])}: {runs[0]['parameters']:,} parameters", fontsize="medium", wrap=True)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right", fontsize="small")
    panels[0].set(ylabel="accuracy %", ylim=(math.floor(lowest) - 0.5, 100.2))
    figure.savefig(folder / "accuracy.png", dpi=120)
